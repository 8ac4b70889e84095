"""BM25 over the words of passages and over parts of words: postings, and the best passages without a scan of all.

    BM25(x,z) = Σ_{w in x} log(1 + (N − n_w + ½)/(n_w + ½)) · f / (f + k1·(1 − b + b·|z|/mean|z|))

with k1 = 1.5 and b = 0.75: Lucene's variant. f counts the term w in z's title and text, n_w the passages that hold it,
|z| the terms of z; a term that comes twice in x counts twice. Words and parts (``latentrag.words.terms``) are scored
among themselves, and both sums are added.

A segment holds what does not change when other passages come and go: counts and lengths. N, n_w and mean|z| are those
of the passages that are searched, so a passage has the score that an index built at once would give it.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from latentrag.types import Passage
from latentrag.words import terms

if TYPE_CHECKING:
    import numpy.typing as npt

    Ints = npt.NDArray[np.int32]
    Longs = npt.NDArray[np.int64]
    Floats = npt.NDArray[np.float64]

K1, B = 1.5, 0.75
STOP_WORDS = frozenset(
    """a an and are as at be but by for if in into is it no not of on or such that the their then there these they this
    to was will with""".split()
)
"""Lucene's, which are in no index: as words, and as letters that stand alone."""


@dataclass(frozen=True, slots=True, eq=False)
class Postings:
    """In which of n passages, numbered from 0, terms stand.

    Attributes:
        terms: (bytes,) uint8, the T terms in UTF-8, in ascending order, one behind the other.
        term_ends: (T,) where each of them ends.
        ends: (T,) where the postings of each end.
        places: (P,) numbers of passages, ascending for each term.
        counts: (P,) how often the term is there.
        lengths: (n,) how many terms each passage has.
    """

    terms: npt.NDArray[np.uint8]
    term_ends: Longs
    ends: Longs
    places: Ints
    counts: Ints
    lengths: Ints

    def __len__(self) -> int:
        """T."""
        return len(self.ends)

    def __getitem__(self, number: int) -> bytes:
        """The term with this number."""
        start = self.term_ends[number - 1] if number else 0
        return self.terms[start : self.term_ends[number]].tobytes()

    def all_terms(self) -> list[bytes]:
        """In ascending order."""
        return [self[number] for number in range(len(self))]

    def of(self, term: bytes) -> tuple[Ints, Ints]:
        """The passages that hold a term, and how often each does: both empty if none does."""
        number = bisect_left(self, term)
        if number == len(self) or self[number] != term:
            return self.places[:0], self.counts[:0]
        start = self.ends[number - 1] if number else 0
        return self.places[start : self.ends[number]], self.counts[start : self.ends[number]]

    @classmethod
    def made_of(cls, vocabulary: Mapping[bytes, int], numbers: Longs, places: Longs, num_passages: int) -> Postings:
        """
        Args:
            numbers, places: (n,) of every occurrence of a term its number in the vocabulary and its passage.
        """
        ordered = sorted(vocabulary)
        ranks = np.empty(len(ordered), np.int64)
        ranks[[vocabulary[term] for term in ordered]] = np.arange(len(ordered))
        keys, counts = np.unique(ranks[numbers] * max(1, num_passages) + places, return_counts=True)
        of_terms, of_places = np.divmod(keys, max(1, num_passages))
        return cls(
            np.frombuffer(b"".join(ordered), np.uint8),
            np.cumsum([len(term) for term in ordered], dtype=np.int64),
            np.searchsorted(of_terms, np.arange(len(ordered)), side="right"),
            of_places.astype(np.int32),
            counts.astype(np.int32),
            np.bincount(places, minlength=num_passages).astype(np.int32),
        )


KINDS = ("words", "parts")


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Postings of n passages.

    Attributes:
        row_ids: (n,) whatever names them.
        words, parts: their terms, as ``latentrag.words.Terms`` has them.
    """

    row_ids: Longs
    words: Postings
    parts: Postings

    def __len__(self) -> int:
        return len(self.row_ids)

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """All of it by name."""
        found: dict[str, npt.NDArray[np.generic]] = {"row_ids": self.row_ids}
        for kind in KINDS:
            postings = getattr(self, kind)
            found |= {f"{kind}.{name}": getattr(postings, name) for name in Postings.__slots__}
        return found

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, npt.NDArray[np.generic]]) -> Segment:
        """What ``arrays`` gave. Raises: KeyError for one that is missing."""
        kinds = [Postings(**{name: arrays[f"{kind}.{name}"] for name in Postings.__slots__}) for kind in KINDS]  # type: ignore[arg-type]
        return cls(arrays["row_ids"], *kinds)  # type: ignore[arg-type]


def segment_of(passages: Iterable[Passage], row_ids: Longs | None = None) -> Segment:
    """The segment of these passages.

    Args:
        row_ids: (n,); None: their places.
    """
    gathered, number = [_Gathered() for _ in KINDS], 0
    for passage in passages:
        found = terms(f"{passage.title} {passage.text}")
        for each, of_kind in zip(gathered, found, strict=True):
            each.add(of_kind, number)
        number += 1
    rows = np.arange(number) if row_ids is None else row_ids
    return Segment(rows, *(each.postings(number) for each in gathered))


class _Gathered:
    """Occurrences of terms, which are numbered in the order in which they were first seen."""

    def __init__(self) -> None:
        self._vocabulary: defaultdict[str, int] = defaultdict()
        self._vocabulary.default_factory = self._vocabulary.__len__
        self._numbers: list[Ints] = []
        self._places: list[int] = []

    def add(self, found: Iterable[str], place: int) -> None:
        """Those of a passage."""
        numbers = [self._vocabulary[term] for term in found if term not in STOP_WORDS]
        if numbers:
            self._numbers.append(np.array(numbers, np.int32))
            self._places.append(place)

    def postings(self, num_passages: int) -> Postings:
        numbers = np.concatenate([np.empty(0, np.int32), *self._numbers]).astype(np.int64)
        places = np.repeat(np.array(self._places, np.int64), [len(each) for each in self._numbers])
        return Postings.made_of(
            {_encoded(term): number for term, number in self._vocabulary.items()}, numbers, places, num_passages
        )


def _encoded(term: str) -> bytes:
    return term.encode(errors="surrogatepass")  # half a surrogate pair, which JSON can hold


def joined(segments: Sequence[Segment]) -> Segment:
    """One segment with the passages of several, in their order."""
    kinds = []
    for kind in KINDS:
        of_kind: list[Postings] = [getattr(segment, kind) for segment in segments]
        vocabulary: dict[bytes, int] = {}
        numbers, places, first = [np.empty(0, np.int64)], [np.empty(0, np.int64)], 0
        for postings in of_kind:
            own = np.array([vocabulary.setdefault(term, len(vocabulary)) for term in postings.all_terms()], np.int64)
            of_postings = np.repeat(own, np.diff(postings.ends, prepend=0))
            numbers.append(np.repeat(of_postings, postings.counts))
            places.append(np.repeat(first + postings.places.astype(np.int64), postings.counts))
            first += len(postings.lengths)
        kinds.append(Postings.made_of(vocabulary, np.concatenate(numbers), np.concatenate(places), first))
    return Segment(np.concatenate([segment.row_ids for segment in segments]), *kinds)


# Files

FORMAT = "latentrag.words.1"
"""To be changed with the layout of a file and with ``words.terms``: segments of another format are made again."""
_ALIGNED = 8


def write(segment: Segment, path: Path, *, metadata: Mapping[str, str]) -> None:
    """A segment as a file of safetensors."""
    from safetensors.numpy import save_file

    arrays = {name: np.ascontiguousarray(array) for name, array in segment.arrays().items()}
    save_file(arrays, path, {"format": FORMAT, **metadata})


def metadata_of(path: Path) -> dict[str, str]:
    """What ``write`` got, and "format". Raises: ValueError for another file; OSError."""
    return {str(name): str(value) for name, value in _header(path)[0].pop("__metadata__", {}).items()}


def read(path: Path) -> Segment:
    """A segment whose arrays stay in the file until they are read. Raises: ValueError for another file; OSError."""
    header, start = _header(path)
    if header.pop("__metadata__", {}).get("format") != FORMAT:
        raise ValueError(f"{path} has another format")
    content, arrays = np.memmap(path, np.uint8, mode="r"), {}
    try:
        for name, tensor in header.items():
            begin, end = (start + offset for offset in tensor["data_offsets"])
            number_format = _FORMATS[tensor["dtype"]]
            arrays[name] = np.frombuffer(content[begin:end], number_format).reshape(tensor["shape"])
        return Segment.of_arrays(arrays)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} has another format") from error


_FORMATS: Mapping[str, str] = {"U8": "u1", "I32": "<i4", "I64": "<i8"}


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """Of a file of safetensors, and where its arrays begin."""
    with path.open("rb") as stream:
        size = int.from_bytes(stream.read(_ALIGNED), "little")
        header = json.loads(stream.read(min(size, 1 << 20)))
    if not isinstance(header, dict):
        raise ValueError(f"{path} has another format")  # noqa: TRY004  its content is wrong, not a type
    return header, _ALIGNED + size


# Searching


class Found(NamedTuple):
    """Passages by place (m,), and their scores (m,)."""

    places: Longs
    scores: npt.NDArray[np.generic]


class _Term(NamedTuple):
    """A term of a question in the passages that are searched: ``places`` and counts of each segment."""

    kind: int
    idf: float
    postings: list[tuple[int, Ints, Ints]]


class WordIndex:
    """BM25 of N passages that lie in segments. It never changes; safe for concurrent searches.

    A place counts all passages of all segments, in their order.

    Args:
        segments: each with a mask (n,) of its passages that are searched; None: all are.
    """

    def __init__(self, segments: Sequence[tuple[Segment, npt.NDArray[np.bool_] | None]]) -> None:
        self._segments = [segment for segment, _ in segments]
        self._masks = [mask for _, mask in segments]
        self._starts = np.cumsum([0, *map(len, self._segments)])
        rows = [np.empty(0, np.int64), *(segment.row_ids for segment in self._segments)]
        self.row_ids: Longs = rows[1] if len(rows) == 2 else np.concatenate(rows)
        self._num = sum(len(s) if mask is None else int(np.count_nonzero(mask)) for s, mask in segments)
        self._mean_lengths = [self._mean_length(kind) for kind in KINDS]
        self._by_row: tuple[Longs, Longs] | None = None  # rows ascending, and their places, once one was looked for

    def __len__(self) -> int:
        """N."""
        return self._num

    def _mean_length(self, kind: str) -> float:
        total = 0
        for segment, mask in zip(self._segments, self._masks, strict=True):
            lengths = getattr(segment, kind).lengths
            total += int((lengths if mask is None else lengths[mask]).sum(dtype=np.int64))
        return total / max(1, self._num)

    def places_of(self, row_ids: Longs) -> Longs:
        """The places of rows that are searched."""
        if self._by_row is None:
            places = self._live_places()
            order = np.argsort(self.row_ids[places], kind="stable")
            self._by_row = self.row_ids[places[order]], places[order]
        known, places = self._by_row
        return places[np.searchsorted(known, row_ids)]

    def among(self, kept: npt.NDArray[np.bool_]) -> WordIndex:
        """The index of some of these passages, as if there were no others. Args: kept: (places,)."""
        own = []
        for segment, mask, start in zip(self._segments, self._masks, self._starts[:-1].tolist(), strict=True):
            part = kept[start : start + len(segment)]
            own.append((segment, part if mask is None else part & mask))
        return WordIndex(own)

    def _live_places(self) -> Longs:
        """Every place that is searched, in order."""
        starts = self._starts[:-1].tolist()
        live = [
            start + (np.arange(len(segment)) if mask is None else np.flatnonzero(mask))
            for start, segment, mask in zip(starts, self._segments, self._masks, strict=True)
        ]
        return np.concatenate([np.empty(0, np.int64), *live])

    def best(self, question: str, k: int, *, scale: float = 1.0, kept: npt.NDArray[np.bool_] | None = None) -> Found:
        """The K passages of largest scale·BM25, rounded to float32, best first, equal ones in the order of the places;
        fewer if fewer hold a term of the question. Reads the postings of these terms alone.

        Args:
            scale: above 0.
            kept: (places,) which passages are searched, with the scores that they have among all; None: all.
        """
        sums, seen = [np.zeros(len(self.row_ids)) for _ in KINDS], [np.empty(0, np.int64)]
        for kind, idf, postings in self._asked(question):
            for number, places, counts in postings:
                at = self._starts[number] + places
                is_new = (sums[0][at] == 0) & (sums[1][at] == 0)
                seen.append(at[is_new])
                sums[kind][at] += self._parts(kind, idf, number, places, counts)
        touched = np.concatenate(seen)
        if kept is not None:
            touched = touched[kept[touched]]
        scores = (scale * (sums[0][touched] + sums[1][touched])).astype(np.float32)
        if len(touched) > k:
            enough = scores >= np.partition(scores, len(scores) - k)[len(scores) - k]
            touched, scores = touched[enough], scores[enough]
        order = np.lexsort((touched, -scores))[:k]
        return Found(touched[order], scores[order])

    def filled(self, question: str, k: int, *, scale: float = 1.0, kept: npt.NDArray[np.bool_] | None = None) -> Found:
        """As ``best``, then the first passages without a term of the question, with the score 0; k ≤ len(self), or the
        number of those kept."""
        found = self.best(question, k, scale=scale, kept=kept)
        num_lacking = k - len(found.places)
        if not num_lacking:
            return found
        live = self._live_places()
        live = live if kept is None else live[kept[live]]
        others = np.setdiff1d(live, found.places, assume_unique=True)[:num_lacking]
        scores = np.concatenate([found.scores, np.zeros(num_lacking, np.float32)])
        return Found(np.concatenate([found.places, others]), scores)

    def scores(self, question: str, places: Longs) -> Floats:
        """BM25 of the passages at these places (n,), which are searched: what ``best`` finds of each, not rounded."""
        sums = [np.zeros(len(places)) for _ in KINDS]
        numbers = np.searchsorted(self._starts, places, side="right") - 1
        within = places - self._starts[numbers]
        for kind, idf, postings in self._asked(question):
            for number, of_term, counts in postings:
                (here,) = np.nonzero(numbers == number)
                if not len(here):
                    continue
                at = np.searchsorted(of_term, within[here]).clip(max=len(of_term) - 1)
                holds = of_term[at] == within[here]
                here, at = here[holds], at[holds]
                sums[kind][here] += self._parts(kind, idf, number, of_term[at], counts[at])
        return sums[0] + sums[1]

    def _asked(self, question: str) -> Iterator[_Term]:
        """The terms of a question that passages hold, in its order, words first."""
        known: dict[tuple[int, str], _Term] = {}
        for kind, found in enumerate(terms(question)):
            for term in found:
                if term in STOP_WORDS:
                    continue
                if (kind, term) not in known:
                    known[kind, term] = self._term(kind, _encoded(term))
                if known[kind, term].postings:
                    yield known[kind, term]

    def _term(self, kind: int, term: bytes) -> _Term:
        postings, num_holding = [], 0
        for number, (segment, mask) in enumerate(zip(self._segments, self._masks, strict=True)):
            places, counts = getattr(segment, KINDS[kind]).of(term)
            if mask is not None:
                lives = mask[places]
                places, counts = places[lives], counts[lives]
            if len(places):
                postings.append((number, places, counts))
                num_holding += len(places)
        return _Term(kind, float(np.log(1 + (self._num - num_holding + 0.5) / (num_holding + 0.5))), postings)

    def _parts(self, kind: int, idf: float, number: int, places: Ints, counts: Ints) -> Floats:
        """A term's part of the scores of these passages of a segment."""
        lengths = getattr(self._segments[number], KINDS[kind]).lengths[places]
        norms = K1 * ((1 - B) + B * lengths / self._mean_lengths[kind])
        parts: Floats = idf * (counts / (norms + counts))
        return parts
