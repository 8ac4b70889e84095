"""Which shard holds which rows: all of them once, balanced, and mostly where they were."""

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from latentrag.cluster.division import EVERY_ROW, Division, divided
from latentrag.memory import Memory
from latentrag.memory.parts import Unit
from tests.memory.indexing import append, drawn, make_table

Files = dict[str, np.ndarray]


def ids_of(files: Files):
    """As a table finds the row ids of a unit."""

    def row_ids(unit: Unit) -> np.ndarray:
        first, stop = unit.cut or EVERY_ROW
        ids = files[unit.file]
        return ids[(ids >= first) & (ids < stop)]

    return row_ids


def division(files: Files, num_shards: int, before=()):
    units = divided({Unit(file): len(ids) for file, ids in files.items()}, ids_of(files), num_shards, before)
    held = [sorted(row for unit in shard for row in ids_of(files)(unit).tolist()) for shard in units]
    return units, held


@st.composite
def tables(draw) -> tuple[Files, Files]:
    """Two versions: some rows and files of the first are gone in the second, others are new."""
    row, before, after = 0, {}, {}
    for number in range(draw(st.integers(1, 6))):
        size = draw(st.integers(1, 40))
        ids = draw(st.permutations(range(row, row + size)))
        row += size
        kind = draw(st.sampled_from(["kept", "thinned", "gone", "new"]))
        if kind != "new":
            before[f"f{number}"] = np.array(ids)
        if kind != "gone":
            after[f"f{number}"] = np.array(ids[: size if kind != "thinned" else max(1, size // 2)])
    return before or {"f": np.arange(10)}, after or {"f": np.arange(10)}


@given(tables(), st.integers(1, 5))
def test_every_row_has_one_shard_and_shards_are_even(versions, num_shards):
    units = ()
    for files in (*versions, versions[0]):  # and back again
        units, held = division(files, num_shards, units)
        everything = np.sort(np.concatenate(list(files.values())))
        assert sorted(row for rows in held for row in rows) == everything.tolist()
        even = -(-len(everything) // num_shards)
        assert max(map(len, held)) <= max(even, int(even * 1.1))


def test_rows_stay_where_they_are():
    files = {f"f{number}": np.arange(number * 100, (number + 1) * 100) for number in range(8)}
    units, held = division(files, 4)
    again, _ = division(files, 4, units)
    assert again == units
    _, after = division({**files, "new": np.arange(900, 940)}, 4, units)
    moved = sum(len(set(was) - set(now)) for was, now in zip(held, after, strict=True))
    assert moved == 0
    assert sum(map(len, after)) == 840


def test_rows_that_are_deleted_come_back_with_the_version_that_has_them():
    """Even where none of a shard's range was left, and the shard had to give it away."""
    whole, other = np.arange(40), np.arange(100, 120)
    units, _ = division({"f": whole, "g": other}, 2)
    later, _ = division({"f": whole[:5], "g": other}, 2, units)
    _, held = division({"f": whole, "g": other}, 2, later)
    assert sorted(row for rows in held for row in rows) == [*whole, *other]


def test_a_division_is_the_same_after_json(path):
    import json

    table = append(make_table(path, drawn(50, 8)), drawn(7, 8, seed=1), prefix="r")
    memory = Memory(table)
    made = Division.of(memory, 3)
    assert Division.of_record(json.loads(json.dumps(made.as_record()))) == made
    assert sum(made.rows) == made.num_rows == 57
    assert max(made.rows) - min(made.rows) <= 1


def test_a_part_of_a_table_reads_as_its_rows(path):
    table = append(make_table(path, drawn(50, 8)), drawn(7, 8, seed=1), prefix="r")
    table = table.commit(removed_ids=["p3", "p30", "r2"], change="deleted")
    whole = {passage.id: row for passage, row in zip(table.passages(), row_ids(table), strict=True)}
    seen: list[str] = []
    for units in Division.of(Memory(table), 3).units:
        part = table.some(units)
        passages = list(part.passages())
        assert [whole[each.id] for each in passages] == row_ids(part)
        assert len(part) == len(passages)
        found = Memory(part).search(np.ones((1, 8), np.float32), len(part))
        assert {each.id for each in found.passages[0]} == {each.id for each in passages}
        assert Memory(part).get([passages[-1].id]) == passages[-1:]
        seen += [each.id for each in passages]
    assert sorted(seen) == sorted(whole)


def row_ids(table) -> list[int]:
    return table.row_ids(list(table.fragments().values())).tolist()
