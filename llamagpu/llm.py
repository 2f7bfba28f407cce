"""LLM: a loaded model with its tokenizer, on a device."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamagpu.backends.protocol import Backend
from llamagpu.chat_templates import NONE, answer_ends, choose_template
from llamagpu.chat_text import chat_ids
from llamagpu.checkpoint import Checkpoint, Quirks, TokenizerSpec
from llamagpu.config import MICRO_RWKV, ModelConfig
from llamagpu.devices import OnWork, choose_device
from llamagpu.errors import ModelFormatError, UsageError
from llamagpu.formats import open_checkpoint
from llamagpu.formats.token_facts import facts_beside
from llamagpu.generation import PROMPT_CHUNK, Generation, Prompt, check_answer, token_ids
from llamagpu.load_options import LoadOptions, check_path, say_nothing
from llamagpu.models import MEMORY_UPDATES, StateOptions, check_recurrent, load_model, notes_of
from llamagpu.models.window import DEFAULT_SINKS, check_window
from llamagpu.option_names import option
from llamagpu.sampling import SamplingParams, asked_for, check_function, check_switch, check_whole, shown
from llamagpu.tokenizers import Tokenizer, find_beside, names_beside, open_spec, read_spec

DEMO = "demo"
LOGITS_AT_ONCE = 1 << 24
MOST_POSITIONS = 1 << 40  # of a model without an end


def model_path(model: str | Path) -> Path:
    """Path of a model given by name. ``demo`` is the built-in one; ``hf:owner/name`` is downloaded if it is not cached.

    Raises UsageError where there is nothing, HubError where it cannot be downloaded.
    """
    check_path("model", model)
    if str(model) == DEMO:
        return Path(__file__).parent / "demo.bin"
    if str(model).startswith("hf:"):
        from llamagpu import hub  # here: nothing else needs it

        return hub.fetch(str(model))
    path = Path(model)
    try:
        exists = path.exists()
    except PermissionError:
        exists = True  # the reader will say that it may not be read
    except (OSError, ValueError):  # too long for a name, or holding a NUL: no file either
        exists = False
    if not exists:
        from llamagpu import hub

        remedy = f"MODEL comes first, then the prompt ({DEMO!r} is built in)"
        if hub.looks_like_a_name(str(model)):
            remedy = f"to download it from the Hugging Face Hub, give hf:{model}"
        raise UsageError(f"no file or folder {str(model)[:200]!r}: {remedy}")
    return path


def find_tokenizer(checkpoint: Checkpoint, path: str | Path | None) -> tuple[TokenizerSpec, Tokenizer, Path]:
    """A model's tokenizer, as stored and opened, and the file that holds it.

    It is ``path`` if given, else the one inside the model, else one beside it. Raises UsageError where there is none,
    ModelFormatError where it is damaged or has more tokens than the model: but the model's own may have added tokens
    that the model has no row for (the first Llama 2 folders' <pad>), and a text that holds one of them is refused.
    """
    vocab_size = checkpoint.config.vocab_size
    if path is None and checkpoint.tokenizer is None:
        found = find_beside(checkpoint.path, vocab_size)
        if found is None:
            raise UsageError(
                f"{checkpoint.path} holds no tokenizer, and none beside it has its {vocab_size} tokens"
                f" ({', '.join(names_beside(vocab_size))}): give one with {option('tokenizer', 'FILE')}"
            )
        facts = facts_beside(found[2])
        if facts is None:
            return found
        described = replace(found[0], facts=facts)
        return described, open_spec(described, found[2]), found[2]
    spec = replace(read_spec(path), facts=facts_beside(Path(path))) if path is not None else checkpoint.tokenizer
    assert spec is not None
    place = Path(path) if path is not None else checkpoint.path
    tokenizer = open_spec(spec, place)
    n_learnt = tokenizer.vocab_size - (tokenizer.n_added_at_end if path is None else 0)
    if n_learnt > vocab_size or (tokenizer.bos_id or 0) >= vocab_size:
        problem = f"is {tokenizer.vocab_size}, but the model has {vocab_size} tokens"
        raise ModelFormatError(place, "vocab_size", problem, f"give the model's own with {option('tokenizer', 'FILE')}")
    return spec, tokenizer, place


def load(
    model: str | Path,
    device: str = "auto",
    tokenizer: str | Path | None = None,
    context: int | None = None,
    on_work: OnWork = say_nothing,
    faithful: bool = False,
    kv_bits: int = 16,
    window: int = 0,
    sinks: int = DEFAULT_SINKS,
    memory_update: str = "chunk",
    recurrent: bool = False,
    *,
    options: LoadOptions | None = None,
) -> LLM:
    """Open a model and put it on a device.

    model: a file or folder of any supported format, or "demo". The others: see LoadOptions. options: all of them in
    one value, in place of the others. Raises ModelFormatError, DeviceError or UsageError.
    """
    options = LoadOptions(
        device, tokenizer, context, on_work, faithful, kv_bits, window, sinks, memory_update, recurrent
    ).replaced_by(options)
    return LLM(open_checkpoint(model_path(model)), options=options)


class LLM:
    """A model ready to run. ``config`` is its shape, ``device`` what it runs on, ``context`` its positions.

    ``longest`` is how many tokens one text may have: as many, but for a model without an end.
    ``quirks`` are those that it reproduces: none, unless it is faithful and there are some. ``notes``: one line each,
    what a user should be told of the file and of how it is run.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: str = "auto",
        tokenizer: str | Path | None = None,
        context: int | None = None,
        on_work: OnWork = say_nothing,
        faithful: bool = False,
        kv_bits: int = 16,
        window: int = 0,
        sinks: int = DEFAULT_SINKS,
        memory_update: str = "chunk",
        recurrent: bool = False,
        *,
        options: LoadOptions | None = None,
    ) -> None:
        """checkpoint: of ``open_checkpoint``; ``load`` opens a file. The others: as ``load`` has them."""
        if not isinstance(checkpoint, Checkpoint):
            raise UsageError(f"LLM takes an opened checkpoint, not {shown(checkpoint)}: llamagpu.load opens a file")
        self.options = options = LoadOptions(
            device, tokenizer, context, on_work, faithful, kv_bits, window, sinks, memory_update, recurrent
        ).replaced_by(options)
        context, kv_bits, window, sinks = options.context, options.kv_bits, options.window, options.sinks
        memory_update, recurrent, on_work = options.memory_update, options.recurrent, options.on_work
        self.quirks = checkpoint.quirks if options.faithful else Quirks()
        if self.quirks.rope_layout is not None:
            config = replace(checkpoint.config, rope_layout=self.quirks.rope_layout)
            checkpoint = replace(checkpoint, config=config)
        self.checkpoint = checkpoint
        self.config: ModelConfig = checkpoint.config
        self.context = self.config.max_seq_len if context is None else context
        check_recurrent(self.config, recurrent)
        # of a model that reads its text anew for each token, and never more than this of it
        self.most_seen = self.config.max_seq_len if self.config.architecture == MICRO_RWKV and not recurrent else None
        self.notes = (*checkpoint.notes, *notes_of(self.config, recurrent))
        if self.config.endless and context is not None:
            raise UsageError(f"this model has no end and a state of one size: leave out {option('context')}")
        check_whole("context", self.context, 1, self.config.max_seq_len)
        if kv_bits != 16 and not self.config.keeps_keys:
            raise UsageError(f"a {self.config.architecture} keeps no keys and values: leave out {option('kv_bits')}")
        self.kv_bits = kv_bits
        if window != 0:
            check_window(self.config, window, sinks, kv_bits)
            if context is not None:
                raise UsageError(
                    f"{option('context')} does not go with {option('window')}, which says how many positions are kept"
                )
        self.window, self.sinks = window, sinks
        if memory_update not in MEMORY_UPDATES or (memory_update != "chunk" and not self.config.mem_len):
            known = " or ".join(MEMORY_UPDATES if self.config.mem_len else MEMORY_UPDATES[:1])
            raise UsageError(f"memory_update must be {known} for this model, not {memory_update!r}")
        self.memory_update = memory_update
        if options.tokenizer is not None:
            _ = self.tokenizer  # a tokenizer that was asked for and does not fit is an error now, not at first use
        self.device = choose_device(options.device, "a faithful run is on the CPU" if self.quirks.description else "")
        self.backend: Backend = self.device.backend(on_work)
        if self.quirks.activation_bits or self.quirks.no_penalty:
            from llamagpu.backends.cpu.faithful import FaithfulCPUBackend

            self.backend = FaithfulCPUBackend(self.quirks)

        def on_loaded(n: int) -> None:
            checkpoint.check_unchanged()
            on_work("loading the weights", n, checkpoint.nbytes)

        checkpoint.check_unchanged()
        self.model = load_model(checkpoint, self.backend, on_loaded, recurrent)

    def __repr__(self) -> str:
        parts = f"{self.config.architecture}, {self.config.n_layers} layers of {self.config.dim}"
        return f"<LLM {self.checkpoint.path.name!r}: {parts}, context {self.context}, on {self.device.name}>"

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises UsageError where there is none: only text needs one."""
        spec, tokenizer, path = find_tokenizer(self.checkpoint, self.options.tokenizer)
        if not self.quirks.greedy_tokenizer:
            return tokenizer
        if spec.kind != "sentencepiece":
            raise UsageError(
                f"{path} is of kind {spec.kind}; {self.quirks.system} reads a SentencePiece tokenizer.model:"
                f" give one with {option('tokenizer')}, or leave {option('faithful')} out"
            )
        return open_spec(replace(spec, kind="sentencepiece-greedy"), path)

    @property
    def default_sampling(self) -> SamplingParams:
        """How tokens are drawn where nothing else is asked for: a micro_rwkv's as by its own script, which has no other
        way; what the makers of other models suggest is shown by ``info`` alone. A faithful run draws in the order of
        its program."""
        suggested: dict[str, Any] = dict(self.checkpoint.sampling) if self.config.architecture == MICRO_RWKV else {}
        if self.quirks.sampler_order:
            suggested["sampler_order"] = self.quirks.sampler_order
        return SamplingParams(**suggested)

    def generate(
        self,
        prompt: Prompt,
        max_tokens: int = 256,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
        on_prompt_tokens: Callable[[int], None] = lambda n: None,
        ignore_eos: bool = False,
        sampler_order: str | None = None,
        special: bool = False,
        logprobs: int | None = None,
    ) -> Generation:
        """Continue ``prompt``: iterate over the result for text as it is made, or take all of it with ``.text``.

        prompt: a text, or token ids, which are taken as they are: nothing is put before them. For the numbers see
        SamplingParams, and ``default_sampling`` for what is not given. stop: texts before which to end.
        on_prompt_tokens: called with the size of each chunk of the prompt once it is read. ignore_eos: go on past the
        tokens that end a text, until a stop text comes or max_tokens are made.
        special: the texts of control tokens in the prompt become those; else they are text. logprobs: keep the
        log-probability of each new token, and of so many of the most likely ones, in ``.logprobs`` (see Answer); it
        takes longer. The prompt must fit the context: it is never cut (a micro_rwkv looks at its last ``most_seen``
        tokens). Raises UsageError for values of a wrong type or out of range.
        """
        asked = asked_for(temperature, top_k, top_p, min_p, repetition_penalty, seed, sampler_order)
        params = replace(self.default_sampling, **asked)
        return Generation(
            self, prompt, max_tokens, params, stop, on_prompt_tokens, ignore_eos, special, logprobs=logprobs
        )

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        max_tokens: int = 1024,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
        on_prompt_tokens: Callable[[int], None] = lambda n: None,
        ignore_eos: bool = False,
        sampler_order: str | None = None,
        logprobs: int | None = None,
        template_args: Mapping[str, Any] = NONE,
        template: str = "auto",
        notice: Callable[[str], None] = warnings.warn,
    ) -> Generation:
        """Answer a conversation: iterate over the result for text as it is made, or take all of it with ``.text``.

        The model reads ``chat_ids(messages, template_args, template, notice)``, from an empty state; Chat keeps a
        session, and reads only what is new. The others: as ``generate`` has them. The answer also ends where the
        template ends one, and begins with its first character that is no white space. Raises UsageError.
        """
        asked = asked_for(temperature, top_k, top_p, min_p, repetition_penalty, seed, sampler_order)
        params = replace(self.default_sampling, **asked)
        check_function("notice", notice)
        chosen, _ = choose_template(template, self, template_args)
        check_answer(max_tokens, stop)
        check_switch("ignore_eos", ignore_eos)
        ids = chat_ids(messages, chosen, self.tokenizer, notice)
        ids += ids[-1:] if self.quirks.repeats_last_prompt_token else []
        end_ids, ends = answer_ends(self, chosen, ignore_eos)
        return Generation(
            self, ids, max_tokens, params, (*chosen.stops, *stop), on_prompt_tokens, ignore_eos,
            end_ids=end_ids, ends=ends, logprobs=logprobs, strip=True,
        )  # fmt: skip

    def encode_prompt(self, prompt: str, special: bool = False) -> list[int]:
        """Ids of a text that is continued, as they are run. special: as ``generate`` has it."""
        tokens = self.tokenizer.encode(prompt, add_bos=self.quirks.adds_bos, special=special)
        if not prompt and self.quirks.greedy_tokenizer:
            tokens += self.tokenizer.encode_text("")  # the space that every prompt of rllama begins with
        return [*tokens, *tokens[-1:]] if self.quirks.repeats_last_prompt_token else tokens

    def ends(self, ignore_eos: bool = False) -> set[int] | None:
        """The tokens that alone end a text that is continued; None: all that the model knows as ends."""
        if ignore_eos or self.quirks.ends is None:
            return set() if ignore_eos else None
        named = {"bos": self.tokenizer.bos_id, "eos": self.tokenizer.eos_id}
        return {token for name in self.quirks.ends if (token := named[name]) is not None}

    def chat_ids(
        self,
        messages: Sequence[Mapping[str, Any]],
        template_args: Mapping[str, Any] = NONE,
        template: str = "auto",
        notice: Callable[[str], None] = warnings.warn,
    ) -> list[int]:
        """The ids that the model would read of a conversation, with what asks for its answer.

        messages: objects with role (system, user, assistant, or what the model's template knows) and content. What
        they say never becomes a control token. template_args: more of what the model's template may ask for, such as
        {"enable_thinking": False}. template: auto, model, llama2 or plain. notice: told in one line what a user should
        know. Raises UsageError for what the template does not take.
        """
        check_function("notice", notice)
        chosen, _ = choose_template(template, self, template_args)
        return chat_ids(messages, chosen, self.tokenizer, notice)

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Raw logits after each token, from an empty state: float32 [len(ids), vocab_size]."""
        return np.concatenate([part.copy() for part in self.logits_in_parts(ids)])

    def logits_in_parts(self, ids: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """The same a few rows at a time: all at once are half a gigabyte for 1,000 tokens of a large vocabulary.

        Each part is good until the next is asked for.
        """
        ids = token_ids("ids", ids)
        self.check_tokens(ids)
        if not 1 <= len(ids) <= self.longest:
            raise UsageError(f"{len(ids)} tokens given: from 1 to {self.longest} fit the context")
        vocab_size = self.config.vocab_size
        step = max(1, min(PROMPT_CHUNK, LOGITS_AT_ONCE // vocab_size))
        state = self.model.new_state(self.state_options(len(ids)))
        for at in range(0, len(ids), step):
            chunk = ids[at : at + step]
            self.check_unchanged()
            yield self.backend.to_host(self.model.forward(chunk, state, n_logits=len(chunk)), vocab_size)

    @property
    def longest(self) -> int:
        """Tokens that a text may have."""
        return MOST_POSITIONS if self.config.endless or self.window else self.context

    def state_options(self, n_positions: int) -> StateOptions:
        """Of a new state with room for so many positions, or of any number where there is no end."""
        sinks = self.sinks if self.window else 0
        return StateOptions(n_positions, self.kv_bits, self.window, sinks, self.memory_update)

    def check_unchanged(self) -> None:
        """Before each step. Raises ModelChangedError where weights are read from a file that has changed meanwhile.

        A GPU has read them all when the model is loaded.
        """
        if self.device.name == "cpu":
            self.checkpoint.check_unchanged()

    def check_tokens(self, ids: Sequence[int]) -> None:
        """Raises UsageError for an id that the model does not have."""
        for token in ids:
            if not isinstance(token, (int, np.integer)) or not 0 <= token < self.config.vocab_size:
                raise UsageError(
                    f"token {shown(token)} is not of this model: its ids are 0 to {self.config.vocab_size - 1}"
                )
