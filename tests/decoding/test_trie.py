"""A tree of token sequences against scoring each of them alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentrag.decoding import rescored
from latentrag.decoding.rescore import as_targets
from latentrag.decoding.trie import Trie, scored_tries
from latentrag.generator import load_generator
from latentrag.marginal import log_prior, sequence_log_likelihood
from latentrag.types import Passage
from tests import tiny

SEQUENCES = st.lists(st.lists(st.integers(3, 6), min_size=1, max_size=5), min_size=1, max_size=7)
PASSAGES = [[Passage("a", "paris is the capital"), Passage("b", "the red moon is a moon of mars")]] * 3
X = ["what is the capital", "which moon is red", "who"]
KINDS = {"seq2seq": tiny.save_bart, "causal": tiny.save_llama}


@pytest.fixture(scope="module", params=KINDS)
def generator(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    tiny.save_tokenizer(folder, end=request.param == "seq2seq", max_tokens=64)
    KINDS[request.param](folder, seed=3)
    return load_generator(folder)


@given(st.lists(SEQUENCES, min_size=3, max_size=3))
@settings(max_examples=25, deadline=None)
def test_tries_score_as_each_sequence_alone(generator, of_questions) -> None:
    prepared = generator.prepare(X, PASSAGES)
    found = scored_tries(generator, prepared, [Trie(sequences) for sequences in of_questions])
    for b, sequences in enumerate(of_questions):
        for ids, log_p in zip(sequences, found[b], strict=True):
            alone = generator.log_p_theta(prepared.rows(torch.tensor([b])), as_targets([ids], device=log_p.device))
            torch.testing.assert_close(log_p, alone[0], rtol=0, atol=2e-5)


@given(SEQUENCES)
def test_a_level_holds_every_prefix_once(sequences) -> None:
    trie = Trie(sequences)
    for t, level in enumerate(trie.levels):
        prefixes = {tuple(ids[:t]) for ids in sequences if len(ids) > t}
        assert len(level) == max(len(prefixes), t == 0)


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_groups_change_nothing(generator, rows, monkeypatch) -> None:
    monkeypatch.setattr("latentrag.decoding.rescore._ROWS_AT_ONCE", 2 * rows)
    question = [2, 0, 0, 2, 1, 0, 2]
    sequences = [[3], [3, 4], [3, 4, 5], [6, 3, 3], [5], [3, 4], [6, 3]]
    prepared, log_p_eta = generator.prepare(X, PASSAGES), log_prior(torch.tensor([[0.3, 1.0]] * 3))
    found = rescored(generator, prepared, log_p_eta, question, sequences)
    for b, ids, (log_prob, log_p) in zip(question, sequences, found, strict=True):
        targets = as_targets([ids], device=log_p.device)
        alone = generator.log_p_theta(prepared.rows(torch.tensor([b])), targets)
        expected = sequence_log_likelihood(log_p_eta[b : b + 1], alone, targets.mask).item()
        torch.testing.assert_close(log_p, alone[0], rtol=0, atol=2e-5)
        assert log_prob == pytest.approx(expected, abs=5e-5)
