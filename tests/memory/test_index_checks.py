"""What `index verify` finds out about an index: its rows against the table's, its hits against exact search."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from latentrag.errors import InputError
from latentrag.memory import LocalDisk, Memory, history
from latentrag.memory.indexes import building, changes
from latentrag.memory.indexes.index import Hits, Rows, exact_best, recalls
from latentrag.memory.indexes.ivf_rabitq import IvfRabitq
from latentrag.memory.table import Table
from latentrag.memory.verify import ACCEPTED, Recall, verify
from latentrag.types import Passage
from tests.memory.indexing import STORED_KINDS, append, build, drawn, make_table, oracle, rows_of

NUM_ROWS = 300


@pytest.fixture
def table(path) -> Table:
    """Rows in several batches of the stream."""
    return make_table(path, drawn(NUM_ROWS, 16))


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(changes, "BATCH_BYTES", 1)


def build_wrong(table: Table, kind: str, monkeypatch, change) -> Path:
    """An index that was published as if it were the table's, with checksums that are right, of other rows."""

    def with_passages(of: Table):
        theirs: dict[int, Passage] = {}
        for rows, some in changes.stream_with_passages(of):
            theirs |= zip(rows.row_ids, some, strict=True)
        for rows in change(changes.stream(of)):
            yield rows, [theirs.get(row, Passage("", "")) for row in rows.row_ids]

    with monkeypatch.context() as patched:
        patched.setattr(building, "stream_with_passages", with_passages)
        patched.setattr(Table, "__len__", lambda of: sum(len(rows.row_ids) for rows in change(changes.stream(of))))
        return build(table, kind).folder


def found(path: Path, **options) -> list[str]:
    return [problem.what for problem in verify(path, **options).problems]


@pytest.mark.parametrize("kind", STORED_KINDS)
def test_an_index_that_is_right(path, table, kind):
    folder = build(table, kind).folder
    report = verify(path)
    assert (report.problems, report.notes) == ([], [])
    (checked,) = report.indexes
    assert (checked.folder, checked.kind, checked.built_version, checked.version) == (folder.name, kind, 2, 2)
    assert [(recall.k, recall.num_questions) for recall in checked.recall] == [(5, 200), (100, 200)]
    assert all(0.9 < recall.share <= 1 for recall in checked.recall)


def test_an_index_that_serves_another_version(path, table):
    build(table, "ivf-rabitq")
    newer = append(table, drawn(20, 16, seed=1), prefix="q").commit(None, removed_ids=["p3", "q4"], change="deleted")
    newer.compact(deleted_share=0.0)
    (checked,) = verify(path).indexes
    assert (checked.built_version, checked.version, checked.faults) == (2, 5, [])
    assert [recall.share for recall in checked.recall] == [1, 1]


def test_an_index_of_rows_that_a_compaction_has_moved(path, table):
    newer = append(table, drawn(20, 16, seed=1), prefix="q").commit(None, removed_ids=["p3"], change="deleted")
    last = newer.dataset.get_fragments()[-1].fragment_id
    build(newer.compact(deleted_share=0.0, keep=[last]), "ivf-rabitq")
    report = verify(path)
    assert (report.problems, report.notes) == ([], [])
    assert [recall.share for recall in report.indexes[0].recall] == [1, 1]


def lacking(batches):
    for rows in batches:
        keep = rows.row_ids != 7
        yield Rows(rows.row_ids[keep], rows.vectors[keep])


def with_a_stranger(batches):
    for rows in batches:
        yield rows
    yield Rows(np.array([900]), rows.vectors[:1])


def with_a_row_twice(batches):
    for rows in batches:
        yield rows
    yield Rows(rows.row_ids[-1:], rows.vectors[-1:])


def with_other_vectors(batches):
    for rows in batches:
        yield Rows(rows.row_ids, rows.vectors + np.float16(0.5))


@pytest.mark.parametrize("kind", STORED_KINDS)
@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lacking, "lacks 1 passages of version 2"),
        (with_a_stranger, "holds 1 passages that version 2 has not"),
        (with_a_row_twice, "has a row twice"),
        (with_other_vectors, "is damaged: {folder}/vectors.f16 belongs to another memory"),
    ],
)
def test_rows_that_are_not_the_tables(path, table, monkeypatch, kind, change, fault):
    folder = build_wrong(table, kind, monkeypatch, change)
    report = verify(path)
    (problem,) = report.problems
    assert problem.what == f"the index {folder.name} {fault.format(folder=folder)}"
    assert problem.remedy == (
        f"delete {path}/_indexes/{folder.name} and build it again with `latentrag index build {path} --index {kind}`"
    )
    assert report.indexes[0].recall == []  # of what is wrong anyway it says nothing


def test_a_passage_that_was_deleted_and_is_still_served(path, table, monkeypatch):
    """The index says that it was built after the deletion, and holds the row nevertheless."""
    before = table
    after = table.commit(None, removed_ids=["p7"], change="deleted")
    folder = build_wrong(after, "ivf-rabitq", monkeypatch, lambda _: changes.stream(before))
    assert found(path) == [f"the index {folder.name} holds 1 passages that version 3 has not"]


def test_an_index_that_finds_too_little(path, table, monkeypatch):
    """Every row is in it with its vector, and the worst are proposed."""
    folder = build(table, "ivf-rabitq").folder
    propose = IvfRabitq.propose
    monkeypatch.setattr(IvfRabitq, "num_rescored", lambda self, k: k)
    monkeypatch.setattr(IvfRabitq, "propose", lambda self, q, num, live: propose(self, -q, num, live))
    low = found(path)
    assert [what.split(" finds ")[0] for what in low] == [f"the index {folder.name}"] * 2
    assert low[0].endswith("of the 5 best passages, needed 98%")
    assert low[1].endswith("of the 100 best passages, needed 95%")
    assert found(path, num_questions=0) == []


def test_what_is_not_what_was_written_is_found_though_no_search_reads_it(path, table):
    folder = build(table, "ivf-rabitq").folder
    for name in ("vectors.f16", "passages.json"):
        file = folder / name
        whole = file.read_bytes()
        file.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
        (what,) = found(path, num_questions=0)
        assert what == f"the index {folder.name} is damaged: {file} is damaged in row {NUM_ROWS - 1}"
        file.write_bytes(whole)


@pytest.mark.parametrize("name", ["index.json", "index.faiss", "row_ids.i64", "vectors.f16", "passages.json"])
def test_damaged_files_are_problems_and_stay(path, table, name):
    file = build(table, "ivf-rabitq").folder / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    (what,) = found(path)
    assert name in what
    assert file.exists()


def test_the_served_version_is_the_one_that_counts(path, table, encoder):
    build(table, "ivf-rabitq")
    newer = table.commit(None, removed_ids=[f"p{i}" for i in range(200)], change="deleted")
    report = verify(path)
    (note,) = report.notes
    assert "is of version 2, from which too much has changed; version 3 does without" in note
    assert (report.problems, report.indexes[0].recall) == ([], [])
    history.serve(path, 2)
    report = verify(path)
    assert (report.version, report.indexes[0].version, report.notes) == (newer.version, 2, [])
    assert len(report.indexes[0].recall) == 2


def test_an_index_of_another_encoder_is_no_problem(path, encoder, make_encoder):
    memory = Memory.create(path, encoder).add([Passage(f"p{i}", f"text {i}") for i in range(9)], encoder)
    memory.build_index("ivf-rabitq")
    memory.reencode(make_encoder(8, "f2"))
    report = verify(path)
    assert report.problems == []
    assert "has the vectors of another encoder; version 3 does without" in report.notes[0]


def test_damaged_passages_are_no_measure(path, table):
    build(table, "ivf-rabitq")
    (name,) = (name for name in LocalDisk(path).files() if name.startswith("data/"))
    content = bytearray((path / name).read_bytes())
    content[40] ^= 1
    (path / name).write_bytes(bytes(content))
    report = verify(path)
    assert report.indexes == []
    assert any("1 indexes were not compared" in note for note in report.notes)


def test_the_sample_is_drawn_by_its_seed(path, table, monkeypatch):
    build(table, "ivf-rabitq")
    monkeypatch.setattr("latentrag.memory.indexes.ivf_rabitq.default_probes", lambda *_: 1)
    shares = [verify(path, num_questions=3, seed=seed).indexes[0].recall for seed in (0, 0, 1, 2, 3)]
    assert shares[0] == shares[1]
    assert shares[0][0].num_questions == 3
    with pytest.raises(InputError, match="give 0 or more"):
        verify(path, num_questions=-1)


def test_few_passages(path):
    build(make_table(path, drawn(3, 8)), "ivf-rabitq")
    (recall,) = verify(path).indexes[0].recall
    assert (recall.k, recall.num_questions, recall.share, recall.needed) == (3, 3, 1, ACCEPTED[5])


def test_an_unlucky_sample_is_no_finding():
    recall = Recall(k=5, share=0.93, standard_error=0.011, num_questions=9, needed=0.95)
    assert not recall.is_low
    assert replace(recall, standard_error=0.009).is_low


def test_recall_against_the_oracle(path, table):
    rows, q = rows_of(table), drawn(7, 16, seed=3).astype(np.float32)
    scores = oracle(rows, q, 20)[1]
    assert np.allclose(exact_best([rows], q, 20), scores, rtol=1e-5)
    assert np.allclose(exact_best(changes.stream(table), q, 20), scores, rtol=1e-5)

    class Half:
        """Finds the best, and every other one after it."""

        kind = "half"

        def __len__(self) -> int:
            return len(rows.row_ids)

        def passages(self, row_ids):
            return {}

        def vectors_of(self, row_ids):
            raise AssertionError("recall needs scores alone")

        def only(self, row_ids):
            return self

        def search(self, q, k):
            row_ids, scores = oracle(rows, q, 2 * k)
            return Hits(row_ids[:, ::2], np.empty((len(q), k, 0), np.float32), scores[:, ::2])

    shares = recalls(Half(), exact_best(changes.stream(table), q, 10), q, [5, 10])
    assert {k: share.tolist() for k, share in shares.items()} == {5: [0.6] * 7, 10: [0.5] * 7}
