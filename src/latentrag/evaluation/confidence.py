"""Fitting how sure an answer is, and measuring it: Brier score, calibration error, AUROC, risk and coverage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from latentrag.confidence import SIGNALS, Calibration
from latentrag.errors import InputError
from latentrag.evaluation.calibration import reliability
from latentrag.evaluation.metrics import CorpusMetric, Row

if TYPE_CHECKING:
    import numpy.typing as npt

    from latentrag.evaluation.resampling import Measure, Places

    Array = npt.NDArray[np.float64]

FEWEST = 10
"""Right answers, and wrong ones, without which nothing is fitted: each of ten parts is to have one."""
NUM_FOLDS = 10
STRENGTHS = tuple(10.0**power for power in range(-3, 3))
"""Inverse strengths of the L2 penalty, among which cross-validation chooses."""
COVERAGES = tuple(part / 10 for part in range(1, 11))


@dataclass(frozen=True, slots=True)
class Selective:
    """What is right among the surest answers.

    Attributes:
        coverage: the share of questions that is answered, the surest ones.
        accuracy: the share of right answers among them; 1 minus it is the risk (El-Yaniv and Wiener 2010).
        surest: the confidence above which a question is among them.
    """

    coverage: float
    accuracy: float
    threshold: float


@dataclass(frozen=True, slots=True)
class Measures:
    """How good probabilities of being right are.

    Attributes:
        brier: mean squared difference between the probability and what came out (Brier 1950).
        brier_skill: 1 minus its ratio to the Brier score of always saying the share of right answers; above 0 the
            probabilities tell answers apart.
        ece: expected calibration error, as in ``calibration.reliability``, of ten bins.
        ece_if_true: what it would be on average if the probabilities were true; with few questions it is above 0.
        auroc: the probability that a right answer is surer than a wrong one; None where all are right, or none.
        accuracy: the share of right answers.
        risk_coverage: from the surest tenth to all questions.
    """

    brier: float
    brier_skill: float | None
    ece: float
    ece_if_true: float
    auroc: float | None
    accuracy: float
    risk_coverage: tuple[Selective, ...]

    def at(self, coverage: float) -> float:
        """The accuracy at this coverage."""
        return next(each.accuracy for each in self.risk_coverage if each.coverage == coverage)

    def in_short(self) -> dict[str, float]:
        """The single numbers that are known, by name."""
        return {name: value for name, value in asdict(self).items() if isinstance(value, float)}

    def as_record(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Fitted:
    """A calibration, and how good probabilities are before and after it.

    Attributes:
        before: of p(y|x) itself, taken for the probability of being right.
        after: of calibrations that were fitted on nine tenths of the questions, each on its other tenth.
    """

    calibration: Calibration
    before: Measures
    after: Measures


def fit(
    found: Sequence[Mapping[str, float]],
    right: Sequence[bool],
    probabilities: Sequence[float],
    settings: Mapping[str, object],
) -> Fitted:
    """A logistic regression with an L2 penalty, whose strength is chosen by cross-validated log loss.

    Args:
        found: the signals of each answer (``confidence.signals``).
        right: whether it is right.
        probabilities: p(y|x) of each.
        settings: what the signals depend on (``confidence.settings_of``).
    Raises: InputError where too few are right, or wrong.
    """
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    labels = np.array(right, dtype=bool)
    num_right = int(labels.sum())
    if min(num_right, len(labels) - num_right) < FEWEST:
        raise InputError(
            f"{num_right} of {len(labels)} answers are right; needed {FEWEST} right and {FEWEST} wrong ones at "
            "least to fit a calibration; give more questions"
        )
    names = [name for name in SIGNALS if all(name in each for each in found)]
    values = np.array([[each[name] for name in names] for each in found])
    folds = StratifiedKFold(NUM_FOLDS, shuffle=True, random_state=0)
    inner = StratifiedKFold(NUM_FOLDS // 2, shuffle=True, random_state=1)
    model = make_pipeline(
        StandardScaler(),
        LogisticRegressionCV(
            Cs=STRENGTHS,
            cv=inner,
            scoring="neg_log_loss",
            max_iter=1_000,
            l1_ratios=(0.0,),
            use_legacy_attributes=False,
        ),
    )
    held_out = cross_val_predict(model, values, labels, cv=folds, method="predict_proba")[:, 1]
    model.fit(values, labels)
    scaler, regression = model[0], model[1]
    after = measure(held_out.tolist(), right)
    calibration = Calibration(
        weights=dict(zip(names, regression.coef_[0].tolist(), strict=True)),
        means=dict(zip(names, scaler.mean_.tolist(), strict=True)),
        scales=dict(zip(names, scaler.scale_.tolist(), strict=True)),
        bias=float(regression.intercept_[0]),
        settings=dict(settings),
        num_questions=len(labels),
        measured=after.in_short(),
    )
    return Fitted(calibration, measure(probabilities, right), after)


def measure(probabilities: Sequence[float], right: Sequence[bool]) -> Measures:
    """How good these probabilities of being right are. Raises: InputError for no question."""
    from sklearn.metrics import roc_auc_score

    shares, labels = np.asarray(probabilities, float), np.asarray(right, float)
    curve = reliability([[share] for share in shares], [[bool(label)] for label in labels])
    brier, accuracy = float(np.square(shares - labels).mean()), float(labels.mean())
    usual = accuracy * (1 - accuracy)
    return Measures(
        brier=brier,
        brier_skill=1 - brier / usual if usual else None,
        ece=curve.error,
        ece_if_true=curve.error_if_true,
        auroc=float(roc_auc_score(labels, shares)) if usual else None,
        accuracy=accuracy,
        risk_coverage=risk_coverage(shares.tolist(), right),
    )


def risk_coverage(sureness: Sequence[float], right: Sequence[bool]) -> tuple[Selective, ...]:
    """The accuracy of the surest tenth, fifth, …, of all. Among equally sure ones it is as if chance chose.

    Args:
        sureness: any number that grows with it.
    """
    sure, labels = np.asarray(sureness, float), np.asarray(right, float)
    points = []
    for coverage in COVERAGES:
        number = max(1, round(coverage * len(sure)))
        threshold = np.sort(sure)[-number]
        above, equal = sure > threshold, sure == threshold
        total = labels[above].sum() + (number - above.sum()) * labels[equal].mean()
        points.append(Selective(coverage, float(total / number), float(threshold)))
    return tuple(points)


def _sureness(rows: Sequence[Row]) -> list[float]:
    """The confidence where every row has one, else log p of the answer."""
    key = "confidence" if _is_calibrated(rows) else "log_prob"
    return [row[key] for row in rows]


def _is_calibrated(rows: Sequence[Row]) -> bool:
    return bool(rows) and all(row.get("confidence") is not None for row in rows)


def _is_measured(rows: Sequence[Row]) -> bool:
    return bool(rows) and all(row.get("exact_match") is not None and row.get("log_prob") is not None for row in rows)


def _over(rows: Sequence[Row]) -> Mapping[str, Measure]:
    """The Brier score and the exact match of the surer half, where answers have a confidence."""
    if not _is_calibrated(rows) or not _is_measured(rows):
        return {}
    sure = np.array([row["confidence"] for row in rows])
    labels = np.array([float(row["exact_match"]) for row in rows])

    def brier(places: Places) -> float:
        return float(np.square(sure[places] - labels[places]).mean())

    def of_half(places: Places) -> float:
        points = risk_coverage(sure[places].tolist(), (labels[places] > 0).tolist())
        return next(point.accuracy for point in points if point.coverage == 0.5)

    return {"brier": brier, "exact_match_of_surer_half": of_half}


def _details(rows: Sequence[Row]) -> Mapping[str, object]:
    if not _is_measured(rows):
        return {}
    right = [bool(row["exact_match"]) for row in rows]
    if _is_calibrated(rows):
        return {"confidence": {"by": "confidence", **measure(_sureness(rows), right).as_record()}}
    points = [asdict(each) for each in risk_coverage(_sureness(rows), right)]
    return {"confidence": {"by": "log_prob", "risk_coverage": points}}


CONFIDENCE = CorpusMetric(_over, details=_details)
