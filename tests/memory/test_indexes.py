"""Every kind of index against brute force; what a query finds alone and in a batch; the file of vectors."""

import functools
import itertools
import os

import faiss
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latentrag.errors import IndexDamagedError
from latentrag.memory.indexes import ivf_rabitq
from latentrag.memory.indexes.building import cgroup_limits, plan
from latentrag.memory.indexes.flat import FlatIndex, revised
from latentrag.memory.indexes.index import Rows
from latentrag.memory.indexes.ivf_rabitq import Centroids, IvfRabitq, promises
from latentrag.memory.indexes.stored import VectorFile, vector_bytes, vector_records
from tests.memory.indexing import (
    STORED_KINDS,
    append,
    assert_found,
    built,
    drawn,
    look_everywhere,
    make_table,
    oracle,
    recall_at,
    rows_of,
)

few = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module", params=STORED_KINDS)
def made(request, tmp_path_factory):
    """An index of 3,000 vectors, and its rows."""
    table = make_table(tmp_path_factory.mktemp("made") / "m.lance", drawn(3_000, 40))
    return built(table, request.param), rows_of(table)


def queries(num: int, dimension: int, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((num, dimension)).astype(np.float32)


@few
@given(
    num_rows=st.integers(1, 60),
    dimension=st.integers(1, 9),
    largest=st.integers(0, 3),
    kind=st.sampled_from(STORED_KINDS),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_an_index_that_looks_at_everything_is_exact(tmp_path_factory, num_rows, dimension, largest, kind, seed, data):
    """Small whole numbers: many vectors are equal, most scores are shared by many rows, some vectors are zero."""
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-largest, largest + 1, (num_rows, dimension)).astype(np.float16)
    table = make_table(tmp_path_factory.mktemp("t") / "m.lance", vectors)
    q = rng.integers(-3, 4, (3, dimension)).astype(np.float32)
    assert_found(look_everywhere(built(table, kind)), rows_of(table), q, data.draw(st.integers(1, num_rows)))


def test_as_it_is_used_an_index_finds_nearly_everything(made):
    index, rows = made
    q = drawn(60, 40).astype(np.float32)  # of the same clusters
    for k, least in ((1, 0.97), (5, 0.97), (100, 0.85)):  # the 100 best lie in five clusters or more
        assert recall_at(index, [rows], q, k) >= least, k
        found, (_, scores) = index.search(q, k), oracle(rows, q, len(rows.row_ids))
        # Scores are exact whatever was found.
        for b in range(60):
            own = (found.vectors[b].astype(np.float64) * q[b]).sum(axis=1).astype(np.float32)
            assert np.array_equal(found.scores[b], own)
            assert np.isin(found.scores[b], scores[b]).all()
        assert (np.diff(found.scores, axis=1) <= 0).all()


def test_all_rows_can_be_asked_for(made):
    index, rows = made
    assert_found(index, rows, queries(1, 40), len(rows.row_ids))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_query_finds_the_same_alone_and_in_a_batch(made, threads, request):
    before = faiss.omp_get_max_threads()
    request.addfinalizer(lambda: faiss.omp_set_num_threads(before))
    faiss.omp_set_num_threads(threads)
    index, _ = made
    q = queries(40, 40)
    together = index.search(q, 10)
    for b in range(40):
        alone = index.search(q[b : b + 1], 10)
        assert np.array_equal(alone.row_ids[0], together.row_ids[b])
        assert np.array_equal(alone.scores[0], together.scores[b])


def test_every_kind_gives_a_passage_the_same_score(made):
    index, rows = made
    q = queries(5, 40)
    exact = FlatIndex.build([rows], 40).search(q, len(rows.row_ids))
    for b, hits in enumerate(zip(*index.search(q, 20), strict=True)):
        score_of = dict(zip(exact.row_ids[b].tolist(), exact.scores[b].tolist(), strict=True))
        assert [score_of[row] for row in hits[0].tolist()] == hits[2].tolist()


@pytest.mark.parametrize("size", [0.0, 1e-42, 1e-30, 1e30])
def test_queries_of_any_size(made, size):
    index, rows = made
    usual, found = (index.search(queries(2, 40) * np.float32(factor), 5) for factor in (1, size))
    if size in {1e-30, 1e30}:
        assert np.array_equal(found.row_ids, usual.row_ids)
    exact = FlatIndex.build([rows], 40).search(queries(2, 40) * np.float32(size), 5)
    assert np.isfinite(found.scores).all()
    assert (found.scores <= exact.scores).all()


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_rows_left_out_are_never_found_and_the_rest_still_is(made, share):
    index, rows = made
    gone = np.random.default_rng(1).random(len(rows.row_ids)) < share
    left = Rows(rows.row_ids[~gone], rows.vectors[~gone])
    kept = index.without(rows.row_ids[gone])
    q = drawn(30, 40).astype(np.float32)
    assert not np.isin(kept.search(q, 20).row_ids, rows.row_ids[gone]).any()
    assert recall_at(kept, [left], q, 5) >= 0.95
    assert_found(kept, left, q[:2], len(left.row_ids))
    assert len(index) == len(rows.row_ids)  # the index it was made from goes on as before


def test_an_exact_index_without_rows_is_exact():
    rows = Rows(10 * np.arange(400), np.random.default_rng(2).integers(-2, 3, (400, 6)).astype(np.float16))
    gone = np.random.default_rng(3).random(400) < 0.3
    kept = FlatIndex.build([rows], 6).without(rows.row_ids[gone])
    assert_found(kept, Rows(rows.row_ids[~gone], rows.vectors[~gone]), queries(4, 6).round(), 50)


def test_everything_removed_and_something_added(made):
    index, rows = made
    added = Rows(rows.row_ids[:7] + 10_000, rows.vectors[:7])
    assert_found(revised(index, rows.row_ids, added), added, queries(2, 40), 7)


def test_where_too_few_rows_are_proposed_all_are_read(made, monkeypatch):
    index, rows = made
    monkeypatch.setattr(type(index.proposer), "propose", lambda *_: np.arange(3))
    assert_found(index, rows, queries(2, 40), 9)


def topics_in_a_table(path, *, noise=0.7):
    """6,000 rows of 200 topics of unlike length: the index, its rows, 100 queries."""
    rng = np.random.default_rng(0)
    scale = np.arange(1, 33) ** -0.5
    topics = rng.standard_normal((200, 32)) * scale * np.exp(0.5 * rng.standard_normal((200, 1)))
    x = topics[rng.integers(200, size=6_000)] + noise * rng.standard_normal((6_000, 32)) * scale
    table = make_table(path, x.astype(np.float16))
    return built(table, "ivf-rabitq"), rows_of(table), x[::60].astype(np.float32)


def test_lists_are_chosen_for_the_best_row_they_may_hold(tmp_path):
    """By the centroids' own scores alone half of what is found here would be missed."""
    index, rows, q = topics_in_a_table(tmp_path / "m.lance")
    index.proposer.num_probes = 8
    with_bonuses = recall_at(index, [rows], q, 20)
    index.proposer.coarse = promises(index.proposer.centroids, np.zeros_like(index.proposer.bonuses))
    assert with_bonuses > recall_at(index, [rows], q, 20)


def test_lists_that_promise_too_little_are_left_out_and_nothing_is_lost(tmp_path, monkeypatch):
    index, rows, q = topics_in_a_table(tmp_path / "m.lance", noise=0.1)
    scan, looked_at = ivf_rabitq.IvfRabitq._scan, []

    def counted(self, turned, num, live, chosen):
        looked_at.append(len(chosen))
        return scan(self, turned, num, live, chosen)

    monkeypatch.setattr(ivf_rabitq.IvfRabitq, "_scan", counted)
    recall, lists = [], []
    for first in (ivf_rabitq.LOOKED_AT_FIRST, 1_000):
        monkeypatch.setattr(ivf_rabitq, "LOOKED_AT_FIRST", first)
        looked_at.clear()
        recall.append(recall_at(index, [rows], q, 5))
        lists.append(sum(looked_at))
    assert lists[0] < 0.7 * lists[1]
    assert recall[0] == recall[1] == 1


def test_candidates_are_the_best_of_all_lists_that_promise_enough(tmp_path):
    """Whichever are looked at first."""
    proposer = built(make_table(tmp_path / "m.lance", drawn(3_000, 40)), "ivf-rabitq").proposer
    assert isinstance(proposer, IvfRabitq)
    lists = np.arange(proposer.lists.nlist)
    at_most = np.full(len(lists), 1e30, np.float32)
    for num, q in itertools.product((1, 30, 500, 5_000), queries(8, 40)):
        scan = functools.partial(proposer._scan, proposer.rotation.apply(q[None]), num, None)
        expected = scan(lists)[1]
        found = proposer._candidates(scan, num, lists, at_most)
        assert sorted(found) == sorted(expected[expected >= 0])


def in_groups(monkeypatch, sample, num_lists):
    monkeypatch.setattr(ivf_rabitq, "MOST_IN_ONE", 10)
    return Centroids.trained(sample, num_lists, lambda *_: None)


def nearest_of_all(rows, centroids):
    return ((rows[:, None].astype(np.float64) - centroids[None]) ** 2).sum(axis=2)


def test_lists_in_groups_are_as_many_as_planned_and_nearly_as_near(monkeypatch):
    sample = drawn(3_000, 16).astype(np.float32)
    whole, grouped = Centroids.trained(sample, 90, lambda *_: None), in_groups(monkeypatch, sample, 90)
    assert len(whole.rows) == len(grouped.rows) == grouped.starts[-1] == 90
    assert len(whole.middles) == 1
    assert len(grouped.middles) == len(grouped.starts) - 1 == 9
    distances = {}
    for name, centroids in (("whole", whole), ("grouped", grouped)):
        far = nearest_of_all(sample, centroids.rows)
        found, chosen = centroids.nearest(sample)
        np.testing.assert_allclose(found, far[np.arange(len(sample)), chosen], rtol=1e-3, atol=1e-3)
        assert (chosen == far.argmin(axis=1)).mean() > (0.999 if name == "whole" else 0.97)
        distances[name] = found.mean()
    assert distances["grouped"] < 1.15 * distances["whole"]


def test_where_all_groups_are_near_the_nearest_list_is_found(monkeypatch):
    sample = drawn(2_000, 8).astype(np.float32)
    centroids = in_groups(monkeypatch, sample, 50)
    monkeypatch.setattr(ivf_rabitq, "GROUPS_LOOKED_AT", 100)
    far = nearest_of_all(sample, centroids.rows)
    np.testing.assert_allclose(centroids.nearest(sample)[0], far.min(axis=1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("num_different", [1, 3, 40])
def test_groups_of_few_different_vectors(monkeypatch, num_different):
    """Most groups have no row and get no list."""
    sample = drawn(num_different, 8).astype(np.float32)[np.arange(1_000) % num_different]
    centroids = in_groups(monkeypatch, sample, 200)
    assert len(centroids.rows) == centroids.starts[-1] == 200
    assert (np.diff(centroids.starts) > 0).all()
    distances, chosen = centroids.nearest(sample)
    assert distances.max() < 1e-3 if num_different < 40 else np.isfinite(distances).all()
    assert 0 <= chosen.min() <= chosen.max() < 200


@pytest.mark.parametrize("dimension", [1, 15, 16, 40])
def test_what_a_list_promises(dimension):
    """c·q + bonus·|q|, to bfloat16's eight bits, best first."""
    rng = np.random.default_rng(dimension)
    centroids, bonuses = rng.standard_normal((50, dimension), np.float32), rng.random(50, np.float32)
    q = rng.standard_normal(dimension, np.float32)
    index = promises(centroids, bonuses)
    asked = np.zeros((1, index.d), np.float32)
    asked[0, : dimension + 1] = [*q, np.linalg.norm(q)]
    promise, chosen = index.search(asked, 50)
    expected, size = centroids @ q + bonuses * np.linalg.norm(q), np.abs(centroids) @ np.abs(q) + np.linalg.norm(q)
    np.testing.assert_array_less(np.abs(promise[0] - expected[chosen[0]]), 2**-8 * size[chosen[0]])
    assert sorted(chosen[0]) == list(range(50))
    assert (np.diff(promise[0]) <= 0).all()


@pytest.mark.filterwarnings("ignore:the index ivf-rabitq finds")  # one bit of each of 16 numbers says little
def test_lists_are_not_emptied_by_long_vectors(tmp_path):
    """Assigned by inner product, as faiss does it, short vectors would all go to the lists of long ones."""
    vectors = drawn(3_000, 16)
    vectors[::2] *= np.float16(4)
    index = built(make_table(tmp_path / "m.lance", vectors), "ivf-rabitq")
    assert isinstance(index.proposer, IvfRabitq)
    lists = index.proposer.lists
    sizes = np.array([lists.get_list_size(i) for i in range(lists.nlist)])
    assert sizes.sum() == 3_000
    assert (sizes > 0).mean() > 0.9


def test_what_is_planned():
    assert ivf_rabitq.default_lists(1) == 1
    assert ivf_rabitq.default_lists(1_000_000) == 3_000
    assert ivf_rabitq.default_probes(1_000_000, 3_000) == 128
    of_wikipedia = plan("ivf-rabitq", 21_015_324, 768, max_memory=8 * 10**9)
    assert of_wikipedia.parameters == {"num_lists": 13_753, "num_probes": 274}
    assert 5e9 < of_wikipedia.ram_bytes < 6e9
    of_made = plan("ivf-rabitq", 21_000_000, 384)
    assert 3.28e9 < of_made.ram_bytes < 3.7e9  # the peak was 3.27 GB
    assert 34e9 < of_wikipedia.disk_bytes < 38e9


# The file of vectors


def written(path, rows: Rows) -> VectorFile:
    starts = range(0, len(rows.row_ids), 3)
    parts = [Rows(rows.row_ids[start : start + 3], rows.vectors[start : start + 3]) for start in starts]
    records = [
        vector_records(part.vectors, part.row_ids, first_position=start)
        for start, part in zip(starts, parts, strict=True)
    ]
    path.write_bytes(b"".join(records))
    return VectorFile(path, dimension=rows.vectors.shape[1], row_ids=rows.row_ids)


@pytest.mark.parametrize("dimension", [1, 3, 4, 5, 384])
def test_vectors_come_back_from_the_file(tmp_path, monkeypatch, dimension):
    rows = Rows(np.arange(11) * 7, np.random.default_rng(0).standard_normal((11, dimension)).astype(np.float16))
    file = written(tmp_path / "v", rows)
    assert (tmp_path / "v").stat().st_size == 11 * vector_bytes(dimension)
    positions = np.array([10, 0, 3, 3])
    assert np.array_equal(file.read(positions), rows.vectors[positions].astype(np.float32))
    monkeypatch.setattr("latentrag.memory.indexes.stored.BLOCK_BYTES", 4 * vector_bytes(dimension))
    blocks = list(file.blocks())
    assert [len(block.row_ids) for block in blocks] == [4, 4, 3]
    assert np.array_equal(np.concatenate([block.vectors for block in blocks]), rows.vectors)


@few
@given(place=st.integers(0, 12 * 24 - 1), change=st.integers(1, 255))
def test_any_wrong_byte_is_noticed_when_its_row_is_read_and_only_then(tmp_path_factory, place, change):
    rows = Rows(np.arange(12), np.random.default_rng(0).standard_normal((12, 7)).astype(np.float16))
    path = tmp_path_factory.mktemp("v") / "v"
    file = written(path, rows)
    data = bytearray(path.read_bytes())
    data[place] ^= change
    path.write_bytes(bytes(data))
    row = place // vector_bytes(7)
    others = np.delete(np.arange(12), row)
    assert np.array_equal(file.read(others), rows.vectors[others].astype(np.float32))
    with pytest.raises(IndexDamagedError, match=f"damaged in row {row}$"):
        file.read(np.arange(12))
    with pytest.raises(IndexDamagedError, match=f"damaged in row {row}$"):
        list(file.blocks())


def test_rows_in_each_others_place_are_noticed(tmp_path):
    rows = Rows(np.arange(4), np.random.default_rng(0).standard_normal((4, 8)).astype(np.float16))
    file = written(tmp_path / "v", rows)
    data, size = (tmp_path / "v").read_bytes(), vector_bytes(8)
    (tmp_path / "v").write_bytes(data[size : 2 * size] + data[:size] + data[2 * size :])
    with pytest.raises(IndexDamagedError):
        file.read(np.array([0]))
    zeros = written(tmp_path / "w", rows)
    (tmp_path / "w").write_bytes(bytes(len(data)))  # as after a power cut
    for row in range(4):
        with pytest.raises(IndexDamagedError):
            zeros.read(np.array([row]))


def test_a_file_of_the_wrong_size_is_noticed(tmp_path):
    rows = Rows(np.arange(4), np.ones((4, 8), np.float16))
    file = written(tmp_path / "v", rows)
    os.truncate(tmp_path / "v", 3 * vector_bytes(8) + 5)
    with pytest.raises(IndexDamagedError, match="ends early"):
        file.read(np.array([3]))
    with pytest.raises(IndexDamagedError, match="has 77 bytes, needed 96"):
        VectorFile(tmp_path / "v", dimension=8, row_ids=rows.row_ids)


def test_a_file_that_was_removed_stays_readable(tmp_path):
    rows = Rows(np.arange(4), np.ones((4, 8), np.float16))
    file = written(tmp_path / "v", rows)
    (tmp_path / "v").unlink()
    assert file.read(np.array([2])).sum() == 8


def test_recall_counts_what_is_found():
    rows = Rows(np.arange(100), np.diag(np.arange(1, 101, dtype=np.float16)))
    index = FlatIndex.build([rows], 100)
    q = np.ones((2, 100), np.float32)
    blocks = [Rows(rows.row_ids[:30], rows.vectors[:30]), Rows(rows.row_ids[30:], rows.vectors[30:])]
    assert recall_at(index, blocks, q, 10) == 1.0
    assert recall_at(index.without(np.array([99, 97])), blocks, q, 10) == 0.8


def test_rows_are_known_after_more_were_added(tmp_path):
    table = make_table(tmp_path / "m.lance", drawn(50, 8))
    more = append(table, drawn(50, 8, seed=1), prefix="q")
    assert len(built(table, "ivf-rabitq")) == 50
    assert len(built(more, "ivf-rabitq")) == 100


@pytest.mark.parametrize(
    ("groups", "files", "limits"),
    [
        ("0::/\n", {"sys/fs/cgroup/memory.max": "1000\n"}, [1000]),
        ("0::/a/b\n", {"sys/fs/cgroup/a/b/memory.max": "max\n", "sys/fs/cgroup/a/memory.max": "70"}, [70]),
        ("4:memory:/a\n0::/\n", {"sys/fs/cgroup/memory/a/memory.limit_in_bytes": "80\n"}, [80]),
        ("4:cpu,memory:/not/here\n", {"sys/fs/cgroup/memory/memory.limit_in_bytes": "90\n"}, [90]),
        ("3:cpu:/a\n", {"sys/fs/cgroup/a/memory.max": "70"}, []),
        ("0::/a:b\n", {}, []),
        (None, {"sys/fs/cgroup/memory.max": "1000\n"}, []),
    ],
)
def test_control_groups_bound_the_memory(tmp_path, groups, files, limits):
    """At the root of the tree, in a group below it, of version 1, in a container that sees its group as the root."""
    for name, text in {**files, **({} if groups is None else {"proc/self/cgroup": groups})}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert list(cgroup_limits(tmp_path)) == limits
