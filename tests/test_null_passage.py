"""No passage as one more value of z: against float64 loops, in training, saved, and off."""

import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from latentrag.assemble import load, save
from latentrag.errors import InputError, ModelError
from latentrag.model import JointModel, Values
from latentrag.rag import Rag
from latentrag.records import answer_record, classification_record, score_record
from latentrag.training.data import Example
from latentrag.training.health import measure
from latentrag.training.loop import SCALAR_RATE, Trainer
from latentrag.training.options import TrainingOptions
from latentrag.training.step import ScoreMemo, losses
from latentrag.types import Asked, Retrieved, Variant, singles
from tests.toy import ToyGenerator, ToyRetriever, enumerate_marginal, passages

SCORES = [0.9, -0.4, 0.2, 0.5, 0.1]
NULL = 0.7
VARIANTS: list[Variant] = ["sequence", "token"]
NAMES = ["who|z0", "who|z1", "who|z2", "who|"]


class Fixed(ToyRetriever):
    """Five passages whose logits are w times these scores."""

    def __init__(self) -> None:
        self.weight = nn.Parameter(torch.tensor(1.0))

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [("weight", self.weight)]

    def retrieve(self, x: Sequence[Asked], k: int) -> Retrieved:
        logits = self.weight * torch.tensor(SCORES[:k]).expand(len(x), k)
        return Retrieved(singles([passages(k)] * len(x)), {"dense": logits}, version=7)

    def retrieve_in_hindsight(self, x: Sequence[Asked], y: Sequence[str], k: int, num_hindsight: int) -> Retrieved:
        return self.retrieve(x, k + num_hindsight)


def rag_with(null: float | None = NULL, **options: Any) -> Rag:
    return Rag(Fixed(), ToyGenerator(4, seed=11), k=3, null_passage=null, **options)


def log_prior(null: float = NULL) -> torch.Tensor:
    return torch.log_softmax(torch.tensor([*SCORES[:3], null], dtype=torch.float64), dim=0)


def truth(variant: Variant, null: float = NULL) -> dict[tuple[int, ...], float]:
    generator = ToyGenerator(4, seed=11)
    return enumerate_marginal(generator, NAMES, log_prior(null), variant=variant, max_tokens=3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_target_has_the_probability_of_the_enumerated_marginal(variant) -> None:
    score = rag_with().score("who", "ab", variant=variant)
    assert score.log_likelihood == pytest.approx(truth(variant)[1, 2, 0], abs=1e-6)
    assert [source.passage.id for source in score.sources] == ["z0", "z1", "z2"]
    assert score.no_passage is not None
    assert score.no_passage.prior == pytest.approx(log_prior().exp()[3].item(), abs=1e-6)
    shares = [source.posterior for source in score.sources]
    assert math.fsum([*shares, score.no_passage.posterior]) == pytest.approx(1.0, abs=1e-6)
    if variant == "sequence":  # e^b p(y|x) / Σ
        alone = score.closed_book_log_likelihood + log_prior()[3].item() - score.log_likelihood
        assert score.no_passage.posterior == pytest.approx(math.exp(alone), abs=1e-6)
    assert len(score.without_passage) == 3
    record = score_record(score)
    assert record["no_passage"] == {"prior": score.no_passage.prior, "posterior": score.no_passage.posterior}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_best_answer_is_that_of_the_enumerated_marginal(variant) -> None:
    answer = rag_with().answer("who", variant=variant, num_beams=60, max_tokens=3)
    expected = {ids: value for ids, value in truth(variant).items() if 0 in ids or len(ids) == 3}
    assert answer.log_prob == pytest.approx(max(expected.values()), abs=1e-5)
    assert len(answer.log_p_eta) == len(answer.log_p_theta) == 4
    assert answer.no_passage is not None
    assert answer_record(answer)["no_passage"]["posterior"] == answer.no_passage.posterior


def test_thorough_agrees_and_fast_is_a_lower_bound() -> None:
    rag = rag_with()
    exact = rag.answer("who", num_beams=60, max_tokens=3)
    thorough = rag.answer("who", num_beams=60, max_tokens=3, decoding="thorough")
    fast = rag.answer("who", num_beams=60, max_tokens=3, decoding="fast")
    assert thorough.text == exact.text
    assert thorough.log_prob == pytest.approx(exact.log_prob, abs=1e-5)
    assert fast.log_prob <= exact.log_prob + 1e-5
    assert thorough.no_passage is not None
    assert fast.no_passage is not None


@pytest.mark.parametrize("variant", VARIANTS)
def test_labels_and_samples(variant) -> None:
    rag = rag_with()
    found = rag.classify("who", ["a", "bc"], variant=variant)
    assert found.no_passage is not None
    assert "no_passage" in classification_record(found)
    assert math.isfinite(rag.answer("who", variant=variant, sample=True, seed=1, max_tokens=3).log_prob)


def test_without_a_passage_no_passage_stays() -> None:
    answer = rag_with().answer("who", without=["z0"], max_tokens=3)
    left = torch.softmax(torch.tensor([*SCORES[1:3], NULL]), dim=0)
    assert answer.no_passage is not None
    assert answer.no_passage.prior == pytest.approx(left[2].item(), abs=1e-6)
    score = rag_with().score("who", "ab")
    three = torch.log_softmax(torch.tensor([*SCORES[1:3], NULL], dtype=torch.float64), dim=0)
    others = enumerate_marginal(ToyGenerator(4, seed=11), NAMES[1:], three, variant="sequence", max_tokens=3)
    assert score.without_passage[0] == pytest.approx(others[1, 2, 0], abs=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("hindsight", [0, 2])
def test_the_logits_gradient_is_prior_minus_posterior(variant, hindsight) -> None:
    """Summed over the tokens for RAG-Token; with finite differences of the enumerated marginal too."""
    null = nn.Parameter(torch.tensor(NULL))
    options = TrainingOptions(k=3, variant=variant, hindsight=hindsight)
    generator: Any = ToyGenerator(4, seed=11)
    retriever: Any = Fixed()
    found = losses(retriever, generator, ["who"], ["ab"], options=options, values=Values(null))
    assert found.nll.item() == pytest.approx(-truth(variant)[1, 2, 0], abs=1e-5)
    (gradient,) = torch.autograd.grad(found.loss.sum(), [null])
    if hindsight:
        assert gradient.abs() > 1e-4
        return
    step = 1e-5
    expected = (truth(variant, NULL - step)[1, 2, 0] - truth(variant, NULL + step)[1, 2, 0]) / (2 * step)
    assert gradient.item() == pytest.approx(expected, abs=1e-5)


def test_kept_scores_give_the_same_loss() -> None:
    null = nn.Parameter(torch.tensor(NULL))
    generator: Any = ToyGenerator(4, seed=11)
    retriever: Any = Fixed()
    options = TrainingOptions(k=3, freeze="generator")
    memo = ScoreMemo()
    plain, kept, again = (
        losses(
            retriever,
            generator,
            ["who"],
            ["ab"],
            options=options,
            generator_learns=False,
            memo=each,
            values=Values(null),
        )
        for each in (None, memo, memo)
    )
    assert plain.loss.item() == pytest.approx(kept.loss.item(), abs=1e-6)
    assert kept.loss.item() == again.loss.item()


def test_it_is_trained_with_the_retriever_and_resumed(tmp_path) -> None:
    """By its own rate. The generator says "ab" more probably without a passage here, so the logit rises."""
    examples = [Example("0", "who", ("ab",))]

    def trainer(folder: Any, null: nn.Parameter) -> Trainer:
        generator: Any = ToyGenerator(4, seed=11)
        generator.named_parameters = lambda: iter(())
        retriever: Any = Fixed()
        options = TrainingOptions(k=3, freeze="generator", num_steps=6, batch_size=1, lr_retriever=1e-3)
        return Trainer(
            retriever, generator, examples, options=options, folder=folder, values=Values(null), dev=examples
        )

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    null = nn.Parameter(torch.tensor(NULL))
    direct = trainer(tmp_path / "a", null)
    assert "retriever.null_passage" in direct.parameters
    direct.run()
    assert abs(null.item() - NULL) > 2 * SCALAR_RATE * 1e-3
    first = nn.Parameter(torch.tensor(NULL))
    trainer(tmp_path / "b", first).run(until=3)
    second = nn.Parameter(torch.tensor(NULL))
    trainer(tmp_path / "b", second).run(resume=True)
    assert second.item() == null.item()


def test_health_counts_it() -> None:
    rag = rag_with()
    x, y = ["who", "what", "where"], ["ab", "c", "a"]
    health = measure(JointModel(rag.retriever, rag.generator, rag.model.values), x, y, k=3, variant="sequence")
    expected = math.fsum(-rag.log_likelihood(a, b) for a, b in zip(x, y, strict=True)) / 3
    assert health.nll == pytest.approx(expected, abs=1e-5)
    assert math.isfinite(health.gap)


def test_it_is_saved_with_its_model_and_off_by_default(pair, filled, tmp_path) -> None:
    plain = load(pair, memory=filled, k=3)
    assert plain.null_passage is None
    assert plain.answer("one", max_tokens=3).no_passage is None
    save(plain, tmp_path / "plain")
    content = json.loads((tmp_path / "plain" / "latentrag.json").read_text())
    assert "null_passage" not in content["prior"]
    rag = load(tmp_path / "plain", memory=filled, null_passage=1.25)
    save(rag, tmp_path / "with")
    again = load(tmp_path / "with", memory=filled)
    assert again.null_passage == 1.25
    answer = again.answer("one", max_tokens=3)
    assert answer == rag.answer("one", max_tokens=3)
    assert answer.no_passage is not None
    content = json.loads((tmp_path / "with" / "latentrag.json").read_text())
    content["prior"]["null_passage"] = "high"
    (tmp_path / "with" / "latentrag.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"no usable prior\.null_passage"):
        load(tmp_path / "with", memory=filled)


def test_a_logit_that_is_no_number_is_refused() -> None:
    with pytest.raises(InputError, match="null_passage=inf; needed a finite number"):
        rag_with(math.inf)
