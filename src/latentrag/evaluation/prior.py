"""Weights of a prior of experts, fitted by the marginal likelihood of questions and answers.

    log p(y|x) = log Σ_z p_η(z|x) p_θ(y|x,z),   logit of p_η = Σ_e w_e f_e(x,z)

The generator scores every candidate once; what a fit needs is kept, so that another fit takes seconds.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from latentrag import io
from latentrag.errors import DataError, InputError
from latentrag.evaluation.intervals import Estimate, estimate
from latentrag.evaluation.report import append, begun
from latentrag.marginal import log_likelihood
from latentrag.neighbours import with_neighbours
from latentrag.types import Retrieved, Variant, singles

if TYPE_CHECKING:
    from torch import Tensor

    from latentrag.protocols import WeighsExperts
    from latentrag.rag import Rag
    from latentrag.training.data import Example

FORMAT = 1
FEWEST = 20
"""Questions below which nothing is fitted."""
NUM_FOLDS = 5
RIDGES = (0.1, 1.0, 10.0, 100.0)
"""Strengths of the penalty ridge/2 · Σ_e (σ_e (w_e − w_e before))², of which cross-validation chooses the strongest
that is not worse than the best by more than a standard error."""

Row: TypeAlias = dict[str, Any]


def scored(
    rag: Rag,
    retriever: WeighsExperts,
    examples: Sequence[Example],
    out: Path,
    *,
    num: int,
    about: Mapping[str, object],
    progress: bool = False,
) -> list[Row]:
    """What a fit needs of every example: the experts' values of its candidates, and the generator's log-probabilities
    of its first answer from each of them. Rows that are there already are kept.

    A row holds: id, x, y · passages: their ids · experts: name → values · offset: what else is in each logit · null:
    whether the last column is "no passage" · log_p_theta: for each candidate that of each token, nats.

    Args:
        out: a file of JSON lines, with the settings beside it.
        num: candidates that vectors propose, and as many that words do.
    Raises: InputError or DataError as ``evaluate``; InputError for conversations.
    """
    if rag.set_bonus is not None:
        raise InputError("the prior of single passages is fitted, and this model reads sets; use --set-size 1")
    talk = next((example for example in examples if example.history), None)
    if talk is not None:
        raise InputError(
            f"example {talk.id} is a conversation, and the weights are fitted to questions of one turn; leave "
            "conversations out, or learn from them with `latentrag train`"
        )
    settings = json.loads(json.dumps({"format": FORMAT, "num": num, **about}))
    with begun(out, settings) as done:
        todo = [each for each in examples if each.id not in done]
        with io.progress("scoring", len(examples), wanted=progress, completed=len(examples) - len(todo)) as bar:
            for example in todo:
                row = _row(rag, retriever, example, num)
                append(out, [row])
                done[example.id] = row
                bar.advance()
        rows = [done[example.id] for example in examples]
        for example, row in zip(examples, rows, strict=True):
            if (row["x"], row["y"]) != (example.x, example.answers[0]):
                raise InputError(f"{out} has another example with the id {example.id}; name another file")
        return rows


@torch.no_grad()
def _row(rag: Rag, retriever: WeighsExperts, example: Example, num: int) -> Row:
    try:
        found, (values,) = retriever.features([example.question], num)
        zeros = {"experts": torch.zeros(1, len(found.passages[0]))}
        alone = Retrieved(singles(found.passages), zeros, found.version)
        read = rag.model.read_of(
            [example.question], with_neighbours(alone, retriever.memory, rag.model.values.neighbours)
        )
        evidence = read.evidence(read.generator.targets([example.answers[0]]))
    except InputError as error:
        raise DataError(f"example {example.id}: {error}") from error
    return {
        "id": example.id,
        "x": example.x,
        "y": example.answers[0],
        "passages": [z.id for z in found.passages[0]],
        "experts": {name: value.tolist() for name, value in values.items()},
        "offset": read.retrieved.logits[0].tolist(),
        "null": rag.null_passage is not None,
        "log_p_theta": io.finite(evidence.log_p_theta[0].tolist()),
    }


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """B questions with up to M candidates, in float64.

    Attributes:
        experts: (B, M, E) their values; 0 for "no passage".
        offset: (B, M) what else is in the logit; −inf where there is no candidate.
        log_p_theta: (B, M, T) nats.
        mask: (B, T).
        null: (B, M) True for "no passage".
    """

    experts: Tensor
    offset: Tensor
    log_p_theta: Tensor
    mask: Tensor
    null: Tensor

    @classmethod
    def of(cls, rows: Sequence[Row], names: Sequence[str]) -> Scored:
        """Of rows that ``scored`` gave. Raises: InputError for an expert that they do not have."""
        size = max(len(row["offset"]) for row in rows)
        num_tokens = max(len(row["log_p_theta"][0]) for row in rows)
        experts = np.zeros((len(rows), size, len(names)))
        offset = np.full((len(rows), size), -math.inf)
        log_p = np.zeros((len(rows), size, num_tokens))
        mask, null = np.zeros((len(rows), num_tokens), bool), np.zeros((len(rows), size), bool)
        for b, row in enumerate(rows):
            missing = next((name for name in names if name not in row["experts"]), None)
            if missing is not None:
                raise InputError(f"the scores were kept without the expert {missing}; name another file for them")
            values = np.array([row["experts"][name] for name in names]).T  # (n, E)
            experts[b, : len(values)] = values
            given = [[-math.inf if each is None else each for each in of_one] for of_one in row["log_p_theta"]]
            offset[b, : len(given)] = row["offset"]
            log_p[b, : len(given), : len(given[0])] = given
            mask[b, : len(given[0])] = True
            null[b, len(given) - 1] = row["null"]
        return cls(*map(torch.from_numpy, (experts, offset, log_p, mask, null)))

    def some(self, index: Tensor) -> Scored:
        """The questions at ``index``."""
        return Scored(*(getattr(self, name)[index] for name in self.__slots__))

    def log_likelihood(self, weights: Tensor, variant: Variant, *, k: int | None = None) -> Tensor:
        """(B,) log p(y|x), nats, differentiable in the weights (E,).

        Args:
            k: over the K candidates of largest Σ_e w_e f_e, and "no passage", as the model reads them; None: over all.
        """
        prior = self.experts @ weights  # (B, M)
        logits = prior + self.offset
        if k is not None:
            ranked = prior.detach().masked_fill((self.offset == -math.inf) | self.null, -math.inf)
            best = torch.zeros_like(self.null)
            best.scatter_(1, torch.argsort(ranked, dim=1, descending=True, stable=True)[:, :k], value=True)
            logits = logits.masked_fill(~(best | self.null), -math.inf)
        log_p_eta = torch.log_softmax(logits, dim=1)
        return log_likelihood(log_p_eta, self.log_p_theta, self.mask, variant=variant)

    def deviations(self) -> Tensor:
        """(E,) how much each expert tells the candidates of a question apart: root mean square from their mean."""
        is_passage = (~self.null & (self.offset > -math.inf))[:, :, None]
        count = is_passage.sum(dim=1, keepdim=True)
        mean = (self.experts * is_passage).sum(dim=1, keepdim=True) / count
        squares = ((self.experts - mean) ** 2 * is_passage).sum(dim=(0, 1))
        return (squares / is_passage.sum()).sqrt()


def fitted_weights(of: Scored, before: Tensor, *, variant: Variant, ridge: float) -> Tensor:
    """(E,) the weights that minimise −Σ log p(y|x) + ridge/2 · Σ_e (σ_e (w_e − w_e before))², over all candidates.

    An expert that tells no candidates apart keeps its weight.
    """
    deviations = of.deviations()
    scale = torch.where(deviations > 0, deviations, torch.ones_like(deviations))
    change = torch.zeros_like(before, requires_grad=True)  # in units of 1/σ
    optimiser = torch.optim.LBFGS([change], max_iter=300, tolerance_grad=1e-8, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        weights = before + change / scale
        total = -of.log_likelihood(weights, variant).sum() + ridge / 2 * (change**2).sum()
        total.backward()
        return total

    optimiser.step(loss)
    return (before + change / scale).detach()


@dataclass(frozen=True, slots=True)
class FittedPrior:
    """What a fit found.

    Attributes:
        weights, before: of the experts by name.
        deviations: how much each expert's value differs between the candidates of a question, so that weight times
            deviation says how much it decides.
        ridge: the strength of the penalty that cross-validation chose.
        num_questions: that were fitted on.
        num_silent: that were left out, since no candidate gives their answer a probability.
        log_p: held out, mean log p(y|x) of a question over the K passages that are read, nats, by prior: "dense",
            "before", "fitted".
        gain, gain_over_dense: the fitted prior's less that of the prior before, and less that of vectors alone, paired.
        wall_s: of the fit, with cross-validation.
    """

    weights: Mapping[str, float]
    before: Mapping[str, float]
    deviations: Mapping[str, float]
    ridge: float
    num_questions: int
    num_silent: int
    log_p: Mapping[str, float]
    gain: Estimate
    gain_over_dense: Estimate
    wall_s: float


def check_number(num: int, what: str) -> None:
    """Raises: InputError for fewer than are needed for a fit."""
    if num < FEWEST:
        raise InputError(f"got {num} {what}; needed {FEWEST} or more")


def fit(rows: Sequence[Row], before: Mapping[str, float], *, k: int, variant: Variant, seed: int = 0) -> FittedPrior:
    """Fit the weights named in ``before``, beginning there; what is measured is held out (5-fold cross-validation).

    Args:
        rows: as ``scored`` gave them.
        k: passages that the model reads.
        seed: of the folds.
    Raises: InputError for fewer than 20 questions that any candidate answers.
    """
    started = time.perf_counter()
    what = "questions whose answer a candidate can give"
    check_number(len(rows), what)
    names = list(before)
    everything = Scored.of(rows, names)
    start = torch.tensor([before[name] for name in names], dtype=torch.float64)
    (known,) = torch.nonzero(everything.log_likelihood(start, variant).isfinite(), as_tuple=True)
    check_number(len(known), what)
    of = everything.some(known)
    folds = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed)) % NUM_FOLDS
    held_out = {ridge: _held_out(of, start, folds, ridge=ridge, variant=variant, k=k) for ridge in RIDGES}
    ridge = _strongest(held_out)
    alone = torch.tensor([before[name] if name == "dense" else 0.0 for name in names], dtype=torch.float64)
    log_p = {
        "dense": of.log_likelihood(alone, variant, k=k),
        "before": of.log_likelihood(start, variant, k=k),
        "fitted": held_out[ridge],
    }
    weights = fitted_weights(of, start, variant=variant, ridge=ridge)
    return FittedPrior(
        dict(zip(names, weights.tolist(), strict=True)),
        dict(before),
        dict(zip(names, of.deviations().tolist(), strict=True)),
        ridge,
        len(known),
        len(rows) - len(known),
        {name: each.mean().item() for name, each in log_p.items()},
        estimate((log_p["fitted"] - log_p["before"]).tolist(), None),
        estimate((log_p["fitted"] - log_p["dense"]).tolist(), None),
        time.perf_counter() - started,
    )


def _strongest(held_out: Mapping[float, Tensor]) -> float:
    """The one-standard-error rule (Breiman et al. 1984): few questions change the weights little.

    Args:
        held_out: ridge → log p(y|x) of each question (B,), nats.
    """
    best = max(held_out.values(), key=lambda each: each.mean().item())
    return max(
        ridge
        for ridge, each in held_out.items()
        if (best - each).mean() <= (best - each).std() / math.sqrt(len(best)) or each is best
    )


def _held_out(of: Scored, start: Tensor, folds: Tensor, *, ridge: float, variant: Variant, k: int) -> Tensor:
    """(B,) log p(y|x) over the top K, of each question with weights that were fitted without its fold."""
    log_p = torch.empty(len(folds), dtype=torch.float64)
    for fold in range(NUM_FOLDS):
        (kept,), (out,) = (torch.nonzero(chosen, as_tuple=True) for chosen in (folds != fold, folds == fold))
        weights = fitted_weights(of.some(kept), start, variant=variant, ridge=ridge)
        log_p[out] = of.some(out).log_likelihood(weights, variant, k=k)
    return log_p
