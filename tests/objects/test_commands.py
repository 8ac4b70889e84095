"""Commands with a memory in an object store."""

import json
import subprocess
import sys
import time

import httpx
import pytest

from tests.cli.conftest import DOCUMENTS, QUESTION, cli

pytestmark = pytest.mark.s3


@pytest.fixture
def notes(tmp_path):
    """A folder of documents."""
    folder = tmp_path / "notes"
    folder.mkdir()
    for name, text in DOCUMENTS.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def test_a_memory_is_made_added_to_asked_and_synced(address, pair, notes, tmp_path):
    encoder, generator = pair
    more = tmp_path / "more.txt"
    more.write_text("Ulysses is a novel. Joyce wrote Ulysses.")
    done = cli("index", "add", address, notes, "--encoder", encoder, "--json")
    assert (done.code, done.json["memory"], done.json["version"]) == (0, address, 2)
    assert done.json["added"] == done.json["passages"] > 0
    assert cli("index", "add", address, more, "--encoder", encoder, "--json").json["version"] == 3
    synced = cli("index", "sync", address, notes, "--name", "other", "--encoder", encoder, "--json")
    assert (synced.code, synced.json["files"]["added"]) == (0, 4)
    models = ("-i", address, "--encoder", encoder, "--generator", generator)
    some = ("--where", "source like '%emma%'", "-k", "1")
    for more_options in ((), ("--retriever", "bm25"), ("--as-of", "2", "-k", "2"), some):
        asked = cli("ask", QUESTION, *models, "--json", *more_options)
        assert asked.code == 0, asked.stderr
        assert asked.json["sources"]
    assert [version["version"] for version in cli("index", "log", address, "--json").json["versions"]] == [1, 2, 3, 4]
    assert cli("index", "diff", address, "2", "3", "--json").json["added"][0].startswith("more.txt#")
    assert cli("index", "tag", address, "good", "3").code == 0
    assert cli("index", "use", address, "good").code == 0
    assert cli("index", "use", address, "newest").code == 0
    assert cli("index", "build", address, "--index", "words").code == 0
    one = cli("index", "diff", address, "2", "3", "--json").json["added"][0]
    assert cli("index", "delete", address, one).code == 0
    assert cli("index", "compact", address).code == 0
    assert cli("index", "prune", address, "--keep", "1", "--json").json["kept"] == [3]
    assert cli("index", "verify", address, "--json").json["whole"]
    assert cli("doctor", *models, "--json").json["problems"] == []


def test_a_memory_is_pushed_and_pulled(address, pair, notes, tmp_path):
    cli("index", "add", address, notes, "--encoder", pair[0])
    assert cli("index", "push", address, tmp_path / "shared").code == 0
    assert "pull makes a memory in a folder, got s3://" in cli("index", "pull", tmp_path, f"{address}-2").error()
    pulled = cli("index", "pull", tmp_path / "shared", tmp_path / "mine", "--json").json
    imported = cli(
        *("index", "import", f"{address}-2", *sorted((tmp_path / "shared").glob("*.parquet"))),
        *("--encoder", pair[0], "--json"),
    )
    assert imported.code == 0, imported.stderr
    assert imported.json["added"] == pulled["passages"] > 0


def test_what_does_not_work_there_is_refused(address, pair, notes):
    cli("index", "add", address, notes, "--encoder", pair[0])
    assert "copy its objects to a folder" in cli("index", "forget", address, "emma.txt#0").error()
    assert "copy its objects to a folder" in cli("index", "repair", address).error()


def test_an_addition_of_nothing_leaves_an_empty_memory(address, pair, tmp_path):
    """Somebody else may be adding to it already."""
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "a.txt").write_text(" ")
    assert "no passages in the input" in cli("index", "add", address, empty, "--encoder", pair[0]).error()


WRONG: dict[str, tuple[dict[str, str | None], str, str]] = {
    "no memory": ({}, "", "there is no memory at s3://"),
    "no bucket": ({}, "nothing-there", "s3://nothing-there/m cannot be reached: there is no such bucket; make it"),
    "no network": (
        {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
        "",
        "there is no connection; check the network and AWS_",
    ),
    "no TLS": ({"AWS_ALLOW_HTTP": "false"}, "", "AWS_ALLOW_HTTP=true"),
    "no credentials": (
        {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None, "AWS_METADATA_ENDPOINT": "http://127.0.0.1:9"},
        "",
        "no credentials are set; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    ),
}


@pytest.mark.parametrize(
    ("command", "wrong"),
    [("log", wrong) for wrong in WRONG] + [("add", wrong) for wrong in WRONG if wrong != "no memory"],
)
def test_bad_places_cost_one_line(command, wrong, bucket, pair, notes, monkeypatch):
    variables, other, expected = WRONG[wrong]
    for name, value in variables.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    address = f"s3://{other or bucket}/m"
    started = time.monotonic()
    options = (notes, "--encoder", pair[0]) if command == "add" else ()
    line = cli("index", command, address, *options).error()
    assert expected in line, line
    assert "very-secret" not in line
    assert time.monotonic() - started < 40


def test_models_are_measured_trained_and_served(address, pair, notes, tmp_path):
    encoder, generator = pair
    cli("index", "add", address, notes, "--encoder", encoder)
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"question": QUESTION, "answer": ["Beethoven"]}) + "\n")
    models = ("-i", address, "--encoder", encoder, "--generator", generator)
    measured = cli("eval", data, *models, "-k", "2", "--json")
    assert measured.code == 0, measured.stderr
    options = ("--steps", "2", "--batch-size", "1", "-k", "2", "--out", tmp_path / "run")
    trained = cli("train", data, *models, *options)
    assert trained.code == 0, trained.stderr
    command = [sys.executable, "-m", "latentrag", "serve", *map(str, models), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            first = process.stderr.readline()
            assert " over notes version 2 at http://127.0.0.1:" in first
            answer = httpx.post(f"{first.split()[-1]}/v1/answer", json={"question": QUESTION, "k": 2}, timeout=60)
        finally:
            process.terminate()
    assert len(answer.json()["sources"]) == 2
