"""Sets of two passages as values of z: against enumeration and float64, in training, saved, in records, and off."""

import itertools
import json
import math
from typing import Any

import pytest
import torch
from torch import nn

from latentrag.assemble import load, save
from latentrag.errors import InputError, ModelError
from latentrag.evaluation.run import evaluate
from latentrag.model import Values
from latentrag.options import DecodingOptions
from latentrag.rag import Rag
from latentrag.records import answer_record
from latentrag.training.data import Example
from latentrag.training.health import measure
from latentrag.training.options import TrainingOptions
from latentrag.training.step import losses
from latentrag.types import Variant
from tests.test_null_passage import SCORES, VARIANTS, Fixed
from tests.toy import ToyGenerator, ToyMemory, enumerate_marginal, passages

BONUS = 0.4
NULL = -0.6
PAIRS = list(itertools.combinations(range(3), 2))
NAMES = ["who|z0", "who|z1", "who|z2", "who|z0+z1", "who|z0+z2", "who|z1+z2"]
OPTIONS: dict[str, Any] = {"num_beams": 60, "num_best": 60, "max_tokens": 3}


def rag_with(bonus: float | None = BONUS, null: float | None = None, k: int = 3) -> Rag:
    return Rag(Fixed(), ToyGenerator(4, seed=11), k=k, set_bonus=bonus, null_passage=null)


def log_prior(null: float | None = None, *, scores: list[float] = SCORES[:3], bonus: float = BONUS) -> torch.Tensor:
    """Of singles, sets and none, in float64, by the definition."""
    p = torch.softmax(torch.tensor(scores, dtype=torch.float64), dim=0)
    weights = [*p, *(p[i] * p[j] * math.exp(bonus) for i, j in itertools.combinations(range(len(scores)), 2))]
    if null is not None:  # beside e^s, of which p are the shares
        weights.append(torch.tensor(math.exp(null) / sum(map(math.exp, scores)), dtype=torch.float64))
    return torch.stack(weights).log() - torch.stack(weights).sum().log()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("null", [None, NULL])
def test_answers_are_those_of_enumeration(variant: Variant, null) -> None:
    names = NAMES if null is None else [*NAMES, "who|"]
    prior = log_prior(null)
    expected = enumerate_marginal(ToyGenerator(4, seed=11), names, prior, variant=variant, max_tokens=3)
    answer = rag_with(null=null).answer("who", variant=variant, **OPTIONS)
    best = max(expected, key=expected.__getitem__)
    assert answer.text == rag_with().generator.text(best)
    assert answer.log_prob == pytest.approx(expected[best], abs=1e-5)
    assert answer.log_p_eta == pytest.approx(prior.tolist(), abs=1e-6)
    assert answer.sets == ((0,), (1,), (2,), *PAIRS, *([()] if null is not None else []))
    # A source's share is that of all values that hold it.
    p, holds = prior.exp(), [[z in places for places in answer.sets] for z in range(3)]
    for source, of_one in zip(answer.sources, holds, strict=True):
        assert source.prior == pytest.approx(sum(p[k].item() for k, is_held in enumerate(of_one) if is_held), abs=1e-6)
    if variant == "sequence":
        joint = prior + torch.tensor(answer.log_p_theta, dtype=torch.float64).sum(dim=1)
        posterior = torch.softmax(joint, dim=0)
        for source, of_one in zip(answer.sources, holds, strict=True):
            expected_share = sum(posterior[k].item() for k, is_held in enumerate(of_one) if is_held)
            assert source.posterior == pytest.approx(expected_share, abs=1e-5)
    record = answer_record(answer)
    assert record["sets"] == [list(places) for places in answer.sets]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("null", [None, NULL])
def test_without_a_passage_is_as_if_it_had_not_been_retrieved(variant: Variant, null) -> None:
    rag = rag_with(null=null)
    score = rag.score("who", "ab", variant=variant)
    assert len(score.without_passage) == len(score.sources) == 3
    for source, without in zip(score.sources, score.without_passage, strict=True):
        read = rag.model.read(["who"], k=3, without=[source.passage.id])
        evidence = read.evidence(rag.generator.targets(["ab"]))
        assert without == pytest.approx(evidence.log_likelihood(variant).item(), abs=1e-5)
        others = [score for k, score in enumerate(SCORES[:3]) if f"z{k}" != source.passage.id]
        assert read.log_p_eta[0].tolist() == pytest.approx(log_prior(null, scores=others).tolist(), abs=1e-6)


def test_without_a_passage_that_has_nearly_all_of_the_prior() -> None:
    rag = rag_with()
    rag.retriever.weight.data.fill_(30.0)  # type: ignore[attr-defined]
    score = rag.score("who", "ab")
    for source, without in zip(score.sources, score.without_passage, strict=True):
        evidence = rag.model.read(["who"], k=3, without=[source.passage.id]).evidence(rag.generator.targets(["ab"]))
        assert without == pytest.approx(evidence.log_likelihood("sequence").item(), abs=1e-4)


def test_one_passage_has_no_sets() -> None:
    assert rag_with(k=1).answer("who", **OPTIONS) == rag_with(bonus=None, k=1).answer("who", **OPTIONS)
    assert rag_with(k=1).score("who", "ab").without_passage == ()


@pytest.mark.parametrize("generator_learns", [False, True])
@pytest.mark.parametrize("hindsight", [0, 2])
def test_gradients_are_those_of_the_definition(generator_learns, hindsight) -> None:
    retriever: Any = Fixed()
    generator: Any = ToyGenerator(4, seed=11)
    bonus = nn.Parameter(torch.tensor(BONUS))
    options = TrainingOptions(k=3, hindsight=hindsight, num_steps=1)
    found = losses(
        retriever,
        generator,
        ["who"],
        ["ab"],
        options=options,
        generator_learns=generator_learns,
        values=Values(bonus=bonus),
    )
    weight64 = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    bonus64 = torch.tensor(BONUS, dtype=torch.float64, requires_grad=True)
    scores = weight64 * torch.tensor(SCORES[: 3 + hindsight], dtype=torch.float64)
    top = scores[:3]
    sets = [top[i] + top[j] + bonus64 - top.logsumexp(0) for i, j in PAIRS]
    logits = torch.stack([*top, *sets, *scores[3:]])
    names = [*NAMES, *(f"who|z{k}" for k in range(3, 3 + hindsight))]
    targets = generator.targets(["ab"]).ids[0].tolist()
    log_p = [sum(generator.log_p(name, targets[:t])[targets[t]].double() for t in range(3)) for name in names]
    of_all = -(torch.log_softmax(logits, dim=0) + torch.stack(log_p)).logsumexp(0)
    expected = torch.autograd.grad(of_all, [weight64, bonus64])
    gradients = torch.autograd.grad(found.loss.sum(), [retriever.weight, bonus])
    torch.testing.assert_close([each.double() for each in gradients], list(expected), rtol=1e-4, atol=1e-5)
    of_top = -(torch.log_softmax(logits[:6], dim=0) + torch.stack(log_p[:6])).logsumexp(0)
    assert found.nll.item() == pytest.approx(of_top.item(), abs=1e-5)


@pytest.mark.parametrize("null", [None, NULL])
def test_training_where_fewer_passages_are_left_than_k(null) -> None:
    class Few(Fixed):
        def retrieve(self, x, k):
            return super().retrieve(x, min(k, 3))

    found = []
    for k in (3, 5):
        retriever, generator = Few(), ToyGenerator(4, seed=11)
        values = Values.of(set_bonus=BONUS, null_passage=null)
        options = TrainingOptions(k=k, num_steps=1)
        found.append(losses(retriever, generator, ["who"], ["ab"], options=options, values=values))  # type: ignore[arg-type]
    assert found[0].loss.tolist() == found[1].loss.tolist()
    assert found[0].nll.tolist() == found[1].nll.tolist()


def test_evaluation_and_health_read_sets() -> None:
    retriever: Any = Fixed()
    retriever.memory = ToyMemory(passages(5))
    rag = Rag(retriever, ToyGenerator(4, seed=11), k=3, set_bonus=BONUS)
    examples = [Example(str(n), f"who{n}", ("ab",)) for n in range(3)]
    options = DecodingOptions(num_beams=2, max_tokens=3)
    for row in evaluate(rag, examples, options=options, recall_at=[1, 5]).rows:
        alone = rag.score(row["x"], "ab")
        assert row["log_likelihood"] == pytest.approx(alone.log_likelihood, abs=1e-5)
        assert row["log_prob"] == pytest.approx(rag.answer(row["x"], num_beams=2, max_tokens=3).log_prob, abs=1e-5)
    x = [example.x for example in examples]
    health = measure(rag.model, x, ["ab"] * 3, k=3, variant="sequence")
    expected = sum(rag.score(each, "ab").log_likelihood for each in x) / 3
    assert -health.nll == pytest.approx(expected, abs=1e-5)


def test_saved_read_again_and_refused(pair, filled, tmp_path) -> None:
    plain = load(pair, memory=filled, k=2)
    assert plain.set_bonus is None
    save(plain, tmp_path / "plain")
    file = tmp_path / "plain" / "latentrag.json"
    assert "set_bonus" not in json.loads(file.read_text())["prior"]
    rag = load(tmp_path / "plain", memory=filled, set_size=2)
    assert rag.set_bonus == 0
    save(load(tmp_path / "plain", memory=filled, set_size=2, set_bonus=1.25), tmp_path / "sets")
    again = load(tmp_path / "sets", memory=filled)
    assert again.set_bonus == 1.25
    assert len(again.answer("x", max_tokens=2).log_p_eta) == 3
    assert load(tmp_path / "sets", memory=filled, set_size=1).set_bonus is None
    with pytest.raises(InputError, match="set_bonus has no effect, since passages are read one by one; add set_size=2"):
        load(tmp_path / "plain", memory=filled, set_bonus=1.0)
    with pytest.raises(InputError, match="set_size=3; needed 1 or 2"):
        load(tmp_path / "plain", memory=filled, set_size=3)
    with pytest.raises(InputError, match="set_bonus=nan; needed a finite number"):
        load(tmp_path / "plain", memory=filled, set_size=2, set_bonus=math.nan)
    content = json.loads(file.read_text())
    content["prior"]["set_bonus"] = "high"
    file.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"no usable prior\.set_bonus"):
        load(tmp_path / "plain", memory=filled)
