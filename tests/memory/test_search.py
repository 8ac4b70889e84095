"""Exact search: against brute force, on ties, at the limits, from many threads."""

from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentrag.errors import InputError, MemoryStoreError, ShapeError
from latentrag.memory import Memory
from latentrag.memory.indexes.flat import SPARE_CANDIDATES, FlatIndex
from latentrag.memory.indexes.index import Rows
from latentrag.types import Passage


def brute_force(vectors: np.ndarray, q: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and scores of the K best of (N, D) fp16 vectors, equal scores in the order of the rows."""
    scores = (vectors.astype(np.float64) @ q.astype(np.float64).T).T.astype(np.float32)
    rows = np.stack([np.lexsort((np.arange(len(vectors)), -row))[:k] for row in scores])
    return rows, np.take_along_axis(scores, rows, axis=1)


def build(vectors: np.ndarray, rows_per_batch: int = 7) -> FlatIndex:
    """An index whose row ids are 10 × the row, filled in several batches."""
    ids = 10 * np.arange(len(vectors))
    starts = range(0, len(vectors), rows_per_batch)
    batches = (Rows(ids[s : s + rows_per_batch], vectors[s : s + rows_per_batch]) for s in starts)
    return FlatIndex.build(batches, vectors.shape[1])


@settings(max_examples=60, deadline=None)
@given(
    num_rows=st.integers(1, 80),
    dimension=st.integers(1, 9),
    largest=st.integers(0, 3),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_ties_are_broken_by_row(num_rows, dimension, largest, seed, data):
    """Small whole numbers: sums are exact in float32 and most scores are shared by many rows."""
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-largest, largest + 1, (num_rows, dimension)).astype(np.float16)
    q = rng.integers(-3, 4, (4, dimension)).astype(np.float32)
    k = data.draw(st.integers(1, num_rows))
    rows, scores = brute_force(vectors, q, k)
    hits = build(vectors).search(q, k)
    assert np.array_equal(hits.row_ids, 10 * rows)
    assert np.array_equal(hits.scores, scores)
    assert np.array_equal(hits.vectors, vectors[rows].astype(np.float32))


def test_more_equal_rows_than_candidates():
    vectors = np.ones((20 * SPARE_CANDIDATES, 4), np.float16)
    vectors[3] = 0.5
    hits = build(vectors).search(np.ones((2, 4), np.float32), 5)
    assert hits.row_ids.tolist() == [[0, 10, 20, 40, 50]] * 2


@pytest.fixture
def matrix_products(monkeypatch):
    """Let faiss score small cases as it scores large ones, by a matrix product."""
    monkeypatch.setattr(faiss.cvar, "distance_compute_blas_threshold", 1)


@pytest.mark.usefixtures("matrix_products")
def test_equal_vectors_score_equally_wherever_they_stand():
    """The last bits of a matrix product depend on the place in the matrix; ours do not."""
    rng = np.random.default_rng(1)
    vectors = np.repeat(rng.standard_normal((1, 771)).astype(np.float16), 53, axis=0)
    hits = build(vectors, rows_per_batch=53).search(rng.standard_normal((64, 771)).astype(np.float32), 53)
    assert (hits.row_ids == 10 * np.arange(53)).all()
    assert (hits.scores == hits.scores[:, :1]).all()


@pytest.mark.usefixtures("matrix_products")
def test_a_query_finds_the_same_alone_and_in_a_batch():
    rng = np.random.default_rng(2)
    index = build(rng.standard_normal((3000, 384)).astype(np.float16), rows_per_batch=1000)
    q = rng.standard_normal((40, 384)).astype(np.float32)
    together = index.search(q, 10)
    for b in range(40):
        alone = index.search(q[b : b + 1], 10)
        assert np.array_equal(alone.row_ids[0], together.row_ids[b])
        assert np.array_equal(alone.scores[0], together.scores[b])


@pytest.mark.parametrize("k", [1, 5, 200])
def test_a_memory_finds_what_brute_force_finds(path, make_encoder, k):
    encoder = make_encoder(64)
    passages = [Passage(f"p{i}", f"text {i % 190}") for i in range(200)]  # ten texts, and vectors, come twice
    memory = Memory.create(path, encoder).add(passages, encoder)
    vectors = np.stack([encoder.vector(passage.text) for passage in passages]).astype(np.float16)
    q = np.random.default_rng(3).standard_normal((5, 64)).astype(np.float32)

    rows, scores = brute_force(vectors, q, k)
    found = memory.search(q, k)
    assert found.passages == [[passages[row] for row in per_query] for per_query in rows]
    assert np.array_equal(found.vectors, vectors[rows].astype(np.float32))
    # Both are float64 sums rounded to float32; their orders of summation differ, hence one last bit at most.
    assert np.allclose(found.scores, scores, rtol=1.2e-7, atol=0)
    assert found.vectors.dtype == found.scores.dtype == np.float32
    assert found.version == 2
    assert (np.diff(found.scores, axis=1) <= 0).all()


def test_limits_of_k(filled, queries):
    assert [len(row) for row in filled.search(queries, 12).passages] == [12, 12, 12]
    with pytest.raises(InputError, match=r"^k=50 exceeds the memory's 12 passages; lower k or add passages$"):
        filled.search(queries, 50)
    for k in (0, -1):
        with pytest.raises(InputError, match=f"k={k} passages cannot be retrieved; choose 1 or more"):
            filled.search(queries, k)


@pytest.mark.parametrize("shape", [(8,), (2, 7), (0, 8), (1, 2, 8)])
def test_queries_of_a_wrong_shape(filled, shape):
    with pytest.raises(ShapeError, match=r"needed \(B, 8\) with B of 1 or more; .*belongs to fake"):
        filled.search(np.zeros(shape, np.float32), 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_queries_that_are_not_finite(filled, queries, bad):
    queries[1, 2] = bad
    with pytest.raises(InputError, match="not finite; check the query encoder"):
        filled.search(queries, 1)


def test_an_empty_memory_cannot_be_searched(path, encoder, queries):
    with pytest.raises(MemoryStoreError, match=r"no passages at version 1; add some with `latentrag index add"):
        Memory.create(path, encoder).search(queries, 1)


def test_search_from_many_threads_while_a_writer_commits(path, encoder, filled):
    q = np.random.default_rng(4).standard_normal((32, 8)).astype(np.float32)
    expected = [Memory.open(path).search(q[b : b + 1], 4) for b in range(32)]
    fresh = Memory.open(path)  # its index is not built yet: the threads race for it
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(fresh.search, q[b : b + 1], 4) for b in range(32)]
        newest = filled.delete(["p0"]).upsert([Passage("p1", "changed")], encoder)
        found = [future.result() for future in futures]
    assert newest.version == 4
    for mine, right in zip(found, expected, strict=True):
        assert mine.passages == right.passages
        assert np.array_equal(mine.scores, right.scores)
        assert mine.version == 2
