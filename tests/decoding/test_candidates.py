"""The best continuations from bounds, against those from the marginal of every token."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentrag.decoding.candidates import best_continuations, every_continuation
from latentrag.decoding.step import Beams

VARIANTS = ["sequence", "token"]


def setting(seed: int, sizes: tuple[int, int, int, int], sharpness: float) -> tuple[Beams, torch.Tensor]:
    """Hypotheses of two tokens, the last of them sometimes empty, and log p of the step with some impossible tokens."""
    num_questions, num_passages, num_beams, _ = sizes
    random = torch.Generator().manual_seed(seed)
    log_p = torch.log_softmax(sharpness * torch.randn(sizes, generator=random), dim=-1)
    log_p[torch.rand(sizes, generator=random) < 0.2] = float("-inf")
    log_prior = torch.log_softmax(torch.randn(num_questions, num_passages, generator=random), dim=1)
    beams = Beams.initial(log_prior, num_beams)
    beams.scores = -torch.rand(num_questions, num_beams, generator=random)
    if num_beams > 1 and seed % 3 == 0:
        beams.scores[:, -1] = float("-inf")
    beams.tokens = torch.zeros(num_questions, num_beams, 2, dtype=torch.long)
    beams.history = -torch.rand(num_questions, num_beams, num_passages, 2, generator=random)
    return beams, log_p


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 4), st.sampled_from([3, 50, 3000])),
    sharpness=st.sampled_from([0.0, 1.0, 8.0]),
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_they_are_the_best_of_all(variant, seed, sizes, sharpness) -> None:
    beams, log_p = setting(seed, sizes, sharpness)
    banned = torch.rand(sizes[0], sizes[2], sizes[3], generator=torch.Generator().manual_seed(seed)) < 0.1
    count = min(8, sizes[2] * sizes[3])

    def allowed(step: torch.Tensor) -> torch.Tensor:
        return step.masked_fill(banned, float("-inf"))

    found = best_continuations(beams, log_p, variant, allowed, count)
    expected = every_continuation(beams, log_p, variant, allowed, count)
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-5)
    finite = torch.isfinite(expected[0])
    assert torch.equal(torch.isfinite(found[0]), finite)
    # Where two are equally good, either may come first: so by score, not by place.
    for b, (scores, beam, token) in enumerate(zip(*found, strict=True)):
        pairs = list(zip(beam.tolist(), token.tolist(), strict=True))
        kept = [pair for pair, is_there in zip(pairs, finite[b].tolist(), strict=True) if is_there]
        assert len(set(kept)) == len(kept)
        assert not any(banned[b, m, v] for m, v in kept)
        own = every_continuation(beams, log_p, variant, allowed, sizes[2] * sizes[3])
        score_of = dict(zip(zip(own[1][b].tolist(), own[2][b].tolist(), strict=True), own[0][b].tolist(), strict=True))
        assert [score_of[pair] for pair in kept] == pytest.approx(scores[finite[b]].tolist(), abs=1e-5)


def test_few_are_looked_at_where_the_model_knows_something(monkeypatch) -> None:
    beams, log_p = setting(1, (2, 5, 4, 3000), 8.0)

    def everything(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("latentrag.decoding.candidates.every_continuation", everything)
    best_continuations(beams, log_p, "sequence", lambda step: step, 8)
    with pytest.raises(AssertionError):
        best_continuations(beams, torch.zeros_like(log_p), "sequence", lambda step: step, 8)
