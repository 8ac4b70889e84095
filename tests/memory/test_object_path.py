"""Objects as files, and a memory's checksums as objects: with a store in RAM. See tests/objects for the rest."""

import hashlib
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from obstore.exceptions import GenericError
from obstore.store import MemoryStore

from latentrag import io
from latentrag.errors import InputError, MemoryStoreError
from latentrag.memory import Memory, object_path, object_store
from latentrag.memory.object_path import ObjectPath
from latentrag.memory.object_store import ObjectStore
from latentrag.memory.storage import Checksum, storage_of
from tests.cli.conftest import cli

LARGE = bytes(range(256)) * 80_000
"""More than is read at once."""


@pytest.fixture
def place(monkeypatch) -> ObjectPath:
    """An empty one."""
    store = MemoryStore()
    monkeypatch.setattr(object_path, "_client_of", lambda bucket: store)
    return ObjectPath.parse("s3://bucket/memories/notes")


def test_objects_are_read_as_files_are(place, tmp_path):
    assert not place.exists()
    for folder in (place, tmp_path):
        if isinstance(folder, Path):
            (folder / "data").mkdir()
            (folder / "data/a.json").write_bytes(b"one")
            (folder / "data/b").write_bytes(LARGE)
        else:
            assert (folder / "data/a.json").write_new(b"one")
            assert (folder / "data/b").write_new(LARGE)
        data = folder / "data"
        assert (data.name, data.parent.name, data.is_dir(), data.is_file()) == ("data", folder.name, True, False)
        assert sorted(path.name for path in folder.iterdir()) == ["data"]
        assert sorted(path.name for path in data.iterdir()) == ["a.json", "b"]
        assert [path.stem for path in data.glob("*.json")] == ["a"]
        assert [path.suffix for path in data.glob("*.json")] == [".json"]
        assert (data / "a.json").read_bytes() == b"one"
        assert (data / "b").stat().st_size == len(LARGE)
        assert Checksum.of(data / "b").sha256 == hashlib.sha256(LARGE).hexdigest()
        assert list((folder / "none").glob("*")) == []
        for read in (lambda path: path.stat(), lambda path: path.read_bytes(), io.sha256_of_file):
            with pytest.raises(FileNotFoundError):
                read(data / "c")
    assert str(place / "data") == "s3://bucket/memories/notes/data"
    assert [name for name, _ in place.listed()] == ["data/a.json", "data/b"]


def test_what_is_there_is_not_written_again(place):
    assert (place / "a").write_new(b"one")
    assert not (place / "a").write_new(b"two")
    assert (place / "a").read_bytes() == b"one"
    place.remove(["a", "a"])
    assert not place.exists()


def test_a_failing_store_costs_one_line(place, monkeypatch):
    def fail(*_):
        raise GenericError("Generic S3 error: error 503\n\nDebug source: secret")

    monkeypatch.setattr("obstore.head", fail)
    with pytest.raises(MemoryStoreError) as raised:
        (place / "a").exists()
    assert str(raised.value) == (
        "s3://bucket/memories/notes/a cannot be reached: Generic S3 error: error 503; try again, or check the AWS_ "
        "variables"
    )


def test_checksums_are_one_object_a_commit(place):
    storage, first, second = ObjectStore(place), Checksum(1, "a"), Checksum(2, "b")
    assert storage.checksums() is None
    storage.record({"data/a": first})
    storage.record({"data/a": first})  # by somebody who found it unrecorded
    storage.record({"data/b": second})
    assert len([*(place / "_checksums").iterdir()]) == 2
    other = ObjectStore(place)
    assert other.checksums() == {"data/a": first, "data/b": second}
    assert (other.checksum("data/b"), other.checksum("data/c")) == (second, None)
    storage.record({"data/c": second})
    storage.keep_checksums({"data/b", "data/c"})
    assert len([*(place / "_checksums").iterdir()]) == 1
    assert other.checksums() == {"data/b": second, "data/c": second}


def test_what_is_committed_while_records_are_joined_stays_recorded(place):
    """By somebody else, after the files were listed and before the records were read."""
    storage, checksum = ObjectStore(place), Checksum(1, "a")
    storage.record({"data/gone": checksum, "data/old": checksum})
    (place / "data/old").write_new(b"a")
    listed = storage.files()
    (place / "data/new").write_new(b"b")
    ObjectStore(place).record({"data/new": checksum})
    storage.keep_checksums(listed)
    assert ObjectStore(place).checksums() == {"data/old": checksum, "data/new": checksum}


def test_a_damaged_record_is_as_none(place):
    storage = ObjectStore(place)
    storage.record({"data/a": Checksum(1, "a")})
    (file,) = (place / "_checksums").iterdir()
    content = file.read_bytes()
    (place / "_checksums").remove([file.name])
    assert file.write_new(content.replace(b"1", b"2"))
    assert ObjectStore(place).checksums() == {}


def test_of_two_who_find_a_dead_claimant_one_follows_it(place, monkeypatch):
    """Both have looked at the dead one's claim before either has claimed the version itself."""
    looked = object_store._is_given_up
    first, second = ObjectStore(place), ObjectStore(place)
    assert first._claim(2)
    claims = []

    def meanwhile(claim: ObjectPath) -> bool:
        monkeypatch.setattr(object_store, "_is_given_up", lambda claim: True)
        claims.append(second._claim(2))
        monkeypatch.setattr(object_store, "_is_given_up", looked)
        return True

    monkeypatch.setattr(object_store, "_is_given_up", meanwhile)
    with pytest.raises(MemoryStoreError, match="someone else is committing"):
        first._claim(2)
    assert len(claims) == 1
    assert {path.name for path in (place / "_claims").iterdir()} == set(claims[0])


def test_what_is_young_is_not_abandoned(place, monkeypatch):
    assert (place / "data/a").write_new(b"one")
    storage = ObjectStore(place)
    assert storage.files() == {"data/a"}
    assert storage.abandoned() == set()
    monkeypatch.setattr(object_store, "ABANDONED_AFTER", timedelta(seconds=-1))
    assert storage.abandoned() == {"data/a"}
    many = [f"data/{i}" for i in range(20)]
    assert storage.sizes([*many, "data/a"]) == storage.sizes(["data/a", "data/b"]) == {"data/a": 3}
    assert storage.remove(["data/a", "data/b"]) == 3


def test_its_local_folder_is_that_of_address_and_endpoint(place, home, monkeypatch):
    folders = {storage_of("s3://bucket/m").local, storage_of("s3://other/m").local, storage_of("s3://bucket/a/m").local}
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    folders.add(storage_of("s3://bucket/m").local)
    assert len(folders) == 4
    assert all(folder.parent == home / "objects" for folder in folders)


@pytest.mark.parametrize(
    "wrong", ["s3://", "s3://bucket", "s3://bucket/", "s3://B/x", "s3://bucket/a//b", "s3://b/../x"]
)
def test_addresses(wrong):
    with pytest.raises(InputError, match="give s3://BUCKET/NAME"):
        Memory.open(wrong)


def test_a_path_is_no_address():
    with pytest.raises(InputError, match="give it as text"):
        Memory.open(Path("s3://bucket/name"))


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    line = cli("index", "log", "s3://bucket/m").error()
    assert line.endswith(
        "s3://bucket/m cannot be opened without obstore; install it with `pip install 'latentrag[s3]'`"
    )


def test_other_addresses_are_refused_as_before():
    line = cli("index", "log", "gs://bucket/m").error()
    assert "nothing here opens gs://; needed a path, s3://…" in line
    assert "give s3://BUCKET/NAME" in cli("index", "log", "s3://bucket").error()
