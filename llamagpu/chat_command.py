"""``llamagpu chat``: a conversation at the terminal, or line by line through a pipe."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

from llamagpu.chat_input import talk_at_the_terminal
from llamagpu.chat_room import Room
from llamagpu.chat_templates import read_template_args
from llamagpu.commands import about_faithful, drawn_seed, say_sampling, token_limit
from llamagpu.errors import printable
from llamagpu.llm import DEMO, load
from llamagpu.memory import Memory
from llamagpu.models.window import window_and_sinks
from llamagpu.sampling import asked_for
from llamagpu.terminal import ProgressBar, say
from llamagpu.text_files import read_text_file


def chat(
    model: str = DEMO,
    *,
    device: str = "auto",
    system: str | None = None,
    template: str = "auto",
    template_args: str | None = None,
    document: str | None = None,
    session: str | None = None,
    session_format: str = "auto",
    tell_time: bool = False,
    max_tokens: int = 1024,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    sampler_order: str | None = None,
    seed: int | None = None,
    stop: list[str] | None = None,
    ignore_eos: bool = False,
    tokenizer: str | None = None,
    context: int | None = None,
    kv_bits: int = 16,
    window: int | None = None,
    sinks: int | None = None,
    memory_update: str = "chunk",
    recurrent: bool = False,
    faithful: bool = False,
    jsonl: bool = False,
    history: bool = True,
) -> None:
    """Talk with a model. /help lists what else can be said. Through a pipe, each line is a turn.

    Args:
        model: A model file or folder, or demo, the built-in model.
        device: auto, cuda, cuda:N or cpu. auto says which it takes, and why.
        system: What the model is told before the conversation.
        template: auto, model (its own), llama2 or plain: how the conversation is written for the model.
        template_args: A JSON object of what the model's template may ask for, such as {"enable_thinking": false}.
        document: Let the model read this file first; - is standard input, and then the terminal.
        session: Go on from this file where it exists, and save in it after every turn and at the end.
        session_format: auto (what FILE is, and llamagpu if it is new), llamagpu, or llama2rnn: that program's files.
        tell_time: Put the time of each turn into what the model reads.
        max_tokens: Stop an answer after this many tokens. -1: no limit but the context.
        temperature: 0 always takes the most likely token; higher is more varied. Default: 0.8, of micro_rwkv 1.
        top_k: Choose among the k most likely tokens. 0: among all. Default: 40, of micro_rwkv 0.
        top_p: Choose among the most likely tokens that together have this probability. Default: 0.95, of micro_rwkv 1.
        min_p: Leave out tokens less likely than this fraction of the most likely one. Default: 0.05, of micro_rwkv 0.
        repetition_penalty: Above 1 discourages tokens that are in the context already, below 1 encourages them.
        sampler_order: In what order these choose. Default: top_k,top_p,min_p,temperature, as in llama.cpp.
        seed: The same seed gives the same answers. By default, and with -1, a new one is drawn, and shown.
        stop: End an answer before this text. May be given several times.
        ignore_eos: Let an answer go on past the tokens that end it, until --max_tokens or --stop.
        tokenizer: The tokenizer file, where the model does not hold it and it is not beside it.
        context: Number of positions to keep. By default what the model was trained for.
        kv_bits: 8 keeps keys and values in half the memory, with a little loss; 16 as they are.
        window: Keep the first few and the last so many tokens alone: the talk has no end, and the rest is forgotten.
        sinks: With --window, how many of the first tokens are kept. By default 4.
        memory_update: Of a model with a memory: renew it after each chunk, as it was trained, or after each token.
        recurrent: Of a micro_rwkv run the recurrent part alone: fast, and an approximation that is not the model.
        faithful: Do as the program that the file comes from, where that differs: for comparison, on the CPU.
        jsonl: Read {"user": "..."} in each line of stdin, write {"assistant": "...", "stop_reason": "..."} for each.
        history: Keep what is typed for the next chats, in ~/.local/state/llamagpu.
    """
    seed, max_tokens = drawn_seed(seed), token_limit(max_tokens)
    asked = asked_for(
        temperature, top_k, top_p, min_p, repetition_penalty, seed, sampler_order
    )  # refuses before any work
    values = None if template_args is None else read_template_args(template_args)
    memory_file = Memory.held(session, session_format) if session is not None else None
    text = read_text_file(document, f"--document {document}") if document is not None else None
    if document == "-":
        talk_at_the_terminal()
    bars: dict[str, ProgressBar] = {}

    def on_work(title: str, n: int, total: int) -> None:
        bars.setdefault(title, ProgressBar(title, "B" if total else "kernel", total)).advance(n)

    of_window = window_and_sinks(window, sinks)
    llm = load(model, device, tokenizer, context, on_work, faithful, kv_bits, *of_window, memory_update, recurrent)
    if memory_file is not None:
        memory_file.check(llm)
    sampling = replace(llm.default_sampling, **asked)
    room = Room(
        llm, template, system, sampling, max_tokens, stop or [], tell_time, memory_file, ignore_eos, values, jsonl,
        history,
    )  # fmt: skip
    for bar in bars.values():
        bar.close()
    for note in llm.notes:
        say(printable(note))
    say(": ".join(filter(None, (f"running on {llm.device.description}", llm.device.why_not_gpu))))
    if faithful:
        say(about_faithful(llm))
    say_sampling(llm, sampling)
    try:
        with room.ending if memory_file is not None else nullcontext():
            room.open()
            if text is not None:
                room.read_document(text)
            room.talk()
    finally:
        if memory_file is not None:
            memory_file.release()
