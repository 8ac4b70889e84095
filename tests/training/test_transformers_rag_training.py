"""Training against transformers' RAG: the same weights get the same gradients, and the same steps the same losses.

Both sides score every passage of a memory of K, so that the order in which they are found cannot matter. Targets
have three tokens or more: theirs loses the prior of shorter ones (tests/test_transformers_rag.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from latentrag.assemble.rag_layout import RagCheckpoint
from latentrag.generator import Seq2SeqGenerator
from latentrag.model import JointModel
from latentrag.place import Place
from latentrag.retriever import DenseRetriever
from latentrag.types import Passage, Variant
from tests.test_transformers_rag import K, checkpoint, labels_of, their_inputs
from tests.toy import ToyMemory

GRADIENT_TOLERANCE = 1e-4
"""Of the norm of a parameter's gradient, in float32: the two sides add up in another order (found: below 1e-5)."""
ROUNDING = 1e-7
"""Of the norm of the whole gradient. The keys' biases have no gradient, since softmax ignores shifts: only rounding."""
LOSS_TOLERANCE = 1e-4
"""Nats, of about 40 in float32, which rounds them to 4e-6."""
VARIANTS: dict[Variant, str] = {"sequence": "Sequence", "token": "Token"}

PASSAGES = [
    Passage("0", "paris is the capital of france", "france"),
    Passage("1", "beethoven wrote one opera , fidelio", "beethoven"),
    Passage("2", "the moon is red and the sun is two", "moon"),
]
BATCHES = [
    (["what is the capital of france ?", "who wrote fidelio ?"], ["paris is the capital", "it was beethoven"]),
    (["which city is the capital ?", "what is the moon ?"], ["the city of paris", "the red moon it is"]),
    (["when is the sun red ?", "who is she ?"], ["the moon is two", "she is emma"]),
]


@dataclass(frozen=True)
class Side:
    """A model in training: its parameters under common names, and −Σ log p(y|x) of a batch."""

    query_encoder: dict[str, nn.Parameter]
    generator: dict[str, nn.Parameter]
    loss: Callable[[list[str], list[str]], Tensor]

    def parameters(self) -> list[nn.Parameter]:
        return [*self.query_encoder.values(), *self.generator.values()]


def sides(folder: Path, variant: Variant) -> tuple[Side, Side]:
    """Ours and theirs, from the same files. No dropout: both are in eval mode."""
    theirs, _ = checkpoint(folder, 3, variant=VARIANTS[variant])
    halves = RagCheckpoint(folder, name="tiny")
    encoder, generator = halves.query_encoder(Place()), halves.generator(Place())
    d = torch.randn(K, encoder.dimension, generator=torch.Generator().manual_seed(7))
    joint = JointModel(DenseRetriever(encoder, ToyMemory(PASSAGES, d.numpy())), generator)
    assert not any(module.training for module in (encoder.module, generator.model, theirs))
    assert isinstance(generator, Seq2SeqGenerator)
    tokenizer = generator.tokenizer  # the question encoder has the same

    def our_loss(x: list[str], y: list[str]) -> Tensor:
        return -joint.evidence(x, y, k=K).log_likelihood(variant).sum()

    def their_loss(x: list[str], y: list[str]) -> Tensor:
        questions = tokenizer(x, padding=True, return_tensors="pt")
        q = theirs.question_encoder(questions["input_ids"], attention_mask=questions["attention_mask"])[0]
        inputs = their_inputs(generator, x, [PASSAGES] * len(x))
        labels = labels_of(y, generator)
        return theirs(**inputs, doc_scores=q @ d.T, labels=labels, reduce_loss=True).loss

    return (
        Side(dict(encoder.module.named_parameters()), dict(generator.model.named_parameters()), our_loss),
        Side(
            dict(theirs.rag.question_encoder.named_parameters()),
            dict(theirs.rag.generator.named_parameters()),
            their_loss,
        ),
    )


@pytest.mark.parametrize("half", ["query_encoder", "generator"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_equal(variant: Variant, half: str, tmp_path) -> None:
    ours, theirs = (gradients_of(side, half) for side in sides(tmp_path, variant))
    assert ours.keys() == theirs.keys()
    whole = torch.stack([gradient.norm() for gradient in theirs.values()]).norm()
    assert whole > 1
    for name, gradient in theirs.items():
        difference = (ours[name] - gradient).norm()
        assert difference <= GRADIENT_TOLERANCE * gradient.norm() + ROUNDING * whole, name


def gradients_of(side: Side, half: str) -> dict[str, Tensor]:
    """Of the parameters of one half that the loss depends on, summed over the batches."""
    parameters = getattr(side, half)
    torch.stack([side.loss(x, y) for x, y in BATCHES]).sum().backward()
    return {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}


@pytest.mark.parametrize("variant", VARIANTS)
def test_twenty_steps_give_the_same_losses(variant: Variant, tmp_path) -> None:
    ours, theirs = (losses_of(side) for side in sides(tmp_path, variant))
    assert ours == pytest.approx(theirs, rel=0, abs=LOSS_TOLERANCE)
    assert ours[-1] < ours[1] - 10  # of the same batch


def losses_of(side: Side) -> list[float]:
    """20 steps of AdamW on both halves, clipped."""
    with torch.no_grad():
        for parameter in side.generator.values():
            if parameter.dim() > 1:
                # The weights as drawn make so rough a landscape that theirs, moved by one rounding, is 0.01 off itself.
                parameter.mul_(0.4)
    start = [parameter.detach().clone() for parameter in side.query_encoder.values()]
    optimizer = torch.optim.AdamW(side.parameters(), lr=3e-3, weight_decay=1e-3)
    losses = []
    for step in range(20):
        loss = side.loss(*BATCHES[step % len(BATCHES)])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(side.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert not all(map(torch.equal, start, side.query_encoder.values()))
    return losses
