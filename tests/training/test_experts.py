"""Training of a prior of experts: the weights learn with the query encoder, at the rate of single numbers."""

from typing import Any

import pytest

from latentrag.memory import Memory
from latentrag.retriever import HybridRetriever
from latentrag.training.data import Example
from latentrag.training.loop import SCALAR_RATE, Trainer
from latentrag.training.options import TrainingOptions
from tests.memory.conftest import FakePassageEncoder
from tests.retriever.test_hybrid import QUESTIONS, FakeQueryEncoder, FakeReranker, passages
from tests.toy import ToyGenerator

WEIGHTS = {"dense": 1.2, "bm25": 0.7, "reranker": 0.4, "title": 0.9}


@pytest.fixture
def hybrid(tmp_path) -> HybridRetriever:
    encoder = FakePassageEncoder()
    memory = Memory.create(tmp_path / "memory.lance", encoder).add(passages(), encoder)
    return HybridRetriever(FakeQueryEncoder(), memory, weights=WEIGHTS, num_candidates=6, reranker=FakeReranker())


@pytest.mark.parametrize("hindsight", [0, 2])
def test_weights_and_query_encoder_learn_together_and_lower_the_loss(hybrid, tmp_path, hindsight) -> None:
    generator: Any = ToyGenerator(4, seed=11)
    generator.named_parameters = lambda: iter(())
    examples = [Example(f"q{i}", x, ("ab",)) for i, x in enumerate(QUESTIONS)]
    options = TrainingOptions(
        k=4, freeze="generator", num_steps=8, batch_size=4, lr_retriever=1e-3, hindsight=hindsight, eval_every=8
    )
    (tmp_path / "run").mkdir()
    before = hybrid.query_encoder.module.weight.detach().clone()
    retriever: Any = hybrid
    trainer = Trainer(retriever, generator, examples, options=options, folder=tmp_path / "run", dev=examples)
    assert {f"retriever.prior.{name}" for name in WEIGHTS} < set(trainer.parameters)
    outcome = trainer.run()
    assert outcome.best_nll_per_token is not None
    assert outcome.untrained_nll_per_token is not None
    assert outcome.best_nll_per_token < outcome.untrained_nll_per_token
    assert not before.equal(hybrid.query_encoder.module.weight)
    for name, start in WEIGHTS.items():
        moved = abs(hybrid.weights[name].item() - start)
        assert 0 < moved < 8 * 1.1 * SCALAR_RATE * 1e-3
    assert max(abs(hybrid.weights[name].item() - start) for name, start in WEIGHTS.items()) > SCALAR_RATE * 1e-3
