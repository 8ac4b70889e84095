"""The rows of the paper's tables and figures: how they are read, run, recorded, checked and shown."""

import gzip
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from latentrag.errors import DataError, InputError
from latentrag.evaluation.reproduce.checking import verdicts
from latentrag.evaluation.reproduce.derived import derive
from latentrag.evaluation.reproduce.drawing import posteriors
from latentrag.evaluation.reproduce.page import write_page
from latentrag.evaluation.reproduce.records import compared, current, read
from latentrag.evaluation.reproduce.rows import Must, Rows, read_rows
from latentrag.evaluation.reproduce.running import Places, reproduce, timed

TEXT = """
[variables.full]
base = "-m demo"
n = "40"
[variables.quick]
base = "-m {work}/tiny"
n = "2"

[steps.trained]
command = "train {data}/a.jsonl {base} --out {work}/trained"
resumes = "{work}/trained/run.json"

[rows.table]
of = "Table 1"
shows = "That the joint model is better."
paper = "44.5"
measures = ["exact_match", "log_likelihood_per_answer"]
data = ["a.jsonl"]
steps = ["trained"]
examples = 1
must = [
  { arms = ["joint"], measure = "exact_match", above = ["frozen"] },
  { arms = ["joint"], measure = "exact_match", low = 0.5, high = 0.9 },
]
[rows.table.arms]
joint = "eval {data}/a.jsonl -m {work}/trained/model --limit {n}"
frozen = "eval {data}/a.jsonl {base} --limit {n}"

[rows.large]
of = "Table 2"
shows = "The paper's own checkpoint."
measures = ["exact_match"]
needs = "hub"
arms = { all = "eval {data}/b.jsonl -m facebook/rag-sequence-nq" }
"""


class Latentrag:
    """Stands for the command: notes what it is asked for, and writes evaluations in which ``right`` of 40 are right."""

    def __init__(self, right: dict[str, int], *, fails: str = "") -> None:
        self.commands: list[list[str]] = []
        self._right = right
        self.fails = fails

    def __call__(self, words: Sequence[str], printed: Path | None) -> int:
        self.commands.append(list(words))
        if self.fails and self.fails in words:
            return 130 if self.fails == "train" else 2
        if words[0] == "eval":
            self._evaluate(Path(words[words.index("--out") + 1]))
        if words[0] == "train":
            out = Path(words[words.index("--out") + 1])
            out.mkdir(parents=True, exist_ok=True)
            (out / "run.json").write_text("{}")
        return 0

    def _evaluate(self, out: Path) -> None:
        right = self._right[out.stem.rpartition("-")[0]]
        rows = [_row(n, is_right=n < right) for n in range(40)]
        out.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        settings = {"format": 2, "k": 5, "depth": 5, "model": "/somewhere/of/mine"}
        metrics = {
            name: {"mean": right / 40, "low": 0.1, "high": 0.9, "num_examples": 40}
            for name in ("exact_match", "log_likelihood_per_answer")
        }
        out.with_suffix(".json").write_text(
            json.dumps({"settings": settings, "metrics": metrics, "examples": 40, "wordless_answers": 0})
        )


def _row(n: int, *, is_right: bool) -> dict[str, Any]:
    return {
        "id": f"q{n:02}",
        "x": "a secret question",
        "answers": ["a secret answer"],
        "pattern": None,
        "titles": [],
        "text": f"output {n}",
        "log_prob": -1.0,
        "log_likelihood": -1.5,
        "num_tokens": 2,
        "memory_version": 1,
        "exact_match": is_right,
        "f1": float(is_right),
        "rank": 1,
        "title_rank": None,
        "unspaced_rank": None,
    }


@pytest.fixture
def rows() -> Rows:
    return read_rows(TEXT)


@pytest.fixture
def places(tmp_path) -> Places:
    data = tmp_path / "my data"
    data.mkdir()
    (data / "a.jsonl").write_text("{}")
    return Places(data, tmp_path / "work", tmp_path / "results")


def run(rows: Rows, places: Places, latentrag: Latentrag) -> list[str]:
    said: list[str] = []
    reproduce(rows, [rows.rows["table"]], places, "full", latentrag, say=said.append)
    return said


def test_steps_come_first_and_placeholders_are_filled_in_even_with_spaces(rows, places):
    latentrag = Latentrag({"joint": 30, "frozen": 10})
    run(rows, places, latentrag)
    step, joint, frozen = latentrag.commands
    assert step == ["train", f"{places.data}/a.jsonl", "-m", "demo", "--out", f"{places.work}/trained"]
    assert joint[:4] == ["eval", f"{places.data}/a.jsonl", "-m", f"{places.work}/trained/model"]
    assert frozen[2:6] == ["-m", "demo", "--limit", "40"]


def test_what_is_recorded_is_not_run_again_even_where_nothing_of_the_work_is_left(rows, places):
    run(rows, places, Latentrag({"joint": 30, "frozen": 10}))
    again = Latentrag({})
    run(rows, Places(places.data, places.work.with_name("elsewhere"), places.results), again)
    assert not again.commands


def test_an_arm_whose_command_changed_is_run_again(rows, places):
    run(rows, places, Latentrag({"joint": 30, "frozen": 10}))
    changed = read_rows(TEXT.replace('frozen = "eval {data}/a.jsonl', 'frozen = "eval {data}/a.jsonl -k 3'))
    again = Latentrag({"frozen": 12})
    run(changed, places, again)
    assert [words[0] for words in again.commands] == ["eval"]
    assert read(places.results, changed.rows["table"])["frozen"].metrics["exact_match"]["mean"] == 12 / 40


def test_an_arm_whose_step_changed_is_out_of_date_and_run_again(rows, places):
    """As what it was measured with was trained otherwise; the arm that does not use it stays."""
    run(rows, places, Latentrag({"joint": 30, "frozen": 10}))
    longer = read_rows(TEXT.replace("--out {work}/trained", "--out {work}/trained --steps 9"))
    row = longer.rows["table"]
    there = current(places.results, longer, row, "full")
    assert list(there) == ["frozen"]
    assert {verdict.outcome for verdict in verdicts(row, there)} == {"not run"}
    assert "Not run yet: joint." in write_page(longer, places.results).read_text()
    with pytest.raises(InputError, match="trained was made by another command .*remove it, or name another --work"):
        run(longer, places, Latentrag({}))
    again = Latentrag({"joint": 20})
    run(longer, replace(places, work=places.work.with_name("elsewhere")), again)
    assert [words[0] for words in again.commands] == ["train", "eval"]
    assert list(current(places.results, longer, row, "full")) == ["joint", "frozen"]


def test_a_quick_run_replaces_no_full_one(rows, places):
    run(rows, places, Latentrag({"joint": 30, "frozen": 10}))
    before = (places.results / "table" / "joint.json").read_bytes()
    with pytest.raises(InputError, match="has records of full runs, which quick ones would replace"):
        reproduce(rows, [rows.rows["table"]], places, "quick", Latentrag({"joint": 1}), say=print)
    assert (places.results / "table" / "joint.json").read_bytes() == before
    assert current(places.results, rows, rows.rows["table"], "quick") == {}


def test_seconds_of_an_attempt_that_was_killed_count(tmp_path):
    """What it wrote of them is there before it ends."""
    file = tmp_path / "arm.seconds"
    file.write_text("100")
    with timed(file, every_s=0.01) as seconds:
        while file.read_text() == "100":
            time.sleep(0.005)
        assert 100 < float(file.read_text()) <= seconds()
    assert float(file.read_text()) <= seconds()


def test_an_empty_answer_leaves_its_panel_of_the_figure_empty(tmp_path, rows, places):
    pytest.importorskip("matplotlib")
    run(rows, places, Latentrag({"joint": 30, "frozen": 10}))
    record = read(places.results, rows.rows["table"])["joint"]
    token = {"text": "red", "posterior": [0.75, 0.25]}
    answers = [{"text": "red", "log_prob": -1.0, "tokens": [token]}, {"text": "", "log_prob": -1.0, "tokens": []}]
    recorded = {f"arm {i}": replace(record, answer=answer) for i, answer in enumerate(answers)}
    posteriors(rows.rows["table"], recorded, tmp_path / "figure.svg")
    drawn = (tmp_path / "figure.svg").read_text()
    assert "arm 1: an empty answer" in drawn
    assert "passage 2" in drawn


def test_an_interrupted_step_goes_on_with_resume(rows, places):
    with pytest.raises(KeyboardInterrupt):
        run(rows, places, Latentrag({}, fails="train"))
    (places.work / "trained").mkdir()
    (places.work / "trained" / "run.json").write_text("{}")
    latentrag = Latentrag({"joint": 30, "frozen": 10})
    run(rows, places, latentrag)
    assert latentrag.commands[0][-1] == "--resume"


def test_a_command_that_fails_is_named_with_its_exit_code(rows, places):
    with pytest.raises(DataError, match="table, joint: .latentrag eval .* exit code 2"):
        run(rows, places, Latentrag({}, fails="eval"))
    assert read(places.results, rows.rows["table"]) == {}


def test_missing_data_is_said_before_anything_runs(rows, places):
    (places.data / "a.jsonl").unlink()
    latentrag = Latentrag({})
    with pytest.raises(InputError, match=r"has no a\.jsonl .*--data"):
        run(rows, places, latentrag)
    assert not latentrag.commands


def test_records_hold_our_outputs_and_no_text_of_the_data(rows, places):
    run(rows, places, Latentrag({"joint": 30, "frozen": 10}))
    written = (places.results / "table" / "joint.json").read_text()
    assert "secret" not in written
    assert "somewhere" not in written
    record = read(places.results, rows.rows["table"])["joint"]
    assert record.texts == ["output 0"]
    assert record.command == "eval {data}/a.jsonl -m {work}/trained/model --limit 40"
    assert record.values["exact_match"] == [1.0] * 30 + [0.0] * 10


def test_two_records_are_compared_question_by_question(rows, places):
    run(rows, places, Latentrag({"joint": 30, "frozen": 10}))
    recorded = read(places.results, rows.rows["table"])
    found = compared([recorded["joint"]], [recorded["frozen"]], "exact_match")
    assert found is not None
    assert (found.difference, found.wins, found.losses) == (0.5, 20, 0)
    assert found.low is not None
    assert found.low > 0
    assert compared([recorded["joint"]], [recorded["frozen"]], "f1") is None


@pytest.mark.parametrize(
    ("right", "outcomes"),
    [
        ({"joint": 30, "frozen": 10}, ["holds", "holds"]),
        ({"joint": 30, "frozen": 29}, ["off", "holds"]),  # one question of forty is chance
        ({"joint": 10, "frozen": 0}, ["holds", "off"]),
        ({"joint": 39, "frozen": 0}, ["holds", "off"]),  # above what was said is off as well
    ],
)
def test_what_must_come_out_is_checked_against_the_records(rows, places, right, outcomes):
    run(rows, places, Latentrag(right))
    row = rows.rows["table"]
    assert [verdict.outcome for verdict in verdicts(row, read(places.results, row))] == outcomes


def test_what_is_not_recorded_is_neither_right_nor_wrong(rows):
    assert [verdict.outcome for verdict in verdicts(rows.rows["table"], {})] == ["not run", "not run"]


def test_several_arms_count_by_their_mean_question_by_question(rows, places):
    run(rows, places, Latentrag({"joint": 30, "frozen": 10}))
    recorded = read(places.results, rows.rows["table"])
    both = compared([recorded["joint"], recorded["frozen"]], [recorded["frozen"]], "exact_match")
    assert both is not None
    assert both.difference == 0.25
    wanted = Must(("joint",), "exact_match", above=("frozen",), by=0.5)
    row = replace(rows.rows["table"], must=(wanted, replace(wanted, by=0.51)))
    assert [verdict.outcome for verdict in verdicts(row, recorded)] == ["holds", "off"]


def test_steps_of_steps_come_before_them_once():
    text = TEXT.replace(
        "[steps.trained]",
        """[steps.memory]
command = "index add {work}/m.lance {data}/c.jsonl"
data = ["c.jsonl"]
[steps.trained]
steps = ["memory"]""",
    ).replace('steps = ["trained"]', 'steps = ["trained", "memory"]')
    rows = read_rows(text)
    row = rows.rows["table"]
    assert [step.name for step in rows.steps_of(row)] == ["memory", "trained"]
    assert rows.data_of(row) == {"a.jsonl", "c.jsonl"}


def test_leaders_that_changed_are_those_without_a_common_alias(tmp_path):
    def line(n: int, old: list[str], new: list[str]) -> dict[str, Any]:
        answers = {"2016-11-26": old, "2020-11-27": new}
        return {"id": f"{n}", "country": "Arland", "role": "king", "question": "Who?", "answer": answers}

    lines = [line(0, ["Ada", "Queen Ada"], ["Bo"]), line(1, ["Ada"], ["ada "]), line(2, [], ["Bo"])]
    written = "".join(f"{json.dumps(each)}\n" for each in lines)
    (tmp_path / "factbook.leaders.jsonl.gz").write_bytes(gzip.compress(written.encode()))

    def ids(name: str) -> list[str]:
        derive(name, tmp_path, tmp_path / "out.jsonl")
        return [json.loads(each)["id"] for each in (tmp_path / "out.jsonl").read_text().splitlines()]

    assert ids("leaders") == ["0", "1"]
    assert ids("changed-leaders") == ["0"]
    assert ids("leaders-in-other-words") == ["0"]
    assert json.loads((tmp_path / "out.jsonl").read_text())["question"] == "Name the king of Arland."


def test_the_page_has_figures_commands_and_what_was_not_run(rows, places):
    run(rows, places, Latentrag({"joint": 30, "frozen": 10}))
    page = write_page(rows, places.results).read_text()
    assert "| joint | 40 | 75.0 [10.0, 90.0] |" in page
    assert "The paper: 44.5" in page
    assert "| joint: exact_match above that of frozen | +0.5000" in page
    assert "latentrag train DATA/a.jsonl -m demo --out WORK/trained" in page
    assert "- joint: `output 0`" in page
    assert "Not run here: it needs a model hub" in page
    assert str(places.work) not in page


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("of = ", "off = ", "off"),
        ('steps = ["trained"]', 'steps = ["untrained"]', "needs the step untrained"),
        ("{n}", "{m}", "placeholder m"),
        ('above = ["frozen"]', 'above = ["thawed"]', "above that of thawed"),
        ('n = "2"', "", "quick has no n"),
        ("[rows.table]", "[rows.table", "cannot be read"),
        ("-m {work}/trained/model", "-m {work}/joint/model", "table, joint reads joint of the work, which no step"),
    ],
)
def test_a_file_of_rows_with_a_mistake_is_refused(old, new, problem):
    with pytest.raises(DataError, match=problem):
        read_rows(TEXT.replace(old, new))


def test_an_unknown_row_is_refused_with_those_that_are_near(rows):
    with pytest.raises(InputError, match=r"'tabel' is no row.*such as table"):
        rows.named("tabel")


def test_two_runs_in_one_folder_at_a_time_are_refused(rows, places):
    class Nested(Latentrag):
        def __call__(self, words, printed):
            with pytest.raises(InputError, match="used by another"):
                run(rows, places, Latentrag({}))
            return super().__call__(words, printed)

    nested = Nested({"joint": 1, "frozen": 1})
    run(rows, places, nested)
    assert len(nested.commands) == 3


def test_the_rows_of_the_package_are_sound():
    rows = read_rows()
    assert rows.rows
    for row in rows.rows.values():
        assert row.shows.endswith(".")
