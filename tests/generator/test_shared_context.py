"""Beams that share what was read of (x, z), against beams that have a copy each."""

import pytest
import torch

from latentrag.generator import load_generator, shared_context
from latentrag.types import Passage, singles
from tests import tiny

SHARING = {"bart": tiny.save_bart, "t5": tiny.save_t5, "llama": tiny.save_llama, "gpt2": tiny.save_gpt2}
X = ["what is the capital", "which moon is red", "who wrote it in rome"]
PASSAGES = [
    [Passage("a", "paris is the capital"), Passage("b", "the red moon is a moon of mars and of rome")],
] * 3


def make(kind: str, folder):
    tiny.save_tokenizer(folder, begin=kind != "t5", end=kind in ("bart", "t5"), max_tokens=64)
    SHARING[kind](folder, seed=3)
    return load_generator(folder)


@pytest.fixture(params=SHARING)
def pair(request, tmp_path):
    """The same generator twice: one shares, one copies."""
    sharing, copying = make(request.param, tmp_path), make(request.param, tmp_path)
    assert sharing._shares_context
    copying.model.set_attn_implementation("sdpa")
    copying._shares_context = False
    return sharing, copying


# Three grids of beams, in which questions leave and beams move, multiply and become fewer.
WAYS = [
    [[[0, 0, 0], [1, 1, 1], [2, 2, 2]], [[2, 0, 0], [3, 3, 5], [8, 7, 6]], [[1, 1], [7, 6]], [[3, 2, 2, 3]]],
    [[[1, 1]], [[1, 0]], [[0, 0, 1]], [[2]]],
    [[[0], [1], [2]], [[2], [0]], [[1], [0]], [[0, 0], [1, 1]]],
]


@pytest.mark.parametrize("way", WAYS)
@torch.no_grad()
def test_steps_are_those_of_copied_contexts(pair, way) -> None:
    states = []
    for generator in pair:
        log_p, state = generator.start(generator.prepare(X, singles(PASSAGES)))
        states.append(state)
        steps = [log_p]
        for number, grid in enumerate(way):
            parents = torch.tensor(grid)
            tokens = (parents + number) % 5 + 3
            log_p, states[-1] = generator.step(states[-1], parents, tokens)
            steps.append(log_p)
        states[-1] = steps
    for shared, copied in zip(*states, strict=True):
        torch.testing.assert_close(shared, copied, rtol=0, atol=2e-5)


@torch.no_grad()
def test_a_second_search_begins_from_what_was_read(pair) -> None:
    """Steps leave what was read of the prompts as it was."""
    generator, _ = pair
    prepared = generator.prepare(X, singles(PASSAGES))
    found = []
    for _ in range(2):
        _, state = generator.start(prepared)
        log_p, state = generator.step(state, torch.tensor([[0, 0], [1, 1]]), torch.tensor([[3, 4], [5, 6]]))
        log_p, state = generator.step(state, torch.tensor([[1, 0]]), torch.tensor([[3, 3]]))
        found.append(log_p)
    assert torch.equal(*found)


def test_models_that_cannot_share_keep_their_attention(tmp_path) -> None:
    """Soft-capped attention is not torch's; an attention that somebody chose stays."""
    tiny.save_tokenizer(tmp_path / "capped", end=False, max_tokens=64)
    tiny.save_gemma2(tmp_path / "capped")
    capped = tiny.load_causal(tmp_path / "capped")
    assert not capped._shares_context
    chosen = make("bart", tmp_path / "bart").model
    chosen.set_attn_implementation("eager")
    assert not shared_context.share_context(chosen)
    assert chosen.config._attn_implementation == "eager"


def test_a_model_that_does_not_agree_is_left_alone(tmp_path, monkeypatch) -> None:
    real = shared_context._after_context
    monkeypatch.setattr(shared_context, "_after_context", lambda *args, **options: 1.01 * real(*args, **options))
    generator = make("llama", tmp_path)
    assert not generator._shares_context
    assert generator.capabilities.keeps_prefixes
    assert generator.model.config._attn_implementation == "sdpa"


def test_the_saved_config_does_not_name_it(tmp_path) -> None:
    make("bart", tmp_path).model.save_pretrained(tmp_path / "saved")
    assert shared_context.NAME not in (tmp_path / "saved" / "config.json").read_text("utf-8")


@pytest.mark.parametrize("kind", SHARING)
@torch.no_grad()
def test_it_can_be_switched_off(kind, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(shared_context.SWITCH, "0")
    generator = make(kind, tmp_path)
    assert generator.model.config._attn_implementation == "sdpa"
    monkeypatch.delenv(shared_context.SWITCH)
    (off, _), (on, _) = (g.start(g.prepare(X, singles(PASSAGES))) for g in (generator, make(kind, tmp_path)))
    torch.testing.assert_close(off, on, rtol=0, atol=2e-5)
