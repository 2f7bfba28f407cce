"""``llamagpu run``: a text that goes on. It goes to stdout; everything about it goes to stderr."""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from dataclasses import asdict, replace

from llamagpu.devices import peak_memory_bytes
from llamagpu.errors import UsageError, printable
from llamagpu.generation import MAX_TOKENS, Answer
from llamagpu.llm import DEMO, LLM, load
from llamagpu.memory import Memory
from llamagpu.models.window import window_and_sinks
from llamagpu.run_json import check_json, json_of
from llamagpu.sampling import SamplingParams, asked_for, check_whole
from llamagpu.terminal import (
    ENDING,
    Interrupt,
    ProgressBar,
    count_tokens,
    dim,
    human_bytes,
    say,
    visible,
    write_text,
)
from llamagpu.text_files import STANDARD_INPUT, piped_text, read_text_file, without_newline

DEMO_PROMPT = "Once upon a time"


def run(
    model: str = DEMO,
    prompt: str | None = None,
    *,
    device: str = "auto",
    max_tokens: int = 256,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    sampler_order: str | None = None,
    seed: int | None = None,
    stop: list[str] | None = None,
    ignore_eos: bool = False,
    prompt_file: str | None = None,
    tokenizer: str | None = None,
    context: int | None = None,
    kv_bits: int = 16,
    window: int | None = None,
    sinks: int | None = None,
    memory_update: str = "chunk",
    special: bool = False,
    echo: bool = False,
    faithful: bool = False,
    session: str | None = None,
    session_format: str = "auto",
    recurrent: bool = False,
    json: bool = False,
    logprobs: int | None = None,
) -> None:
    """Continue a text. stdout is the generated text and nothing else.

    Args:
        model: A model file or folder, or demo, the built-in model.
        prompt: The text to continue. - is standard input, and so is no PROMPT where stdin is not a terminal.
        device: auto, cuda, cuda:N or cpu. auto says which it takes, and why.
        max_tokens: Stop after this many new tokens. -1: no limit but the context.
        temperature: 0 always takes the most likely token; higher is more varied. Default: 0.8, of micro_rwkv 1.
        top_k: Choose among the k most likely tokens. 0: among all. Default: 40, of micro_rwkv 0.
        top_p: Choose among the most likely tokens that together have this probability. Default: 0.95, of micro_rwkv 1.
        min_p: Leave out tokens less likely than this fraction of the most likely one. Default: 0.05, of micro_rwkv 0.
        repetition_penalty: Above 1 discourages tokens that are in the context already, below 1 encourages them.
        sampler_order: In what order these choose. Default: top_k,top_p,min_p,temperature, as in llama.cpp.
        seed: The same seed gives the same text. By default, and with -1, a new one is drawn, and shown.
        stop: Stop before this text. May be given several times.
        ignore_eos: Go on past the tokens that end a text, until --max_tokens or --stop.
        prompt_file: Read the prompt from this file, without a newline at its end; - is standard input.
        tokenizer: The tokenizer file, where the model does not hold it and it is not beside it.
        context: Number of positions to keep. By default what the model was trained for.
        kv_bits: 8 keeps keys and values in half the memory, with a little loss; 16 as they are.
        window: Keep the first few and the last so many tokens alone: the text has no end, and the rest is forgotten.
        sinks: With --window, how many of the first tokens are kept. By default 4.
        memory_update: Of a model with a memory: renew it after each chunk, as it was trained, or after each token.
        special: Read control tokens that are written in the prompt. Otherwise they are text as any other.
        echo: Print the prompt on stdout too. (A terminal shows it in any case.)
        faithful: Do as the program that the file comes from, where that differs: for comparison, on the CPU.
        session: Go on from this file where it exists, and save in it at the end.
        session_format: auto (what FILE is, and llamagpu if it is new), llamagpu, or llama2rnn: that program's files.
        recurrent: Of a micro_rwkv run the recurrent part alone: fast, and an approximation that is not the model.
        json: Write one JSON object at the end, with the text, the tokens, why it ended, times and the seed.
        logprobs: With --json, the log-probability of each token, and of this many of the most likely ones.
    """
    check_json(json, logprobs, echo)
    seed, max_tokens = drawn_seed(seed), token_limit(max_tokens)
    asked = asked_for(
        temperature, top_k, top_p, min_p, repetition_penalty, seed, sampler_order
    )  # refuses before any work
    kept = Memory.held(session, session_format) if session is not None else None
    goes_on = kept is not None and kept.exists()
    text = read_prompt(DEMO_PROMPT if model == DEMO and not goes_on else "", prompt, prompt_file)
    bars: dict[str, ProgressBar] = {}

    def on_work(title: str, n: int, total: int) -> None:
        if title not in bars:
            bars[title] = ProgressBar(title, "B" if total else "kernel", total)
        bars[title].advance(n)

    def close_bars() -> None:
        for bar in bars.values():
            bar.close()

    of_window = window_and_sinks(window, sinks)
    llm = load(model, device, tokenizer, context, on_work, faithful, kv_bits, *of_window, memory_update, recurrent)
    sampling = replace(llm.default_sampling, **asked)
    progress = ProgressBar("reading the prompt", "tok")
    interrupt = Interrupt(signal.SIGINT, *(ENDING if kept is not None else ()))
    bars["prompt"] = progress

    def on_prompt_tokens(n: int) -> None:
        progress.advance(n)
        interrupt.check()

    generation: Answer
    if kept is None:
        options = asdict(sampling)
        options |= {"on_prompt_tokens": on_prompt_tokens, "ignore_eos": ignore_eos, "special": special}
        generation = llm.generate(text, max_tokens, stop=stop or [], logprobs=logprobs, **options)
    else:
        begun = kept.go_on(llm, text, special)
        sampling = replace(sampling, seed=begun.seed if seed is None else seed)
        at_start = begun.begins or (not goes_on and not text)
        generation = Answer(
            begun, max_tokens, sampling, stop or [], on_prompt_tokens, at_start,
            ends=llm.ends(ignore_eos), logprobs=logprobs,
        )  # fmt: skip
    progress.total = len(generation.prompt_tokens)
    for note in llm.notes:
        say(printable(note))
    typed = None if special else llm.tokenizer.find_control(text)
    if typed is not None:
        say(f"the prompt holds {printable(typed)}, which is read as text and not as a control token: see --special")
    n_given = generation.session.length
    if llm.most_seen is not None and n_given > llm.most_seen:
        say(f"only the last {llm.most_seen} of {n_given} tokens are seen, as this model does")
    say(": ".join(filter(None, (f"running on {llm.device.description}", llm.device.why_not_gpu))))
    if faithful:
        say(about_faithful(llm))
    say_sampling(llm, sampling)
    if sampling.temperature > 0:
        say(f"seed {generation.params.seed}")
    if echo:
        write_text(text)
    elif sys.stdout.isatty() and sys.stderr.isatty() and not json:
        print(dim(visible(text)), end="", file=sys.stderr, flush=True)
    with interrupt:
        try:
            for piece in generation:
                close_bars()
                if not json:
                    write_text(piece)
                interrupt.check()
        except (KeyboardInterrupt, SystemExit, OSError):  # the last: nobody reads the text any more
            generation.close()
            if kept is not None and not interrupt.at_once:  # then the session may be in the midst of a step
                kept.save(generation.session)  # before a word is said, since the terminal may be gone
            with suppress(OSError):
                close_bars()
                held = generation.held_text()
                write_text(json_of(generation, model) if json else held)
                say_end(generation, "interrupted", ends_line=not json)
            raise
        if kept is not None:
            kept.save(generation.session)
    if json:
        write_text(json_of(generation, model))
    notice = f"the context of {llm.context} tokens is full" if generation.stop_reason == "context" else ""
    say_end(generation, notice, ends_line=not json)


def about_faithful(llm: LLM, *names: str) -> str:
    """What is reproduced, in one line. names: the fields of Quirks that matter here; without them all do."""
    quirks = llm.quirks
    if quirks.described(*names):
        return f"faithful to {quirks.system}: {quirks.described(*names)}"
    if quirks.description:
        return f"--faithful changes nothing here: all that {quirks.system} does otherwise is for texts that it writes"
    return f"--faithful changes nothing: of {llm.checkpoint.format} no quirks are known"


def say_sampling(llm: LLM, params: SamplingParams) -> None:
    """A notice of a setting that means something else in other programs."""
    penalty = params.repetition_penalty
    if penalty < 1 and not llm.quirks.no_penalty:
        say(
            f"a repetition penalty of {penalty:g}, below 1, encourages tokens that are in the context already;"
            f" {1 / penalty:.4g} discourages them (rllama means it the other way round)"
        )
    if penalty != 1 and llm.quirks.no_penalty:
        say(f"the repetition penalty does nothing: it has no effect in {llm.quirks.system}, by a mistake there")


def read_prompt(default: str, prompt: str | None, prompt_file: str | None) -> str:
    """The prompt from wherever it was given; ``default`` where it was not. Raises UsageError."""
    if prompt is not None and prompt_file is not None:
        raise UsageError("give a prompt or --prompt_file, not both")
    if prompt_file is not None:
        return without_newline(read_text_file(prompt_file, f"--prompt_file {prompt_file}"))
    return text_of(prompt) if prompt is not None else piped_text() or default


def text_of(argument: str) -> str:
    """A text of the command line: itself, or standard input for "-". Raises UsageError."""
    return without_newline(read_text_file("-", STANDARD_INPUT)) if argument == "-" else argument


def token_limit(max_tokens: int) -> int:
    """--max_tokens as a number: -1 is none that is ever reached. Raises UsageError."""
    if max_tokens == -1:
        return MAX_TOKENS
    check_whole("max_tokens", max_tokens, 1, MAX_TOKENS)
    return max_tokens


def drawn_seed(seed: int | None) -> int | None:
    """--seed, where -1 means a new one, as no seed does."""
    return None if seed == -1 else seed


def say_end(generation: Answer, notice: str, ends_line: bool = True) -> None:
    """After the text: why it ended, if that is worth a word, and the speeds. ends_line: a terminal is in mid-line."""
    if sys.stdout.isatty() and ends_line:
        write_text("\n")
    if notice:
        say(notice)
    n_prompt, n_new = len(generation.prompt_tokens), len(generation.tokens)
    parts = []
    if generation.prompt_seconds:
        n_read = min(n_prompt, generation.session.llm.most_seen or n_prompt)
        parts.append(f"prompt {count_tokens(n_prompt)}, {n_read / generation.prompt_seconds:.0f} tok/s")
    if generation.first_token_seconds:
        parts.append(f"first token after {1000 * generation.first_token_seconds:.0f} ms")
    if n_new:
        speed = f", {generation.decode_steps / generation.decode_seconds:.1f} tok/s" if generation.decode_steps else ""
        parts.append(f"generated {count_tokens(n_new)}{speed}")
    peak = peak_memory_bytes()
    if peak:
        parts.append(f"peak memory {human_bytes(peak)}")
    say("; ".join(parts))
