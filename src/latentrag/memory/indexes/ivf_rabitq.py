"""One bit a number in RAM, of which the most promising lists are looked at: for memories of a million passages.

RaBitQ (Gao and Long 2024) keeps of a vector the signs of its rotated residual from a centroid, and two numbers with
which d·q is estimated without bias: D/8 + 16 bytes a row with its position.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

import faiss
import numpy as np

from latentrag.errors import IndexDamagedError
from latentrag.memory.indexes.index import Kind, LiveRows, Plan, Progress

if TYPE_CHECKING:
    import numpy.typing as npt

    from latentrag.memory.indexes.stored import VectorFile

FAISS = "index.faiss"

BONUSES = "bonuses.f32"
MOST_LISTS = 65_536
SAMPLE_PER_LIST = 50
"""Rows that k-means sees for each centroid; faiss asks for 39 or more."""
LEAST_SAMPLE_PER_LIST = 16
MOST_IN_ONE = 4_096
"""Lists that k-means finds in one; more are found in groups: the time of both grows with the square of their number."""
SAMPLE_PER_GROUP = 256
GROUPS_LOOKED_AT = 4
"""Around a row, for its nearest list."""
ITERATIONS = 8
QUERY_BITS = 4
"""Bits of a query's numbers; with 8 the candidates are hardly better, and the search takes a third longer."""
DEVIATIONS = 2.0
"""How far above its centroid's score the best row of a list is expected, in standard deviations of a row's score."""
LOOKED_AT_FIRST = 16
"""Lists, after which those are left out that do not promise enough."""
MORE_DEVIATIONS = 2.5
"""A list is left out if its best row, that much better than expected, would still be no candidate."""
COMPARED = 1_000
"""Rows from which that deviation is learnt."""
USUAL_DIMENSION = 768
"""Where 2·K + 40 candidates hold almost all that is to be found in the lists looked at."""
SEED, SAMPLE_SEED = 0, 1
GROWTH = 2.0
"""Lists grow by doubling, and those of about one size double at about the same time."""
ROWS_PER_ADD = 16_384
WORK_BYTES = 72 << 20
"""Blocks of vectors in several forms at a time, and faiss's own (measured, ADR 6)."""
IN_A_REGISTER = 16
"""Numbers; faiss multiplies vectors whose dimension is no multiple of it one by one."""

_Scan = Callable[["npt.NDArray[np.int64]"], "tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]"]


def default_lists(num_rows: int) -> int:
    """3·√N, as long as k-means and choosing lists stay cheap beside the rest."""
    return max(1, min(round(3 * math.sqrt(num_rows)), MOST_LISTS, num_rows))


def default_probes(num_rows: int, num_lists: int) -> int:
    """Lists looked at: 128 of a million rows, some more of more."""
    return min(num_lists, max(64, round(128 * math.sqrt(math.sqrt(num_rows / 1e6)))))


def plan(num_rows: int, dimension: int, room_bytes: int) -> Plan:
    """What a build needs; where RAM is short it samples fewer rows."""
    num_lists = default_lists(num_rows)
    parameters = {"num_lists": num_lists, "num_probes": default_probes(num_rows, num_lists)}
    centroid_bytes, row_bytes = 8 * num_lists * dimension, 4 * dimension
    affordable = max(0, room_bytes - centroid_bytes - WORK_BYTES) // row_bytes
    least = min(num_rows, LEAST_SAMPLE_PER_LIST * num_lists)
    num_sampled = min(num_rows, max(least, min(SAMPLE_PER_LIST * num_lists, affordable)))
    code_bytes = int(GROWTH * num_rows * (dimension / 8 + 16)) + centroid_bytes
    ram_bytes = centroid_bytes + max(row_bytes * num_sampled, code_bytes) + WORK_BYTES
    return Plan(ram_bytes, code_bytes, parameters, num_sampled)


@dataclass(slots=True)
class IvfRabitq:
    """A faiss ``IndexIVFRaBitQ`` behind a rotation.

    faiss trains for inner products with normalised centroids and assigns by inner product, which fails where norms
    vary: long vectors gather in few lists. So: L2 k-means, rows assigned by L2, lists chosen for the best row they
    may hold. A row of list c with the residuals' root mean square ρ scores

        d·q ≈ c·q ± σ ρ |q|,  σ² = mean cos² between residuals and vectors,

    and lists are taken in the order of c·q + 2σρ|q|. Against c·q alone this loses up to half as many of the best.

    Attributes:
        centroids: (lists, D), rotated.
        bonuses: (lists,) 2σρ.
        coarse: finds the lists that promise most; see ``promises``.
        effort: multiplies the lists looked at and the candidates.
    """

    rotation: faiss.VectorTransform
    lists: faiss.IndexIVFRaBitQ
    centroids: npt.NDArray[np.float32]
    bonuses: npt.NDArray[np.float32]
    num_probes: int
    coarse: faiss.IndexScalarQuantizer
    effort: float = 1.0

    @classmethod
    def build(cls, vectors: VectorFile, plan: Plan, folder: Path, progress: Progress) -> None:
        """Train on a sample, add all vectors, write."""
        rotation, lists, centroids, bonus = _train(vectors, plan, progress)
        num_lists = lists.nlist
        squares = np.zeros(num_lists)  # Σ |d − c|²
        for block in vectors.blocks():
            for start in range(0, len(block.vectors), ROWS_PER_ADD):
                turned = rotation.apply(block.vectors[start : start + ROWS_PER_ADD].astype(np.float32))
                distances, chosen = centroids.nearest(turned)
                positions = np.arange(lists.ntotal, lists.ntotal + len(turned))
                lists.add_core(len(turned), *map(faiss.swig_ptr, (turned, positions, chosen)))
                squares += np.bincount(chosen, distances, minlength=num_lists)
            progress("adding vectors", lists.ntotal, len(vectors))
        whole = faiss.IndexPreTransform(rotation, lists)
        whole.ntotal = lists.ntotal
        write_faiss(whole, folder / FAISS)
        sizes = [lists.get_list_size(number) for number in range(num_lists)]
        deviations = np.sqrt(np.maximum(0.0, squares) / np.maximum(1, sizes))  # (lists,) ρ
        (folder / BONUSES).write_bytes((bonus * deviations).astype("<f4").tobytes())

    @classmethod
    def read(cls, folder: Path, *, num_rows: int, dimension: int, parameters: Mapping[str, int]) -> Self:
        """An index to search. Raises: IndexDamagedError."""
        if set(parameters) != {"num_lists", "num_probes"}:
            raise IndexDamagedError(folder / FAISS, f"has parameters {dict(parameters)}")
        file, num_lists = folder / FAISS, parameters["num_lists"]
        whole = read_faiss(file, faiss.IndexPreTransform, num_rows=num_rows, dimension=dimension)
        lists = faiss.downcast_index(whole.index)
        if not isinstance(lists, faiss.IndexIVFRaBitQ) or whole.chain.size() != 1 or lists.nlist != num_lists:
            raise IndexDamagedError(file, f"holds {type(lists).__name__}, needed {num_lists} lists behind a rotation")
        rotation = faiss.downcast_VectorTransform(whole.chain.at(0))
        rotation.whole = whole  # which owns both
        stored = faiss.downcast_index(lists.quantizer).get_xb()  # seen, not copied
        centroids = faiss.rev_swig_ptr(stored, num_lists * dimension).reshape(num_lists, dimension)
        bonuses = np.fromfile(folder / BONUSES, "<f4").astype(np.float32)
        if bonuses.shape != (num_lists,):
            raise IndexDamagedError(folder / BONUSES, f"holds {len(bonuses)} numbers, needed {num_lists}")
        return cls(rotation, lists, centroids, bonuses, parameters["num_probes"], promises(centroids, bonuses))

    def num_rescored(self, k: int) -> int:
        # An estimate's error falls as 1/√D. Of the part that grows with K more is needed than of the one for few.
        num = 2 * k * self.effort + 40 * math.sqrt(self.effort)
        return math.ceil(num * max(1.0, math.sqrt(USUAL_DIMENSION / self.lists.d)))

    def propose(self, q: npt.NDArray[np.float32], num: int, live: LiveRows | None) -> npt.NDArray[np.int64]:
        turned, norm = self.rotation.apply(q[None]), np.linalg.norm(q)
        asked = np.zeros((1, self.coarse.d), np.float32)
        asked[0, : len(q)], asked[0, len(q)] = turned[0], norm
        scatter = 1.0 if live is None else live.scatter
        probes = min(round(self.effort * scatter * self.num_probes), len(self.centroids))
        while True:
            promise, chosen = (part[0] for part in self.coarse.search(asked, probes))
            at_most = promise + MORE_DEVIATIONS / DEVIATIONS * norm * self.bonuses[chosen]
            positions = self._candidates(partial(self._scan, turned, num, live), num, chosen, at_most)
            if len(positions) == num or probes >= len(self.centroids):
                return positions
            probes = min(4 * probes, len(self.centroids))

    def _candidates(
        self, scan: _Scan, num: int, chosen: npt.NDArray[np.int64], at_most: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.int64]:
        """The ``num`` best positions in the lists chosen, or fewer.

        chosen: (probes,) lists, most promising first; at_most: (probes,) what the best row of each may score.
        """
        estimates, positions = scan(chosen[:LOOKED_AT_FIRST])
        worth = np.flatnonzero(at_most[LOOKED_AT_FIRST:] > estimates.min()) + LOOKED_AT_FIRST
        if len(worth):
            others = scan(chosen[worth])
            estimates, positions = np.append(estimates, others[0]), np.append(positions, others[1])
        ranked = positions[np.argsort(-estimates, kind="stable")[:num]]
        return ranked[ranked >= 0]  # faiss fills up with −1

    def _scan(
        self, turned: npt.NDArray[np.float32], num: int, live: LiveRows | None, chosen: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Estimates and positions of the ``num`` best in the lists chosen; the least number and −1 if there are fewer.

        turned: (1, D); chosen: (lists,).
        """
        wanted = faiss.IVFRaBitQSearchParameters(nprobe=len(chosen), qb=QUERY_BITS)
        if live is not None:
            wanted.sel = live.selector
        unused = np.zeros(len(chosen), np.float32)  # scores of centroids, which estimates from one bit do without
        estimates, positions = np.empty(num, np.float32), np.empty(num, np.int64)
        arrays = map(faiss.swig_ptr, (chosen, unused, estimates, positions))
        # faiss's Python method of this name without _c takes no parameters.
        self.lists.search_preassigned_c(1, faiss.swig_ptr(turned), num, *arrays, False, wanted, None)
        return estimates, positions


def promises(centroids: npt.NDArray[np.float32], bonuses: npt.NDArray[np.float32]) -> faiss.IndexScalarQuantizer:
    """A faiss index of (c, its bonus), whose inner products with (q, |q|) are what lists promise.

    In bfloat16: half of the bytes, all of which are read for every query, and as good for choosing 128 of 3,000.
    centroids: (lists, D); bonuses: (lists,).
    """
    num_lists, dimension = centroids.shape
    rows = np.zeros((num_lists, -(-(dimension + 1) // IN_A_REGISTER) * IN_A_REGISTER), np.float32)
    rows[:, :dimension], rows[:, dimension] = centroids, bonuses
    index = faiss.IndexScalarQuantizer(rows.shape[1], faiss.ScalarQuantizer.QT_bf16, faiss.METRIC_INNER_PRODUCT)
    index.add(rows)
    return index


@dataclass(frozen=True, slots=True)
class Centroids:
    """The lists' centroids, in groups, so that a row's nearest one is looked for in the groups around it alone.

    Attributes:
        rows: (lists, D), a group's next to each other.
        middles: (groups, D).
        starts: (groups + 1,) where each group's begin, and the end.
    """

    rows: npt.NDArray[np.float32]
    middles: npt.NDArray[np.float32]
    starts: npt.NDArray[np.int64]

    @classmethod
    def trained(cls, sample: npt.NDArray[np.float32], num_lists: int, progress: Progress) -> Self:
        """L2 k-means of the sample (n, D), n ≥ num_lists; above ``MOST_IN_ONE`` lists by k-means within groups, whose
        number of lists is their share of the sample."""
        if num_lists <= MOST_IN_ONE:
            return cls(_k_means(sample, num_lists, partial(progress, "training")), sample[:1], np.array([0, num_lists]))
        num_groups = round(math.sqrt(num_lists))
        few = sample[:: max(1, len(sample) // (num_groups * SAMPLE_PER_GROUP))]
        middles = _k_means(few, num_groups, partial(progress, "training groups"))
        group = faiss.knn(sample, middles, 1)[1][:, 0]  # (n,)
        sizes = np.bincount(group, minlength=num_groups)
        # A group has no more lists than rows; the running total is rounded, so that the numbers add up.
        ends = np.round(np.cumsum(sizes) * (num_lists / len(sample))).astype(np.int64)
        starts = np.append(0, ends)
        parts, members = [], np.argsort(group, kind="stable")
        for number, rows in enumerate(np.split(members, np.cumsum(sizes)[:-1])):
            if starts[number + 1] > starts[number]:
                parts.append(_k_means(sample[rows], int(starts[number + 1] - starts[number])))
            progress("training", number + 1, num_groups)
        used = starts[1:] > starts[:-1]
        return cls(np.concatenate(parts), middles[used], np.append(0, starts[1:][used]))

    def nearest(self, rows: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """|row − c|² (n,) and the number (n,) of the nearest centroid in the nearest groups. rows: (n, D)."""
        num_near = min(GROUPS_LOOKED_AT, len(self.middles))
        groups = faiss.knn(rows, self.middles, num_near)[1]  # (n, near)
        distances, chosen = np.full(len(rows), np.inf, np.float32), np.zeros(len(rows), np.int64)
        order = np.argsort(groups, axis=None, kind="stable")
        ends = np.cumsum(np.bincount(groups.ravel(), minlength=len(self.middles)))
        for number, places in enumerate(np.split(order, ends[:-1])):
            start, end = self.starts[number : number + 2]
            if not len(places):
                continue
            of = places // num_near
            found, which = (part[:, 0] for part in faiss.knn(rows[of], self.rows[start:end], 1))
            better = found < distances[of]
            distances[of[better]], chosen[of[better]] = found[better], which[better] + start
        return distances, chosen


def _train(
    vectors: VectorFile, plan: Plan, progress: Progress
) -> tuple[faiss.VectorTransform, faiss.IndexIVFRaBitQ, Centroids, np.float32]:
    """A rotation, empty lists, their centroids, and 2σ."""
    dimension, num_lists = vectors.dimension, plan.parameters["num_lists"]
    rotation = faiss.RandomRotationMatrix(dimension, dimension)
    rotation.init(SEED)
    chosen = _sampled(len(vectors), plan.num_sampled)
    sample = np.empty((len(chosen), dimension), np.float32)
    for start in range(0, len(chosen), ROWS_PER_ADD):
        sample[start : start + ROWS_PER_ADD] = rotation.apply(vectors.read(chosen[start : start + ROWS_PER_ADD]))
    centroids = Centroids.trained(sample, num_lists, progress)
    quantizer = faiss.IndexFlatIP(dimension)
    quantizer.add(centroids.rows)
    lists = faiss.IndexIVFRaBitQ(quantizer, dimension, num_lists, faiss.METRIC_INNER_PRODUCT)
    lists.train(sample[:1])  # the centroids are there; of a bit there is nothing to learn
    return rotation, lists, centroids, np.float32(DEVIATIONS * _spread(sample, centroids))


def _sampled(num_rows: int, num: int) -> npt.NDArray[np.int64]:
    """Positions, ascending, one at random from each of ``num`` equal parts."""
    within = np.random.default_rng(SAMPLE_SEED).random(num)
    return ((np.arange(num) + within) * (num_rows / max(1, num))).astype(np.int64).clip(max=num_rows - 1)


def _k_means(
    sample: npt.NDArray[np.float32], num_lists: int, progress: Callable[[int, int], None] | None = None
) -> npt.NDArray[np.float32]:
    """L2 centroids (num_lists, D). An iteration at a time, so that the caller can show progress, or stop."""
    told = progress or (lambda *_: None)
    told(0, ITERATIONS)
    dimension = sample.shape[1]
    centroids = sample[np.linspace(0, len(sample) - 1, num_lists).astype(np.int64)]  # they come in the table's order
    for number in range(ITERATIONS):
        clustering = faiss.Clustering(dimension, num_lists)
        clustering.niter, clustering.seed = 1, SEED
        clustering.min_points_per_centroid, clustering.max_points_per_centroid = 1, len(sample)
        faiss.copy_array_to_vector(centroids.ravel(), clustering.centroids)
        clustering.train(sample, faiss.IndexFlatL2(dimension))
        centroids = faiss.vector_to_array(clustering.centroids).reshape(num_lists, dimension)
        told(number + 1, ITERATIONS)
    return centroids


def _spread(sample: npt.NDArray[np.float32], centroids: Centroids) -> float:
    """σ: root mean square of the cosine between residuals of some rows and other rows, in place of queries."""
    rows = sample[np.linspace(0, len(sample) - 1, min(COMPARED, len(sample))).astype(np.int64)]
    residuals = rows - centroids.rows[centroids.nearest(rows)[1]]
    cosines = _unit(np.roll(rows, len(rows) // 2, axis=0)) @ _unit(residuals).T
    return float(np.sqrt((cosines**2).mean()))


def _unit(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: npt.NDArray[np.float32] = vectors / np.maximum(norms, np.finfo(np.float32).tiny)
    return scaled


def write_faiss(index: faiss.Index, path: Path) -> None:
    """Raises: OSError."""
    try:
        faiss.write_index(index, str(path))
    except RuntimeError as error:
        raise OSError(f"{path} cannot be written by faiss") from error


def read_faiss(path: Path, kind: type[faiss.Index], *, num_rows: int, dimension: int) -> faiss.Index:
    """The index of a class of faiss in a file whose checksum has been verified. Raises: IndexDamagedError."""
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:
        if not path.exists():
            raise FileNotFoundError(path) from error
        raise IndexDamagedError(path, "cannot be read by faiss") from error
    if not isinstance(index, kind) or (index.ntotal, index.d) != (num_rows, dimension):
        raise IndexDamagedError(
            path,
            f"holds {index.ntotal} rows of {index.d} in {type(index).__name__}, "
            f"needed {num_rows} of {dimension} in {kind.__name__}",
        )
    return index


IVF_RABITQ = Kind(plan, IvfRabitq)
