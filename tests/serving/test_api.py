"""The API says what the command line says, and refuses in one shape."""

import json
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from html import escape
from pathlib import Path

import httpx
import pytest

from latentrag.assemble import live_memory, load, load_passage_encoder, save
from latentrag.errors import MemoryStoreError
from latentrag.memory import Memory
from latentrag.serving.app import create_app
from latentrag.types import Passage
from tests.cli.conftest import QUESTION, cli
from tests.encoder.tiny import write_sentence_encoder
from tests.serving.conftest import PATIENCE_S, Served, serving


def close(a, b) -> bool:
    """Equal but for rounding, which depends on what is computed together."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(close, a, b))
    return a == (pytest.approx(b, abs=1e-5) if isinstance(b, float) else b)


def to_clients(record: dict) -> dict:
    """What the command line says, with the sources as clients see them: without this machine's folders."""
    sources = [{**source, "source": Path(source["source"]).name} for source in record["sources"]]
    return {**record, "sources": sources}


@pytest.mark.parametrize(
    ("body", "arguments"),
    [
        ({}, []),
        ({"variant": "token", "k": 2}, ["--variant", "token", "-k", 2]),
        ({"decoding": "thorough", "beams": 2}, ["--decoding", "thorough", "--beams", 2]),
        ({"beams": 3, "best": 2}, ["--beams", 3, "--best", 2]),
        (
            {"sample": True, "seed": 3, "temperature": 2.0, "top_k": 20, "top_p": 0.9, "beams": 2},
            ["--sample", "--seed", 3, "--temperature", 2, "--top-k", 20, "--top-p", 0.9, "--beams", 2],
        ),
        (
            {"max_tokens": 4, "min_tokens": 2, "no_repeat_ngram": 1, "length_penalty": 0.5, "stop": ["a", "the"]},
            "--max-tokens 4 --min-tokens 2 --no-repeat-ngram 1 --length-penalty 0.5 --stop a --stop the".split(),
        ),
        ({"without": ["paris.txt", "emma.txt"], "k": 4}, "-k 4 --without paris.txt --without emma.txt".split()),
        ({"as_of": "newest"}, []),
        ({"sentences": True}, ["--sentences"]),
        ({"as_of": 2}, ["--as-of", 2]),
    ],
    ids=["defaults", "token", "thorough", "two best", "sample", "shape", "without", "newest", "sentences", "as of"],
)
def test_an_answer_is_that_of_ask(served, ask, body, arguments) -> None:
    response = served.post("/v1/answer", {"question": QUESTION, **body})
    assert response.status_code == 200
    assert close(response.json(), to_clients(ask(QUESTION, *arguments, "--json").json))


def test_scores_and_labels_are_those_of_the_command_line(served, model, memory) -> None:
    at = ["-m", model, "-i", memory, "--variant", "token", "--json"]
    pair = {"x": QUESTION, "y": "beethoven wrote it"}
    (line,) = cli("score", *at, "--sentences", stdin=json.dumps(pair)).stdout.splitlines()
    body: dict[str, object] = {**pair, "variant": "token", "sentences": True}
    assert close(served.post("/v1/score", body).json(), json.loads(line))
    expected = cli("classify", QUESTION, "beethoven", "austen", *at).json
    body = {"question": QUESTION, "labels": ["beethoven", "austen"], "variant": "token"}
    assert close(served.post("/v1/classify", body).json(), to_clients(expected))


def test_a_search_finds_what_an_answer_rests_on(served) -> None:
    found = served.post("/v1/search", {"question": QUESTION, "k": 3}).json()
    answer = served.post("/v1/answer", {"question": QUESTION, "k": 3}).json()
    assert [each["id"] for each in found["passages"]] == [each["id"] for each in answer["sources"]]
    assert [each["prior"] for each in found["passages"]] == pytest.approx([s["prior"] for s in answer["sources"]])
    scores = [each["score"] for each in found["passages"]]
    assert scores == sorted(scores, reverse=True)
    assert found["memory_version"] == answer["memory_version"] == 2


A_LIST_AS_TYPE = [{"role": "user", "content": [{"type": ["text"], "text": QUESTION}]}]
HALF_A_CHARACTER = [
    {"role": "user", "content": "who"},
    {"role": "assistant", "content": "\ud800"},
    {"role": "user", "content": QUESTION},
]


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/v1/answer", {}, 422, "got neither question nor messages; needed one of them"),
        ("/v1/answer", {"question": " "}, 422, "the question is empty; needed some text"),
        ("/v1/answer", {"question": QUESTION, "k": 50}, 422, "exceeds the memory's 4 passages; lower k or add"),
        ("/v1/answer", {"question": QUESTION, "k": 10**9}, 422, "k: Input should be less than or equal to 100"),
        ("/v1/answer", {"question": QUESTION, "k": "3"}, 422, "k: Input should be a valid integer"),
        ("/v1/answer", {"question": QUESTION, "beams": 10**9}, 422, "beams: Input should be less"),
        ("/v1/answer", {"question": QUESTION, "k": 99, "beams": 32}, 422, "lower k to 10 or beams to 3"),
        ("/v1/answer", {"question": QUESTION, "max_tokens": 10**9}, 422, "max_tokens: Input should be less"),
        ("/v1/answer", {"question": QUESTION, "temperature": 1e-300}, 422, "temperature: Input should be greater"),
        ("/v1/answer", {"question": QUESTION, "min_tokens": 9}, 422, "min_tokens=9 leaves no room"),
        ("/v1/answer", {"question": QUESTION, "memory": "/etc/passwd"}, 422, "memory: Extra inputs"),
        ("/v1/answer", {"question": QUESTION, "without": ["none"]}, 422, "without='none' is not among the 3"),
        ("/v1/answer/stream", {"question": QUESTION, "without": ["none"]}, 422, "without='none' is not among"),
        ("/v1/answer", {"question": QUESTION, "without": [""]}, 422, "without.0: String should have at least 1"),
        ("/v1/answer", {"question": "x" * 4001}, 422, "question: String should have at most 4000"),
        ("/v1/answer", {"question": "paris " * 300}, 422, "tokens"),
        ("/v1/answer", {"question": QUESTION, "variant": "both"}, 422, "variant: Input should be 'sequence' or"),
        ("/v1/answer", {"question": QUESTION, "variant": "token", "decoding": "fast"}, 422, "is for RAG-Sequence"),
        ("/v1/answer", {"question": QUESTION, "as_of": "../../x"}, 409, "the memory has no version '../../x'"),
        ("/v1/answer", {"question": QUESTION, "as_of": "9" * 99}, 409, "the memory has no version 99"),
        ("/v1/answer/stream", {"question": QUESTION, "decoding": "fast"}, 422, "chooses when all is decoded"),
        ("/v1/answer/stream", {"question": QUESTION, "k": 50}, 422, "exceeds the memory's 4 passages"),
        ("/v1/score", {"x": QUESTION, "y": "\ud800"}, 422, "y: Input should be a valid string"),
        ("/v1/score", {"x": QUESTION, "y": "a\nb"}, 422, "which ends every target"),
        ("/v1/classify", {"question": QUESTION, "labels": ["one"]}, 422, "labels: List should have at least 2"),
        ("/v1/classify", {"question": QUESTION, "labels": ["one", "one"]}, 422, "label 'one' is given twice"),
        ("/v1/memory", {"action": "use", "version": 77}, 409, "the memory has no version 77; choose one of"),
        ("/v1/memory", {"action": "tag", "name": "../x"}, 422, "cannot be a tag"),
        ("/v1/memory", {"action": "untag", "name": "none"}, 409, "the memory has no tag 'none'"),
        ("/v1/memory", {"action": "format"}, 422, "does not match any of the expected tags"),
        ("/v1/memory", [], 422, "the body: Input should be a valid dictionary"),
        ("/v1/chat/completions", {"model": "tiny", "messages": HALF_A_CHARACTER}, 422, "not valid Unicode"),
        ("/v1/chat/completions", {"model": "tiny", "messages": A_LIST_AS_TYPE}, 422, "a part of type"),
        ("/v1/nothing", {}, 404, "not found; see /docs"),
    ],
)
def test_what_cannot_be_is_refused_in_one_shape(served, memory, path, body, status, message) -> None:
    response = served.post(path, None, content=json.dumps(body), headers={"content-type": "application/json"})
    assert response.status_code == status
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert message in error["message"]
    assert str(memory) not in response.text


@pytest.mark.parametrize(
    ("path", "more", "param"),
    [
        ("/v1/answer", {"k": 50}, "k"),
        ("/v1/answer", {"k": 81, "beams": 4}, "k"),
        ("/v1/answer", {"where": "date >"}, "where"),
        ("/v1/answer", {"where": "nowhere = 1"}, "where"),
        ("/v1/answer", {"variant": "token", "decoding": "fast"}, "decoding"),
        ("/v1/answer", {"beams": 0}, "beams"),
        ("/v1/search", {"where": "id = 1"}, "where"),
    ],
)
def test_a_refusal_names_the_field_that_is_wrong(served, path, more, param) -> None:
    response = served.post(path, {"question": QUESTION, **more})
    assert response.status_code == 422
    assert response.json()["error"]["param"] == param


def test_methods_that_are_not_there(served) -> None:
    client = served.client
    for method in ("GET", "PUT", "DELETE", "OPTIONS", "TRACE"):
        response = client.request(method, "/v1/answer")
        assert (response.status_code, response.headers["allow"]) == (405, "POST")
        assert response.json()["error"]["message"] == "method not allowed; see /docs"


@pytest.mark.parametrize("path", "/ /static/main.js /healthz /v1/memory /docs /openapi.json /v1/score".split())
def test_head_is_what_get_would_say_without_the_body(served, path) -> None:
    got, head = served.get(path), served.client.head(path)
    assert (head.status_code, head.headers["content-type"]) == (got.status_code, got.headers["content-type"])
    assert head.headers["content-length"] == str(len(got.content))
    assert head.content == b""


def test_the_server_says_how_it_is(served) -> None:
    assert served.get("/healthz").json() == {"status": "alive"}
    assert served.get("/readyz").json() == {"status": "ready"}
    assert served.get("/v1/models").json()["data"][0]["id"] == "tiny"
    served.post("/v1/answer", {"question": QUESTION})
    lines = served.get("/metrics").text.splitlines()
    assert "latentrag_memory_version 2" in lines
    assert any(
        line.startswith('latentrag_requests_total{method="POST",path="/v1/answer",status="200"}') for line in lines
    )
    assert any(line.startswith("latentrag_batch_size_count ") for line in lines)
    buckets = [line for line in lines if line.startswith('latentrag_request_seconds_bucket{path="/v1/answer",')]
    assert [int(line.split()[-1]) for line in buckets] == sorted(int(line.split()[-1]) for line in buckets)


def test_the_documentation_is_whole_and_loads_nothing(served) -> None:
    text, described = served.get("/docs").text, served.get("/openapi.json").json()
    for name in (*described["paths"], *described["components"]["schemas"]):
        assert name in text
    diff = described["paths"]["/v1/memory/diff"]["get"]
    assert f"<summary>parameters</summary><pre>{escape(json.dumps(diff['parameters'], indent=2))}</pre>" in text
    assert "<script" not in text
    assert "http://" not in text
    assert "https://" not in text


# The model


def test_a_new_model_answers_from_one_request_to_the_next(tmp_path, model, memory) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    live = live_memory(memory)
    body = {"question": QUESTION}
    again = partial(load, folder, memory=live)
    with serving(create_app(again(), live, name="tiny", load=again)) as served:
        before = served.get("/v1/model").json()
        assert (before["name"], before["variant"], before["k"]) == ("tiny", "sequence", 3)
        assert served.post("/v1/answer", body).json()["variant"] == "sequence"
        assert served.post("/v1/answer", {**body, "as_of": 2}).status_code == 200
        other = load(model, memory=memory, variant="token", k=2)
        save(other, folder)
        after = served.post("/v1/model", {"action": "reload"}).json()
        assert (after["variant"], after["k"]) == ("token", 2)
        assert after["loaded"] > before["loaded"]
        for asked in (body, {**body, "as_of": 2}):
            answer = served.post("/v1/answer", asked).json()
            assert (answer["variant"], len(answer["sources"])) == ("token", 2)


@pytest.mark.parametrize("damage", ["removed", "another encoder"])
def test_a_model_that_cannot_be_loaded_leaves_the_old_one(tmp_path, model, memory, caplog, damage) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    live = live_memory(memory)
    again = partial(load, folder, memory=live)
    with serving(create_app(again(), live, name="tiny", load=again)) as served:
        before = served.post("/v1/answer", {"question": QUESTION}).json()
        if damage == "removed":
            shutil.rmtree(folder / "generator")
        else:
            shutil.rmtree(folder / "query_encoder")
            write_sentence_encoder(folder / "query_encoder", head=["Normalize"], seed=5)
        refused = served.post("/v1/model", {"action": "reload"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "model")
        assert str(tmp_path) not in refused.text
        assert "the model from before goes on: " in caplog.text
        assert close(served.post("/v1/answer", {"question": QUESTION}).json(), before)


def test_a_server_that_cannot_load_its_model_anew_does_not_offer_it(served) -> None:
    assert served.post("/v1/model", {"action": "reload"}).status_code == 405
    assert "post" not in served.get("/openapi.json").json()["paths"]["/v1/model"]


# The memory


@pytest.fixture
def changing(tmp_path, model, memory, encoder) -> Iterator[tuple[Served, Path]]:
    """A server over a memory of its own, of which version 3 has one passage more than 2."""
    path = shutil.copytree(memory, tmp_path / "own.lance")
    Memory.open(path).add([Passage("new", "Tokyo is a city.", title="tokyo")], load_passage_encoder(encoder))
    live = live_memory(path)
    with serving(create_app(load(model, memory=live), live, name="tiny")) as running:
        yield running, path


def test_another_version_is_served_from_one_request_to_the_next(changing) -> None:
    served, path = changing
    client = served.client
    before = client.get("/v1/memory").json()
    assert (before["name"], before["version"], before["passages"]) == ("own.lance", 3, 5)
    assert (before["follows_newest"], before["newest"], before["tags"], before["synced"]) == (True, 3, {}, [])
    assert [each["passages"] for each in before["versions"]] == [0, 4, 5]
    body = {"question": QUESTION, "k": 4}
    assert client.post("/v1/answer", json=body).json()["memory_version"] == 3
    used = client.post("/v1/memory", json={"action": "use", "version": 2}).json()
    assert (used["version"], used["passages"], used["follows_newest"]) == (2, 4, False)
    assert client.post("/v1/answer", json=body).json()["memory_version"] == 2
    assert client.post("/v1/answer", json={**body, "as_of": 3}).json()["memory_version"] == 3
    assert live_memory(path).version == 2  # chosen for whoever opens it next, as by `index use`
    assert client.post("/v1/memory", json={"action": "use", "version": "newest"}).json()["version"] == 3
    assert live_memory(path).version == 3


def test_many_who_ask_for_a_version_wait_together_and_nobody_else_does(changing, monkeypatch) -> None:
    served, _ = changing
    opened, gate, num_waiting = [], threading.Event(), 40
    warm_up = Memory.warm_up

    def slow(memory: Memory) -> None:
        opened.append(memory.version)
        assert gate.wait(PATIENCE_S)
        warm_up(memory)

    monkeypatch.setattr(Memory, "warm_up", slow)
    body = {"question": QUESTION, "k": 4, "as_of": 2}
    with ThreadPoolExecutor(num_waiting) as clients:
        try:
            asking = [clients.submit(httpx.post, f"{served.url}/v1/search", json=body) for _ in range(num_waiting)]
            while not opened:
                time.sleep(0.01)
            time.sleep(1)  # all of them have come
            assert served.get("/v1/memory", timeout=20).json()["version"] == 3
            current = served.post("/v1/search", {"question": QUESTION, "k": 4, "as_of": 3}, timeout=20)
            assert current.json()["memory_version"] == 3
            assert not any(response.done() for response in asking)
        finally:
            gate.set()
        answers = [response.result(PATIENCE_S).json() for response in asking]
    assert {answer["memory_version"] for answer in answers} == {2}
    assert opened == [2]  # once for all


def test_a_version_that_does_not_open_is_tried_again(changing, monkeypatch) -> None:
    served, _ = changing
    warm_up, failures = Memory.warm_up, [MemoryStoreError("the disk is asleep")]

    def failing(memory: Memory) -> None:
        if failures:
            raise failures.pop()
        warm_up(memory)

    monkeypatch.setattr(Memory, "warm_up", failing)
    body = {"question": QUESTION, "k": 4, "as_of": 2}
    refused = served.post("/v1/search", body)
    assert (refused.status_code, refused.json()["error"]["message"]) == (409, "the disk is asleep")
    assert served.post("/v1/search", body).json()["memory_version"] == 2


def test_names_of_versions(changing) -> None:
    served, path = changing
    client = served.client
    tagged = client.post("/v1/memory", json={"action": "tag", "name": "first", "version": 2}).json()
    assert tagged["tags"] == {"first": 2}
    assert tagged["versions"][1]["tags"] == ["first"]
    assert client.post("/v1/answer", json={"question": QUESTION, "as_of": "first"}).json()["memory_version"] == 2
    assert client.post("/v1/memory", json={"action": "untag", "name": "first"}).json()["tags"] == {}
    assert json.loads(cli("index", "tag", path, "--json").stdout)["tags"] == {}


@pytest.fixture
def differing(changing, encoder) -> Served:
    """Version 4 lacks emma.txt, 5 has another rome.txt and twelve more passages."""
    served, path = changing
    memory = Memory.open(path).delete(["emma.txt"])
    more = [Passage(f"more {i:02}", "text", title=f"<b>{i}</b>") for i in range(12)]
    memory.upsert([Passage("rome.txt", "Rome is red.", title="red"), *more], load_passage_encoder(encoder))
    return served


def test_what_differs_between_versions(differing) -> None:
    found = differing.get("/v1/memory/diff?from=2&to=newest").json()
    assert (found["from"], found["to"], found["reencoded"]) == (2, 5, False)
    assert found["encoders"]["from"] == found["encoders"]["to"] == "encoder"
    assert found["added"]["count"] == 13
    assert found["added"]["passages"][:2] == [{"id": "new", "title": "tokyo"}, {"id": "more 00", "title": "<b>0</b>"}]
    assert found["changed"] == {"count": 1, "passages": [{"id": "rome.txt", "title": "red"}]}
    assert found["removed"] == {"count": 1, "passages": [{"id": "emma.txt", "title": "emma"}]}
    back = differing.get("/v1/memory/diff", params={"from": "3", "to": "2", "limit": 1}).json()
    assert (back["from"], back["to"]) == (3, 2)
    assert back["removed"] == {"count": 1, "passages": [{"id": "new", "title": "tokyo"}]}
    bounded = differing.get("/v1/memory/diff", params={"from": "5", "to": "2", "limit": 3}).json()
    assert (bounded["removed"]["count"], len(bounded["removed"]["passages"])) == (13, 3)
    assert bounded["changed"]["passages"] == [{"id": "rome.txt", "title": "rome"}]
    counted = differing.get("/v1/memory/diff", params={"from": "2", "to": "5", "limit": 0}).json()
    assert [(counted[kind]["count"], counted[kind]["passages"]) for kind in ("added", "changed", "removed")] == [
        (13, []),
        (1, []),
        (1, []),
    ]
    nothing = {"count": 0, "passages": []}
    same = differing.get("/v1/memory/diff?from=5&to=5").json()
    assert (same["added"], same["changed"], same["removed"]) == (nothing, nothing, nothing)


@pytest.mark.parametrize(
    ("query", "status", "message"),
    [
        ("from=2&to=77", 404, "the memory has no version 77; choose one of 1, 2"),
        ("from=0&to=2", 404, "the memory has no version 0"),
        ("from=../x&to=2", 404, "the memory has no version '../x'; give a number or a date"),
        ("from=1999-01-01&to=2", 404, "the memory has no version as old as 1999-01-01"),
        ("from=2", 422, "to: Field required"),
        ("from=&to=2", 422, "from: String should have at least 1 character"),
        ("from=1&to=2&limit=201", 422, "limit: Input should be less than or equal to 200"),
        ("from=1&to=2&limit=-1", 422, "limit: Input should be greater than or equal to 0"),
        ("from=1&to=2&path=/etc", 422, "path: Extra inputs are not permitted"),
        (f"from=1&to={'x' * 101}", 422, "to: String should have at most 100"),
    ],
)
def test_what_cannot_be_compared(served, memory, query, status, message) -> None:
    response = served.get(f"/v1/memory/diff?{query}")
    assert response.status_code == status
    error = response.json()["error"]
    assert message in error["message"]
    assert "\n" not in error["message"]
    assert str(memory) not in response.text


def test_no_more_is_read_than_allowed(served, monkeypatch) -> None:
    from latentrag.serving import memories

    monkeypatch.setattr(memories, "MAX_COMPARED", 4)
    assert served.get("/v1/memory/diff?from=1&to=2").json()["added"]["count"] == 4
    monkeypatch.setattr(memories, "MAX_COMPARED", 3)
    response = served.get("/v1/memory/diff?from=1&to=2")
    assert response.status_code == 422
    assert (
        "differ in files of 4 passages; this server compares 3 passages at most" in response.json()["error"]["message"]
    )
    assert served.get("/v1/memory/diff?from=2&to=2").status_code == 200


def test_what_cannot_be_used_leaves_what_is_served(changing, monkeypatch) -> None:
    from latentrag.errors import MemoryStoreError
    from latentrag.memory import history

    served, _ = changing

    def locked(*_: object) -> None:
        raise MemoryStoreError("somebody else is writing; try again")

    monkeypatch.setattr(history, "serve", locked)
    response = served.post("/v1/memory", {"action": "use", "version": 2})
    assert (response.status_code, response.json()["error"]["message"]) == (409, "somebody else is writing; try again")
    assert served.get("/v1/memory").json()["version"] == 3


def test_a_memory_that_cannot_be_written_is_exchanged_in_this_process(changing, monkeypatch) -> None:
    from latentrag.memory import storage

    served, path = changing

    def read_only(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "_write_owner", read_only)
        used = served.post("/v1/memory", {"action": "use", "version": 2})
    assert used.status_code == 200
    for record in (used.json(), served.get("/v1/memory").json()):
        assert (record["version"], record["follows_newest"], record["choice_kept"]) == (2, False, False)
    assert live_memory(path).version == 3  # whoever opens it next hears nothing of that
    used = served.post("/v1/memory", {"action": "use", "version": "newest"}).json()
    assert (used["version"], used["follows_newest"], used["choice_kept"]) == (3, True, True)


def test_an_older_version_is_not_said_to_be_the_newest(model, memory, encoder, tmp_path) -> None:
    """Neither where the server was started with it, nor where there is a newer one since."""
    path = shutil.copytree(memory, tmp_path / "own.lance")
    live = live_memory(path)
    with serving(create_app(load(model, memory=live), live, name="tiny")) as running:
        assert running.get("/v1/memory").json()["follows_newest"]
        Memory.open(path).delete(["emma.txt"])
        record = running.get("/v1/memory").json()
    assert (record["version"], record["newest"], record["follows_newest"]) == (2, 3, False)


def test_synced_folders(tmp_path, model, encoder, files) -> None:
    path = tmp_path / "synced.lance"
    assert cli("index", "sync", path, files, "--encoder", encoder).code == 0
    live = live_memory(path)
    with serving(create_app(load(model, memory=live), live, name="tiny")) as running:
        (folder,) = running.get("/v1/memory").json()["synced"]
    assert (folder["name"], folder["files"], folder["passages"]) == ("notes", 4, 4)
