"""Health: the measures against plain loops in float64; the alarms on collapsed and healthy models."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from latentrag.errors import InputError
from latentrag.model import JointModel, Values
from latentrag.training.health import Health, alarms, measure
from latentrag.types import Asked, Passage, Question, Retrieved, Variant, singles
from tests.toy import ToyGenerator, ToyRetriever
from tests.training.test_messages import several

TOLERANCE = 1e-5  # float32 sums of a few terms of size one


@dataclass
class TableRetriever(ToyRetriever):
    """Passages and scores of each question, from a table."""

    table: dict[str, tuple[list[Passage], list[float]]]

    def retrieve(self, x: Sequence[Asked], k: int) -> Retrieved:
        rows = [self.table[Question.of(question).text] for question in x]
        scores = torch.tensor([scores[:k] for _, scores in rows])
        return Retrieved(singles([of_one[:k] for of_one, _ in rows]), {"dense": scores}, 1)


class Reader(ToyGenerator):
    """Says the letter that the passage's number names; knows nothing without it."""

    def log_p(self, name: str, prefix: Sequence[int]) -> Tensor:
        number = int(name.split("|z")[1])
        logits = torch.zeros(self.vocabulary)
        logits[0 if prefix else 1 + number % (self.vocabulary - 1)] = 5.0
        return torch.log_softmax(logits, dim=0)


class Parrot(ToyGenerator):
    """Knows nothing but the question."""

    def log_p(self, name: str, prefix: Sequence[int]) -> Tensor:
        return super().log_p(name.split("|", maxsplit=1)[0], prefix)


def passage(number: int) -> Passage:
    return Passage(id=f"z{number}", text=f"text {number}")


def letter(number: int) -> str:
    """What ``Reader`` says when it reads that passage."""
    return chr(97 + number % 25)


def task(
    num_questions: int, num_passages: int, *, k: int, spread: float = 2.0
) -> tuple[TableRetriever, list[str], list[str]]:
    """Question i is about passage i modulo the number of passages, which comes first; its neighbours follow."""
    x = [f"question {i}" for i in range(num_questions)]
    table = {
        question: ([passage((i + rank) % num_passages) for rank in range(k)], [-spread * rank for rank in range(k)])
        for i, question in enumerate(x)
    }
    return TableRetriever(table), x, [letter(i % num_passages) for i in range(num_questions)]


def model(retriever: TableRetriever, generator: ToyGenerator | None = None) -> JointModel:
    return JointModel(retriever, generator or Reader(26))


def looped_log_p(
    generator: ToyGenerator, x: str, zs: list[Passage], prior: list[float], ids: list[int], variant: Variant
):
    """log p(y|x) and the posterior's shares, over every z and i."""
    p = [
        [generator.log_p(f"{x}|{z.id}", ids[:i]).double()[token].exp().item() for i, token in enumerate(ids)]
        for z in zs
    ]
    if variant == "sequence":
        joint = [prior[k] * math.prod(p[k]) for k in range(len(zs))]
        return math.log(sum(joint)), [each / sum(joint) for each in joint]
    of_tokens = [[prior[k] * p[k][i] for k in range(len(zs))] for i in range(len(ids))]
    shares = [[each / sum(row) for each in row] for row in of_tokens]
    mean = [sum(row[k] for row in shares) / len(ids) for k in range(len(zs))]
    return sum(math.log(sum(row)) for row in of_tokens), mean


@pytest.mark.parametrize("variant", ["sequence", "token"])
def test_measures_equal_plain_loops(variant):
    k, x, y = 3, [f"q{i}" for i in range(7)], ["a", "ab", "c", "cba", "b", "aa", "bc"]
    random = torch.Generator().manual_seed(1)
    table = {}
    for question in x:
        numbers = torch.randperm(5, generator=random)[:k].tolist()
        scores = torch.randn(k, generator=random).sort(descending=True).values.tolist()
        table[question] = ([passage(number) for number in numbers], scores)
    generator = ToyGenerator(4)
    health = measure(model(TableRetriever(table), generator), x, y, k=k, variant=variant, batch_size=3)

    sums = dict.fromkeys(
        ["nll", "prior_entropy", "posterior_entropy", "kl", "agreement", "overlap", "passage_entropy"], 0.0
    )
    gaps, num_tokens = [], 0
    for i, question in enumerate(x):
        zs, scores = table[question]
        others = table[x[(i + 3) % 7]][0]
        total = sum(math.exp(score) for score in scores)
        prior = [math.exp(score) / total for score in scores]
        ids = [ord(each) - 96 for each in y[i]] + [0]
        log_p, posterior = looped_log_p(generator, question, zs, prior, ids, variant)
        exchanged, _ = looped_log_p(generator, question, others, prior, ids, variant)
        num_tokens += len(ids)
        gaps.append(log_p - exchanged)
        sums["nll"] -= log_p
        sums["prior_entropy"] -= sum(p * math.log(p) for p in prior)
        sums["passage_entropy"] -= sum(p * math.log(p) for p in prior)
        sums["posterior_entropy"] -= sum(p * math.log(p) for p in posterior)
        sums["kl"] += sum(p * math.log(p / q) for p, q in zip(posterior, prior, strict=True))
        sums["agreement"] += posterior.index(max(posterior)) == prior.index(max(prior))
        sums["overlap"] += sum(min(prior[j], prior[m]) for j in range(k) for m in range(k) if zs[j].id == others[m].id)
    for name, value in sums.items():
        assert getattr(health, name) == pytest.approx(value / 7, abs=TOLERANCE), name
    assert health.nll_per_token == pytest.approx(sums["nll"] / num_tokens, abs=TOLERANCE)
    gap = sum(gaps) / 7
    assert health.gap == pytest.approx(gap, abs=TOLERANCE)
    assert health.gap_error == pytest.approx(math.sqrt(sum((each - gap) ** 2 for each in gaps) / 42), abs=TOLERANCE)
    tops = [table[question][0][0].id for question in x]
    assert health.unique_top == len(set(tops)) / 7
    assert health.top_share == max(map(tops.count, tops)) / 7
    assert (health.num_examples, health.num_passages) == (7, k)


def test_a_flat_prior_is_seen_beside_sets_and_no_passage():
    """What is flat over passages is not over all values of z."""
    x, y = ["q1", "q2"], ["a", "b"]
    table = {each: ([passage(number) for number in range(3)], [1.0, 1.0, 1.0]) for each in x}
    for values in (Values.of(set_bonus=0.0), Values.of(null_passage=6.0)):
        joint = replace(model(TableRetriever(table), ToyGenerator(4)), values=values)
        health = measure(joint, x, y, k=3, variant="sequence")
        assert health.passage_entropy == pytest.approx(math.log(3), abs=TOLERANCE)
        assert abs(health.prior_entropy - math.log(3)) > 0.1


def test_batches_change_nothing():
    retriever, x, y = task(9, 9, k=3)
    one, all_at_once = (
        measure(model(retriever, ToyGenerator(26)), x, y, k=3, variant="token", batch_size=size).as_record()
        for size in (1, 9)
    )
    assert one == pytest.approx(all_at_once, abs=TOLERANCE)


@pytest.mark.parametrize("num", [1, 2, 9])
def test_several_processes_measure_what_one_does(num):
    """Each example in one of them, also where there are fewer than processes."""
    retriever, x, y = task(num, 9, k=3)
    read: Counter[str] = Counter()

    class Watched(ToyGenerator):
        def targets(self, of_batch):
            read.update(of_batch)
            return super().targets(of_batch)

    def does(processes):
        return measure(model(retriever, Watched(26)), x, y, k=3, variant="token", batch_size=2, processes=processes)

    found = [health.as_record() for health in several(does, count=3)]
    assert read == Counter(y)
    assert found[0] == found[1] == found[2]
    alone = measure(model(retriever, ToyGenerator(26)), x, y, k=3, variant="token", batch_size=2)
    assert found[0] == pytest.approx(alone.as_record(), abs=TOLERANCE)


def test_a_single_example_has_no_gap():
    retriever, x, y = task(1, 9, k=3)
    health = measure(model(retriever), x, y, k=3, variant="sequence")
    assert math.isnan(health.gap)
    assert math.isnan(health.overlap)
    record = health.as_record()
    assert record["gap"] is None
    assert record["gap_error"] is None
    assert record["top_share"] == 1.0
    json.dumps(record, allow_nan=False)


def test_two_examples_exchange_their_passages():
    retriever, x, y = task(2, 2, k=1)
    health = measure(model(retriever), x, y, k=1, variant="sequence")
    assert health.gap == pytest.approx(5.0, abs=TOLERANCE)  # the logit that the right passage adds
    assert health.gap_error == pytest.approx(0.0, abs=TOLERANCE)
    assert health.overlap == 0.0


def test_no_gradient_is_kept():
    class Watched(Reader):
        def log_p_theta(self, prepared, targets):
            assert not torch.is_grad_enabled()
            return super().log_p_theta(prepared, targets)

    retriever, x, y = task(2, 2, k=2)
    measure(model(retriever, Watched(26)), x, y, k=2, variant="token")
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("x", "y", "batch_size", "message"),
    [
        ([], [], 8, "got no example"),
        (["question 0"], ["a", "b"], 8, "got 1 questions and 2 targets"),
        (["question 0"], ["a"], 0, "batch_size=0"),
    ],
)
def test_bad_input(x, y, batch_size, message):
    retriever, _, _ = task(2, 2, k=1)
    with pytest.raises(InputError, match=message):
        measure(model(retriever), x, y, k=1, variant="sequence", batch_size=batch_size)


@pytest.mark.parametrize("variant", ["sequence", "token"])
def test_a_healthy_model_raises_no_alarm(variant):
    retriever, x, y = task(40, 40, k=3)
    health = measure(model(retriever), x, y, k=3, variant=variant)
    assert alarms(health) == []
    assert alarms(health, first=health) == []


@pytest.mark.parametrize("k", [2, 5])
def test_few_passages_shared_by_many_questions_are_no_collapse(k):
    """With k = 5 every question gets the whole memory, in its own order."""
    retriever, x, y = task(103, 5, k=k)
    health = measure(model(retriever), x, y, k=k, variant="sequence")
    assert health.top_share > 0.2
    assert alarms(health) == []
    assert alarms(health, first=health) == []


def test_the_whole_memory_under_a_flat_prior_has_no_gap_to_lose():
    """The exchange puts the same passages under the same prior: a gap of zero is then no sign."""
    retriever, x, y = task(103, 5, k=5, spread=0.01)
    health = measure(model(retriever), x, y, k=5, variant="sequence")
    assert health.gap == pytest.approx(0.0, abs=0.05)
    assert health.overlap > 0.95
    assert alarms(health) == []


@pytest.mark.parametrize("variant", ["sequence", "token"])
def test_a_generator_that_ignores_passages_is_flagged(variant):
    retriever, x, y = task(40, 40, k=3)
    health = measure(model(retriever, Parrot(26)), x, y, k=3, variant=variant)
    assert health.kl == pytest.approx(0.0, abs=TOLERANCE)
    (line,) = alarms(health)
    assert "generator ignores them" in line
    assert "--warmup-generator" in line


def test_passages_that_do_not_help_are_flagged():
    """The generator reads, but retrieval brings nothing that has to do with the question."""
    retriever, x, _ = task(40, 24, k=3)
    health = measure(model(retriever), x, ["y"] * 40, k=3, variant="sequence")
    (line,) = alarms(health)
    assert "serve as well" in line


def test_one_passage_for_all_is_flagged():
    _, x, y = task(40, 40, k=3)
    same = ([passage(number) for number in range(3)], [0.0, -1.0, -2.0])
    health = measure(model(TableRetriever(dict.fromkeys(x, same))), x, y, k=3, variant="sequence")
    assert health.overlap == pytest.approx(1.0)
    (line,) = alarms(health)
    assert "100.0% of the questions have the same top passage" in line
    assert "--lr-retriever" in line


@pytest.mark.parametrize("share", [0.85, 0.95, 1.0])
def test_one_passage_for_all_before_training_is_no_collapse(share) -> None:
    first = replace(HEALTHY, top_share=share, unique_top=0.02)
    assert alarms(first, first=first) == []
    assert alarms(replace(first, top_share=(1 + share) / 2), first=first) == []


def test_a_flat_prior_over_passages_that_are_all_alike_is_flagged():
    retriever, x, y = task(40, 40, k=3, spread=0.01)
    copies = {
        question: ([Passage(f"{zs[0].id}", "copy")] * 3, scores) for question, (zs, scores) in retriever.table.items()
    }
    health = measure(model(TableRetriever(copies)), x, y, k=3, variant="sequence")
    assert health.gap > 1.0
    (line,) = alarms(health)
    assert "the prior is flat" in line
    assert "scale" in line


HEALTHY = Health(
    num_examples=500,
    num_passages=5,
    nll=6.0,
    nll_per_token=1.5,
    prior_entropy=1.2,
    posterior_entropy=0.7,
    kl=0.4,
    agreement=0.6,
    unique_top=0.5,
    top_share=0.02,
    gap=1.5,
    gap_error=0.08,
    overlap=0.02,
)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"prior_entropy": 0.01, "posterior_entropy": 0.01, "kl": 0.001},  # sure and right
        {"prior_entropy": 1.6, "kl": 0.4},  # flat, but the posterior teaches it
        {"nll": 120.0, "gap": 1.5},  # long targets: small against the loss, yet p(y|x) is 4 times as high
        {"prior_entropy": 2.41, "passage_entropy": 1.3, "kl": 0.001},  # sets, of passages that are told apart
        {"gap": 0.1, "gap_error": 0.3, "num_examples": 25},  # nothing can be said
        {"gap": 0.8, "nll": 3.0},  # learnt the answers' form: the gap fell with the loss
        {"top_share": 0.08, "unique_top": 0.2},
        {"gap": 0.0, "gap_error": 0.0, "kl": 0.0, "top_share": 1.0, "num_examples": 19},  # too few to judge
    ],
)
def test_no_alarm(changed):
    assert alarms(replace(HEALTHY, **changed), first=replace(HEALTHY, nll=14.0, gap=4.0)) == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"gap": 0.02, "gap_error": 0.01}, "serve as well"),
        ({"gap": -0.4}, "serve as well"),
        ({"gap": 0.3, "gap_error": 0.02}, "fell from 1.500 to 0.300"),
        ({"top_share": 0.25}, "same top passage"),
        ({"unique_top": 0.05}, "same top passage"),
        ({"prior_entropy": 1.6, "kl": 0.001}, "flat"),
        ({"prior_entropy": 2.41, "passage_entropy": 1.6, "kl": 0.001}, "entropy 1.600 of at most 1.609 nats"),
    ],
)
def test_alarm(changed, said):
    (line,) = alarms(replace(HEALTHY, **changed), first=HEALTHY)
    assert said in line
    assert "\n" not in line


def test_records_of_versions_without_the_entropy_of_passages_are_read():
    record = {name: value for name, value in HEALTHY.as_record().items() if name != "passage_entropy"}
    assert Health.of_record(record) == HEALTHY
    with_sets = replace(HEALTHY, passage_entropy=1.1)
    assert Health.of_record(with_sets.as_record()) == with_sets


def test_a_collapse_of_a_small_memory_is_seen_against_the_first_measure():
    first = replace(HEALTHY, top_share=0.3, unique_top=0.01)
    assert alarms(replace(first, top_share=0.6), first=first) == []
    (line,) = alarms(replace(first, top_share=0.8), first=first)
    assert "before training: 30.0%" in line
