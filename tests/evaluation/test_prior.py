"""Weights of a prior of experts: likelihoods as the model has them, gradients, and what a fit finds again."""

import math

import pytest
import torch

from latentrag.errors import DataError, InputError
from latentrag.evaluation.prior import RIDGES, Scored, _strongest, fit, fitted_weights, scored
from latentrag.memory import Memory
from latentrag.rag import Rag
from latentrag.retriever import HybridRetriever
from latentrag.training.data import Example
from latentrag.types import Turn
from tests.memory.conftest import FakePassageEncoder
from tests.retriever.test_hybrid import QUESTIONS, FakeQueryEncoder, FakeReranker, passages
from tests.toy import ToyGenerator, grad_of

NAMES = ["dense", "bm25", "reranker"]


def drawn(seed: int = 0, *, num: int = 5, variant_tokens: int = 3) -> Scored:
    """Random questions of up to six candidates, the last of one question missing."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    offset = torch.zeros(num, 6, dtype=torch.float64)
    offset[0, 4:] = -math.inf
    mask = torch.ones(num, variant_tokens, dtype=torch.bool)
    mask[1, 2:] = False
    null = torch.zeros(num, 6, dtype=torch.bool)
    return Scored(normal(num, 6, 3), offset, -normal(num, 6, variant_tokens).abs(), mask, null)


def test_gradients_are_posterior_minus_prior_times_the_experts_values():
    of = drawn()
    weights = torch.tensor([1.1, 0.3, -0.4], dtype=torch.float64, requires_grad=True)
    of.log_likelihood(weights, "sequence").sum().backward()
    expected = torch.zeros(3, dtype=torch.float64)
    for b in range(len(of.offset)):
        logits = of.experts[b] @ weights.detach() + of.offset[b]
        prior = logits.softmax(dim=0)
        log_p = (of.log_p_theta[b] * of.mask[b]).sum(dim=1)
        posterior = (prior.log() + log_p).softmax(dim=0)
        expected += (posterior - prior) @ of.experts[b]
    assert torch.allclose(grad_of(weights), expected, rtol=1e-12, atol=1e-12)
    for variant in ("sequence", "token"):
        assert torch.autograd.gradcheck(lambda w, v=variant: of.log_likelihood(w, v), weights)
        assert torch.autograd.gradcheck(lambda w, v=variant: of.log_likelihood(w, v, k=2), weights)


def test_an_answer_s_gradient_in_the_retriever_is_that_of_the_fit(hybrid):
    """Through retrieval, prior and likelihood, as training takes it."""
    rag = Rag(hybrid, ToyGenerator(), k=30)
    evidence = rag.model.evidence(QUESTIONS[:1], ["ab"], k=30)
    evidence.log_likelihood("sequence").sum().backward()
    prior, posterior = evidence.log_p_eta[0].exp().double(), evidence.posterior("sequence")[0].double()
    for name, weight in hybrid.weights.items():
        value = evidence.parts[name][0].double() / weight.item()
        # Retrieval is in float32.
        assert weight.grad.item() == pytest.approx(((posterior - prior) @ value).item(), rel=1e-4, abs=1e-6)


@pytest.fixture(scope="module")
def memory(tmp_path_factory):
    encoder = FakePassageEncoder()
    return Memory.create(tmp_path_factory.mktemp("prior") / "memory.lance", encoder).add(passages(), encoder)


@pytest.fixture
def hybrid(memory):
    weights = {"dense": 1.2, "bm25": 0.7, "reranker": 0.4, "title": 0.9}
    return HybridRetriever(FakeQueryEncoder(), memory, weights=weights, num_candidates=6, reranker=FakeReranker())


EXAMPLES = [Example(f"q{i}", x, (y,)) for i, (x, y) in enumerate(zip(QUESTIONS, ["ab", "c", "ba", "abc"], strict=True))]


@pytest.mark.parametrize("null", [None, 0.5])
@pytest.mark.parametrize("variant", ["sequence", "token"])
def test_what_is_kept_gives_the_model_s_own_likelihoods_and_is_not_scored_again(tmp_path, hybrid, null, variant):
    rag = Rag(hybrid, ToyGenerator(), k=3, variant=variant, null_passage=null)
    out = tmp_path / "scores.jsonl"
    rows = scored(rag, hybrid, EXAMPLES[:2], out, num=6, about={})
    rows = scored(rag, hybrid, EXAMPLES, out, num=6, about={})
    assert rows[:2] == scored(rag, None, EXAMPLES[:2], out, num=6, about={})  # type: ignore[arg-type]
    names = list(hybrid.weights)
    weights = torch.tensor([hybrid.weights[name].item() for name in names], dtype=torch.float64)
    found = Scored.of(rows, names).log_likelihood(weights, variant, k=3)
    for example, log_p in zip(EXAMPLES, found.tolist(), strict=True):
        # The retriever's logits are in float32.
        assert log_p == pytest.approx(rag.log_likelihood(example.x, example.answers[0]), abs=1e-5)
    with pytest.raises(InputError, match="was begun with num=6"):
        scored(rag, hybrid, EXAMPLES, out, num=7, about={})
    with pytest.raises(InputError, match="another example with the id q0"):
        scored(rag, hybrid, [Example("q0", "other", ("ab",))], out, num=6, about={})


def rows_of(true: list[float], *, num: int, seed: int = 0) -> list[dict[str, object]]:
    """Questions for whose answer one candidate is needed, which is drawn from the prior with these weights."""
    random = torch.Generator().manual_seed(seed)
    rows: list[dict[str, object]] = []
    for i in range(num):
        values = torch.randn(8, 3, generator=random, dtype=torch.float64) * torch.tensor([0.1, 3.0, 1.0])
        prior = (values @ torch.tensor(true, dtype=torch.float64)).softmax(dim=0)
        right = int(torch.multinomial(prior, 1, generator=random))
        log_p = [[-0.1 if z == right else -6.0] for z in range(8)]
        experts = {name: values[:, e].tolist() for e, name in enumerate(NAMES)}
        rows.append({"id": str(i), "experts": experts, "offset": [0.0] * 8, "null": False, "log_p_theta": log_p})
    return rows


def test_a_fit_finds_the_weights_by_which_answers_were_drawn_and_says_what_it_gains():
    true, before = [20.0, 0.5, 0.0], {"dense": 10.0, "bm25": 0.0, "reranker": 1.0}
    fitted = fit(rows_of(true, num=400), before, k=8, variant="sequence")
    for name, value in zip(NAMES, true, strict=True):
        assert abs(fitted.weights[name] - value) * fitted.deviations[name] < 0.5
    assert fitted.ridge in RIDGES
    assert fitted.gain.low is not None
    assert fitted.gain.low > 0
    assert fitted.gain.mean == pytest.approx(fitted.log_p["fitted"] - fitted.log_p["before"])
    assert fitted.gain_over_dense.mean == pytest.approx(fitted.log_p["fitted"] - fitted.log_p["dense"])
    assert fit(rows_of(true, num=400), before, k=8, variant="sequence").weights == fitted.weights


def test_a_strong_penalty_keeps_the_weights_and_so_does_an_expert_that_says_nothing():
    of, before = Scored.of(rows_of([20.0, 0.5, 0.0], num=40), NAMES), torch.tensor([10.0, 0.0, 1.0]).double()
    assert torch.allclose(fitted_weights(of, before, variant="sequence", ridge=1e9), before, atol=1e-4)
    of.experts[:, :, 1] = 3.0
    assert abs(fitted_weights(of, before, variant="sequence", ridge=1.0)[1] - before[1]) < 1e-12


def test_the_strongest_penalty_that_is_not_clearly_worse_is_taken():
    good, noise = torch.zeros(100), torch.linspace(-1, 1, 100)
    assert _strongest({0.1: good, 1.0: good - 0.05 + noise, 10.0: good - 0.5 + noise}) == 1.0
    assert _strongest({0.1: good, 1.0: good - 0.5, 10.0: good - 1.0}) == 0.1
    assert _strongest({0.1: good - 1, 100.0: good}) == 100.0


def test_few_questions_without_a_clear_gain_change_little():
    before = {"dense": 20.0, "bm25": 0.5, "reranker": 0.0}
    fitted = fit(rows_of([20.0, 0.5, 0.0], num=30), before, k=8, variant="sequence")
    for name, weight in before.items():
        assert abs(fitted.weights[name] - weight) * fitted.deviations[name] < 0.3


def test_questions_that_no_candidate_answers_are_left_out_and_too_few_are_refused():
    rows = rows_of([20.0, 0.5, 0.0], num=25)
    rows[3]["log_p_theta"] = [[None]] * 8
    before = {"dense": 10.0, "bm25": 0.0, "reranker": 1.0}
    fitted = fit(rows, before, k=4, variant="sequence")
    assert (fitted.num_questions, fitted.num_silent) == (24, 1)
    with pytest.raises(InputError, match="got 19 questions whose answer a candidate can give; needed 20"):
        fit(rows[:20], before, k=4, variant="sequence")
    with pytest.raises(InputError, match="kept without the expert recency"):
        fit(rows, {**before, "recency": 0.0}, k=4, variant="sequence")


def test_sets_are_refused(tmp_path, hybrid):
    rag = Rag(hybrid, ToyGenerator(), k=3, set_bonus=0.5)
    with pytest.raises(InputError, match="this model reads sets; use --set-size 1"):
        scored(rag, hybrid, EXAMPLES, tmp_path / "scores.jsonl", num=6, about={})


def test_a_question_that_cannot_be_read_is_named(tmp_path, hybrid):
    rag = Rag(hybrid, ToyGenerator(), k=3)
    with pytest.raises(DataError, match="example q9: "):
        scored(rag, hybrid, [Example("q9", " ", ("ab",))], tmp_path / "scores.jsonl", num=6, about={})
    talk = Example("q9", "it", ("ab",), history=(Turn("user", "rome"), Turn("assistant", "a city")))
    with pytest.raises(InputError, match="example q9 is a conversation"):
        scored(rag, hybrid, [talk], tmp_path / "scores.jsonl", num=6, about={})


def test_a_fit_to_no_row_is_refused():
    with pytest.raises(InputError, match="got 0 questions whose answer a candidate can give; needed 20"):
        fit([], {"dense": 10.0}, k=4, variant="sequence")
