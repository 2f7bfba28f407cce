from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import llamagpu
from llamagpu.backends.cpu.sample import sample
from llamagpu.errors import ModelFormatError, UsageError
from llamagpu.generation import Generation, StopStrings, positions
from llamagpu.llm import LLM
from llamagpu.sampling import SamplingParams
from tests.small_files import Shape, random_weights, tokenizer_bin, v0_bytes


@pytest.fixture
def llm(small_model: Path) -> LLM:
    return llamagpu.load(small_model, device="cpu")


def test_greedy_follows_the_logits(llm: LLM) -> None:
    generation = llm.generate("the on", max_tokens=8, temperature=0)
    text = "".join(generation)
    ids = list(generation.prompt_tokens)
    for token in generation.tokens:
        assert token == int(llm.logits(ids)[-1].argmax())
        ids.append(token)
    assert text == llm.tokenizer.decode(ids).removeprefix("the on")
    assert (generation.stop_reason, len(generation.tokens)) == ("max_tokens", 8)


def test_the_same_seed_gives_the_same_text(llm: LLM) -> None:
    def text(seed: int) -> str:
        return "".join(llm.generate("a", max_tokens=20, temperature=2.0, top_k=0, top_p=1, min_p=0, seed=seed))

    assert text(7) == text(7)
    assert len({text(seed) for seed in range(5)}) > 1


def test_every_draw_and_every_token_counts(llm: LLM) -> None:
    """The generation once more from logits, with the n-th random number for the n-th token and penalties so far."""
    options = {"temperature": 1.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.5, "seed": 11}
    generation = llm.generate("the on a", max_tokens=12, **options)  # type: ignore[arg-type]
    "".join(generation)
    params = SamplingParams(**options)  # type: ignore[arg-type]
    ids = list(generation.prompt_tokens)
    for step, token in enumerate(generation.tokens):
        counts = np.bincount(ids, minlength=300).astype(np.int32)
        assert token == sample(llm.logits(ids)[-1], counts, params, step)
        ids.append(token)
    assert len(generation.tokens) == 12


def test_a_prompt_in_chunks_gives_the_same_text(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = "the on ab the on ab th"
    sizes: list[int] = []
    whole = "".join(llm.generate(prompt, max_tokens=8, temperature=0))
    monkeypatch.setattr("llamagpu.generation.PROMPT_CHUNK", 3)
    generation = llm.generate(prompt, max_tokens=8, temperature=0, on_prompt_tokens=sizes.append)
    assert "".join(generation) == whole
    assert sum(sizes) == len(generation.prompt_tokens)
    assert max(sizes) == 3


def test_a_full_context_ends_the_text(llm: LLM) -> None:
    generation = llm.generate("a", max_tokens=1000, temperature=0)
    "".join(generation)
    assert generation.stop_reason == "context"
    # The last token needs no place of its own: it is made from the 32nd position.
    assert len(generation.prompt_tokens) + len(generation.tokens) == llm.context + 1
    assert llm.context == 32


def test_a_prompt_longer_than_the_context_is_refused(llm: LLM) -> None:
    with pytest.raises(UsageError, match=r"the prompt is 4\d tokens, the context 32"):
        llm.generate("x" * 40)
    assert "".join(llm.generate("x" * 30, max_tokens=1, temperature=0)) is not None  # 1 + 1 + 30: just fits


def test_no_more_memory_is_taken_than_the_text_may_need() -> None:
    assert [positions(n, 131072) for n in (1, 512, 513, 2049, 40000, 10**9)] == [512, 512, 2048, 8192, 131072, 131072]
    assert positions(100, 32) == 32


def test_a_smaller_context_can_be_asked_for(small_model: Path) -> None:
    generation = llamagpu.load(small_model, context=8).generate("a", max_tokens=1000, temperature=0)
    "".join(generation)
    assert len(generation.prompt_tokens) + len(generation.tokens) == 9
    for context in (0, -1, 33, 10**9):
        with pytest.raises(UsageError, match="context must be"):
            llamagpu.load(small_model, context=context)


@pytest.mark.parametrize("end", [1, 2], ids=["BOS", "EOS"])
def test_the_end_token_ends_the_text_and_is_not_in_it(end: int, tmp_path: Path) -> None:
    shape = Shape(tied=False)
    weights = random_weights(shape)
    weights["wo"][:] = weights["w2"][:] = 0  # no layer adds anything: the state is the token's own embedding
    weights["wcls"][:] = 0
    weights["wcls"][270] = 10 * weights["tok_emb"][1]  # after BOS comes " the"
    weights["wcls"][end] = 10 * weights["tok_emb"][270]  # after " the" the text ends
    path = tmp_path / "model.bin"
    path.write_bytes(v0_bytes(shape, weights))
    (tmp_path / "tokenizer.bin").write_bytes(tokenizer_bin())
    generation = llamagpu.load(path).generate("", temperature=0)
    assert "".join(generation) == "the"
    assert (generation.stop_reason, generation.tokens) == ("eos", [270])


def test_the_models_own_stop_tokens_end_the_text(llm: LLM) -> None:
    whole = llm.generate("a", max_tokens=8, temperature=0)
    text = "".join(whole)
    llm.checkpoint = replace(llm.checkpoint, stop_tokens=(7, whole.tokens[4]))
    generation = llm.generate("a", max_tokens=8, temperature=0)
    assert text.startswith("".join(generation))
    assert generation.stop_reason == "eos"
    assert generation.tokens == whole.tokens[: whole.tokens.index(whole.tokens[4])]


@pytest.mark.parametrize(
    "values", [{"max_tokens": 0}, {"max_tokens": -5}, {"max_tokens": 1.5}, {"stop": [""]}, {"stop": "x"}, {"top_p": 2}]
)
def test_values_out_of_range_are_refused_before_any_work(llm: LLM, values: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        llm.generate("a", **values)  # type: ignore[arg-type]


def test_stop_strings(llm: LLM) -> None:
    whole = "".join(llm.generate("on the", max_tokens=20, temperature=0))
    stop = whole[7:12]
    generation = llm.generate("on the", max_tokens=20, temperature=0, stop=[stop, "never comes"])
    assert "".join(generation) == whole[: whole.index(stop)]
    assert generation.stop_reason == "stop"


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_stop_strings_at_any_cut(size: int) -> None:
    text = "one two threetwo, <end> and more"
    for stops, expected in [
        (["<end>"], "one two threetwo, "),
        (["two", "<end>"], "one "),
        (["zzz"], text),
        ([], text),
        (["more!"], text),
    ]:
        stop_strings = StopStrings(stops)
        out = ""
        for at in range(0, len(text), size):
            out += stop_strings.feed(text[at : at + size])
            assert not any(stop in out for stop in stops)
            if stop_strings.found:
                break
        out += stop_strings.finish()
        assert out == expected
        assert stop_strings.found == any(stop in text for stop in stops)


def test_text_is_not_held_back_without_need() -> None:
    stop_strings = StopStrings(["###"])
    assert [stop_strings.feed(text) for text in ["a", "#", "b", "##", "c"]] == ["a", "", "#b", "", "##c"]


def test_a_model_without_tokenizer_gives_logits_but_no_text(small_model: Path) -> None:
    (small_model.parent / "tokenizer.bin").unlink()
    llm = llamagpu.load(small_model)
    assert llm.logits([1, 2]).shape == (2, 300)
    with pytest.raises(UsageError, match="give one with tokenizer=FILE"):
        llm.generate("a")


def test_a_tokenizer_larger_than_the_model_is_refused(small_model: Path) -> None:
    other = small_model.parent / "other.bin"
    other.write_bytes(tokenizer_bin(301))
    with pytest.raises(ModelFormatError, match="vocab_size"):
        llamagpu.load(small_model, tokenizer=other)


def test_damaged_weights_are_said_so(small_model: Path) -> None:
    data = bytearray(small_model.read_bytes())
    data[28 : 28 + 4 * 300 * 16] = np.full(300 * 16, np.nan, np.float32).tobytes()
    small_model.write_bytes(data)
    with pytest.raises(llamagpu.LlamaGPUError, match="not numbers"):
        "".join(llamagpu.load(small_model).generate("a"))


def test_the_demo_tells_a_story() -> None:
    llm = llamagpu.load("demo", device="cpu")
    generation = llm.generate("Once upon a time", max_tokens=400, temperature=0)
    text = "".join(generation)
    assert generation.stop_reason == "eos"
    assert 300 < len(text) < 1500
    assert text.rstrip().endswith((".", "!"))


def test_an_answer_that_is_left_frees_its_state_at_once(llm: LLM) -> None:
    states = []

    def leave(generation: Generation) -> None:
        for _ in generation:
            states.append(weakref.ref(generation.session.state))
            break

    gc.disable()  # else a cycle might be found by chance
    try:
        leave(llm.generate("the on", max_tokens=20))
        assert [state() for state in states] == [None]
    finally:
        gc.enable()


def test_an_answer_goes_on_where_it_was_left(llm: LLM) -> None:
    whole = list(llm.generate("the on", max_tokens=12, temperature=0))
    generation = llm.generate("the on", max_tokens=12, temperature=0)
    begun = []
    for piece in generation:
        begun.append(piece)
        break
    assert begun + list(generation) == whole
    assert list(generation) == []


def test_an_answer_that_failed_is_over(llm: LLM) -> None:
    def fail(n: int) -> None:
        raise KeyboardInterrupt

    generation = llm.generate("the on", on_prompt_tokens=fail)
    with pytest.raises(KeyboardInterrupt):
        next(iter(generation))
    assert (list(generation), generation.stop_reason) == ([], "unfinished")
