"""Clients are told which file a passage comes from, not where this machine keeps it."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from latentrag.serving.looking import questions_about
from latentrag.serving.places import placed
from latentrag.types import Passage
from tests.cli.conftest import QUESTION
from tests.serving.test_stream import events


@pytest.mark.parametrize(
    ("key", "source", "shown"),
    [
        ("a.txt", "/home/ann/notes/a.txt", "a.txt"),
        ("sub/a.txt#3", "/home/ann/notes/sub/a.txt", "sub/a.txt"),
        ("sub/rows.jsonl:7", "/home/ann/notes/sub/rows.jsonl", "sub/rows.jsonl"),
        ("Q42", "/home/ann/notes/sub/rows.jsonl", "rows.jsonl"),
        ("sub/a.txt.old", "/home/ann/sub/a.txt", "a.txt"),
        ("/home/ann/a.txt", "/home/ann/a.txt", "a.txt"),
        ("a.txt", "../../ann/a.txt", "a.txt"),
        ("x", "notes/../../ann/a.txt", "a.txt"),
        ("x", "~/a.txt", "a.txt"),
        ("x", " /home/ann/a.txt", "a.txt"),
        ("x", "~ann/notes/a.txt", "a.txt"),
        ("x", r"C:\Users\ann\a.txt", "a.txt"),
        ("x", r"\\server\share\a.txt", "a.txt"),
        ("x", "c:/Users/ann/a.txt", "a.txt"),
        ("x", "file:///home/ann/a.txt", "a.txt"),
        ("x", "/", ""),
        ("x", "/home/..", "home"),
        ("x", "notes/sub/a.txt", "notes/sub/a.txt"),
        ("x", "a.txt", "a.txt"),
        ("x", "https://example.org/home/a.html", "https://example.org/home/a.html"),
        ("x", "a: b..c/d", "a: b..c/d"),
        ("x", "", ""),
    ],
)
def test_what_is_shown_of_a_source(key, source, shown) -> None:
    assert placed(Passage(key, "text", source=source)).source == shown


NAMES = st.text(st.characters(exclude_characters="/\\#:", codec="utf-8"), min_size=1, max_size=8).filter(
    lambda name: name not in {".", "..", "~"}
)


@given(folders=st.lists(NAMES, min_size=1, max_size=4), inner=st.lists(NAMES, min_size=1, max_size=3))
@example(folders=["a"], inner=["a", "a"])
def test_of_a_path_that_is_left_which_the_id_begins_with(folders, inner) -> None:
    path = "/".join(inner)
    assert placed(Passage(f"{path}#1", "text", source=f"/{'/'.join(folders)}/{path}")).source == path


CHAT = {"model": "tiny", "messages": [{"role": "user", "content": QUESTION}], "latentrag": {"k": 4}}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/answer", {"question": QUESTION, "k": 4}),
        ("/v1/answer", {"question": QUESTION, "as_of": 2, "decoding": "fast", "k": 4}),
        ("/v1/search", {"question": QUESTION, "k": 4}),
        ("/v1/classify", {"question": QUESTION, "labels": ["beethoven", "austen"], "k": 4}),
        ("/v1/chat/completions", CHAT),
    ],
)
def test_no_route_tells_the_folder(served, files, path, body) -> None:
    text = served.post(path, body).text
    assert '"source":"fidelio.txt"' in text
    assert str(files) not in text


def test_no_stream_tells_the_folder(served, files) -> None:
    told = events(served.post("/v1/answer/stream", {"question": QUESTION, "k": 4}).text)
    assert "fidelio.txt" in {source["source"] for _, record in told for source in record.get("sources", ())}
    assert str(files) not in json.dumps(told)


def test_the_command_line_does(ask, files) -> None:
    assert str(files / "fidelio.txt") in {
        source["source"] for source in ask(QUESTION, "-k", 4, "--json").json["sources"]
    }


@pytest.mark.parametrize(
    ("title", "text", "question"),
    [
        ("Emma (novel)", "Emma is a novel by Jane Austen.", "What is Emma?"),
        ("Iliad", "The Iliad is a poem. Homer wrote the Iliad.", "What is the Iliad?"),
        ("Contemporary art", "Contemporary art is a term. Most contemporary art is new.", "What is contemporary art?"),
        ("Ann Lee", "Ann Lee was a smith, and her tools are kept.", "Who was Ann Lee?"),
    ],
)
def test_an_example_question_has_the_title_as_its_text_has_it(title, text, question) -> None:
    assert questions_about([Passage("p", text, title)]) == [question]
