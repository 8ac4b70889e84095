"""Named values of passages: kept, given back, compared, pushed; memories from before them."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from latentrag.errors import DataError
from latentrag.memory import Memory
from latentrag.memory import table as table_module
from latentrag.memory.exchange import pull, push
from latentrag.memory.schema import schema
from latentrag.memory.verify import verify
from latentrag.types import Passage, Scalar

FIELDS: dict[str, Scalar] = {
    "author": 'Zoë "Z" O\'Hara',
    "year": 1984,
    "score": 0.1,
    "draft": False,
    "": "東京\n",
    "large": 2**70,
}
PASSAGES = [Passage("a", "one", fields=FIELDS), Passage("b", "two"), Passage("c", "three", fields={"year": -1})]


@pytest.fixture
def without_column(monkeypatch) -> Callable[[], None]:
    """Tables are made as before there were fields."""

    def old(card):
        columns = schema(card)
        return pa.schema([column for column in columns if column.name != "fields"], metadata=columns.metadata)

    monkeypatch.setattr(table_module, "schema", old)
    return monkeypatch.undo


def test_they_come_back_with_their_types(path, encoder):
    Memory.create(path, encoder).add(PASSAGES, encoder)
    memory = Memory.open(path)
    assert list(memory.passages()) == PASSAGES
    assert memory.get(["c", "a"]) == [PASSAGES[2], PASSAGES[0]]
    (found,) = memory.search(np.stack([encoder.vector("one")]), 3).passages
    assert sorted(found, key=lambda z: z.id) == PASSAGES
    kinds = {name: type(value) for name, value in memory.get(["a"])[0].fields.items()}
    assert kinds == {name: type(value) for name, value in FIELDS.items()}


def test_through_an_index_and_a_compaction(path, encoder):
    many = [Passage(f"p{i}", f"text {i}", fields={"i": i} if i % 2 else {}) for i in range(60)]
    memory = Memory.create(path, encoder).add(many, encoder)
    memory.build_index("ivf-rabitq")
    found = Memory.open(path).search(np.stack([encoder.vector("text 7")]), 60).passages[0]
    assert sorted(found, key=lambda z: int(z.id[1:])) == many
    assert verify(path).problems == []
    after = memory.delete(["p3"])
    assert list(after.reencode(encoder).passages()) == [z for z in many if z.id != "p3"]


def test_another_value_is_a_change(path, encoder):
    before = Memory.create(path, encoder).add(PASSAGES, encoder)
    after = before.upsert([Passage("c", "three", fields={"year": 1}), Passage("b", "two")], encoder)
    assert before.diff(after).changed == ["c"]
    assert after.diff(before).changed == ["c"]
    assert after.get(["c"])[0].fields == {"year": 1}


def test_push_and_pull(path, encoder, tmp_path):
    Memory.create(path, encoder).add(PASSAGES, encoder)
    push(path, str(tmp_path / "out"))
    assert list(pull(str(tmp_path / "out"), tmp_path / "in.lance").passages()) == PASSAGES


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, ["a"], {"a": 1}, b"bytes"])
def test_what_is_no_value_is_refused(path, encoder, value):
    memory = Memory.create(path, encoder)
    with pytest.raises(DataError, match="one of 'a' to 'a' cannot be stored"):
        memory.add([Passage("a", "one", fields={"x": value})], encoder)
    assert Memory.open(path).version == 1


def test_a_memory_from_before_them_gets_the_column_with_the_first_that_has_some(path, encoder, without_column):
    memory = Memory.create(path, encoder).add([Passage("old", "text", "title", page=3)], encoder)
    without_column()
    assert "fields" not in Memory.open(path).table.dataset.schema.names
    memory = Memory.open(path).add([Passage("plain", "text 2")], encoder)
    assert memory.version == 3  # nothing to be made ready
    memory = memory.add(PASSAGES, encoder)
    assert [version.change for version in memory.log()[3:]] == ["made ready for fields", "added 3"]
    expected = [Passage("old", "text", "title", page=3), Passage("plain", "text 2"), *PASSAGES]
    assert list(Memory.open(path).passages()) == expected
    assert Memory.open(path).get(["a", "old"]) == [PASSAGES[0], expected[0]]
    assert list(Memory.open(path, version=3).passages()) == expected[:2]
    assert verify(path).problems == []
    again = memory.upsert([Passage("old", "text", "title", page=3, fields={"x": 1})], encoder)
    assert again.get(["old"])[0].fields == {"x": 1}


def test_fields_late_in_an_addition_to_such_a_memory(monkeypatch, path, encoder, without_column):
    """Rows that were put before them are written without the column, and are in the same version."""
    Memory.create(path, encoder)
    without_column()
    monkeypatch.setattr("latentrag.memory.writer.PASSAGES_PER_ENCODING", 2)
    given = [Passage(f"p{i}", f"text {i}", fields={"i": i} if i > 3 else {}) for i in range(7)]
    memory = Memory.open(path).add(iter(given), encoder)
    assert list(memory.passages()) == given
    assert memory.version == 3
    assert verify(path).problems == []


def test_what_was_pushed_before_them_can_be_pulled(path, encoder, tmp_path, monkeypatch):
    from latentrag.memory import exchange

    Memory.create(path, encoder).add([Passage("a", "one", origin="notes/a.txt")], encoder)
    with monkeypatch.context() as patch:
        patch.setattr(exchange, "schema", lambda card: pa.schema([c for c in schema(card) if c.name != "fields"]))
        push(path, str(tmp_path / "out"))
    assert list(pull(str(tmp_path / "out"), tmp_path / "in.lance").passages()) == list(Memory.open(path).passages())
