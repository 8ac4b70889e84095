"""What a generator that does not learn was asked is not asked again, and changes nothing."""

from dataclasses import replace

import pytest
import torch

from latentrag.training.step import ScoreMemo
from tests.training.test_loop import OPTIONS, losses_of, made, newest, parts, trainer  # noqa: F401  (a fixture)

ASKING = replace(OPTIONS, freeze="generator", hindsight=2, num_steps=9)  # seven examples, 36 places: five epochs


class Counting:
    """A generator that counts the rows it scores."""

    def __init__(self, generator) -> None:
        self.generator, self.num_rows = generator, 0

    def __getattr__(self, name: str):
        return getattr(self.generator, name)

    def log_p_theta(self, prepared, targets):
        self.num_rows += prepared.num_questions * prepared.num_passages
        return self.generator.log_p_theta(prepared, targets)


@pytest.mark.parametrize("kind", ["llama", "bart"])
@torch.no_grad()
def test_scores_are_the_generators_and_each_is_asked_once(parts, kind) -> None:  # noqa: F811
    retriever, generator = made(parts, kind=kind)
    counting, memo = Counting(generator), ScoreMemo()
    x, y = ["capital of france ?", "who wrote opera ?"], ["paris", "beethoven wrote it"]
    for k, num_rows in ((2, 4), (3, 6), (3, 6)):
        latents = retriever.retrieve(x, k).latents
        targets = generator.targets(y)
        found = memo.log_p_theta(counting, x, y, latents, targets)
        expected = generator.log_p_theta(generator.prepare(x, latents), targets)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
        assert counting.num_rows == num_rows == len(memo)
    other = memo.log_p_theta(counting, x, y[::-1], latents, generator.targets(y[::-1]))
    assert counting.num_rows == 12
    again = ScoreMemo()
    again.restore(memo.tensors())
    assert torch.equal(again.log_p_theta(counting, x, y[::-1], latents, generator.targets(y[::-1])), other)
    assert counting.num_rows == 12


@pytest.mark.parametrize(
    "changes",
    [{}, {"variant": "token"}, {"objective": "pdist"}, {"freeze": "none", "warmup_retriever": 8, "num_steps": 10}],
    ids=str,
)
def test_the_same_losses_with_and_without_it(parts, tmp_path, changes) -> None:  # noqa: F811
    options = replace(ASKING, **changes)
    keeping = trainer(parts, tmp_path / "keeping", options=options)
    keeping.run()
    assert keeping._memo is not None
    asking = trainer(parts, tmp_path / "asking", options=options)
    asking._memo = None
    asking.run()
    assert losses_of(tmp_path / "keeping") == pytest.approx(losses_of(tmp_path / "asking"), rel=1e-5)


def test_one_epoch_keeps_nothing(parts, tmp_path) -> None:  # noqa: F811
    """Nothing would be asked twice."""
    assert trainer(parts, tmp_path, options=replace(ASKING, num_steps=1))._memo is None
    assert trainer(parts, tmp_path, options=OPTIONS)._memo is None


def test_label_smoothing_asks_for_more_than_scores(parts, tmp_path) -> None:  # noqa: F811
    options = replace(ASKING, label_smoothing=0.1)
    run = trainer(parts, tmp_path, options=options)
    assert run._memo is None
    run.run(until=3)
    trainer(parts, tmp_path, options=options).run(resume=True)


def test_an_empty_one_is_restored() -> None:
    memo = ScoreMemo()
    memo.restore(ScoreMemo().tensors())
    assert len(memo) == 0


def test_interrupted_it_goes_on_with_the_same_digits(parts, tmp_path) -> None:  # noqa: F811
    trainer(parts, tmp_path / "whole", options=ASKING).run()
    trainer(parts, tmp_path / "cut", options=ASKING).run(until=5)
    scores = newest(tmp_path / "cut").scores()
    assert scores is not None
    known = len(scores["keys"])
    resumed = trainer(parts, tmp_path / "cut", options=ASKING)
    counting = Counting(resumed.generator)
    resumed.generator = counting
    resumed.run(resume=True)
    assert losses_of(tmp_path / "cut") == losses_of(tmp_path / "whole")
    # Of the seven examples' rows most were known.
    assert counting.num_rows < known


def test_a_checkpoint_of_a_generator_that_learns_has_none(parts, tmp_path) -> None:  # noqa: F811
    options = replace(ASKING, freeze="none", warmup_retriever=8, num_steps=12)
    run = trainer(parts, tmp_path, options=options)
    run.run(until=7)
    assert newest(tmp_path).scores() is not None
    run.run(resume=True, until=10)
    assert newest(tmp_path).scores() is None
