"""Eight bits: exact integer sums, rows that do not depend on each other, and generators that stay close to float32."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from latentrag.assemble import generator_for_training, load, save
from latentrag.encoder import load_passage_encoder
from latentrag.errors import InputError
from latentrag.generator import CausalGenerator, Seq2SeqGenerator, load_generator
from latentrag.generator.int8 import Int8Linear, quantised
from latentrag.generator.tuning import Lora
from latentrag.memory import Memory
from latentrag.place import Place
from latentrag.protocols import Scores
from latentrag.types import Passage, singles
from tests import tiny
from tests.encoder.tiny import write_sentence_encoder

KINDS = {"bart": tiny.save_bart, "t5": tiny.save_t5, "llama": tiny.save_llama, "gemma2": tiny.save_gemma2}
X = ["what is the capital", "who wrote it in rome"]
PASSAGES = [[Passage("a", "paris is the capital"), Passage("b", "the red moon is a moon of rome")]] * 2
Y = ["paris", "the queen of italy"]


def folder_of(kind: str, folder):
    tiny.save_tokenizer(folder, begin=kind != "t5", end=kind in ("bart", "t5"), max_tokens=64)
    KINDS[kind](folder, seed=3)
    return folder


def slowly(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """Number by number, in Python's integers."""
    rounded = []
    for rows in (layer.weight.detach(), x):
        scales = [max(map(abs, row)) / 127 or 1.0 for row in rows.tolist()]
        rounded.append((scales, [[round(v / s) for v in row] for row, s in zip(rows.tolist(), scales, strict=True)]))
    (of_out, weight), (of_row, values) = rounded
    bias = layer.bias.tolist() if layer.bias is not None else [0.0] * len(weight)
    return torch.tensor(
        [
            [sum(map(int.__mul__, w, v)) * s * r + b for w, s, b in zip(weight, of_out, bias, strict=True)]
            for v, r in zip(values, of_row, strict=True)
        ]
    )


@given(st.integers(1, 9), st.integers(2, 70), st.integers(1, 40), st.booleans(), st.integers(0, 1000))
@settings(max_examples=40)
def test_a_layer_is_the_exact_sum_of_rounded_products(rows, width, out, bias, seed) -> None:
    torch.manual_seed(seed)
    layer, x = nn.Linear(width, out, bias=bias), 3 * torch.randn(rows, width)
    # Products with float32's scales; a value may lie on the border between two integers in float64 alone.
    expected = slowly(layer, x)
    found = Int8Linear(layer)(x)
    assert found.dtype == torch.float32
    step = float(layer.weight.detach().abs().max() / 127 * x.abs().max())
    assert (found - expected).abs().max() <= 1e-5 + step
    assert (found - expected).abs().median() <= 1e-5


@given(st.integers(1, 6), st.integers(1, 50), st.floats(1e-6, 1e6), st.integers(0, 1000))
def test_rounding_is_half_a_step_at_most(rows, width, size, seed) -> None:
    torch.manual_seed(seed)
    values = size * torch.randn(rows, width)
    rounded, scale = quantised(values)
    assert (rounded * scale[:, None] - values).abs().max() <= 0.5001 * scale.max()
    assert torch.equal(rounded.abs().amax(dim=1), torch.full((rows,), 127))


def test_a_row_of_zeros_stays_one() -> None:
    layer = Int8Linear(nn.Linear(8, 3, bias=False))
    assert torch.equal(layer(torch.zeros(2, 8)), torch.zeros(2, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_the_rows_beside_it(dtype) -> None:
    layer = Int8Linear(nn.Linear(32, 24))
    x = torch.randn(2, 5, 32, dtype=dtype) * torch.tensor([1.0, 1e3, 1e-3, 10.0, 0.1]).to(dtype)[None, :, None]
    together = layer(x)
    assert together.dtype == dtype
    assert torch.equal(together, torch.stack([torch.stack([layer(row[None])[0] for row in rows]) for rows in x]))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_generator_stays_close_and_its_ways_agree(kind, tmp_path) -> None:
    folder = folder_of(kind, tmp_path)
    rounded = load_generator(folder, place=Place(number_format="int8"))
    assert isinstance(rounded, CausalGenerator | Seq2SeqGenerator)
    prepared: Any = rounded.prepare(X, singles(PASSAGES))
    assert not any(type(module) is nn.Linear for module in rounded.model.modules())
    targets = rounded.targets(Y)
    generators: tuple[Scores, Scores] = (load_generator(folder), rounded)
    expected, found = (g.log_p_theta(g.prepare(X, singles(PASSAGES)), targets) for g in generators)
    apart = (found - expected).abs()[targets.mask[:, None].expand_as(found)]
    assert 0 < apart.mean() < 0.2  # of weights this large; 1 or more if a scale is wrong
    state: Any
    log_p, state = rounded.start(prepared)
    first = targets.ids[:, 0]
    torch.testing.assert_close(
        log_p[:, :, 0].gather(2, first[:, None, None].expand(-1, 2, 1))[..., 0], found[:, :, 0], rtol=0, atol=0.05
    )
    log_p, _ = rounded.step(state, torch.tensor([[0], [1]]), first[:, None])
    assert torch.allclose(log_p.logsumexp(dim=3), torch.zeros(2, 2, 1), atol=1e-5)


@torch.no_grad()
def test_an_adapter_stays_as_it_is(tmp_path) -> None:
    pytest.importorskip("peft")
    folder = folder_of("llama", tmp_path)
    plain = tiny.load_causal(folder)
    adapted = CausalGenerator(plain.model, plain.tokenizer, lora=Lora(rank=2, alpha=4, scope="question"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.normal_()
    adapted.save(tmp_path / "adapted")
    rounded = load_generator(tmp_path / "adapted", place=Place(number_format="int8"))
    targets = adapted.targets(Y)
    generators: tuple[Scores, Scores] = (adapted, rounded)
    expected, found = (g.log_p_theta(g.prepare(X, singles(PASSAGES)), targets) for g in generators)
    assert 0 < (found - expected).abs()[targets.mask[:, None].expand_as(found)].mean() < 0.2


@pytest.mark.parametrize("kind", ["bart", "llama"])
def test_no_saving_and_no_training(kind, tmp_path) -> None:
    rounded = load_generator(folder_of(kind, tmp_path), place=Place(number_format="int8"))
    assert isinstance(rounded, Seq2SeqGenerator if kind == "bart" else CausalGenerator)
    with pytest.raises(InputError, match=r"^a generator in int8 cannot be saved; load it in another dtype"):
        rounded.save(tmp_path / "new")
    with pytest.raises(InputError, match=r"^a generator in int8 cannot be trained; use dtype auto"):
        generator_for_training(rounded, lora=None)


@pytest.fixture
def parts(tmp_path):
    encoder = write_sentence_encoder(tmp_path / "encoder", head=["Normalize"])
    reader = load_passage_encoder(encoder)
    memory = Memory.create(tmp_path / "memory.lance", reader).add(PASSAGES[0], reader)
    return (encoder, folder_of("llama", tmp_path / "generator")), memory


def test_a_model_in_int8_answers_and_is_not_saved(parts, tmp_path) -> None:
    pair, memory = parts
    rag = load(pair, memory=memory, k=2, dtype="int8")
    assert tiny.causal_of(rag).int8
    answer = rag.answer(X[0], max_tokens=4)
    # The passages are known now, what is computed is the same.
    assert rag.answer(X[0], max_tokens=4) == copy.deepcopy(answer)
    assert rag.score(X[0], answer.text, k=2).log_likelihood < 0
    with pytest.raises(InputError, match="cannot be saved"):
        save(rag, tmp_path / "saved")
    assert not list(tmp_path.glob("*saved*"))


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "mps"])
def test_only_on_a_processor(parts, device) -> None:
    with pytest.raises(InputError, match=rf"^dtype='int8' is for CPUs, device='{device}' is none; use bfloat16"):
        load(parts[0], memory=parts[1], retriever="bm25", dtype="int8", device=device)
