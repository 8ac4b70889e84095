"""evaluate and compare: rows against the model asked one by one, on toys small enough to check by hand."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from latentrag import io
from latentrag.errors import DataError, InputError, ModelError
from latentrag.evaluation.collecting import collected, of_example
from latentrag.evaluation.compare import Difference, compare
from latentrag.evaluation.intervals import Estimate
from latentrag.evaluation.metrics import DECODERS, METRICS, mean_of, token_f1
from latentrag.evaluation.run import Plan, evaluate
from latentrag.model import Read
from latentrag.options import DecodingOptions
from latentrag.rag import Rag
from latentrag.training.data import Example
from latentrag.training.formats import QUESTIONS_AND_ANSWERS
from latentrag.training.tasks import TASKS, Task
from latentrag.types import Passage, Question, Retrieved, Turn, singles
from tests.toy import ToyGenerator, ToyMemory, ToyRetriever

OPTIONS = DecodingOptions(num_beams=2, max_tokens=4)
TEXTS = ("nothing", "the a here", "about b", "a and c", "b", "ccc")


PASSAGES = [Passage(id=f"z{i}", text=text, title=f"title {i}") for i, text in enumerate(TEXTS)]


class FakeRetriever(ToyRetriever):
    """Passages in an order that depends on the question."""

    memory = ToyMemory(PASSAGES)

    def __init__(self) -> None:
        self.searches: list[tuple[int, int]] = []

    def retrieve(self, x, k):
        self.searches.append((len(x), k))
        lengths = [len(Question.of(question).text) for question in x]
        found = [[PASSAGES[(i + length) % len(TEXTS)] for i in range(k)] for length in lengths]
        scores = torch.stack([torch.linspace(1.0, -1.0, 6)[:k] * length / 4 for length in lengths])
        return Retrieved(singles(found), {"dense": scores}, version=7)


def searches(rag: Rag) -> list[tuple[int, int]]:
    """How many questions were searched for together, and their K."""
    assert isinstance(rag.retriever, FakeRetriever)
    return rag.retriever.searches


def model(seed: int = 11) -> Rag:
    return Rag(FakeRetriever(), ToyGenerator(4, seed=seed), k=3)


EXAMPLES = [
    Example("one", "who?", ("c", "b"), titles=("title 9", "title 1")),
    Example("two", "what now?", ("ba",)),
    Example("three", "w", ("ab",), titles=("elsewhere",)),
    Example("four", "when?", (), pattern="a|c+"),
    Example("five", "whose is it?", ("bca", "b")),
]


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.mark.parametrize("variant", ["sequence", "token"])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_rows_are_what_the_model_says(variant, batch_size, tmp_path) -> None:
    rag, out = model(), tmp_path / "run.jsonl"
    found = evaluate(
        rag, EXAMPLES, out, variant=variant, options=OPTIONS, batch_size=batch_size, recall_at=(1, 2, 5, 50)
    )
    assert rows_of(out) == list(found.rows)
    assert [row["id"] for row in found.rows] == [example.id for example in EXAMPLES]
    assert searches(rag) == [(len(EXAMPLES[i : i + batch_size]), 6) for i in range(0, 5, batch_size)]
    for row, example in zip(found.rows, EXAMPLES, strict=True):
        answer = model().answer(example.x, variant=variant, num_beams=2, max_tokens=4)
        assert (row["x"], row["text"], row["memory_version"]) == (example.x, answer.text, 7)
        assert row["log_prob"] == pytest.approx(answer.log_prob, abs=1e-5)
        passages = rag.retriever.retrieve([example.x], 6).passages[0]
        if example.pattern:
            assert (row["log_likelihood"], row["num_tokens"], row["f1"]) == (None, None, None)
            continue
        score = model().score(example.x, example.answers[0], variant=variant)
        assert row["log_likelihood"] == pytest.approx(score.log_likelihood, abs=1e-5)
        assert row["num_tokens"] == score.num_tokens
        assert row["f1"] == token_f1(answer.text, example.answers)
        assert row["exact_match"] == (answer.text in example.answers)
        titles = [passage.title for passage in passages]
        ranks = [titles.index(title) + 1 for title in example.titles if title in titles]
        assert row["title_rank"] == min(ranks, default=None)


def test_of_samples_one_is_measured_with_random_numbers_of_its_own_for_each_question() -> None:
    """With one seed for all, 40 questions that are alike would get one answer; with four samples, the most probable."""
    alike = [Example(str(i), "who?", ("c",)) for i in range(40)]

    def said(num_beams: int, batch_size: int) -> list[tuple[str, float]]:
        options = DecodingOptions(sample=True, seed=0, num_beams=num_beams, max_tokens=4)
        found = evaluate(model(), alike, options=options, batch_size=batch_size)
        return [(row["text"], round(row["log_prob"], 5)) for row in found.rows]

    alone = said(1, 1)
    assert said(4, 8) == alone
    assert len(set(alone)) > 10


def test_ranks_by_hand() -> None:
    # "who?" is found passages 4 5 0 1 2 3: b is in the first; "when?" 5 0 1 …; "w" 1 2 3 …, none with the word ab.
    found = evaluate(model(), EXAMPLES, options=OPTIONS, recall_at=(1, 2, 5, 50))
    assert [row["rank"] for row in found.rows] == [1, None, None, 1, 3]
    assert [row["title_rank"] for row in found.rows] == [4, None, None, None, None]
    metrics: Any = found.as_record()["metrics"]
    assert list(metrics) == [
        "exact_match",
        "f1",
        *(f"{name}@{k}" for name in ("recall", "title_recall") for k in (1, 2, 3, 5)),
        "log_likelihood_per_answer",
    ]
    assert [metrics[f"recall@{k}"]["mean"] for k in (1, 2, 3, 5)] == pytest.approx([0.4, 0.4, 0.6, 0.6])
    assert [metrics[f"title_recall@{k}"]["mean"] for k in (3, 5)] == [0.0, 0.5]
    assert metrics["title_recall@5"]["num_examples"] == 2
    scored = [row for row in found.rows if row["num_tokens"]]
    per_answer = sum(row["log_likelihood"] for row in scored) / len(scored)
    assert metrics["log_likelihood_per_answer"]["mean"] == pytest.approx(per_answer)
    # Too few for an interval of what has no bounds; shares and F1 have one.
    assert metrics["log_likelihood_per_answer"]["low"] is metrics["log_likelihood_per_answer"]["high"] is None
    assert 0 <= metrics["f1"]["low"] <= metrics["f1"]["mean"] <= metrics["f1"]["high"] <= 1
    assert (metrics["f1"]["num_examples"], metrics["exact_match"]["num_examples"]) == (4, 5)


def test_recall_of_answers_without_spaces_has_a_name_of_its_own(monkeypatch) -> None:
    kept = [Passage(id="a", text="東京は日本の首都です"), Passage(id="b", text="a 東京 b"), *PASSAGES[2:]]
    monkeypatch.setitem(globals(), "PASSAGES", kept)
    monkeypatch.setattr("latentrag.evaluation.run._gold", lambda *_: {})  # the toy writes few letters
    examples = [Example("one", "どこ?" * 2, ("東京",)), Example("two", "whose is it?", ("b",))]
    found = evaluate(model(), examples, options=OPTIONS, recall_at=(6,))
    assert (found.rows[0]["rank"], found.rows[0]["unspaced_rank"]) == (2, 1)
    assert found.rows[1]["unspaced_rank"] is None
    assert found.estimates["unspaced_recall@6"].num_examples == 1
    assert found.estimates["recall@6"].num_examples == 2


def test_answers_that_normalise_to_nothing_are_counted(monkeypatch) -> None:
    monkeypatch.setattr("latentrag.evaluation.run._gold", lambda *_: {})
    examples = [Example("one", "who?", ("The",)), Example("two", "w", ("x", "!")), Example("three", "when?", ("b",))]
    found = evaluate(model(), examples, options=OPTIONS)
    assert found.as_record()["wordless_answers"] == 2
    assert [row["exact_match"] for row in found.rows] == [False, False, found.rows[2]["text"] == "b"]


def test_closed_book() -> None:
    rag = model()
    found = evaluate(rag, EXAMPLES, options=OPTIONS, closed_book=True)
    assert searches(rag) == []
    assert list(found.estimates) == ["exact_match", "f1", "log_likelihood_per_answer"]
    for row, example in zip(found.rows, EXAMPLES, strict=True):
        assert (row["memory_version"], row["rank"], row["title_rank"]) == (None, None, None)
        if example.answers:
            expected = model().score(example.x, example.answers[0]).closed_book_log_likelihood
            assert row["log_likelihood"] == pytest.approx(expected, abs=1e-5)


def parroted(_rag: Rag, read: Read, _plan: Plan, _batch: Sequence[Example]) -> list[tuple[str, float]]:
    """A decoder that says the question's first word."""
    return [(question.text.split()[0], -1.5) for question in read.questions]


def num_letters(_example: Example, text: str, _passages: Sequence[Passage]) -> int:
    return len(text)


def test_another_task_with_a_decoder_and_a_metric_of_its_own(tmp_path) -> None:
    DECODERS.add("parrot", parroted)
    METRICS.add("letters", mean_of("letters", num_letters))
    TASKS.add("parroting", Task(QUESTIONS_AND_ANSWERS, "parrot", ("letters", "recall")))
    out = tmp_path / "run.jsonl"
    try:
        found = evaluate(model(), EXAMPLES, out, options=OPTIONS, recall_at=(1, 5), task="parroting")
        assert [(row["text"], row["log_prob"], row["letters"]) for row in found.rows[:2]] == [
            ("who?", -1.5, 4),
            ("what", -1.5, 4),
        ]
        metrics: Any = found.as_record()["metrics"]
        assert list(metrics) == ["letters", "recall@1", "recall@3", "recall@5", "log_likelihood_per_answer"]
        assert metrics["letters"]["mean"] == (4 + 4 + 1 + 5 + 5) / 5
        usual = evaluate(model(), EXAMPLES, tmp_path / "usual.jsonl", options=OPTIONS, recall_at=(1, 5))
        assert [row["rank"] for row in found.rows] == [row["rank"] for row in usual.rows]
        assert compare(out, out).differences["letters"].ours == metrics["letters"]["mean"]
        with pytest.raises(DataError, match="has the task parroting, .*usual.jsonl open-qa"):
            compare(out, tmp_path / "usual.jsonl")
        with pytest.raises(InputError, match="begun with task='parroting', this run has None"):
            evaluate(model(), EXAMPLES, out, options=OPTIONS, recall_at=(1, 5))
    finally:
        DECODERS.remove("parrot")
        METRICS.remove("letters")
        TASKS.remove("parroting")
    with pytest.raises(InputError, match="task 'parroting' is unknown; needed one of open-qa"):
        evaluate(model(), EXAMPLES, out, options=OPTIONS, task="parroting")


class DyingGenerator(ToyGenerator):
    """Is interrupted in the middle of a batch."""

    def prepare(self, x, latents):
        if "w" in [Question.of(question).text for question in x]:
            raise KeyboardInterrupt
        return super().prepare(x, latents)


@pytest.mark.parametrize("cut", [0, 1, 30])
def test_an_interrupted_run_goes_on_where_it_was(cut, tmp_path) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "runs" / "run.jsonl"
    evaluate(model(), EXAMPLES, whole, options=OPTIONS, batch_size=1)
    with pytest.raises(KeyboardInterrupt):
        evaluate(
            Rag(FakeRetriever(), DyingGenerator(4, seed=11), k=3),
            EXAMPLES,
            out,
            options=OPTIONS,
            batch_size=1,
        )
    assert len(rows_of(out)) == 2
    with out.open("r+b") as file:  # as a kill in the middle of a line leaves it
        file.truncate(out.stat().st_size - cut)
    rag = model()
    evaluate(rag, EXAMPLES, out, options=OPTIONS, batch_size=1)
    assert len(searches(rag)) == (3 if cut == 0 else 4)
    assert out.read_bytes() == whole.read_bytes()
    assert out.with_suffix(".json").read_bytes() == whole.with_suffix(".json").read_bytes()
    again = model()
    report = evaluate(again, EXAMPLES, out, options=OPTIONS)
    assert searches(again) == []
    assert json.loads(out.with_suffix(".json").read_text()) == report.as_record()
    # Fewer examples, or more, are no other settings.
    assert evaluate(again, EXAMPLES[:2], out, options=OPTIONS).as_record()["examples"] == 2


def test_rows_and_report_are_on_the_disk_before_they_count(tmp_path, monkeypatch) -> None:
    """A power failure after a batch loses nothing of it, and one while the report is written leaves the settings."""
    synced: list[str] = []
    monkeypatch.setattr(
        io, "sync_handle", lambda handle: synced.append(Path(f"/proc/self/fd/{handle}").readlink().name)
    )
    replace, order = Path.replace, []

    def replaced(path: Path, target: Path) -> Path:
        order.append((path.name, list(synced)))
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", replaced)
    evaluate(model(), EXAMPLES[:2], tmp_path / "run.jsonl", options=OPTIONS, batch_size=1)
    assert order == [
        ("run.json.new", ["run.json.new"]),
        ("run.json.new", ["run.json.new", "run.jsonl", "run.jsonl", "run.json.new"]),
    ]


def test_other_settings_do_not_mix(tmp_path) -> None:
    out = tmp_path / "run.jsonl"
    evaluate(model(), EXAMPLES[:1], out, options=OPTIONS, about={"model": "m"})
    changed: list[tuple[str, dict[str, Any]]] = [
        ("begun with k=3, this run has 2", {"k": 2}),
        ("begun with variant='sequence'", {"variant": "token"}),
        ("begun with closed_book=False", {"closed_book": True}),
        ("begun with options=", {"options": DecodingOptions(num_beams=1)}),
        ("begun with model='m', this run has 'n'", {"about": {"model": "n"}}),
    ]
    for problem, changes in changed:
        with pytest.raises(InputError, match=problem):
            evaluate(model(), EXAMPLES, out, **{"options": OPTIONS, "about": {"model": "m"}, **changes})
    for change in (
        {"x": "other?"},
        {"answers": ("c",)},
        {"pattern": "c|b"},
        {"titles": ("title 2",)},
    ):
        with pytest.raises(InputError, match=f"another example with the id one: {next(iter(change))}="):
            evaluate(model(), [replace(EXAMPLES[0], **change)], out, options=OPTIONS, about={"model": "m"})
    assert len(rows_of(out)) == 1


TALK = (Turn("user", "who wrote emma?"), Turn("assistant", "austen"))
RICH = Example(
    "rich",
    "who?",
    ("c",),
    passages=("z1",),
    choices=("c", "b"),
    title_sets=(("t",),),
    passage_sets=(("z1",),),
    given=(PASSAGES[0],),
    history=TALK,
)
ADDED = {
    "history": "history",
    "passages": "relevant",
    "choices": "choices",
    "title_sets": "title_sets",
    "passage_sets": "relevant_sets",
    "given": "given",
}


SETTINGS = {"format": 0, "task": "choice"}


def kept(path: Path, example: Example, before: Example) -> None:
    """An evaluation of one example goes on over the row of another."""
    path.unlink(missing_ok=True)

    def measured(batch: Sequence[Example]) -> list[dict[str, Any]]:
        assert [each.id for each in batch] == [before.id]
        return [{"id": each.id, **of_example(each), "accuracy": 1.0, "memory_version": None} for each in batch]

    for each in (before, example):
        collected([each], path, SETTINGS, measured, batch_size=1, recall_at=(1,), progress=False)


@pytest.mark.parametrize(("field", "name"), ADDED.items())
def test_what_is_gone_from_the_data_or_new_there_is_another_example(tmp_path, field, name) -> None:
    changes: dict[str, Any] = {field: ()}
    without = replace(RICH, **changes)
    kept(tmp_path / "run.jsonl", RICH, RICH)
    kept(tmp_path / "run.jsonl", without, without)
    for now, before in ((without, RICH), (RICH, without)):
        with pytest.raises(InputError, match=f"another example with the id rich: {name}="):
            kept(tmp_path / "run.jsonl", now, before)


@pytest.mark.parametrize("talk", [TALK[:1], (TALK[0], Turn("assistant", "bronte")), (TALK[0], Turn("user", "austen"))])
def test_other_turns_before_the_question_are_another_example(tmp_path, talk) -> None:
    other = replace(RICH, history=talk)
    with pytest.raises(InputError, match=r"another example with the id rich: history=\[\['user', '"):
        kept(tmp_path / "run.jsonl", other, RICH)


def test_a_row_from_before_there_was_a_name_has_it_empty(tmp_path) -> None:
    """Rows of questions without turns before them go on; those with turns do not say which, and do not."""
    assert not set(ADDED.values()) & set(of_example(EXAMPLES[0]))
    out = tmp_path / "run.jsonl"
    kept(out, RICH, RICH)
    old = {name: value for name, value in rows_of(out)[0].items() if name != "history"}
    out.write_text(json.dumps(old) + "\n")
    settings: dict[str, Any] = {"batch_size": 1, "recall_at": (1,), "progress": False}
    collected([replace(RICH, history=())], out, SETTINGS, lambda _: [], **settings)
    with pytest.raises(InputError, match=r"another example with the id rich: history=\[\], now \[\['user'"):
        collected([RICH], out, SETTINGS, lambda _: [], **settings)


def test_runs_with_other_turns_before_a_question_are_not_compared(tmp_path) -> None:
    ours, theirs = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    kept(ours, RICH, RICH)
    other = replace(RICH, history=TALK[:1])
    kept(theirs, other, other)
    with pytest.raises(DataError, match="example rich is another one in"):
        compare(ours, theirs)


def test_rows_of_another_memory_do_not_mix(tmp_path, monkeypatch) -> None:
    """It may have the same path and the same version number."""
    out, rag = tmp_path / "run.jsonl", model()
    evaluate(rag, EXAMPLES[:1], out, options=OPTIONS)
    monkeypatch.setattr(ToyMemory, "identity", "another", raising=False)
    with pytest.raises(InputError, match="begun with memory_identity=None, this run has 'another'"):
        evaluate(rag, EXAMPLES, out, options=OPTIONS)
    evaluate(rag, EXAMPLES, tmp_path / "closed.jsonl", options=OPTIONS, closed_book=True)


def test_one_evaluation_at_a_time_writes_a_file(tmp_path) -> None:
    out = tmp_path / "run.jsonl"
    evaluate(model(), EXAMPLES[:2], out, options=OPTIONS)
    before = out.read_bytes()
    with io.exclusive(out), pytest.raises(InputError, match="being written by another evaluation; wait for it"):
        evaluate(model(), EXAMPLES, out, options=OPTIONS)
    assert out.read_bytes() == before
    evaluate(model(), EXAMPLES, out, options=OPTIONS)
    assert len(rows_of(out)) == len(EXAMPLES)


def same(path: Path) -> tuple[bytes, list[str]]:
    return path.read_bytes(), sorted(each.name for each in path.parent.iterdir())


@pytest.mark.parametrize(
    "content",
    [
        [{"question": "who?", "answer": "me"}],
        {"format": 3, "options": {}, "memory": {}},  # the request of a training run
        {"settings": {"theme": "dark"}},
        {"settings": {"format": 2}, "mine": 1},
        "text",
    ],
)
def test_a_file_under_the_derived_name_that_is_not_ours_stays(content, tmp_path) -> None:
    theirs = tmp_path / "run.json"
    theirs.write_text(json.dumps(content))
    before = same(theirs)
    with pytest.raises(DataError, match=r"run.json is not the settings file of an evaluation; name another file"):
        evaluate(model(), EXAMPLES, tmp_path / "run.jsonl", options=OPTIONS)
    assert same(theirs) == before


def test_rows_that_are_not_ours_stay_as_they_are(tmp_path) -> None:
    out = tmp_path / "run.jsonl"
    evaluate(model(), EXAMPLES[:1], out, options=OPTIONS)
    out.write_text('{"question": "who?"}\n{"question": "what?"}')
    with pytest.raises(DataError, match=r"run.jsonl line 1 is not a row"):
        evaluate(model(), EXAMPLES, out, options=OPTIONS)
    assert out.read_text() == '{"question": "who?"}\n{"question": "what?"}'


def test_ended_before_its_first_row(tmp_path) -> None:
    out = tmp_path / "run.jsonl"
    out.touch()
    evaluate(model(), EXAMPLES[:1], out, options=OPTIONS)
    assert len(rows_of(out)) == 1


def test_files_that_cannot_be_used(tmp_path) -> None:
    with pytest.raises(InputError, match=r"needed such a name"):
        evaluate(model(), EXAMPLES, tmp_path / "run.json", options=OPTIONS)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="File exists|Not a directory"):
        evaluate(model(), EXAMPLES, tmp_path / "file" / "run.jsonl", options=OPTIONS)
    (tmp_path / "lone.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"has no lone.json beside it"):
        evaluate(model(), EXAMPLES, tmp_path / "lone.jsonl", options=OPTIONS)
    out = tmp_path / "run.jsonl"
    evaluate(model(), EXAMPLES[:1], out, options=OPTIONS)
    out.write_text("{}\n" + out.read_text())
    with pytest.raises(DataError, match=r"run.jsonl line 1 is not a row"):
        evaluate(model(), EXAMPLES, out, options=OPTIONS)
    out.with_suffix(".json").write_text("[]")
    with pytest.raises(DataError, match="is not the settings file"):
        evaluate(model(), EXAMPLES, out, options=OPTIONS)


@pytest.mark.parametrize(
    ("problem", "options"),
    [
        ("k=9 exceeds the memory's 6 passages", {"k": 9}),
        ("k=0; needed 1", {"k": 0}),
        ("batch_size=0", {"batch_size": 0}),
        ("recall_at=", {"recall_at": (0,)}),
        ("RAG-Token has one decoder", {"variant": "token", "decoding": "fast"}),
    ],
)
def test_options_that_cannot_be(problem, options) -> None:
    with pytest.raises(InputError, match=problem):
        evaluate(model(), EXAMPLES, **options)


def test_examples_that_cannot_be(tmp_path) -> None:
    with pytest.raises(InputError, match="no example"):
        evaluate(model(), [])
    with pytest.raises(InputError, match="same id"):
        evaluate(model(), [EXAMPLES[0], EXAMPLES[0]])
    out = tmp_path / "run.jsonl"
    with pytest.raises(DataError, match="example blank: the question is empty"):
        evaluate(model(), [*EXAMPLES, Example("blank", " ", ("a",))], out, options=OPTIONS, batch_size=2)
    assert len(rows_of(out)) == 4


class BrokenGenerator(ToyGenerator):
    def log_p_theta(self, prepared, targets):
        return super().log_p_theta(prepared, targets) * math.nan


def test_a_broken_model_is_not_averaged() -> None:
    with pytest.raises(ModelError, match="example one: .* not a finite number"):
        evaluate(Rag(FakeRetriever(), BrokenGenerator(), k=3), EXAMPLES, options=OPTIONS, recall_at=(6,))


def span(found: Estimate | Difference) -> tuple[float, float]:
    assert found.low is not None
    assert found.high is not None
    return found.low, found.high


def test_compare(tmp_path) -> None:
    examples = [Example(str(i), f"question {'?' * (i % 9)}{i}", ("abc"[i % 3],)) for i in range(60)]
    ours, theirs = tmp_path / "ours.jsonl", tmp_path / "theirs.jsonl"
    evaluate(model(1), examples, ours, options=OPTIONS)
    evaluate(model(2), examples[::-1], theirs, options=OPTIONS)
    found, back = compare(ours, theirs), compare(theirs, ours)
    a, b = ({row["id"]: row for row in rows_of(path)} for path in (ours, theirs))
    assert found.num_examples == 60
    for name, each in found.differences.items():
        assert each.difference == pytest.approx(each.ours - each.theirs)
        (low, high), other = span(each), back.differences[name]
        assert low <= each.difference <= high
        assert (*span(other), other.p) == pytest.approx((-high, -low, each.p))
        assert (other.wins, other.losses) == (each.losses, each.wins)
    match = found.differences["exact_match"]
    assert match.wins == sum(a[i]["exact_match"] > b[i]["exact_match"] for i in a)
    assert match.ours == pytest.approx(sum(row["exact_match"] for row in a.values()) / 60)
    # The same passages for both: no difference, no doubt.
    recall = found.differences["recall@3"]
    assert (recall.difference, recall.p, recall.wins) == (0, 1, 0)
    assert span(recall)[0] == -span(recall)[1] < 0  # none of 60 differs: a few of a hundred may
    record: Any = compare(ours, ours).as_record()
    assert record["metrics"]["f1"]["p"] == 1


def test_p_is_small_where_one_is_always_better_and_large_where_it_is_chance(tmp_path) -> None:
    examples = [Example(str(i), f"q{i}", ("a",)) for i in range(40)]
    for name in ("ours", "theirs", "closed"):
        evaluate(model(), examples, tmp_path / f"{name}.jsonl", options=OPTIONS, closed_book=name == "closed")
    path = tmp_path / "theirs.jsonl"
    rows = rows_of(path)
    for i, row in enumerate(rows):
        row["log_likelihood"] -= 0.5 + i / 40  # always worse
        row["f1"] += (-1) ** i  # better as often as worse
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = compare(tmp_path / "ours.jsonl", path).differences
    likelihood = found["log_likelihood_per_answer"]
    assert likelihood.p == 1 / 10_001
    assert (likelihood.wins, likelihood.losses) == (40, 0)
    assert span(likelihood)[0] > 0
    assert found["f1"].p > 0.5
    assert span(found["f1"])[0] < 0 < span(found["f1"])[1]
    # Closed book has no recall, so that only what both have is compared.
    closed = compare(tmp_path / "ours.jsonl", tmp_path / "closed.jsonl").differences
    assert list(closed) == ["exact_match", "f1", "log_likelihood_per_answer"]


def test_few_questions_prove_little(tmp_path) -> None:
    """One to five questions, all won: the exact test of signs, and intervals that reach beyond 0."""
    for n in (1, 2, 5):
        examples = [Example(str(i), "who?", ("c",)) for i in range(n)]
        ours, theirs = tmp_path / f"ours{n}.jsonl", tmp_path / f"theirs{n}.jsonl"
        for path in (ours, theirs):
            evaluate(model(), examples, path, options=OPTIONS)
        rows = [{**row, "exact_match": True, "log_likelihood": row["log_likelihood"] + 1} for row in rows_of(ours)]
        ours.write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = compare(ours, theirs).differences
        match, likelihood = found["exact_match"], found["log_likelihood_per_answer"]
        assert (match.wins, match.p, likelihood.p) == (n, 2 ** (1 - n), 2 ** (1 - n))
        assert span(match)[0] < match.difference <= span(match)[1] <= 1
        assert n == 5 or span(match)[0] < 0
        assert (likelihood.low, likelihood.high) == (None, None)


def test_runs_that_were_measured_otherwise_are_not_compared(tmp_path) -> None:
    for name in ("ours", "theirs"):
        evaluate(model(), EXAMPLES, tmp_path / f"{name}.jsonl", options=OPTIONS)
    path = tmp_path / "theirs.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "settings": {**record["settings"], "format": 1}}))
    with pytest.raises(DataError, match="has format=2, .*theirs.jsonl 1, which measure otherwise"):
        compare(tmp_path / "ours.jsonl", tmp_path / "theirs.jsonl")


def test_log_p_is_compared_across_tokenizers(tmp_path) -> None:
    """The same probabilities over twice the tokens are no difference."""
    examples = [Example(str(i), f"q{i}", ("a",)) for i in range(30)]
    ours, theirs = tmp_path / "ours.jsonl", tmp_path / "theirs.jsonl"
    for path in (ours, theirs):
        evaluate(model(), examples, path, options=OPTIONS)
    rows = [{**row, "num_tokens": 2 * row["num_tokens"]} for row in rows_of(theirs)]
    theirs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = compare(ours, theirs).differences["log_likelihood_per_answer"]
    assert (found.difference, found.p) == (0, 1)


def test_runs_that_cannot_be_compared(tmp_path) -> None:
    ours, theirs = tmp_path / "ours.jsonl", tmp_path / "theirs.jsonl"
    evaluate(model(), EXAMPLES, ours, options=OPTIONS)
    evaluate(model(), EXAMPLES[:3], theirs, options=OPTIONS)
    for here, there in ((ours, theirs), (theirs, ours)):
        with pytest.raises(DataError, match=r"2 are only in .*ours.jsonl, five first"):
            compare(here, there)
    changed = [Example("one", "why?", ("c", "b")), *EXAMPLES[1:]]
    evaluate(model(), changed, tmp_path / "other.jsonl", options=OPTIONS)
    with pytest.raises(DataError, match="example one is another one in"):
        compare(ours, tmp_path / "other.jsonl")
    with pytest.raises(DataError, match=r"none.jsonl: No such file"):
        compare(ours, tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="holds no rows"):
        compare(ours, tmp_path / "empty.jsonl")


def test_rows_of_kilt_get_its_combined_scores() -> None:
    """A right answer counts where the pages of a set of evidence come first."""
    usual = evaluate(model(), EXAMPLES[:1], options=OPTIONS).rows[0]
    said, first = usual["text"], "title 4"  # what the model answers to "who?", and what it retrieves for it
    sets = [((first,),), ((first, "title 9"),), (("title 9",), (first, "title 5")), ()]
    examples = [Example(str(i), "who?", (said,), (first,), title_sets=each) for i, each in enumerate(sets)]
    found = evaluate(model(), examples, options=OPTIONS)
    assert [row["kilt_r_precision"] for row in found.rows] == [1, 0.5, 1, None]
    assert found.estimates["exact_match"].mean == 1
    assert found.estimates["kilt_exact_match"].mean == pytest.approx(2 / 3)
    assert found.estimates["kilt_f1"].num_examples == 3
