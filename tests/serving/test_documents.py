"""Documents through the server: listed, added in one version, deleted, by those who may; answers go on meanwhile."""

import json
import shutil
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from latentrag.assemble import live_memory, load, load_passage_encoder
from latentrag.conditions import condition_of
from latentrag.errors import InputError
from latentrag.memory import Memory, add
from latentrag.memory.scratch import FOLDER, scratch_folder
from latentrag.serving.app import create_app
from latentrag.serving.guard import Access
from latentrag.serving.options import ServeOptions
from latentrag.serving.rights import Rights
from latentrag.serving.run import access_to
from latentrag.serving.writing import Documents, Progress
from latentrag.types import Passage
from tests.cli.conftest import DOCUMENTS, QUESTION, cli
from tests.serving.conftest import PATIENCE_S, Served, serving

PATH = "/api/documents"
READER, WRITER, BOUND = "a-key-that-only-reads", "a-key-that-may-write", "a-key-bound-to-team-x"
ACCESS = Access(
    keys=(READER, WRITER, BOUND),
    rights={WRITER: Rights(write=True), BOUND: Rights(condition_of("team = 'x'"), write=True)},
)
OPEN = ServeOptions(allow_writes=True)
Files = list[tuple[str, tuple[str, bytes]]]


def files_of(**texts: str | bytes) -> Files:
    """As httpx has them; an underline stands for the dot before the ending."""
    made = {name.replace("_", "."): text for name, text in texts.items()}
    return [("files", (name, each.encode() if isinstance(each, str) else each)) for name, each in made.items()]


def key(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {name}"}


@pytest.fixture
def own(tmp_path, memory) -> Path:
    return shutil.copytree(memory, tmp_path / "own.lance")


@pytest.fixture
def served(own, model) -> Iterator[Served]:
    live = live_memory(own)
    with serving(create_app(load(model, memory=live), live, name="tiny", options=OPEN), OPEN) as running:
        yield running


def ids(served: Served, **how: Any) -> list[str]:
    return [each["id"] for each in served.get(PATH, **how).json()["documents"]]


def added(served: Served, files: Files, **how: Any) -> dict[str, Any]:
    response = served.client.post(PATH, files=files, **how)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def test_files_become_one_version_that_answers(served, own) -> None:
    assert ids(served) == sorted(f"{name}.txt" for name in DOCUMENTS)
    csv = "name,keeper\nPetrel,Ingrid Solheim\nTern,Anna Berg\n"
    done = added(served, files_of(ship_md="# Petrel\n\nIngrid keeps the Petrel.", rows_csv=csv))
    assert {name: done[name] for name in ("memory_version", "served_version", "added", "replaced", "removed")} == {
        "memory_version": 3,
        "served_version": 3,
        "added": 3,
        "replaced": 0,
        "removed": 0,
    }
    assert [each["file"] for each in done["files"]] == ["ship.md", "rows.csv"]
    assert {"rows.csv", "ship.md"} <= set(ids(served))
    listed = served.get(PATH, params={"containing": "ROWS"}).json()
    assert listed["count"] == 1
    assert listed["documents"][0] | {"title": ""} == {
        "id": "rows.csv",
        "title": "",
        "source": "rows.csv",
        "passages": 2,
        "synced": False,
    }
    found = served.post("/v1/search", {"question": "Who keeps the Petrel?", "k": 7}).json()
    assert found["memory_version"] == 3
    sources = {each["id"]: each["source"] for each in found["passages"]}
    assert sources["ship.md"] == "ship.md"
    assert str(own) not in json.dumps(found)
    assert served.get(f"{PATH}/progress").json() == {"stage": "idle", "files": 0, "read": 0, "encoded": 0}
    assert not (own / FOLDER).exists()


def test_the_same_as_index_add(served, own, tmp_path, memory, encoder) -> None:
    """One way of indexing: the passages, their ids and vectors are those of the command."""
    text = "# Petrel\n\n" + "The Petrel is a ship of the north. " * 60
    (tmp_path / "ship.md").write_text(text)
    other = shutil.copytree(memory, tmp_path / "other.lance")
    assert cli("index", "add", other, tmp_path / "ship.md", "--encoder", encoder).code == 0
    added(served, files_of(ship_md=text))
    ours, theirs = Memory.open(own), Memory.open(other)
    mine = {each.id: (each.text, each.title, each.start, each.end) for each in ours.passages()}
    assert mine == {each.id: (each.text, each.title, each.start, each.end) for each in theirs.passages()}
    assert len(mine) > 5
    assert vectors_of(ours) == vectors_of(theirs)


def vectors_of(memory: Memory) -> dict[str, bytes]:
    vectors = (vector.tobytes() for _, part in memory.table.vectors() for vector in part)
    return dict(zip(memory.table.ids(), vectors, strict=True))


def test_a_file_replaces_what_was_there_under_its_name(served) -> None:
    assert added(served, files_of(ship_md="One."))["added"] == 1
    again = added(served, files_of(ship_md="One."))
    assert (again["memory_version"], again["added"], again["unchanged"]) == (3, 0, 1)
    done = added(served, files_of(ship_md="Two."))
    assert (done["memory_version"], done["served_version"]) == (4, 4)
    texts = [each["text"] for each in served.post("/v1/search", {"question": "?", "k": 5}).json()["passages"]]
    assert "Two." in texts
    assert "One." not in texts


def test_documents_are_deleted_in_one_version(served, own) -> None:
    added(served, files_of(ship_md="One.", rows_csv="name,keeper\na,b\nc,d\n"))
    response = served.client.delete(PATH, params={"id": ["ship.md", "rows.csv"]})
    assert response.json() == {"memory_version": 4, "served_version": 4, "deleted": 3}
    assert ids(served) == sorted(f"{name}.txt" for name in DOCUMENTS)
    gone = served.client.delete(PATH, params={"id": ["rome.txt", "ship.md"]})
    assert gone.status_code == 404
    assert "'ship.md'" in gone.json()["error"]["message"]
    assert Memory.open(own).version == 4
    assert served.client.delete(PATH).status_code == 422
    everything = served.client.delete(PATH, params={"id": ids(served)})
    assert everything.json()["deleted"] == 4
    assert served.post("/v1/answer", {"question": QUESTION}).status_code == 409
    added(served, files_of(ship_md="Petrel.", b_md="Tern.", c_md="Gull."))
    assert served.post("/v1/answer", {"question": QUESTION}).status_code == 200


def test_pages_of_a_long_list(served) -> None:
    first = served.get(PATH, params={"limit": 3}).json()
    assert first["count"] == 4
    rest = served.get(PATH, params={"limit": 3, "after": first["documents"][-1]["id"]}).json()
    names = [each["id"] for each in (*first["documents"], *rest["documents"])]
    assert names == sorted(f"{name}.txt" for name in DOCUMENTS)


def test_what_a_sync_keeps_is_not_deleted(served, own, tmp_path, encoder) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "kept.txt").write_text("Kept by a sync.")
    assert cli("index", "sync", own, folder, "--encoder", encoder).code == 0
    (synced,) = [each for each in served.get(PATH).json()["documents"] if each["synced"]]
    assert synced["id"] == "folder/kept.txt"
    assert served.client.delete(PATH, params={"id": "folder/kept.txt"}).status_code == 404


def test_a_version_that_somebody_chose_stays(served) -> None:
    served.post("/v1/memory", {"action": "use", "version": 1})
    served.post("/v1/memory", {"action": "use", "version": 2})
    done = added(served, files_of(ship_md="One."))
    assert (done["memory_version"], done["served_version"]) == (3, 2)
    assert served.get("/v1/memory").json()["version"] == 2


def test_a_version_that_somebody_chose_when_files_had_just_been_added_stays(served, monkeypatch) -> None:
    def and_chosen(*args: Any, **named: Any) -> Any:
        done = add(*args, **named)
        assert served.post("/v1/memory", {"action": "use", "version": 1}).status_code == 200
        return done

    monkeypatch.setattr("latentrag.serving.writing.add", and_chosen)
    done = added(served, files_of(ship_md="One."))
    assert (done["memory_version"], done["served_version"]) == (3, 1)
    assert served.get("/v1/memory").json()["version"] == 1


# Who may


def test_who_may(own, model) -> None:
    live = live_memory(own)
    rag = load(model, memory=live)
    asks: list[tuple[str, dict[str, Any]]] = [
        ("GET", {}),
        ("POST", {"files": files_of(a_md="A.")}),
        ("DELETE", {"params": {"id": "rome.txt"}}),
    ]
    with serving(create_app(rag, live, name="tiny")) as closed:
        for method, how in asks:
            response = closed.client.request(method, PATH, **how)
            assert response.status_code == 403
            assert "--allow-writes" in response.json()["error"]["message"]
    with serving(create_app(rag, live, name="tiny", access=ACCESS)) as keyed:
        for method, how in asks:
            assert keyed.client.request(method, PATH, **how).status_code == 401
            assert keyed.client.request(method, PATH, headers=key(READER), **how).status_code == 403
        assert Memory.open(own).version == 2
        for method, how in asks:
            assert keyed.client.request(method, PATH, headers=key(WRITER), **how).status_code == 200
        assert Memory.open(own).version == 4


def test_a_bound_key_hears_nothing_of_what_others_add(own, model, monkeypatch) -> None:
    made: list[Documents] = []

    class Kept(Documents):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr("latentrag.serving.app.Documents", Kept)
    live = live_memory(own)
    with serving(create_app(load(model, memory=live), live, name="tiny", access=ACCESS)) as running:
        made[0].progress = Progress("reading", num_files=3, num_read=20, num_encoded=7)
        heard = {each: running.get(f"{PATH}/progress", headers=key(each)).json() for each in (WRITER, BOUND)}
    assert heard[WRITER] == {"stage": "reading", "files": 3, "read": 20, "encoded": 7}
    assert heard[BOUND] == {"stage": "idle", "files": 0, "read": 0, "encoded": 0}


def test_a_bound_key_changes_what_it_sees_and_nothing_else(tmp_path, model, encoder) -> None:
    """What is hidden is neither listed nor deleted, nor replaced: such a key adds nothing."""
    made = load_passage_encoder(encoder)
    teams = {"open": "x", "rows:1": "x", "secret": "y", "rows:2": "y"}
    passages = [Passage(name, f"On {name}.", source="rows", fields={"team": team}) for name, team in teams.items()]
    path = tmp_path / "own.lance"
    Memory.create(path, made).add(passages, made)
    live = live_memory(path)
    with serving(create_app(load(model, memory=live), live, name="tiny", access=ACCESS)) as running:
        assert ids(running, headers=key(BOUND)) == ["open", "rows"]
        assert ids(running, headers=key(WRITER)) == ["open", "rows", "secret"]
        ask = partial(running.client.request, headers=key(BOUND))
        hidden, missing = (ask("DELETE", PATH, params={"id": name}) for name in ("secret", "nowhere"))
        assert (hidden.status_code, missing.status_code) == (404, 404)
        assert hidden.text.replace("secret", "nowhere") == missing.text
        refused = ask("POST", PATH, files=files_of(secret_md="A."))
        assert refused.status_code == 403
        assert "hidden" in refused.json()["error"]["message"]
        assert ask("DELETE", PATH, params={"id": "rows"}).json()["deleted"] == 1
        assert ids(running, headers=key(WRITER)) == ["open", "rows", "secret"]
        assert Memory.open(path).get(["rows:2", "secret"])


def test_allow_writes_is_for_servers_without_keys(tmp_path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"{WRITER} write\n")
    with pytest.raises(InputError, match="--allow-writes has no effect where API keys are needed"):
        access_to("127.0.0.1", key_file=keys, allow_writes=True)
    assert access_to("127.0.0.1", key_file=keys).rights[WRITER].write
    assert access_to("127.0.0.1", key_file=None, allow_writes=True).without_key.write
    assert not access_to("127.0.0.1", key_file=None).without_key.write


# While it is done


class Gate:
    """Stands before an encoder until it is opened."""

    def __init__(self, encoder: Any) -> None:
        self.encoder, self.reached, self.open = encoder, threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.encoder, name)

    def count_tokens(self, title: str, text: str) -> int:
        self.reached.set()
        assert self.open.wait(PATIENCE_S)
        return int(self.encoder.count_tokens(title, text))


@pytest.fixture
def gated(own, model, encoder) -> Iterator[tuple[Served, Gate]]:
    """A server whose passage encoder waits."""
    live, gate = live_memory(own), Gate(load_passage_encoder(encoder))
    app = create_app(load(model, memory=live), live, name="tiny", options=OPEN)
    app.state.service.encoders._loaded = gate
    with serving(app, OPEN) as running:
        try:
            yield running, gate
        finally:
            gate.open.set()


def test_answers_come_from_the_version_before_and_there_is_one_writer(gated, own) -> None:
    served, gate = gated
    found: list[dict[str, Any]] = []
    adding = threading.Thread(target=lambda: found.append(added(served, files_of(ship_md="One. " * 3))))
    adding.start()
    assert gate.reached.wait(PATIENCE_S)
    assert served.post("/v1/answer", {"question": QUESTION}).json()["memory_version"] == 2
    progress = served.get(f"{PATH}/progress").json()
    assert (progress["stage"], progress["files"]) == ("reading", 1)
    busy = [served.client.post(PATH, files=files_of(b_md="B.")), served.client.delete(PATH, params={"id": "rome.txt"})]
    assert [each.status_code for each in busy] == [429, 429]
    assert busy[0].headers["retry-after"] == "5"
    gate.open.set()
    adding.join(PATIENCE_S)
    assert found[0]["memory_version"] == 3
    assert served.post("/v1/answer", {"question": QUESTION}).json()["memory_version"] == 3
    assert Memory.open(own).version == 3


def test_who_goes_away_has_added_nothing(gated, own) -> None:
    served, gate = gated
    with pytest.raises(httpx.ReadTimeout):
        served.client.post(PATH, files=files_of(ship_md="One."), timeout=httpx.Timeout(PATIENCE_S, read=0.5))
    assert gate.reached.wait(PATIENCE_S)
    time.sleep(0.2)  # the server has noticed by then
    gate.open.set()
    deadline = time.monotonic() + PATIENCE_S
    while served.get(f"{PATH}/progress").json()["stage"] != "idle" and time.monotonic() < deadline:
        time.sleep(0.02)
    assert Memory.open(own).version == 2
    assert not (own / FOLDER).exists()


def test_another_process_that_writes(served, own) -> None:
    with Memory.open(own).table.writing():
        response = served.client.post(PATH, files=files_of(ship_md="One."))
    assert response.status_code == 409
    assert response.json()["error"]["message"].startswith("the memory is being changed by")
    assert not (own / FOLDER).exists()


# Scratch


def test_what_a_killed_process_left_goes(own, model) -> None:
    left = own / FOLDER / "left"
    left.mkdir(parents=True)
    (left / "secret.md").write_text("secret")
    with scratch_folder(own) as used:
        assert not left.exists()
        with scratch_folder(own):
            assert used.exists()  # another's
    assert not (own / FOLDER).exists()
    left.mkdir(parents=True)
    live = live_memory(own)
    with serving(create_app(load(model, memory=live), live, name="tiny")):
        assert not left.exists()
