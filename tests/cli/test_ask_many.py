"""`ask` with several questions, `ask --server`, and the ways to help."""

import re
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from latentrag.cli.main import app
from latentrag.cli.render import show_answer
from latentrag.records import answer_of, answer_record
from latentrag.types import NoPassage
from tests.cli.conftest import QUESTION, cli
from tests.serving.conftest import live, rag, served

__all__ = ["live", "rag", "served"]

OTHER = "Who wrote Emma?"


# Several questions


@pytest.fixture
def loads(monkeypatch) -> list[object]:
    """How often a model was loaded."""
    from latentrag import assemble

    found: list[object] = []
    load = assemble.load

    def counted(*arguments, **options):
        found.append(arguments)
        return load(*arguments, **options)

    monkeypatch.setattr(assemble, "load", counted)
    return found


@pytest.mark.parametrize("how", ["-", "--file"])
def test_many_questions_load_the_model_once(ask, model, memory, tmp_path, loads, how) -> None:
    lines = f"\ufeff{QUESTION}\n\n  {OTHER}  \r\n"
    (tmp_path / "questions.txt").write_bytes(lines.encode())
    arguments = ["-"] if how == "-" else ["--file", tmp_path / "questions.txt"]
    done = cli("ask", *arguments, "-m", model, "-i", memory, "--json", stdin=lines.encode())
    assert done.code == 0
    assert len(loads) == 1
    assert done.stdout == ask(QUESTION, "--json").stdout + ask(OTHER, "--json").stdout
    shown = cli("ask", *arguments, "-m", model, "-i", memory, stdin=lines.encode()).stdout
    assert QUESTION in shown
    assert OTHER in shown


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        ([], None, "got no question; needed a question in quotes, - for the lines of standard input, or --file FILE"),
        ([QUESTION, "--file", "x"], None, "got a question and --file"),
        (["--file", "missing.txt"], None, "missing.txt cannot be read (No such file or directory)"),
        (["-"], b"\n \n", "there is no question; write one a line"),
        (["-"], b"\xff\n", "standard input line 1 is not UTF-8"),
        (["-"], ("paris " * 600).encode(), "standard input line 1: "),
    ],
)
def test_what_is_no_question(model, memory, arguments, stdin, message) -> None:
    assert message in cli("ask", *arguments, "-m", model, "-i", memory, stdin=stdin).error()


# A running server


def test_a_server_is_asked(served, ask, loads) -> None:
    options = ["--variant", "token", "-k", 2, "--beams", 2, "--best", 2, "--max-tokens", 4, "--as-of", 2]
    found = cli("ask", QUESTION, "--server", f"{served.url}/", *options, "--json")
    assert loads == []
    body = {"variant": "token", "k": 2, "beams": 2, "best": 2, "max_tokens": 4, "as_of": 2}
    expected = served.post("/v1/answer", {"question": QUESTION, **body}).json()
    assert found.json.keys() == expected.keys()
    assert (found.json["answer"], found.json["sources"][0]["id"]) == (expected["answer"], expected["sources"][0]["id"])
    shown = cli("ask", QUESTION, "--server", served.url).stdout
    assert re.sub(r"\d", "", shown) == re.sub(r"\d", "", ask(QUESTION).stdout)
    narrowed = cli("ask", QUESTION, "--server", served.url, "-k", 1, "--where", "source = 'no such'")
    assert "refuses: " in narrowed.error()  # the server knows of the condition
    two = cli("ask", "-", "--server", served.url, "--json", stdin=f"{QUESTION}\n{OTHER}\n")
    assert [line.split('"')[3] for line in two.stdout.splitlines()] == [QUESTION, OTHER]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "demo"], "--model has no effect with --server"),
        (["-i", "x.lance"], "--memory has no effect with --server"),
        (["--device", "cpu"], "--device has no effect with --server"),
        (["-k", 50], "refuses: k=50 exceeds the memory's 4 passages"),
        (["--temperature", 0.5], "refuses: temperature has no effect on a search"),
    ],
)
def test_what_a_server_is_not_asked(served, arguments, message) -> None:
    assert message in cli("ask", QUESTION, "--server", served.url, *arguments).error()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8000", "'localhost:8000' is no address; write it as http://127.0.0.1:8000"),
        ("file:///etc/passwd", "is no address"),
        ("http://127.0.0.1:9", "no latentrag answers at http://127.0.0.1:9 ("),
    ],
)
def test_no_server(url, message) -> None:
    assert message in cli("ask", QUESTION, "--server", url).error()


@pytest.mark.parametrize("record", [b"[1]", b'{"answer": "x"}', b"<html>"])
def test_what_is_no_latentrag(record) -> None:
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Other(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(record)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Other) as other:
        threading.Thread(target=other.handle_request, daemon=True).start()
        error = cli("ask", QUESTION, "--server", f"http://127.0.0.1:{other.server_port}").error()
    assert "cannot be read; run the same version" in error or "no latentrag answers at" in error


def test_an_answer_survives_its_record(rag) -> None:
    answer = rag.answer(QUESTION, num_best=2, sentences=True, top_tokens=2)
    whole = replace(answer, confidence=0.5, best_guess="x", sets=((0,), (0, 1)), no_passage=NoPassage(0.1, 0.2))
    for each in (answer, whole):
        assert answer_of(answer_record(each)) == replace(each, num_input_tokens=0)  # which no record has


# Help


@pytest.mark.parametrize(
    ("short", "long"),
    [
        (["-h"], ["--help"]),
        (["help"], ["--help"]),
        (["ask", "-h"], ["ask", "--help"]),
        (["help", "ask"], ["ask", "--help"]),
        (["index", "-h"], ["help", "index"]),
        (["help", "index", "add"], ["index", "add", "--help"]),
    ],
    ids=" ".join,
)
def test_ways_to_help(short, long) -> None:
    first, second = cli(*short), cli(*long)
    assert first.code == second.code == 0
    assert first.stdout.split() == second.stdout.split()
    assert first.stdout.startswith("Usage: ")


def test_help_for_no_command() -> None:
    assert "no command 'index nothing'; `latentrag help` lists them" in cli("help", "index", "nothing").error()


@pytest.mark.parametrize("columns", [40, 80, 250])
@pytest.mark.parametrize("group", [[], ["index"]], ids=" ".join)
def test_the_list_of_commands_is_not_cut(monkeypatch, columns, group) -> None:
    import typer

    monkeypatch.setenv("COLUMNS", str(columns))
    shown = " ".join(cli(*group, "--help").stdout.split())
    assert "..." not in shown.partition("Commands:")[2]
    found = typer.main.get_command(app())
    for name in group:
        found = found.commands[name]  # type: ignore[attr-defined]
    for command in found.commands.values():  # type: ignore[attr-defined]
        assert (command.help or "").split("\n\n")[0].split(". ")[0].split("\n")[0].rstrip(".") in shown


def test_completion_can_be_installed(monkeypatch) -> None:
    # Typer takes the shell that started the process, and there need not be one.
    monkeypatch.setattr("shellingham.detect_shell", lambda: ("bash", "/bin/bash"))
    assert "--install-completion" in cli("--help").stdout
    assert "_COMPLETE=complete_bash" in cli("--show-completion", "bash").stdout


@pytest.mark.parametrize("width", [40, 59, 60, 80])
def test_titles_are_whole_however_narrow_the_terminal(rag, width) -> None:
    answer = rag.answer(QUESTION)
    title = "A title of many words that says whole what stands below it, Donaudampfschifffahrtsgesellschaft included"
    sources = tuple(replace(each, passage=replace(each.passage, title=title)) for each in answer.sources)
    shown = StringIO()
    show_answer(replace(answer, sources=sources), Console(file=shown, width=width))
    table = shown.getvalue().partition("passage")[2].partition("What is believed")[0]
    assert max(map(len, shown.getvalue().splitlines())) <= width
    letters = re.sub(r"[^A-Za-z]", "", table)
    assert letters.count(re.sub(r"[^A-Za-z]", "", title)) == len(sources)
