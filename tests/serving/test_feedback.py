"""What users think of answers: kept as lines that training reads, off unless asked for."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from latentrag.errors import DataError
from latentrag.rag import Rag
from latentrag.serving import feedback
from latentrag.serving.app import create_app
from latentrag.serving.options import ServeOptions
from latentrag.training.data import read_examples
from tests.cli.conftest import cli
from tests.serving.conftest import Served, serving
from tests.test_rag import FakeRetriever
from tests.toy import ToyGenerator, passages

BODY = {"question": "who?", "answer": "she", "memory_version": 7, "sources": ["z0", "z1"]}


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("feedback") / "said.jsonl"


@pytest.fixture(scope="module")
def kept(live, file) -> Iterator[Served]:
    toy = Rag(FakeRetriever(passages(4)), ToyGenerator(4, seed=11), k=3)
    options = ServeOptions(feedback=file)
    with serving(create_app(toy, live, name="toy", options=options), options) as running:
        yield running


def test_right_wrong_and_corrected(kept, file) -> None:
    for said in ({"is_right": True}, {"is_right": False}, {"is_right": False, "correction": "he\nand her"}):
        response = kept.post("/api/feedback", {**BODY, **said})
        assert (response.status_code, response.json()) == (200, {"status": "kept"})
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert all(row.pop("time") for row in rows)
    about = {"question": "who?", "memory_version": 7, "sources": ["z0", "z1"]}
    assert rows == [
        {**about, "answer": "she"},
        {**about, "rejected": "she"},
        {**about, "answer": "he\nand her", "rejected": "she"},
    ]
    told: list[str] = []
    examples = read_examples(file, say=told.append)
    assert [(each.x, each.answers) for each in examples] == [("who?", ("she",)), ("who?", ("he\nand her",))]
    assert told == [f"{file}: 1 rows say that an answer is wrong, and none that is right; they are left out"]


def test_rejections_alone_are_nothing_to_train_on(tmp_path) -> None:
    path = tmp_path / "rejected.jsonl"
    path.write_text(json.dumps({"question": "who?", "rejected": "she"}) + "\n")
    with pytest.raises(DataError, match="holds no example"):
        read_examples(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_right": True, "correction": "he"}, "a right answer needs no correction"),
        ({"is_right": True, "answer": " "}, "the right answer is empty"),
        ({"is_right": False, "correction": "\n"}, "the right answer is empty"),
        ({"is_right": None}, "is_right"),
        ({"is_right": True, "question": ""}, "question"),
        ({"is_right": True, "answer": "x" * 4001}, "answer"),
        ({"is_right": True, "sources": ["z"] * 101}, "sources"),
        ({"is_right": True, "path": "/etc/passwd"}, "path: Extra inputs"),
    ],
)
def test_what_is_no_feedback(kept, file, changes, message) -> None:
    before = file.read_bytes() if file.exists() else b""
    response = kept.post("/api/feedback", {**BODY, **changes})
    assert response.status_code == 422
    assert message in response.json()["error"]["message"]
    assert (file.read_bytes() if file.exists() else b"") == before


def test_a_file_that_is_full_stays_as_it_is(kept, file, monkeypatch) -> None:
    assert kept.post("/api/feedback", {**BODY, "is_right": True}).status_code == 200
    before = file.read_bytes()
    monkeypatch.setattr(feedback, "MAX_BYTES", len(before) - 1)
    assert kept.post("/api/feedback", {**BODY, "is_right": True}).status_code == 409
    assert file.read_bytes() == before


def test_it_is_off_unless_asked_for(kept, served) -> None:
    assert kept.get("/v1/model").json()["feedback"] is True
    assert served.get("/v1/model").json()["feedback"] is False
    assert served.post("/api/feedback", {**BODY, "is_right": True}).status_code == 404
    assert "/api/feedback" not in served.get("/openapi.json").json()["paths"]
    assert "/api/feedback" in kept.get("/openapi.json").json()["paths"]


def test_a_file_that_cannot_be_written_is_said_before_anything_is_loaded(tmp_path) -> None:
    error = cli("serve", "-m", tmp_path, "--feedback", tmp_path / "none" / "said.jsonl").error()
    assert "said.jsonl cannot be written (No such file or directory); name another file" in error
