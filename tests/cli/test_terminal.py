"""What reaches a terminal: other people's text cannot steer it, and numbers read as they should."""

import gc
import io
import json
import math
import re

import pytest
from rich.console import Console

from latentrag.cli.arguments import uncollected
from latentrag.cli.output import clean, print_json, say
from latentrag.cli.render import (
    contribution,
    percent,
    probability,
    show_answer,
    show_classification,
    show_rows,
    show_scores,
)
from latentrag.types import Answer, Classification, Hypothesis, Label, Passage, Score, Source, Token
from tests.cli.conftest import cli

HOSTILE = (
    "\x1b[31mred\x1b[0m \x1b]8;;http://evil\x07link\x1b]8;;\x07 \x9b5mblink \x00\x07\x08\x7f bell "
    "[bold]markup[/bold] [/] :smile: [link=x]y \u202ereversed\u202c \u2066isolated\u2069 \U000e0041tag "
    "\u2028separated\r\nnext\tline\rover"
)
CONTROL = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200e\u200f\u2028\u2029\U000e0000-\U000e007f]"
)


def test_clean() -> None:
    text = clean(HOSTILE)
    assert not CONTROL.search(text)
    assert "\n" not in text
    assert "[31mred[0m" in text
    assert r"\u202ereversed\u202c \u2066isolated\u2069 \U000e0041tag" in text
    assert text.endswith("separated next line over")
    assert "[bold]markup[/bold] [/] :smile:" in text
    assert (
        clean("naïve Ελλάδα 日本 ‘a’ — می\u200cخواهم 👩\u200d🔬") == "naïve Ελλάδα 日本 ‘a’ — می\u200cخواهم 👩\u200d🔬"
    )


def hostile_answer() -> Answer:
    source = Source(Passage(HOSTILE, HOSTILE * 3, HOSTILE, HOSTILE), 0.6, 0.8)
    other = Source(Passage("id", HOSTILE, ""), 0.4, 0.2)
    token = Token(HOSTILE, -1.0, (0.8, 0.2))
    hypotheses = (Hypothesis(HOSTILE, -1.0), Hypothesis(HOSTILE, -3.0, finished=False))
    return Answer(
        HOSTILE, HOSTILE, -1.0, -4.0, "token", "exact", 2, (source, other), (token, token), hypotheses, (), ()
    )


def shown(show, *arguments: object, width: int = 80, **options: object) -> str:
    """What a terminal with colours would get."""
    file = io.StringIO()
    console = Console(
        file=file,
        width=width,
        force_terminal=True,
        color_system="truecolor",
        markup=False,
        emoji=False,
        highlight=False,
    )
    show(*arguments, console, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["answer", "scores", "classification"])
def test_hostile_text_cannot_steer_a_terminal(kind) -> None:
    answer = hostile_answer()
    if kind == "answer":
        text = shown(show_answer, answer)
    elif kind == "scores":
        score = Score(HOSTILE, HOSTILE, -1.0, -2.0, 3, "token", 2, answer.sources, answer.tokens, (-1.0, -2.0))
        text = shown(show_scores, [score], header=True)
    else:
        labels = (Label(HOSTILE, 0.7, -1.0), Label("b", 0.3, -2.0))
        text = shown(show_classification, Classification(HOSTILE, labels, "token", 2, answer.sources))
    ours = re.compile(r"\x1b\[[0-9;]*m")  # rich's own colours
    assert ours.search(text)
    assert not CONTROL.search(ours.sub("", text))
    colours = {code for found in ours.findall(text) for code in found[2:-1].split(";")}
    assert colours <= {"", "0", "1", "2", "33", "34", "35", "36"}
    assert "5" not in colours
    assert "[bold]" in text.replace("\n", "")


def test_hostile_passages_through_the_whole_program(tmp_path, model, encoder) -> None:
    title = "\x1b[31mEmma\u202e\x9b"
    rows = [{"id": f"emma{i}", "title": title, "text": f"Emma is a novel. {HOSTILE}"} for i in range(3)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert cli("index", "add", tmp_path / "m.lance", tmp_path / "rows.jsonl", "--encoder", encoder).code == 0
    seen = cli("ask", f"who wrote emma ? {chr(0x9B)}31m \x1b[1m", "-m", model, "-i", tmp_path / "m.lance")
    assert seen.code == 0
    assert not CONTROL.search(seen.stdout)
    record = cli("ask", "who wrote emma ?", "-m", model, "-i", tmp_path / "m.lance", "--json")
    assert not CONTROL.search(record.stdout)
    assert record.json["sources"][0]["title"] == title  # the data itself is whole


def test_messages_are_one_clean_line(capsys) -> None:
    say(f"skipped {HOSTILE}")
    assert capsys.readouterr().err.count("\n") == 1


def test_json_has_no_infinities(capsys) -> None:
    print_json({"a": [-math.inf, 1.5], "b": {"c": -math.inf}, "d": "\x9b\u202e\U000e0041é"})
    out = capsys.readouterr().out
    assert json.loads(out) == {"a": [None, 1.5], "b": {"c": None}, "d": "\x9b\u202e\U000e0041é"}
    assert r"\u009b\u202e\udb40\udc41é" in out
    with pytest.raises(ValueError, match="not JSON compliant"):
        print_json({"a": math.nan})


@pytest.mark.parametrize("width", [40, 80, 120])
def test_lines_fit(width) -> None:
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown(show_answer, hostile_answer(), width=width)).splitlines()
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("width", [20, 40, 80, 200])
@pytest.mark.parametrize("is_terminal", [True, False])
def test_only_the_last_column_of_a_table_is_wrapped(width, is_terminal) -> None:
    """In a pipe nothing is: a line is a row."""
    file, row = io.StringIO(), ("12", "2026-11-30 02:25:28", "before, (served)", "synced notes: added 1 and removed 0")
    show_rows(["version", "time", "tags", "change"], [row], Console(file=file, width=width, force_terminal=is_terminal))
    lines = re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue()).splitlines()
    for cell in row[:3]:
        assert cell in lines[1]
    shown = " ".join(lines[1:]).replace(" ".join(row[2:3]), "").split()
    assert [word for word in shown if word in row[3].split()] == row[3].split()
    assert is_terminal or len(lines) == 2


def test_no_color(monkeypatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    text = shown(show_answer, hostile_answer())
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", text)
    assert "[1]" in text  # tokens say in words what colour would


def test_a_terminal_without_unicode(monkeypatch) -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="backslashreplace")
    show_answer(hostile_answer(), Console(file=file, width=80))
    file.seek(0)
    assert "#####" in file.read()


def test_many_sources_are_summed_up() -> None:
    sources = tuple(
        Source(Passage(f"id{k}", "text", f"title{k}"), 0.5 if k == 0 else 0.5 / 19, 0.9 if k == 15 else 0.1 / 19)
        for k in range(20)
    )
    answer = Answer("x", "y", -1.0, -1.01, "sequence", "exact", 2, sources, (), (Hypothesis("y", -1.0),), (), ())
    text = shown(show_answer, answer, width=100)
    assert "title0" in text
    assert "title15" in text
    assert len(set(re.findall(r"title\d+", text))) == 10
    assert "and 10 more: prior 26.3 %, posterior 5.3 %" in text
    assert "the passages make no difference" in " ".join(text.split())


@pytest.mark.parametrize(
    ("log_prob", "words"),
    [
        (0.0, "100.0 %"),
        (-1e-9, ">99.9 %"),
        (math.log(0.25), "25.0 %"),
        (math.log(0.001), "0.1 %"),
        (math.log(1 / 4512), "1 in 4,500"),
        (math.log(1 / 987654), "1 in 990,000"),
        (-500.0, "1 in 10^217"),
        (-1e5, "1 in 10^43429"),
        (-math.inf, "0 %"),
    ],
)
def test_probability(log_prob, words) -> None:
    assert probability(log_prob) == words


@pytest.mark.parametrize(
    ("share", "words"), [(0.0, "0.0 %"), (1e-5, "<0.1 %"), (0.5, "50.0 %"), (0.99999, ">99.9 %"), (1.0, "100.0 %")]
)
def test_percent(share, words) -> None:
    assert percent(share) == words


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        (0.01, "no difference (+0.01 nats)"),
        (math.log(2.5), "2.5 times more probable (+0.9 nats)"),
        (math.log(1500), "1,500 times more probable (+7.3 nats)"),
        (-math.log(40), "40 times less probable (-3.7 nats)"),
        (1000.0, "10^434 times more probable (+1000.0 nats)"),
        (math.inf, "no factor"),
        (-math.inf, "no factor"),
    ],
)
def test_contribution(gain, words) -> None:
    assert words in contribution(-1.0, -1.0 - gain)


@pytest.mark.parametrize("was_on", [True, False])
def test_the_collector_waits_and_goes_on(was_on) -> None:
    (gc.enable if was_on else gc.disable)()
    try:
        with pytest.raises(InterruptedError) as seen, uncollected():
            raise InterruptedError(gc.isenabled())
        assert seen.value.args == (False,)
        assert gc.isenabled() == was_on
    finally:
        gc.enable()
