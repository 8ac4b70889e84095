"""A generator that weighs passages: its part of the prior counts wherever the prior does, and learns when it does."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentrag.model import JointModel
from latentrag.protocols import Capabilities
from latentrag.training.health import measure
from latentrag.training.loop import Trainer
from latentrag.training.options import TrainingOptions
from latentrag.training.step import losses
from latentrag.types import Asked, Retrieved, singles
from tests.toy import ToyGenerator, ToyPrepared, ToyRetriever, passages

SCORES = [0.9, -0.4, 0.2, 0.5, 0.1]
WEIGHTS = [0.3, 1.1, -0.6, 0.8, -0.2]


class Weighing(ToyGenerator):
    """The part of passage z is ``scale`` times its weight."""

    capabilities = Capabilities(weighs_passages=True)

    def __init__(self) -> None:
        super().__init__(4, seed=11)
        self.scale = nn.Parameter(torch.tensor(1.0))

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [("scale", self.scale)]

    def log_weights(self, prepared: ToyPrepared) -> Tensor:
        numbers = [[int(name[-1]) for name in row] for row in prepared.rows_of]
        return self.scale * torch.tensor(WEIGHTS)[torch.tensor(numbers)]


class Fixed(ToyRetriever):
    def __init__(self) -> None:
        self.weight = nn.Parameter(torch.tensor(1.0))

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [("weight", self.weight)]

    def retrieve(self, x: Sequence[Asked], k: int) -> Retrieved:
        logits = self.weight * torch.tensor(SCORES[:k]).expand(len(x), k)
        return Retrieved(singles([passages(k)] * len(x)), {"dense": logits}, version=7)

    def retrieve_in_hindsight(self, x: Sequence[Asked], y: Sequence[str], k: int, num_hindsight: int) -> Retrieved:
        return self.retrieve(x, k + num_hindsight)


def by_hand(k: int) -> tuple[float, float, float]:
    """−log p("ab"|"who") over the first k passages, in float64, and its derivatives in weight and scale."""
    generator = ToyGenerator(4, seed=11)
    weight, scale = (torch.tensor(1.0, dtype=torch.float64, requires_grad=True) for _ in range(2))
    logits = [weight * SCORES[z] + scale * WEIGHTS[z] for z in range(k)]
    prior = torch.log_softmax(torch.stack(logits), dim=0)
    tokens = [
        math.fsum(
            generator.log_p(f"who|z{z}", prefix)[token].item() for prefix, token in (((), 1), ((1,), 2), ((1, 2), 0))
        )
        for z in range(k)
    ]
    loss = -(prior + torch.tensor(tokens)).logsumexp(dim=0)
    slopes = torch.autograd.grad(loss, [weight, scale])
    return loss.item(), slopes[0].item(), slopes[1].item()


def step(**options: Any) -> tuple[Any, Any, Any]:
    generator: Any = Weighing()
    retriever: Any = Fixed()
    learns = options.pop("learns", True)
    chosen = TrainingOptions(k=3, **options)
    found = losses(retriever, generator, ["who"], ["ab"], options=chosen, generator_learns=learns)
    found.loss.sum().backward()
    return found, retriever.weight.grad, generator.scale.grad


def test_both_sides_learn_from_the_same_prior() -> None:
    found, of_retriever, of_generator = step()
    loss, weight, scale = by_hand(3)
    assert found.nll.item() == found.loss.item() == pytest.approx(loss, abs=1e-5)
    assert (of_retriever.item(), of_generator.item()) == (
        pytest.approx(weight, abs=1e-5),
        pytest.approx(scale, abs=1e-5),
    )


def test_with_extra_candidates_each_side_has_its_own_passages() -> None:
    found, of_retriever, of_generator = step(hindsight=2)
    assert found.nll.item() == pytest.approx(by_hand(3)[0], abs=1e-5)
    assert found.loss.item() == pytest.approx(by_hand(5)[0], abs=1e-5)
    assert of_retriever.item() == pytest.approx(by_hand(5)[1], abs=1e-5)
    assert of_generator.item() == pytest.approx(by_hand(3)[2], abs=1e-5)


def test_a_generator_that_does_not_learn_gets_no_gradient() -> None:
    found, of_retriever, of_generator = step(freeze="generator", learns=False)
    assert of_generator is None
    assert of_retriever.item() == pytest.approx(by_hand(3)[1], abs=1e-5)
    assert found.loss.item() == pytest.approx(by_hand(3)[0], abs=1e-5)


def test_its_scores_are_not_kept(tmp_path) -> None:
    from latentrag.training.data import Example

    generator: Any = Weighing()
    retriever: Any = Fixed()
    options = TrainingOptions(k=3, freeze="generator", num_steps=9, batch_size=1)
    trainer = Trainer(retriever, generator, [Example("0", "who", ("ab",))], options=options, folder=tmp_path)
    assert trainer._memo is None


def test_health_has_its_prior() -> None:
    model = JointModel(Fixed(), Weighing())
    health = measure(model, ["who", "what"], ["ab", "c"], k=3, variant="sequence")
    prior = torch.softmax(torch.tensor(SCORES[:3]) + torch.tensor(WEIGHTS[:3]), dim=0)
    assert health.prior_entropy == pytest.approx(torch.special.entr(prior).sum().item(), abs=1e-5)
