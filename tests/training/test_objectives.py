"""Objectives are rows of a table: one more is trained with like those that are there."""

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
from torch import Tensor

from latentrag.errors import InputError
from latentrag.model import Evidence
from latentrag.training.log import read_log
from latentrag.training.loop import Trainer
from latentrag.training.options import OBJECTIVES, TrainingOptions
from latentrag.training.step import Objective
from tests.training import test_loop

parts = test_loop.parts


def best_passage(evidence: Evidence, _options: TrainingOptions) -> Tensor:
    """(B,) −log max_z p(z|x) p(y|x,z): the marginal's sum over z replaced by its largest term."""
    log_p = evidence.log_p_theta.masked_fill(~evidence.targets.mask[:, None], 0.0).sum(dim=2)  # (B, K)
    return -(evidence.log_p_eta + log_p).amax(dim=1)


@pytest.fixture
def toy() -> Iterator[str]:
    OBJECTIVES.add("best-passage", Objective(best_passage))
    yield "best-passage"
    OBJECTIVES.remove("best-passage")


def test_another_objective_is_trained_with(toy, parts, tmp_path) -> None:
    options = replace(test_loop.OPTIONS, objective=toy, num_steps=16, eval_every=16)
    run: Trainer = test_loop.trainer(parts, tmp_path, options=options, dev=test_loop.EXAMPLES)
    assert run.run().finished
    records = read_log(tmp_path / "log.jsonl")
    first, last = (record["nll_per_token"] for record in records if record["event"] == "dev")
    assert last < first
    losses = [(record["loss"], record["nll"]) for record in records if record["event"] == "train"]
    # The largest of the K terms is below their sum and not below its K-th part.
    assert all(nll < loss < nll + math.log(options.k) for loss, nll in losses)


def test_what_an_objective_is_not_for_is_refused(toy) -> None:
    with pytest.raises(InputError, match="label_smoothing is not for objective='best-passage'"):
        replace(test_loop.OPTIONS, objective=toy, label_smoothing=0.1)
    with pytest.raises(InputError, match="objective='mse' is unknown; needed one of nll, emdr2, pdist, loop"):
        replace(test_loop.OPTIONS, objective="mse")
