"""`latentrag chat`: turns, /new, /sources, and what cannot be answered."""

import json

import pytest

from latentrag.cli.chat import converse
from latentrag.errors import DataError, InputError
from latentrag.types import Answer, Hypothesis
from tests.cli.conftest import QUESTION, cli


def lines_of(ran) -> list[dict]:
    assert ran.code == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


def test_each_line_is_a_turn_after_the_ones_before(model, memory) -> None:
    options = ("-m", model, "-i", memory, "-k", "2", "--max-tokens", "3", "--json")
    talk = lines_of(cli("chat", *options, stdin=f"{QUESTION}\nWhere is it?\n/new\n{QUESTION}\n"))
    (alone,) = lines_of(cli("ask", QUESTION, *options))
    assert talk[0] == talk[2] == alone
    assert "conversation" not in alone
    readings = talk[1]["conversation"]["readings"]
    assert [each["kind"] for each in readings] == ["last", "before"]
    assert readings[1]["text"].splitlines()[0] == QUESTION
    assert sum(each["posterior"] for each in readings) == pytest.approx(1)
    assert talk[1]["conversation"]["trained"] is False


def test_what_the_terminal_shows(model, memory) -> None:
    options = ("-m", model, "-i", memory, "-k", "2", "--max-tokens", "3")
    ran = cli("chat", *options, stdin=f"{QUESTION}\nWhere is it?\n/sources\n/what\n\n")
    assert ran.code == 0
    assert "read with the turn before" in ran.stdout or "read alone" in ran.stdout
    assert "How the question was read, by the default weights" in ran.stdout
    assert "no command /what; /new begins anew" in ran.stderr


def test_nothing_to_show_before_the_first_answer(model, memory) -> None:
    ran = cli("chat", "-m", model, "-i", memory, stdin="/sources\n")
    assert (ran.code, ran.stdout) == (0, "")
    assert "there is no answer yet" in ran.stderr


def test_a_piped_line_that_cannot_be_answered_ends_it_with_its_number(model, memory) -> None:
    ran = cli("chat", "-m", model, "-i", memory, "--json", stdin="/new\n" + "word " * 5000)
    assert ran.code == 2
    assert ran.stderr.splitlines()[-1].startswith("error: standard input line 2: ")


def test_a_typed_line_that_cannot_be_answered_is_no_turn(capsys) -> None:
    asked = []

    def answer(messages) -> Answer:
        asked.append([message["content"] for message in messages])
        if messages[-1]["content"] == "bad":
            raise InputError("it is too long")
        return Answer("", "said", -1.0, -1.0, "sequence", "exact", 1, (), (), (Hypothesis("said", -1.0),), (), ())

    converse(iter(["a", "bad", "b"]), answer, as_json=True)
    assert asked == [["a"], ["a", "said", "bad"], ["a", "said", "b"]]
    assert "error: it is too long" in capsys.readouterr().err
    with pytest.raises(DataError, match="standard input line 1: it is too long"):
        converse(iter(["bad"]), answer, goes_on=False)
