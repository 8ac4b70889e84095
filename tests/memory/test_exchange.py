"""Push and pull: what is pulled is what was pushed, and nothing else is ever put in place."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latentrag.errors import FetchError, InputError, MemoryStoreError
from latentrag.memory import Memory, exchange
from latentrag.memory.exchange import Listing, pull, push
from latentrag.memory.schema import LATER_COLUMNS, schema
from latentrag.memory.stores import LISTING
from latentrag.types import Passage


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    """Several files from a few passages."""
    monkeypatch.setattr(exchange, "ROWS_PER_FILE", 8)
    monkeypatch.setattr(exchange, "ROWS_PER_BATCH", 4)


@pytest.fixture
def memory(path, encoder) -> Memory:
    """Three versions; the newest, 3, has twenty passages, one of them as odd as can be."""
    passages = [Passage(f"p{i}", f"text {i}", "title", "s.pdf", i, i + 6, page=i or None) for i in range(20)]
    passages[3] = Passage("ä\"'", "東京 🙂\n\x00", "", "", 3, 2**40, None, origin="notes/a.txt")
    return Memory.create(path, encoder).add([*passages, Passage("secret", "deleted text")], encoder).delete(["secret"])


@pytest.fixture
def pushed(memory, tmp_path) -> Path:
    push(memory.path, str(tmp_path / "out"))
    return tmp_path / "out"


def vectors(memory: Memory) -> np.ndarray:
    return np.concatenate([each for _, each in memory._table.vectors()])


def listing(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def relist(folder: Path, change) -> None:
    """A listing that somebody has tampered with."""
    fields = json.loads((folder / LISTING).read_text())
    change(fields)
    (folder / LISTING).write_text(json.dumps(fields))


def relist_hashes(folder: Path) -> None:
    """A listing that is true of the files, whatever they hold."""

    def change(fields):
        for file in fields["files"]:
            raw = (folder / file["name"]).read_bytes()
            file.update(size_bytes=len(raw), sha256=hashlib.sha256(raw).hexdigest())

    relist(folder, change)


def test_what_is_pulled_is_what_was_pushed(memory, pushed, tmp_path, queries):
    assert listing(pushed) == [LISTING, *(f"passages-0000{i}-of-00003.parquet" for i in range(3))]
    pulled = pull(str(pushed), tmp_path / "in.lance")
    assert list(pulled.passages()) == list(memory.passages())
    assert np.array_equal(vectors(pulled), vectors(memory))
    assert pulled.card == memory.card
    assert np.array_equal(pulled.search(queries, 5).scores, memory.search(queries, 5).scores)
    assert [v.change for v in pulled.log()] == ["created", f"pulled from {pushed}, version 3 there"]
    assert listing(tmp_path) == ["in.lance", "memory.lance", "out"]


def test_the_listing_is_true(pushed):
    told = Listing.from_json((pushed / LISTING).read_bytes(), "")
    assert (told.version, told.num_passages, [file.num_passages for file in told.files]) == (3, 20, [8, 8, 4])
    for file in told.files:
        raw = (pushed / file.name).read_bytes()
        assert (file.size_bytes, file.sha256) == (len(raw), hashlib.sha256(raw).hexdigest())
        assert pq.read_metadata(pushed / file.name).num_rows == file.num_passages


def test_deleted_passages_are_not_given_away(pushed):
    for file in pushed.iterdir():
        assert b"secret" not in file.read_bytes()
    for file in pushed.glob("*.parquet"):
        assert "deleted text" not in pq.read_table(file)["text"].to_pylist()


def test_an_older_version_can_be_pushed(memory, tmp_path):
    push(memory.path, str(tmp_path / "old"), version=2)
    pulled = pull(str(tmp_path / "old"), tmp_path / "in.lance")
    assert len(pulled) == 21
    assert pulled.get(["secret"])[0].text == "deleted text"
    with pytest.raises(MemoryStoreError, match="has no version 9"):
        push(memory.path, str(tmp_path / "older"), version=9)


def test_the_same_rows_make_the_same_files(memory, pushed, tmp_path):
    push(memory.path, str(tmp_path / "again"))
    assert {file.name: file.read_bytes() for file in pushed.iterdir()} == {
        file.name: file.read_bytes() for file in (tmp_path / "again").iterdir()
    }


def test_push_overwrites_nothing(memory, pushed, tmp_path, encoder):
    with pytest.raises(InputError, match="exists and is not empty; name a new folder"):
        push(memory.path, str(pushed))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="exists and is not empty"):
        push(memory.path, str(tmp_path / "file"))
    with pytest.raises(FetchError, match="cannot be written"):
        push(memory.path, str(tmp_path / "file" / "out"))
    (tmp_path / "empty").mkdir()
    push(memory.path, str(tmp_path / "empty"))
    Memory.create(tmp_path / "none.lance", encoder)
    with pytest.raises(MemoryStoreError, match="has no passages at version 1"):
        push(tmp_path / "none.lance", str(tmp_path / "none"))
    assert listing(tmp_path) == ["empty", "file", "memory.lance", "none.lance", "out"]


def test_pull_overwrites_nothing(memory, pushed, tmp_path):
    with pytest.raises(MemoryStoreError, match="exists already"):
        pull(str(pushed), memory.path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(MemoryStoreError, match="exists already"):
        pull(str(pushed), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    assert len(Memory.open(memory.path)) == 20


@pytest.mark.parametrize("damage", ["flipped", "short", "long", "gone"])
def test_a_file_that_does_not_match_its_listing_is_refused(pushed, tmp_path, damage):
    file = pushed / "passages-00001-of-00003.parquet"
    raw = file.read_bytes()
    middle = len(raw) // 2
    other = {"flipped": raw[:middle] + bytes([raw[middle] ^ 1]) + raw[middle + 1 :], "short": raw[:-1]}
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(other.get(damage, raw + b"x"))
    with pytest.raises(FetchError, match="its listing says|cannot be copied") as caught:
        pull(str(pushed), tmp_path / "in.lance")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "in.lance").exists()
    # What was right is kept, and fetched no second time.
    assert listing(tmp_path / ".in.lance.pulling") == [LISTING, "passages-00000-of-00003.parquet"]
    (pushed / "passages-00000-of-00003.parquet").unlink()
    file.write_bytes(raw)
    assert len(pull(str(pushed), tmp_path / "in.lance")) == 20
    assert ".in.lance.pulling" not in listing(tmp_path)


def test_an_interrupted_pull_goes_on(pushed, tmp_path):
    def interrupted(done, total):
        assert total == 20
        if done == 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(str(pushed), tmp_path / "in.lance", on_passages=interrupted)
    assert not (tmp_path / "in.lance").exists()
    # A piece that was damaged since is fetched again; one of another listing goes.
    scratch = tmp_path / ".in.lance.pulling"
    (scratch / "passages-00001-of-00003.parquet").write_bytes(b"damaged")
    (scratch / "passages-00000-of-00001.parquet").write_bytes(b"of another")
    assert len(pull(str(pushed), tmp_path / "in.lance")) == 20
    assert listing(tmp_path) == ["in.lance", "memory.lance", "out"]


@pytest.mark.parametrize(
    "name",
    [
        "../passages-00000-of-00003.parquet",
        "/etc/passwd",
        "sub/passages-00000-of-00003.parquet",
        "..\\x.parquet",
        "passages-00000-of-00003.pkl",
        "index.faiss",
        "passages-00000-of-00003.parquet\n",
        "passages-00001-of-00003.parquet",
        "",
        7,
    ],
)
def test_listings_that_name_other_files_are_refused(pushed, tmp_path, name):
    relist(pushed, lambda fields: fields["files"][0].update(name=name))
    with pytest.raises(FetchError, match="needed passages-00000-of-00003.parquet; nothing of it is used"):
        pull(str(pushed), tmp_path / "in.lance")
    assert listing(tmp_path) == ["memory.lance", "out"]


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f.update(format=2),
        lambda f: f.pop("format"),
        lambda f: f.pop("manifest"),
        lambda f: f["manifest"].update(dimension=-8),
        lambda f: f["manifest"].update(dimension="8"),
        lambda f: f["manifest"].update(encoder=None),
        lambda f: f["manifest"].update(scale=0),
        lambda f: f["manifest"].update(format_version=99),
        lambda f: f.update(files=[]),
        lambda f: f.update(files={"a": 1}),
        lambda f: f.update(num_passages=19),
        lambda f: f.update(version="3"),
        lambda f: f["files"][0].update(sha256="00"),
        lambda f: f["files"][0].update(sha256=None),
        lambda f: f["files"][0].update(size_bytes=-1),
        lambda f: f["files"][0].update(num_passages=True),
        lambda f: f["files"][0].update(mode="0777"),
        lambda f: f["files"][0].pop("sha256"),
    ],
)
def test_listings_that_are_none_are_refused(pushed, tmp_path, change):
    relist(pushed, change)
    with pytest.raises(FetchError, match=f"^{LISTING} of ") as caught:
        pull(str(pushed), tmp_path / "in.lance")
    assert "\n" not in str(caught.value)
    assert listing(tmp_path) == ["memory.lance", "out"]


@pytest.mark.parametrize("raw", [b"", b"[]", b"\x80\x04.", b"[" * 100_000, b'{"format": 1'])
def test_listings_that_are_no_json_are_refused(pushed, tmp_path, raw):
    (pushed / LISTING).write_bytes(raw)
    with pytest.raises(FetchError, match=f"^{LISTING} of "):
        pull(str(pushed), tmp_path / "in.lance")
    assert listing(tmp_path) == ["memory.lance", "out"]


def rewritten(columns: pa.Table, name: str, values: list) -> pa.Table:
    i = columns.column_names.index(name)
    return columns.set_column(i, columns.schema.field(name).with_nullable(True), pa.array(values, columns[name].type))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda t: rewritten(t, "id", ["p0"] * 8), "an id that is empty or comes twice"),
        (lambda t: rewritten(t, "id", ["", *t["id"].to_pylist()[1:]]), "an id that is empty or comes twice"),
        (lambda t: rewritten(t, "text", [None] * 8), "a row without text"),
        (lambda t: t.set_column(1, "text", pa.array([b"\xff"] * 8).view(pa.string())), "UTF8"),
        (lambda t: rewritten(t, "vector", [[None] * 8] * 8), "a vector that is not finite"),
        (lambda t: rewritten(t, "vector", [[np.inf] * 8] * 8), "a vector that is not finite"),
        (lambda t: t.slice(1), "7 rows, its listing says 8"),
        (lambda t: t.drop_columns(["title"]), "needed columns id, text, title"),
        (lambda t: t.append_column("code", pa.array(["x"] * 8)), "needed columns id, text, title"),
        (lambda t: t.set_column(0, "id", pa.array([b"\xff"] * 8)), "needed columns id, text, title"),
        (lambda _: None, "holds no passages that can be used"),
    ],
)
def test_files_that_match_their_listing_and_hold_no_memory_are_refused(pushed, tmp_path, change, problem):
    file = pushed / "passages-00001-of-00003.parquet"
    other = change(pq.read_table(file))
    if other is None:
        file.write_bytes(b"PAR1 no PAR1")
    else:
        pq.write_table(other, file)
    relist_hashes(pushed)
    with pytest.raises(FetchError, match=problem) as caught:
        pull(str(pushed), tmp_path / "in.lance")
    assert "\n" not in str(caught.value)
    assert listing(tmp_path) == ["memory.lance", "out"]


def test_places_that_are_none(memory, tmp_path):
    for place in ("hf://models/user/name", "hf://datasets/user", "hf://datasets/user/../x", "hf://datasets/u/n@"):
        with pytest.raises(InputError, match="needed a folder or hf://datasets/USER/NAME"):
            push(memory.path, place)
    with pytest.raises(FetchError, match="cannot be copied"):
        pull(str(tmp_path / "nowhere"), tmp_path / "in.lance")
    assert listing(tmp_path) == ["memory.lance"]


def test_too_little_room_is_said_before_anything_is_fetched(pushed, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000))
    with pytest.raises(FetchError, match=r"needs \d+ bytes of disk, .* has 1000; make room"):
        pull(str(pushed), tmp_path / "in.lance")
    assert listing(tmp_path) == ["memory.lance", "out"]


class FakeHub:
    """As much of a ``HfApi`` as a memory needs: commits of one data set, kept in folders."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.commits: list[Path] = []
        self.downloads: list[str] = []
        self.private: bool | None = None

    def list_repo_files(self, repo_id, *, repo_type):
        self._check(repo_id, repo_type)
        return [file.name for file in self.commits[-1].iterdir()]

    def create_repo(self, repo_id, *, repo_type, private, exist_ok):
        assert (repo_id, repo_type, exist_ok) == ("user/name", "dataset", True)
        self.private = private if self.private is None else self.private

    def upload_folder(self, *, repo_id, repo_type, folder_path, commit_message, delete_patterns):
        assert (repo_type, delete_patterns) == ("dataset", ["passages-*.parquet"])
        assert commit_message.startswith("latentrag memory, version ")
        new = self.place / f"commit{len(self.commits)}"
        shutil.copytree(folder_path, new)
        if self.commits:
            for file in self.commits[-1].iterdir():
                if not file.match(delete_patterns[0]) and not (new / file.name).exists():
                    shutil.copy(file, new)
        self.commits.append(new)

    def repo_info(self, repo_id, *, repo_type, revision):
        self._check(repo_id, repo_type)
        number = {"main": -1, None: -1}.get(revision, revision)
        return SimpleNamespace(sha=self.commits[int(number)].name)

    def hf_hub_download(self, repo_id, filename, *, repo_type, revision, local_dir):
        self._check(repo_id, repo_type)
        self.downloads.append(filename)
        return shutil.copy(self.place / revision / filename, local_dir)

    def _check(self, repo_id, repo_type):
        from huggingface_hub.errors import RepositoryNotFoundError

        assert (repo_id, repo_type) == ("user/name", "dataset")
        if not self.commits:
            response: Any = SimpleNamespace(headers={}, request=None)
            raise RepositoryNotFoundError("404 Client Error.\n\nRepository Not Found", response=response)


@pytest.fixture
def hub(tmp_path) -> FakeHub:
    (tmp_path / "hub").mkdir()
    return FakeHub(tmp_path / "hub")


PLACE = "hf://datasets/user/name"


def test_through_the_hub(memory, tmp_path, hub, encoder):
    push(memory.path, PLACE, hub=hub)
    assert hub.private is True
    pulled = pull(PLACE, tmp_path / "in.lance", hub=hub)
    assert list(pulled.passages()) == list(memory.passages())
    assert pulled.log()[-1].change == f"pulled from {PLACE}, version 3 there"
    # A new commit replaces the memory; the old one can be had by its revision.
    (hub.commits[0] / "README.md").write_text("mine")
    memory.delete([f"p{i}" for i in range(10, 20)])
    push(memory.path, PLACE, hub=hub)
    assert listing(hub.commits[1]) == ["README.md", LISTING, *(f"passages-0000{i}-of-00002.parquet" for i in range(2))]
    assert len(pull(PLACE, tmp_path / "new.lance", hub=hub)) == 10
    assert len(pull(f"{PLACE}@0", tmp_path / "old.lance", hub=hub)) == 20


def test_a_commit_during_a_pull_is_not_mixed_in(memory, tmp_path, hub):
    push(memory.path, PLACE, hub=hub)

    def meddle(done, _):
        if done == 8:
            memory.delete(["p1"])
            push(memory.path, PLACE, hub=hub)

    assert len(pull(PLACE, tmp_path / "in.lance", hub=hub, on_passages=meddle)) == 20


def test_a_pull_from_the_hub_goes_on(memory, tmp_path, hub):
    push(memory.path, PLACE, hub=hub)
    right = (hub.commits[0] / "passages-00002-of-00003.parquet").read_bytes()
    (hub.commits[0] / "passages-00002-of-00003.parquet").write_bytes(right[:-1])
    with pytest.raises(FetchError, match="passages-00002-of-00003.parquet of hf://datasets/user/name has"):
        pull(PLACE, tmp_path / "in.lance", hub=hub)
    (hub.commits[0] / "passages-00002-of-00003.parquet").write_bytes(right)
    hub.downloads.clear()
    pull(PLACE, tmp_path / "in.lance", hub=hub)
    assert hub.downloads == [LISTING, "passages-00002-of-00003.parquet"]


def test_a_repository_of_something_else_is_left_alone(memory, tmp_path, hub):
    push(memory.path, PLACE, hub=hub)
    (hub.commits[0] / "train.csv").write_text("mine")
    with pytest.raises(InputError, match="holds 'train.csv', which is no part of a memory"):
        push(memory.path, PLACE, hub=hub)
    with pytest.raises(InputError, match="leave @main out"):
        push(memory.path, f"{PLACE}@main", hub=hub)
    assert len(hub.commits) == 1


def test_a_hub_that_cannot_be_reached(memory, tmp_path, hub, monkeypatch):
    with pytest.raises(FetchError, match=r"^hf://datasets/user/name cannot be reached \(404 Client Error\.\); "):
        pull(PLACE, tmp_path / "in.lance", hub=hub)

    def refuse(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(hub, "create_repo", refuse)
    with pytest.raises(FetchError, match="no route to host"):
        push(memory.path, PLACE, hub=hub)
    assert listing(tmp_path) == ["hub", "memory.lance"]


def test_the_real_client_has_what_is_called():
    """The fake's methods, with the arguments that are passed, exist in huggingface_hub."""
    import inspect

    from huggingface_hub import HfApi

    for name in ("list_repo_files", "create_repo", "upload_folder", "repo_info", "hf_hub_download"):
        fake = [each for each in inspect.signature(getattr(FakeHub, name)).parameters if each != "self"]
        assert set(fake) <= set(inspect.signature(getattr(HfApi, name)).parameters)


def test_a_memory_without_origins_can_be_pushed(path, encoder, tmp_path, monkeypatch):
    from latentrag.memory import table as module

    def old(card):
        columns = schema(card)
        return pa.schema([field for field in columns if field.name not in LATER_COLUMNS], metadata=columns.metadata)

    with monkeypatch.context() as patch:
        patch.setattr(module, "schema", old)
        Memory.create(path, encoder)
    memory = Memory.open(path).add([Passage(f"p{i}", f"t{i}") for i in range(5)], encoder)
    push(path, str(tmp_path / "out"))
    assert list(pull(str(tmp_path / "out"), tmp_path / "in.lance").passages()) == list(memory.passages())


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")
def test_flushed_before_it_is_announced(memory, tmp_path, monkeypatch):
    flushed: list[str] = []

    def noted(descriptor: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)

    monkeypatch.setattr(os, "fsync", noted)
    push(memory.path, str(tmp_path / "out"))
    assert set(flushed) >= {LISTING, "passages-00000-of-00003.parquet", tmp_path.name}
