"""Faithful runs: what other programs do to their models, against integer references and by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

import llamagpu
from llamagpu import devices, tokenizers
from llamagpu.backends.cpu.faithful import FirstIsZero, round_activations
from llamagpu.chat import Chat
from llamagpu.chat_templates import choose_template
from llamagpu.checkpoint import Quirks
from llamagpu.commands import run
from llamagpu.errors import UsageError
from llamagpu.formats import open_checkpoint
from llamagpu.llm import LLM
from llamagpu.logprobs import log_softmax
from llamagpu.memory import Memory
from llamagpu.quality_commands import compare, perplexity
from llamagpu.quantization import Int8Matrix
from llamagpu.sampling import DEFAULT_ORDER, TEMPERATURE_FIRST, SamplingParams
from llamagpu.session import Session
from tests import simple_llama_files
from tests.llama2rs_files import SHAPE as RS_SHAPE
from tests.llama2rs_files import llama2rs_file
from tests.models.reference_llama import reference_logits
from tests.models.reference_rounded import RoundedMatrix
from tests.simple_llama_files import MATRICES, quantized_bytes, simple_llama_file
from tests.small_files import Floats, Shape, q8_groups, random_weights, tokenizer_bin, v2_bytes
from tests.test_cli import GREEDY, fails
from tests.test_cli import llamagpu as command
from tests.torch_files import write_meta

IDS = [1, 7, 30, 7, 2]


def reference(shape: Shape, weights: dict[str, Any], ids: list[int]) -> np.ndarray[Any, Any]:
    """Logits; nothing that was rounded on the way may have been so near to a half that float32 decides otherwise."""
    RoundedMatrix.closest = 0.5
    logits = reference_logits(shape, weights, ids)
    assert RoundedMatrix.closest > 5e-5
    return logits


def rounded_v2(weights: dict[str, Floats], group_size: int) -> dict[str, Any]:
    out: dict[str, Any] = dict(weights)
    for name, array in weights.items():
        if array.ndim > 1 and "norm" not in name:
            layers = [q8_groups(layer.reshape(-1), group_size) for layer in (array if array.ndim == 3 else [array])]
            q, scales = (
                np.array([q for q, _ in layers]).reshape(array.shape),
                np.array([scales for _, scales in layers]),
            )
            out[name] = RoundedMatrix(q, scales if array.ndim == 3 else scales[0], group_size, 8)
    return out


@pytest.mark.parametrize(("hidden_dim", "group_size"), [(24, 8), (24, 4), (20, 8), (20, 16)])
@pytest.mark.parametrize("tied", [True, False])
def test_runq(hidden_dim: int, group_size: int, tied: bool, tmp_path: Path) -> None:
    """With a hidden_dim of 20, groups of w2 cross its rows and the last of an activation is not full."""
    shape = Shape(hidden_dim=hidden_dim, tied=tied)
    weights = random_weights(shape, seed=1)
    path = tmp_path / "model.bin"
    path.write_bytes(v2_bytes(shape, weights, group_size))
    expected = reference(shape, rounded_v2(weights, group_size), IDS)
    np.testing.assert_allclose(llamagpu.load(path, "cpu", faithful=True).logits(IDS), expected, atol=1e-5)
    assert np.abs(llamagpu.load(path, "cpu").logits(IDS) - expected).max() > 1e-3  # and an ordinary run does not


@pytest.mark.parametrize("bits", [8, 4])
def test_simple_llama(bits: int, tmp_path: Path) -> None:
    shape = simple_llama_files.SHAPE
    weights: dict[str, Any] = dict(random_weights(shape))
    path = tmp_path / "model.bin"
    path.write_bytes(quantized_bytes(shape, weights, bits))
    for name in MATRICES:
        matrix = simple_llama_files.rounded(weights[name], bits)
        layers = matrix.scales.reshape(len(matrix.q), -1) if matrix.q.ndim == 3 else matrix.scales
        weights[name] = RoundedMatrix(matrix.q, layers, 128, bits)
    expected = reference(shape, weights, IDS)
    np.testing.assert_allclose(llamagpu.load(path, "cpu", faithful=True).logits(IDS), expected, atol=1e-5)
    assert np.abs(llamagpu.load(path, "cpu").logits(IDS) - expected).max() > 1e-2


def test_runq_on_a_trained_model(data: Path) -> None:
    folder = data / "llama2c"
    checkpoint = open_checkpoint(folder / "stories260K_q80.bin")
    config = checkpoint.config
    shape = Shape(config.dim, config.hidden_dim, config.n_layers, config.n_heads, config.n_kv_heads, config.vocab_size)

    def block(*names: str) -> Any:
        tensors = [checkpoint.tensors[f"{name}.weight"] for name in names]
        matrices = [tensor for tensor in tensors if isinstance(tensor, Int8Matrix)]
        if not matrices:
            return np.array(tensors)
        if len(matrices) == 1:
            return RoundedMatrix(matrices[0].q, matrices[0].scales, 32, 8)
        return RoundedMatrix(np.array([m.q for m in matrices]), np.array([m.scales for m in matrices]), 32, 8)

    def layers(name: str) -> Any:
        return block(*(f"layers.{i}.{name}" for i in range(config.n_layers)))

    weights = {name: layers(f"attention.{name}") for name in ("wq", "wk", "wv", "wo")}
    weights |= {name: layers(f"feed_forward.{name}") for name in ("w1", "w2", "w3")}
    weights |= {"att_norm": layers("attention_norm"), "ffn_norm": layers("ffn_norm")}
    weights |= {"tok_emb": block("tok_embeddings"), "final_norm": block("norm")[0]}
    ids = np.load(folder / "stories260K.greedy200.ids.npy")[:10].tolist()
    logits = llamagpu.load(checkpoint.path, "cpu", faithful=True).logits(ids)
    np.testing.assert_allclose(logits, reference(shape, weights, ids), atol=2e-5)
    assert np.abs(logits).max() > 5  # so that the tolerance is a few millionths


@pytest.fixture(params=[32, 8, 4])
def simple_model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "model.bin"
    path.write_bytes(simple_llama_file(request.param)[0])
    (tmp_path / "tokenizer.bin").write_bytes(tokenizer_bin())
    return path


def test_the_last_prompt_token_is_run_twice_and_nothing_comes_first(
    simple_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = llamagpu.load(simple_model, "cpu", faithful=True)
    first: list[Any] = []
    decode = llm.backend.decode

    def watched(forward: Any, cache: Any, sampler: Any, logits: Any, n_tokens: int) -> Iterator[int]:
        first.extend([cache.length, logits[-1].copy()])
        return decode(forward, cache, sampler, logits, n_tokens)

    monkeypatch.setattr(llm.backend, "decode", watched)
    generation = llm.generate("on the", max_tokens=6, temperature=0)
    "".join(generation)
    prompt = llm.tokenizer.encode("on the", add_bos=False)
    assert generation.prompt_tokens == [*prompt, prompt[-1]]
    assert first[0] == len(prompt) + 1
    np.testing.assert_allclose(first[1], llm.logits([*prompt, prompt[-1]])[-1], atol=1e-5)
    assert np.abs(first[1] - llm.logits(prompt)[-1]).max() > 1e-3
    ids = list(generation.prompt_tokens)
    for token in generation.tokens:
        assert token == int(llm.logits(ids)[-1].argmax())
        ids.append(token)
    memory = Memory(str(simple_model.parent / "a.memory"))
    assert memory.go_on(llm, "on the").tokens == generation.prompt_tokens
    ordinary = llamagpu.load(simple_model, "cpu").generate("on the")
    assert ordinary.prompt_tokens == [1, *prompt]
    with pytest.raises(UsageError, match="no start token"):
        llm.generate("")
    with pytest.raises(UsageError, match="the prompt is 33 tokens, the context 32"):
        llm.generate("x" * 31)


@pytest.mark.parametrize("act_order", [False, True])
def test_rope_of_llama2rs(act_order: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    for variant in "AC":
        made = llama2rs_file(variant, act_order=act_order and variant == "C")
        path.write_bytes(made.data)
        llm = llamagpu.load(path, "cpu", faithful=True)
        assert llm.config.rope_layout == ("interleaved" if variant == "A" else "half_split")
        expected = reference_logits(RS_SHAPE, made.weights, IDS, half_split=variant == "C")
        np.testing.assert_allclose(llm.logits(IDS), expected, atol=1e-4)


def test_only_the_cpu_is_faithful(simple_model: Path, small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "why_no_gpu", lambda index: "")
    monkeypatch.setattr(devices, "gpu_name", lambda index: "Fake GPU")
    device = llamagpu.load(simple_model, faithful=True).device
    assert (device.name, device.why_not_gpu) == ("cpu", "a faithful run is on the CPU")
    for name in ("cuda", "cuda:0", "cuda:7"):
        with pytest.raises(UsageError, match=f"device='{name}' cannot be used: a faithful run is on the CPU"):
            llamagpu.load(simple_model, name, faithful=True)
    with pytest.raises(UsageError, match="device must be"):
        llamagpu.load(simple_model, "tpu", faithful=True)
    assert llamagpu.load(simple_model, "cpu", faithful=True).device.why_not_gpu == "asked for"
    assert devices.choose_device("auto").name == "cuda:0"  # where nothing forbids it


def test_a_model_without_quirks_is_as_ever() -> None:
    plain, faithful = llamagpu.load("demo", "cpu"), llamagpu.load("demo", "cpu", faithful=True)
    assert faithful.quirks == Quirks()
    np.testing.assert_array_equal(plain.logits(IDS), faithful.logits(IDS))
    with pytest.raises(llamagpu.DeviceError):  # --device means what it always does
        llamagpu.load("demo", "cuda:99", faithful=True)


class Greedy:
    """In the place of the real one."""

    vocab_size, bos_id, eos_id, controls = 300, None, None, MappingProxyType[str, int]({})

    def __init__(self, data: bytes, path: Path) -> None:
        self.data = data


def test_a_greedy_tokenizer_takes_the_place_of_sentencepiece(
    small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tokenizers.KINDS, "sentencepiece-greedy", (__name__, "Greedy"))
    demo = replace(
        open_checkpoint(Path(llamagpu.__file__).parent / "demo.bin"), quirks=Quirks("x", greedy_tokenizer=True)
    )
    assert demo.tokenizer is not None
    tokenizer: Any = LLM(demo, "cpu", faithful=True).tokenizer
    assert isinstance(tokenizer, Greedy)
    assert tokenizer.data == demo.tokenizer.data
    assert type(LLM(demo, "cpu").tokenizer).__name__ == "SentencePieceTokenizer"
    other = replace(open_checkpoint(small_model), quirks=demo.quirks)
    with pytest.raises(UsageError, match=r"tokenizer.bin is of kind llama2c; x reads a SentencePiece tokenizer.model"):
        _ = LLM(other, "cpu", faithful=True).tokenizer


@pytest.mark.parametrize(
    ("x", "bits", "group_size", "expected"),
    [
        ([127, 63.5, -63.5, 0.5, -0.5, 0.49], 8, 6, [127, 64, -64, 1, -1, 0]),  # halves away from zero
        ([0, 0, 254, 1], 8, 2, [0, 0, 254, 2]),  # zeros stay zeros
        ([7, -3.5, 3.4, 14, 1, 1], 4, 3, [7, -4, 3, 14, 2, 2]),
        ([7, 2.4, 1, 70, 4], 4, 3, [7, 2, 1, 70, 0]),  # the last group is not full
        ([1] * 8, 8, 1 << 40, [1] * 8),
    ],
)
def test_rounding_of_activations(x: list[float], bits: int, group_size: int, expected: list[float]) -> None:
    rows = np.array([x, x[::-1]], np.float32)
    np.testing.assert_array_equal(round_activations(rows, bits, group_size)[0], expected)


def test_the_command_says_what_it_reproduces(simple_model: Path, tmp_path: Path) -> None:
    bits = open_checkpoint(simple_model).quirks.activation_bits
    notices = command("run", simple_model, "on the", *GREEDY[:4], "--faithful").stderr.decode()
    assert "running on the CPU" in notices
    assert ": a faithful run is on the CPU\n" in notices
    rounding = f"activations in {bits} bits, " if bits else ""
    assert f"faithful to simple-llama: {rounding}last prompt token twice, no start token, EOS alone ends" in notices
    message = fails("run", simple_model, "on the", "--faithful", "--device", "cuda", status=2)
    assert "--device cuda cannot be used: a faithful run is on the CPU" in message


def test_the_command_says_where_there_is_nothing_to_reproduce() -> None:
    result = command("run", "demo", "on the", *GREEDY, "--faithful")
    assert "--faithful changes nothing: of llamagpu " in result.stderr.decode()
    assert result.stdout == command("run", "demo", "on the", *GREEDY).stdout


@pytest.mark.parametrize("make", [lambda: llama2rs_file("C", act_order=True).data, lambda: simple_llama_file(8)[0]])
def test_run_and_info_take_these_files(make: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(make())
    (tmp_path / "tokenizer.bin").write_bytes(tokenizer_bin())
    expected = "".join(llamagpu.load(path, "cpu").generate("on the", max_tokens=12, temperature=0))
    assert command("run", path, "on the", *GREEDY).stdout.decode() == expected
    assert open_checkpoint(path).format in command("info", path).stdout.decode()


def test_tokens_are_drawn_in_the_order_of_the_program(small_model: Path) -> None:
    quirks = open_checkpoint(small_model).quirks
    assert quirks.sampler_order == TEMPERATURE_FIRST
    faithful, ordinary = llamagpu.load(small_model, "cpu", faithful=True), llamagpu.load(small_model, "cpu")
    options: dict[str, Any] = {
        "temperature": 9.0,
        "top_k": 0,
        "top_p": 0.3,
        "min_p": 0.0,
        "seed": 1,
        "ignore_eos": True,
    }
    texts = ["".join(llm.generate("on", 12, **options)) for llm in (ordinary, faithful)]
    assert texts[0] != texts[1]
    assert "".join(ordinary.generate("on", 12, sampler_order=TEMPERATURE_FIRST, **options)) == texts[1]
    assert "".join(faithful.generate("on", 12, sampler_order=DEFAULT_ORDER, **options)) == texts[0]


def test_rllama(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its penalty does nothing, and token 0 has a logit of 0. Its order: top-p of all tokens, then top-k."""
    shape = Shape(vocab_size=512)
    demo = open_checkpoint(Path(llamagpu.__file__).parent / "demo.bin")
    assert demo.tokenizer is not None
    folder = write_meta(tmp_path / "meta", replace(shape, vocab_size=demo.config.vocab_size))
    (folder / "tokenizer.model").write_bytes(demo.tokenizer.data)
    llm = llamagpu.load(folder, "cpu", faithful=True)
    assert llm.default_sampling.sampler_order == "temperature,top_p,top_k,min_p"
    space = llm.tokenizer.encode_text("")
    assert llm.generate("").prompt_tokens == [1, *space]
    assert len(space) == 1
    assert llamagpu.load(folder, "cpu").generate("").prompt_tokens == [1]

    greedy = {"temperature": 0, "max_tokens": 12}
    plain = ids_of(llm, **greedy)
    assert all(ids_of(llm, repetition_penalty=penalty, **greedy) == plain for penalty in (0.3, 3.0))
    assert len(set(ids_of(llamagpu.load(folder, "cpu"), repetition_penalty=0.3, **greedy))) == 1  # as ours means it
    for logits, token in (([-9, -1, -2], 0), ([9, 1, -2], 1), ([-9, -1, 1e-3], 2)):
        sampler = llm.backend.sampler(SamplingParams(0, repetition_penalty=0.5), 3)
        assert isinstance(sampler, FirstIsZero)
        given = np.array(logits, np.float32)
        sampler.see([1, 1, 2])
        assert sampler.sample(given) == token
        assert given.tolist() == np.array(logits, np.float32).tolist()
    with pytest.raises(llamagpu.LlamaGPUError, match="not numbers"):
        FirstIsZero(SamplingParams(0), 2).sample(np.array([np.inf, 1], np.float32))
    for faithful, notice in ((True, "the repetition penalty does nothing"), (False, "encourages tokens that are")):
        run(str(folder), "on", device="cpu", faithful=faithful, repetition_penalty=0.8, max_tokens=2)
        shown = capsys.readouterr().err
        assert notice in shown
        assert ("encourages tokens" in shown) != faithful


def ids_of(llm: LLM, **options: Any) -> list[int]:
    generation = llm.generate("the", ignore_eos=True, **options)
    "".join(generation)
    return generation.tokens


TEXT = "on the other hand the cat, then"


def scored(model: Path, text: str, shown: pytest.CaptureFixture[str], **options: Any) -> tuple[float, str]:
    """Nats a token, and the notices."""
    shown.readouterr()
    perplexity(str(model), text, device="cpu", **options)
    captured = shown.readouterr()
    return float(captured.out.split()[3]), captured.err


def test_perplexity(simple_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a text that begins with no start token, by rounded activations."""
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    bits = open_checkpoint(simple_model).quirks.activation_bits
    rounding = f"activations in {bits} bits, " if bits else ""
    for options in ({}, {"window": 20}, {"documents": True}):
        nats, notices = scored(simple_model, str(text), capsys, faithful=True, **options)
        assert f"faithful to simple-llama: {rounding}no start token\n" in notices
        llm = llamagpu.load(simple_model, "cpu", faithful=True)
        ids = llm.tokenizer.encode(TEXT, add_bos=False)
        log = log_softmax(llm.logits(ids[:-1]))
        assert nats == pytest.approx(-log[np.arange(len(ids) - 1), ids[1:]].mean(), abs=2e-5)
        assert scored(simple_model, str(text), capsys, **options)[0] != nats


def test_compare_says_what_the_rounding_costs(
    simple_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    bits = open_checkpoint(simple_model).quirks.activation_bits
    compare(str(simple_model), str(simple_model), str(text), device="cpu", faithful=True)
    shown = capsys.readouterr()
    assert ("KL divergence   0.00000" in shown.out) == (bits == 0)
    expected = f"faithful to simple-llama: activations in {bits} bits\n" if bits else "--faithful changes nothing here"
    assert expected in shown.err
    compare(str(simple_model), str(simple_model), str(text), device="cpu")
    shown = capsys.readouterr()
    assert "KL divergence   0.00000" in shown.out
    assert "faithful" not in shown.err


def test_a_chat(simple_model: Path) -> None:
    """No start token, and the last token of what is asked twice, at each turn; documents begin without one too."""
    llm = llamagpu.load(simple_model, "cpu", faithful=True)
    template = choose_template("llama2", llm)[0]
    chat = Chat(Session(llm), template, None, SamplingParams(0), 2)
    "".join(chat.ask("a"))
    assert chat.answer is not None
    asked = llm.tokenizer.encode("[INST] a [/INST]", add_bos=False)
    assert chat.answer.prompt_tokens == [*asked, asked[-1]]
    np.testing.assert_allclose(chat.answer.tokens[0], llm.logits([*asked, asked[-1]])[-1].argmax())
    ordinary = llamagpu.load(simple_model, "cpu")
    assert choose_template("llama2", ordinary)[0].render([{"role": "user", "content": "a"}]).startswith("<s>")
    document = Chat(Session(llm), template, None, SamplingParams(0), 2)
    document.read_document("on", lambda n: None)
    assert document.session.tokens == llm.tokenizer.encode("on", add_bos=False)


def test_the_chat_command_says_what_it_reproduces(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(simple_llama_file(8)[0])
    (tmp_path / "tokenizer.bin").write_bytes(tokenizer_bin())
    talk = ("chat", path, *GREEDY, "--faithful", "--template", "llama2", "--repetition_penalty", "0.8")
    result = command(*talk, stdin=b"a\n")
    assert result.stderr.decode().count("a repetition penalty of 0.8, below 1, encourages") == 1
    assert "faithful to simple-llama: activations in 8 bits, last prompt token twice" in result.stderr.decode()
    assert "--device cuda cannot be used: a faithful" in fails("chat", path, "--faithful", "--device", "cuda", status=2)
