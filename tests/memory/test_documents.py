"""Documents that are added to a memory again: what stayed keeps its ids and vectors, what is gone goes."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from latentrag.corpus import passages
from latentrag.errors import DataError
from latentrag.ids import id_of_part
from latentrag.memory import Memory, add
from latentrag.types import Passage
from tests.sync.conftest import CountingEncoder, Synced, checked_passages


def counted(num_words: int, mark: str) -> str:
    return " ".join(f"{mark}{i}" for i in range(num_words))


class Added:
    """A folder and the memory that its files are added to."""

    def __init__(self, place: Path) -> None:
        self.folder, self.path, self.encoder = place / "docs", place / "m.lance", CountingEncoder()
        self.folder.mkdir()

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def add(self, **options) -> Memory:
        self.encoder.texts.clear()
        return add(self.path, passages(self.folder), lambda: self.encoder, **options).memory

    def upsert(self) -> int:
        """Returns: how many passages were encoded."""
        self.encoder.texts.clear()
        Memory.open(self.path).upsert(passages(self.folder), self.encoder)
        return len(self.encoder.texts)

    def texts(self) -> dict[str, str]:
        return {key: z.text for key, z in checked_passages(self.path, self.encoder).items()}


@pytest.fixture
def added(tmp_path: Path) -> Added:
    return Added(tmp_path)


def test_upsert_removes_what_a_document_no_longer_has(added: Added) -> None:
    """From one passage to several, from several to fewer, and to none."""
    added.write("a.txt", counted(50, "old"))
    added.write("b.txt", counted(350, "old"))
    added.write("c.txt", counted(350, "old"))
    added.write("d.txt", "stays")
    added.add()
    added.write("a.txt", counted(150, "new"))
    added.write("b.txt", counted(120, "new"))
    added.write("c.txt", " ")
    assert added.upsert() == 4
    assert sorted(text.split()[0] for text in added.texts().values()) == ["new0", "new0", "new100", "new100", "stays"]
    log = Memory.open(added.path).log()
    assert log[-1].change == "added 4, replaced 1, removed 9"


def test_rows_whose_ids_look_like_parts_of_each_other_can_be_added_again(added: Added) -> None:
    rows = [f'{{"id": "{name}", "text": "text of {name}"}}\n' for name in ("a", "a#1", "b")]
    for order in (rows, rows[::-1]):
        added.write("rows.jsonl", "".join(order))
        memory = added.add(passages_per_commit=10)
        assert (memory.version, len(memory)) == (2, 3)
    assert added.upsert() == 0


def test_a_document_that_became_empty_is_all_that_is_there(added: Added) -> None:
    added.write("a.txt", "text")
    added.add()
    added.write("a.txt", "")
    assert added.upsert() == 0
    assert added.texts() == {}
    with pytest.raises(DataError, match="no passages in the input"):
        added.upsert()


def test_one_word_in_front_of_fifty_passages_encodes_one(added: Added) -> None:
    added.write("long.txt", counted(5_000, "z"))
    added.add()
    before = added.texts()
    added.write("long.txt", "one " + counted(5_000, "z"))
    assert added.upsert() == 1
    after = added.texts()
    assert len(before.items() & after.items()) == 49
    assert all(before[key] == after[key] for key in before.keys() & after.keys())
    assert added.upsert() == 0
    assert added.texts() == after
    version = Memory.open(added.path).version
    assert added.add(upsert=True, passages_per_commit=7).version == version


def test_the_cuts_are_those_of_a_sync(added: Added, tmp_path: Path) -> None:
    synced = Synced(tmp_path / "synced")
    for text in (counted(750, "z"), "x " + counted(300, "z") + " y " + counted(430, "z"), counted(90, "z")):
        added.write("a.txt", text)
        synced.write("a.txt", text)
        synced.sync()
        added.add(upsert=True)
        assert sorted(synced.texts().values()) == sorted(added.texts().values())


def test_without_upsert_a_changed_document_is_refused(added: Added) -> None:
    added.write("a.txt", counted(250, "z"))
    added.write("b.txt", "text")
    added.add()
    before = added.texts()
    for name, text in (("a.txt", "one " + counted(250, "z")), ("b.txt", "other")):
        old = (added.folder / name).read_text()
        added.write(name, text)
        for per_commit in (None, 1):
            with pytest.raises(DataError, match=rf"passage '{name}.*' is in the memory already; use upsert"):
                added.add(passages_per_commit=per_commit)
        added.write(name, old)
        assert added.texts() == before
    assert added.add(passages_per_commit=1).version == 2


def test_rows_without_ids_and_with(added: Added) -> None:
    added.write("own.jsonl", '{"id": "x", "text": "X"}\n{"id": "y", "text": "' + counted(150, "y") + '"}\n')
    added.write("rows.jsonl", '{"text": "one"}\n{"text": "two"}\n')
    added.add()
    added.write("own.jsonl", '{"id": "x", "text": "other"}\n{"id": "y", "text": "' + counted(60, "y") + '"}\n')
    added.write("rows.jsonl", '{"text": "zero"}\n{"text": "one"}\n')
    assert added.upsert() == 3
    assert added.texts() == {
        "x": "other",
        "y": counted(60, "y"),
        id_of_part("rows.jsonl:1", "zero"): "zero",
        "rows.jsonl:1": "one",
    }


def test_what_only_looks_like_a_part_of_a_document_stays(added: Added) -> None:
    """A row of another file."""
    added.write("own.jsonl", '{"id": "x", "text": "' + counted(150, "x") + '"}\n')
    memory = added.add()
    memory.add([Passage("x#1", "by hand", source="other.jsonl")], added.encoder)
    added.write("own.jsonl", '{"id": "x", "text": "X"}\n')
    added.upsert()
    assert added.texts() == {"x": "X", "x#1": "by hand"}


def test_passages_that_are_given_themselves_are_documents_of_their_own(added: Added) -> None:
    added.write("a.txt", counted(150, "z"))
    memory = added.add()
    first = next(key for key, text in added.texts().items() if text.startswith("z0 "))
    given: Sequence[Passage] = [Passage(first, "other")]
    memory.upsert(given, added.encoder)
    assert sorted(text.split()[0] for text in added.texts().values()) == ["other", "z100"]
