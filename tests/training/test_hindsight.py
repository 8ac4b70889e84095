"""Passages found with the answer teach the retriever alone; the generator learns from what it will be given."""

from dataclasses import replace

import pytest
import torch

from latentrag.marginal import log_prior, nll
from latentrag.packed import PackedLinear
from latentrag.training.options import TrainingOptions
from latentrag.training.step import losses
from latentrag.types import singles
from tests.training.test_loop import OPTIONS, PAIRS, made, parts  # noqa: F401  (a fixture)

X, Y = (list(side) for side in zip(*PAIRS[:4], strict=True))
PLAIN = replace(OPTIONS, k=2)
BOTH = replace(PLAIN, hindsight=3)


def gradients(sides, options: TrainingOptions, **more) -> list[list[torch.Tensor]]:
    """Of the retriever and of the generator."""
    weights = [[weight for _, weight in side.named_parameters()] for side in sides]
    for weight in (*weights[0], *weights[1]):
        weight.grad = None
    retriever, generator = sides
    losses(retriever, generator, X, Y, options=options, **more).loss.sum().backward()
    return [[torch.zeros_like(w) if w.grad is None else w.grad.clone() for w in side] for side in weights]


def assert_equal(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert any(gradient.abs().max() > 0 for gradient in expected)
    for gradient, other in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["llama", "bart"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"variant": "token"}, {"objective": "pdist"}, {"objective": "loop"}, {"objective": "emdr2"}],
    ids=str,
)
def test_each_side_learns_from_its_own_passages(parts, kind, changes) -> None:  # noqa: F811
    sides = made(parts, kind=kind)
    of_retriever, of_generator = gradients(sides, replace(BOTH, **changes))
    union, _ = gradients(sides, replace(BOTH, **changes), generator_learns=False)
    _, read = gradients(sides, replace(PLAIN, **changes))
    assert_equal(of_retriever, union)
    assert_equal(of_generator, read)
    alone = gradients(sides, replace(PLAIN, **changes))[0]
    assert max((one - other).abs().max() for one, other in zip(of_retriever, alone, strict=True)) > 1e-3


def test_smoothed_labels_are_the_generators(parts) -> None:  # noqa: F811
    sides = made(parts)
    of_retriever, of_generator = gradients(sides, replace(BOTH, label_smoothing=0.1))
    assert_equal(of_retriever, gradients(sides, BOTH, generator_learns=False)[0])
    assert_equal(of_generator, gradients(sides, replace(PLAIN, label_smoothing=0.1))[1])


def test_the_loss_is_of_all_and_nll_of_what_will_be_retrieved(parts) -> None:  # noqa: F811
    retriever, generator = made(parts)
    found = losses(retriever, generator, X, Y, options=BOTH)
    with torch.no_grad():
        targets = generator.targets(Y)
        retrieved = retriever.retrieve_in_hindsight(X, Y, 2, 3)
        scored = generator.log_p_theta(generator.prepare(X, singles(retrieved.passages)), targets)
        expected = nll(log_prior(retrieved.logits), scored, targets.mask, variant="sequence")
    torch.testing.assert_close(found.loss.detach(), expected, rtol=1e-4, atol=1e-5)
    plain = losses(retriever, generator, X, Y, options=PLAIN)
    torch.testing.assert_close(found.nll, plain.nll, rtol=1e-4, atol=1e-5)
    assert (found.loss < found.nll - 1e-3).any() or (found.loss > found.nll + 1e-3).any()


@pytest.mark.parametrize("kind", ["llama", "bart"])
def test_no_packed_weights_lie_beside_what_the_backward_pass_needs(parts, kind) -> None:  # noqa: F811
    retriever, generator = made(parts, kind=kind)
    for options in (PLAIN, BOTH):
        found = losses(retriever, generator, X, Y, options=options)
        layers = [
            layer
            for model in (retriever.query_encoder.module, generator.model)
            for layer in model.modules()
            if isinstance(layer, PackedLinear)
        ]
        assert len(layers) > 10
        assert all(layer._packed is None for layer in layers)
        found.loss.sum().backward()


def test_while_the_generator_learns_alone_none_are_looked_for(parts) -> None:  # noqa: F811
    retriever, generator = made(parts)
    alone = losses(retriever, generator, X, Y, options=BOTH, retriever_learns=False)
    plain = losses(retriever, generator, X, Y, options=PLAIN, retriever_learns=False)
    assert torch.equal(alone.loss, plain.loss)
