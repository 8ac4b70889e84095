"""The report of the Jeopardy! experiment, on made results."""

import json
import random
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
SETTINGS = {"format": 1, "k": 5}


@pytest.fixture
def write_report(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    from jeopardy_report import write_report  # pyright: ignore[reportMissingImports]

    return write_report


def arm(out: Path, name: str, number: int, *, right: float, measured: bool = True) -> None:
    """Results of the first clues: a share of them right, drawn anew for each arm."""
    chance = random.Random(name)
    rows = [
        {
            "id": str(i),
            "title": "an article",
            "text": "",
            "log_prob": -1.0,
            "exact_match": (hit := chance.random() < right),
            "f1": float(hit),
            "log_likelihood": -2.0,
            "num_tokens": 2,
            "rank": None,
            "title_rank": 1 if hit else None,
            "memory_version": 1,
        }
        for i in range(number)
    ]
    (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    record = {"examples": number, "settings": SETTINGS} | ({"metrics": {}} if measured else {})
    (out / f"{name}.json").write_text(json.dumps(record), "utf-8")


def test_arms_are_compared_on_the_clues_that_all_were_asked(write_report, tmp_path) -> None:
    for name, number, right in (("closed-book", 60, 0.2), ("frozen", 100, 0.5), ("sequence", 100, 0.8)):
        arm(tmp_path, name, number, right=right)
    arm(tmp_path, "token", 30, right=0.9, measured=False)
    file = tmp_path / "docs" / "report.md"
    file.parent.mkdir()
    file.write_text("# By hand\n\n<!-- measured: begin -->\nold\n<!-- measured: end -->\n\nafter\n", "utf-8")
    options = {"k": 5, "hindsight": 0, "hindsight_steps": None}
    write_report(tmp_path, file, arms=("closed book", "frozen", "sequence", "token"), options=options, machine={})
    text = file.read_text("utf-8")
    assert text.startswith("# By hand\n")
    assert text.endswith("\n\nafter\n")
    assert "old" not in text
    assert "| token |" not in text  # not measured to its end
    common, more = text.split("The same, the first 100 clues.")
    assert "The first 60 clues." in common
    assert [line.split(" | ")[0] for line in common.splitlines() if line.startswith("| ")] == [
        "| arm",
        "| closed book",
        "| frozen",
        "| sequence",
    ]
    assert "| closed book |" not in more.split("paired")[0]
    rows = [json.loads(line) for line in (tmp_path / "frozen.jsonl").read_text("utf-8").splitlines()]
    for part, number in ((common, 60), (more, 100)):
        (line,) = [line for line in part.splitlines() if line.startswith("| frozen |")]
        right = sum(row["exact_match"] for row in rows[:number]) / number
        assert line.split(" | ")[1].startswith(f"{100 * right:.1f} [")
    assert text.split("-->")[1].split("<!--")[0].strip().endswith("Settings: k 5.")
    assert "| frozen − closed book | 60 |" in more
    assert "| sequence − frozen | 100 |" in more


def test_curves_are_drawn_where_an_arm_left_its_log(write_report, tmp_path) -> None:
    pytest.importorskip("matplotlib")
    arm(tmp_path, "frozen", 20, right=0.5)
    file = tmp_path / "report.md"
    write_report(tmp_path, file, arms=("frozen",), options={"k": 5}, machine={})
    assert "jeopardy-curves.svg" not in file.read_text("utf-8")
    (tmp_path / "frozen").mkdir()
    found = [{"event": "dev", "step": step, "nll_per_token": 3.0 - step, "gap": 1.0, "kl": 0.1} for step in (0, 1)]
    (tmp_path / "frozen" / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in found), "utf-8")
    write_report(tmp_path, file, arms=("frozen",), options={"k": 5}, machine={})
    assert "jeopardy-curves.svg" in file.read_text("utf-8")
    assert (tmp_path / "jeopardy-curves.svg").read_text("utf-8").count("<svg") == 1
