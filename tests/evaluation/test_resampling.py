"""Measures of all rows together: against scikit-learn, and their intervals against what is known of means."""

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score

from latentrag.evaluation.intervals import Estimate, estimate
from latentrag.evaluation.labels import confusion, macro_f1
from latentrag.evaluation.resampling import pooled_difference, pooled_estimate
from latentrag.evaluation.texts import distinct_trigrams

LABELS = ["true", "false", "unknown"]


def rows(gold, said):
    return [{"answers": [LABELS[a]], "text": LABELS[b], "choices": LABELS} for a, b in zip(gold, said, strict=True)]


@pytest.mark.parametrize("num_labels", [1, 2, 3])
def test_macro_f1_is_that_of_scikit_learn(num_labels) -> None:
    random = np.random.default_rng(num_labels)
    gold, said = random.integers(0, num_labels, size=(2, 50))
    measure = macro_f1(rows(gold, said))["macro_f1"]
    for places in (np.arange(50), np.arange(7), random.integers(0, 50, 30)):
        public = f1_score(gold[places], said[places], labels=[0, 1, 2], average="macro", zero_division=0)
        assert measure(places) == pytest.approx(public, abs=1e-12)


def test_confusion() -> None:
    found = confusion(rows([0, 0, 1, 2], [0, 1, 1, 0]))["confusion"]
    assert found == {
        "true": {"true": 1, "false": 1, "unknown": 0},
        "false": {"true": 0, "false": 1, "unknown": 0},
        "unknown": {"true": 1, "false": 0, "unknown": 0},
    }


def test_of_several_right_labels_the_one_that_was_given_counts() -> None:
    row = {"answers": ["true", "unknown"], "text": "unknown", "choices": LABELS}
    table: Any = confusion([row])["confusion"]
    assert table["unknown"]["unknown"] == 1
    assert macro_f1([]) == {}


def width(found: Estimate) -> float:
    assert found.low is not None
    assert found.high is not None
    return found.high - found.low


def test_the_interval_of_a_mean_is_the_usual_one() -> None:
    values = np.random.default_rng(1).beta(2, 3, size=200)
    found = pooled_estimate(lambda places: float(values[places].mean()), 200)
    usual = estimate(values.tolist(), (0.0, 1.0))
    assert found.mean == pytest.approx(usual.mean)
    # 400 halves: the error of the standard error is about 1/sqrt(800).
    assert width(found) == pytest.approx(width(usual), rel=0.15)
    assert pooled_estimate(lambda places: float(values[places].mean()), 200) == found


def test_few_rows_have_no_interval_and_none_leaves_the_bounds() -> None:
    found = pooled_estimate(lambda places: 1.0, 49)
    assert (found.mean, found.low, found.high) == (1, None, None)
    values = np.array([1.0] * 49 + [0.0])
    found = pooled_estimate(lambda places: float(values[places].mean()), 50)
    assert (found.mean, found.high) == (0.98, 1.0)


def test_two_runs() -> None:
    random = np.random.default_rng(2)
    same = [" ".join(random.choice(list("abcdefghij"), 8)) for _ in range(60)]
    dull = ["a b c d e f g h"] * 60
    ours, theirs, interval, p = pooled_difference(distinct_trigrams([*same, *dull]), 60)
    assert theirs == pytest.approx(6 / 360)
    assert interval is not None
    assert interval[0] > 0.3
    assert p == pytest.approx(0.001)
    back = pooled_difference(distinct_trigrams([*dull, *same]), 60)
    assert back[2] == pytest.approx((-interval[1], -interval[0]))
    ours, theirs, interval, p = pooled_difference(distinct_trigrams([*same, *same]), 60)
    assert (ours - theirs, p) == (0, 1)
    assert interval == (0, 0)
