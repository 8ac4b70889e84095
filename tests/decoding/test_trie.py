"""A tree of token sequences against scoring each of them alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentrag.decoding import thorough
from latentrag.decoding.loop import result_of
from latentrag.decoding.rescore import as_targets
from latentrag.decoding.trie import Candidates, scoring
from latentrag.generator import load_generator
from latentrag.marginal import log_prior, sequence_log_likelihood
from latentrag.options import DecodingOptions
from latentrag.types import Passage, singles
from tests import tiny
from tests.decoding.rescoring import rescored

SEQUENCES = st.lists(st.lists(st.integers(3, 6), min_size=1, max_size=5), min_size=1, max_size=7, unique_by=tuple)
PASSAGES = [[Passage("a", "paris is the capital"), Passage("b", "the red moon is a moon of mars")]] * 3
X = ["what is the capital", "which moon is red", "who"]
LOG_P_ETA = log_prior(torch.tensor([[0.3, 1.0], [2.0, -1.0], [0.0, 0.0]]))
KINDS = {"seq2seq": tiny.save_bart, "causal": tiny.save_llama}


@pytest.fixture(scope="module", params=KINDS)
def generator(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    tiny.save_tokenizer(folder, end=request.param == "seq2seq", max_tokens=64)
    KINDS[request.param](folder, seed=3)
    return load_generator(folder)


def alone(generator, b: int, ids: list[int]):
    """log p_θ (K, T) and log p(y|x), in one forward pass for this sequence."""
    targets = as_targets([ids], device=torch.device("cpu"))
    log_p_theta = generator.log_p_theta(generator.prepare(X[b : b + 1], singles(PASSAGES[:1])), targets)
    return log_p_theta[0], sequence_log_likelihood(LOG_P_ETA[b : b + 1], log_p_theta, targets.mask).item()


@given(st.lists(SEQUENCES, min_size=3, max_size=3))
@settings(max_examples=20, deadline=None)
def test_sequences_score_as_each_alone(generator, of_questions) -> None:
    found = [Candidates(sequences, LOG_P_ETA[b]) for b, sequences in enumerate(of_questions)]
    result_of(scoring(generator, generator.prepare(X, singles(PASSAGES)), found))
    for b, sequences in enumerate(of_questions):
        for number, ids in enumerate(sequences):
            torch.testing.assert_close(found[b].log_p_theta(number), alone(generator, b, ids)[0], rtol=0, atol=1e-4)


@given(SEQUENCES, st.integers(1, 4), st.lists(st.booleans(), min_size=14, max_size=14))
@settings(max_examples=30, deadline=None)
def test_the_best_are_never_left_out(generator, sequences, num_best, is_known) -> None:
    """Whatever is known of them before."""
    scores = [alone(generator, 1, ids) for ids in sequences]
    known = {
        (number, k): scores[number][0][k]
        for number in range(len(sequences))
        for k in range(2)
        if is_known[2 * number + k]
    }
    found = Candidates(sequences, LOG_P_ETA[1], known=known, num_best=num_best)
    result_of(scoring(generator, generator.prepare(X[1:2], singles(PASSAGES[:1])), [found]))
    best = sorted(range(len(sequences)), key=lambda number: -scores[number][1])[:num_best]
    for number in best:
        torch.testing.assert_close(found.log_p_theta(number), scores[number][0], rtol=0, atol=1e-4)


def test_what_cannot_win_is_left_out() -> None:
    """Equal priors; passage 0 is known; passage 1 gives every token −3 nats. p(y|x) of the first is at least e^−1/2,
    and the others' bound e^−3/2 after their first token."""
    sequences = [[3, 4, 5], [6, 5, 4], [4, 4, 4]]
    known = {(number, 0): torch.tensor([log_p, 0.0, 0.0]) for number, log_p in enumerate([-1.0, -9.0, -2.5])}
    found = Candidates(sequences, log_prior(torch.zeros(1, 2))[0], known=known, num_best=1)
    assert found.tries[0].live == []
    trie = found.tries[1]
    trie.collect(torch.full((1, 10), -3.0))
    assert trie.grow(found.possible()) == [(0, 3)]
    for place in ([(0, 4)], []):
        trie.collect(torch.full((1, 10), -3.0))
        assert trie.grow(found.possible()) == place
    torch.testing.assert_close(found.log_p_theta(0), torch.tensor([[-1.0, 0, 0], [-3, -3, -3]]))
    assert found.log_p_theta(1) is None
    assert found.log_p_theta(2) is None


@given(SEQUENCES)
def test_every_prefix_is_there_once(sequences) -> None:
    trie = Candidates(sequences, LOG_P_ETA[0]).tries[0]
    length = 0
    while trie.live:
        trie.collect(torch.zeros(len(sequences), 10))
        length += 1
        level = trie.grow([True] * len(sequences))
        assert len(level) == len({tuple(ids[:length]) for ids in sequences if len(ids) > length})


@pytest.mark.parametrize("rows", [1, 8, 1000])
def test_rows_at_once_change_nothing(generator, rows, monkeypatch) -> None:
    monkeypatch.setattr("latentrag.decoding.rescore._ROWS_AT_ONCE", rows)
    question = [2, 0, 0, 2, 0, 0, 2]
    sequences = [[3], [3, 4], [3, 4, 5], [6, 3, 3], [5], [3, 4, 6], [6, 3]]
    found = rescored(generator, generator.prepare(X, singles(PASSAGES)), LOG_P_ETA, question, sequences)
    for b, ids, (log_prob, log_p) in zip(question, sequences, found, strict=True):
        expected, expected_log_prob = alone(generator, b, ids)
        torch.testing.assert_close(log_p, expected, rtol=0, atol=1e-4)
        assert log_prob == pytest.approx(expected_log_prob, abs=1e-4)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_thorough_is_the_union_scored_in_full(generator, num_beams) -> None:
    """Leaving out what cannot win leaves ranking and scores as they are."""
    options = DecodingOptions(num_beams=num_beams, num_best=num_beams, max_tokens=5)
    prepared = generator.prepare(X, singles(PASSAGES))
    found = thorough(generator, prepared, LOG_P_ETA, options=options)
    apart = prepared.each_passage()
    for b in range(len(X)):
        union = set()
        for k in range(2):
            one = torch.tensor([2 * b + k])
            beams = thorough(generator, apart.rows(one), torch.zeros(1, 1), options=options)
            union |= {hypothesis.ids for hypothesis in beams[0]}
        expected = sorted((alone(generator, b, list(ids))[1], ids) for ids in union)[::-1][:num_beams]
        assert [h.ids for h in found[b]] == [ids for _, ids in expected]
        assert [h.log_prob for h in found[b]] == pytest.approx([log_prob for log_prob, _ in expected], abs=1e-4)
