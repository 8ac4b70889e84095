"""ROUGE-L and BLEU against the public implementations; trigrams and Q-BLEU-1 by hand."""

from typing import Any

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU

from latentrag.errors import ModelError
from latentrag.evaluation import answerability, texts

PAIRS = [
    ("the cat sat on the mat", ["the cat is on the mat", "there is a cat on the mat"]),
    ("It's the U.S. Senate, isn't it?", ["The Senate of the U.S."]),
    ("", ["something"]),
    ("something", ["..."]),
    ("a_b under_score", ["a b under score"]),
    ("one two three four five", ["five four three two one", "one three five", "one two"]),
    ("Same words, SAME case", ["same words same case"]),
    ("12,5 % of 3.4", ["12.5% of 3.4"]),
    ("la la la", ["la", "la la", "la la la la"]),
]


@pytest.mark.parametrize(("text", "answers"), PAIRS)
def test_rouge_l_is_that_of_rouge_score(text, answers) -> None:
    public = RougeScorer(["rougeL"]).score_multi(answers, text)["rougeL"].fmeasure
    assert texts.rouge_l(text, answers) == pytest.approx(public, abs=1e-12)


def test_rouge_l_has_letters_that_rouge_score_drops() -> None:
    korean = ("서울은 수도", ["서울은 한국의 수도"])
    assert RougeScorer(["rougeL"]).score_multi(korean[1], korean[0])["rougeL"].fmeasure == 0
    assert texts.rouge_l(*korean) == pytest.approx(0.8)  # P = 2/2, R = 2/3
    assert texts.rouge_l("東京", ["東京都"]) == pytest.approx(0.8)  # each character
    assert texts.rouge_l("Beyonce\u0301", ["Beyonc\u00e9 sang"]) == pytest.approx(2 / 3)
    assert texts.words("Café_au lait, 3½!") == ["café", "au", "lait", "3½"]


def test_bleu_is_that_of_sacrebleu() -> None:
    pairs = [*PAIRS, ("서울은 한국의 수도 이다", ["서울은 한국의 큰 수도 이다", "서울"])]
    hypotheses = [text for text, _ in pairs]
    streams: Any = [[answers[i] if i < len(answers) else None for _, answers in pairs] for i in range(3)]
    counts = np.array([texts.bleu_counts(text, answers) for text, answers in pairs]).sum(axis=0).tolist()
    for order in (1, 2, 4):
        public = BLEU(max_ngram_order=order).corpus_score(hypotheses, streams).score
        assert texts.bleu_of(counts, max_order=order) == pytest.approx(public / 100, abs=1e-12)
    assert 0 < texts.bleu_of(counts) < texts.bleu_of(counts, max_order=1) < 1


def test_bleu_without_a_match_of_four_words_is_smoothed_as_sacrebleu_does() -> None:
    for text, answer in (("a b c d e f", "a x c y e z"), ("a b c d", "a b x c d"), ("a", "a b")):
        public = BLEU().corpus_score([text], [[answer]]).score / 100
        assert texts.bleu_of(texts.bleu_counts(text, [answer])) == pytest.approx(public, abs=1e-12)
    assert texts.bleu_of(texts.bleu_counts("a b c d e f", ["a x c y e z"])) == pytest.approx(0.1068, abs=1e-4)


def test_bleu_of_the_answer_itself_and_of_nothing() -> None:
    assert texts.bleu_of(texts.bleu_counts("a b c d e", ["x", "a b c d e"])) == pytest.approx(1)
    assert texts.bleu_of(texts.bleu_counts("a b c d e", ["a b c d e"])) <= 1
    assert texts.bleu_of(texts.bleu_counts("", ["a"])) == 0


def test_distinct_trigrams_by_hand() -> None:
    said = ["a b c d", "A b, c", "x y", ""]  # abc bcd · abc
    measure = texts.distinct_trigrams(said)
    assert measure(np.arange(4)) == pytest.approx(2 / 3)
    assert measure(np.array([0])) == 1
    assert measure(np.array([2, 3])) == 0
    assert measure(np.array([0, 0])) == 0.5


def test_a_library_that_is_not_there_is_one_line() -> None:
    with pytest.raises(ModelError, match=r"no_such_thing is not installed.*latentrag\[evaluation\]"):
        texts.library("no_such_thing")


def test_kinds_of_words() -> None:
    assert answerability.kinds("Which river flows through Paris ?") == (
        ["paris"],
        ["flows"],
        ["through"],
        ["which", "river"],
    )
    assert answerability.kinds("In Rome, who WROTE it") == (["in", "rome", "wrote"], [], ["in", "it"], ["who"])
    assert answerability.kinds("") == ([], [], [], [])


def test_q_bleu_1_by_hand() -> None:
    gold, said = "Which river flows through Paris ?", "What river flows through Rome ?"
    # Entities 0, content 1, function 1, type: 1 of 2 both ways; three of five words.
    answerable = 0.36 + 0.03 + 0.20 * 0.5
    assert answerability.q_bleu_1(said, [gold]) == pytest.approx(0.66 * answerable + 0.34 * 0.6)
    assert answerability.q_bleu_1(gold, ["something else", gold]) == pytest.approx(1)
    # The reference has no entity, which counts as none met.
    assert answerability.q_bleu_1("who wrote it", ["who wrote it"]) == pytest.approx(0.66 * 0.59 + 0.34)
    assert answerability.q_bleu_1("", [gold]) == 0
    assert answerability.q_bleu_1(said, []) == 0


def test_bleu_1_has_the_penalty_for_brevity() -> None:
    assert answerability.bleu_1("a b".split(), "a b c d".split()) == pytest.approx(np.exp(-1))
    assert answerability.bleu_1("a b c d".split(), "a b".split()) == 0.5
    assert answerability.bleu_1("a a a".split(), "a b c".split()) == pytest.approx(1 / 3)
