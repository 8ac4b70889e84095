"""A run that collapses says so, and one that learns does not: the loop over a retriever with real gradients."""

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn

from latentrag.training.data import Example
from latentrag.training.log import read_log
from latentrag.training.loop import Trainer
from latentrag.training.options import TrainingOptions
from latentrag.types import Asked, LatentLists, Passage, Question, Retrieved, Targets, singles
from tests.toy import ToyPrepared, ToyRetriever
from tests.training.test_health import Reader, letter, passage

N, D = 60, 12


class LinearRetriever(ToyRetriever):
    """q(x) = W f(x) over N fixed passages. Features point mostly one way, as those of real encoders do."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        features = 1.0 + 0.5 * torch.randn(N, D, generator=draw)
        self.of_question = {f"question {i}": features[i] for i in range(N)}
        self.passages = [passage(i) for i in range(N)]
        self.d = nn.functional.normalize(features + 0.6 * torch.randn(N, D, generator=draw) - 1.0, dim=1)
        self.q = nn.Linear(D, D)
        with torch.no_grad():
            self.q.weight.copy_(2 * torch.eye(D))
            self.q.bias.fill_(-2.0)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self.q.named_parameters()

    def retrieve(self, x: Sequence[Asked], k: int) -> Retrieved:
        texts = [Question.of(question).text for question in x]
        scores: Tensor = self.q(torch.stack([self.of_question[text] for text in texts])) @ self.d.T
        best, index = scores.topk(k, dim=1)
        found: list[list[Passage]] = [[self.passages[i] for i in row] for row in index.tolist()]
        return Retrieved(singles(found), {"dense": best}, 1)

    def retrieve_in_hindsight(self, x: Sequence[Asked], y: Sequence[str], k: int, num_hindsight: int) -> Retrieved:
        raise AssertionError("not asked for")


class FixedReader(Reader):
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return iter(())

    def prepare_together(self, x: Sequence[Asked], latents: LatentLists) -> ToyPrepared:
        raise AssertionError("not asked for")

    def log_p_theta_and_mean(
        self, prepared: ToyPrepared, targets: Targets, weigh: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        raise AssertionError("not asked for")


def warnings_of(lr: float, folder) -> list[str]:
    examples = [Example(str(i), f"question {i}", (letter(i),)) for i in range(N)]
    options = TrainingOptions(
        k=5,
        freeze="generator",
        num_steps=60,
        batch_size=20,
        micro_batch_size=20,
        lr_retriever=lr,
        warmup_steps=3,
        eval_every=20,
    )
    Trainer(LinearRetriever(), FixedReader(26), examples, options=options, folder=folder, dev=examples).run()
    return [record["text"] for record in read_log(folder / "log.jsonl") if record["event"] == "warning"]


def test_a_healthy_run_raises_no_alarm(tmp_path) -> None:
    assert warnings_of(0.02, tmp_path) == []
    dev = [record for record in read_log(tmp_path / "log.jsonl") if record["event"] == "dev"]
    assert dev[-1]["nll"] < dev[0]["nll"] - 0.1  # it learned something


@pytest.mark.parametrize("times", [100, 1000])
def test_a_run_with_a_far_too_high_rate_is_flagged(times, tmp_path) -> None:
    found = warnings_of(0.02 * times, tmp_path)
    assert found
    assert all("lower --lr-retriever" in text for text in found)
