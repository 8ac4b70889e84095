"""Reading a file again: its text is cut where the memory has it cut, and unchanged passages keep their ids.

docs/adr/0029-ids-and-updates.md says what an id means.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import PurePath
from typing import Literal, TypeAlias

from latentrag.ids import IdsUnder, document_of, id_of_part, ids_among, is_of
from latentrag.types import Document, Passage
from latentrag.words import Span

Fetch: TypeAlias = Callable[[Collection[str]], Iterable[Passage]]
"""Ids → the passages of the memory that have them."""

MAX_COMPARED = 100_000
"""Of a file with more stored passages no texts are compared, which would take some 100 MB of RAM."""
_HEAD_CHARS = 32
_AT_A_TIME = 1_000


class Stored:
    """The passages that a memory has of one file, of which a new reading of the file keeps what it can.

    Args:
        name: the file's; ids that no row states begin with it.
        ids_under: finds the ids of its passages, and perhaps others.
        fetch: gets passages; called if a document has changed.
        has: whether the memory has exactly this passage; None: passages have to be fetched to know.
        cuts: which of the old cuts are kept: "all"; "long": those that make passages of a usual length; "none".
        was: the name that the memory knows the file by, if it was renamed. Ids made of that name are not kept.
    """

    def __init__(
        self,
        name: str,
        ids_under: IdsUnder = lambda _name, _itself: (),
        fetch: Fetch = lambda _: (),
        *,
        has: Callable[[Passage], bool] | None = None,
        cuts: Literal["all", "long", "none"] = "long",
        was: str | None = None,
    ) -> None:
        self.name, self.was, self.cuts = name, was or name, cuts
        self.fetch, self.has = fetch, has
        self._ids_under = ids_under

    @cached_property
    def rows(self) -> Pool:
        """For documents whose ids are made of the file's name."""
        return Pool(self, self._ids_under(self.was, True))

    def states(self, document: Document) -> bool:
        """Whether the document's id is its own, and not made of the file's name."""
        return document.id != self.name and not document.id.startswith(f"{self.name}:")

    def pool_of(self, document: Document) -> Pool:
        """What the document may keep: its own passages if its id is stated, else those of all documents without one."""
        if not self.states(document):
            return self.rows
        return Pool(self, [key for key in self._ids_under(document.id, True) if is_of(key, document.id)])

    def gone(self, document: Document, passages: Sequence[Passage]) -> list[str]:
        """The ids of a document that states its id which the memory has and these passages have not.

        Only those from a file of the same name: another file may have a row whose id looks like that of a part.
        """
        kept = {passage.id for passage in passages}
        under = self._ids_under(document.id, document.id not in kept)
        gone = [key for key in under if is_of(key, document.id) and key not in kept]
        source = PurePath(document.source).name
        return [passage.id for passage in self.fetch(gone) if PurePath(passage.source).name == source] if gone else []

    def was_called(self, document: Document) -> str:
        """The document's id when the file had its old name."""
        is_own = self.states(document) or self.was == self.name
        return document.id if is_own else self.was + document.id.removeprefix(self.name)


class Pool:
    """Passages that a document may keep. Their texts are fetched on first use.

    Attributes:
        ids: of all of them.
        used: ids that have been given to passages of the new reading.
    """

    def __init__(self, stored: Stored, ids: Sequence[str]) -> None:
        self.ids, self.used = frozenset(ids), set[str]()
        self._ids_under = ids_among(sorted(ids))
        self._stored = stored
        self._numbers = Counter[tuple[str, str]]()

    @cached_property
    def _passages(self) -> list[Passage]:
        if not 0 < len(self.ids) <= MAX_COMPARED:
            return []
        return sorted(self._stored.fetch(self.ids), key=lambda passage: (passage.start, passage.id))

    @cached_property
    def _hashes(self) -> dict[str, int]:
        """A hash of each passage, by id."""
        ids = sorted(self.ids)
        fetched = (self._stored.fetch(ids[i : i + _AT_A_TIME]) for i in range(0, len(ids), _AT_A_TIME))
        return {passage.id: _hash(passage) for passages in fetched for passage in passages}

    @cached_property
    def ids_of(self) -> dict[str, list[str]]:
        """Text → ids of passages with this text that may not have been given yet, the first of them at the end."""
        ids: dict[str, list[str]] = {}
        for passage in reversed(self._passages):
            ids.setdefault(passage.text, []).append(passage.id)
        return ids

    @cached_property
    def _parts(self) -> dict[str, list[Passage]]:
        """A document's id → its passages, in the order of its text."""
        parts: dict[str, list[Passage]] = {}
        for passage in self._passages:
            for name in {passage.id, document_of(passage.id)}:
                parts.setdefault(name, []).append(passage)
        return parts

    @cached_property
    def _lengths(self) -> dict[str, list[int]]:
        """The first characters of texts → how long these are, the longest first."""
        lengths: dict[str, set[int]] = {}
        for text in self.ids_of:
            lengths.setdefault(text[:_HEAD_CHARS], set()).add(len(text))
        return {head: sorted(found, reverse=True) for head, found in lengths.items()}

    @cached_property
    def _short(self) -> list[int]:
        """Lengths of texts that are shorter than a head."""
        return sorted({len(head) for head in self._lengths if len(head) < _HEAD_CHARS}, reverse=True)

    def of(self, document: Document) -> list[Passage]:
        """The document's own, in the order of its text."""
        return self._parts.get(self._stored.was_called(document), [])

    def ends(self, text: str, start: int) -> Iterator[int]:
        """Where the old passages end that could begin at ``start``, the longest first."""
        for length in self._lengths.get(text[start : start + _HEAD_CHARS], ()):
            if length >= _HEAD_CHARS and text[start : start + length] in self.ids_of:
                yield start + length
        for length in self._short:
            if text[start : start + length] in self.ids_of:
                yield start + length

    def id_for(self, document: Document, text: str, *, is_whole: bool) -> str:
        """The id of the stored passage with this text, else a new one, which no other text had.

        Args: is_whole: the text is all that the document has.
        """
        stored = self._stored
        is_own, is_renamed = stored.states(document), stored.was != stored.name
        if is_whole and (is_own or is_renamed or not self.ids):
            return document.id
        old = self.ids_of.get(text, []) if is_own or not is_renamed else []
        while old:
            if (key := old.pop()) not in self.used:
                return self._use(key)
        number = self._numbers[document.id, text]
        while (key := id_of_part(document.id, text, number)) in self.used or key in self.ids:
            number += 1
            self._numbers[document.id, text] = number
        return self._use(key)

    def keep(self, document: Document, anew: Iterable[Passage]) -> list[Passage] | None:
        """The freshly cut passages under their ids in the memory; None if it has other passages of the document.

        Some of them may be missing in the memory: an update may have been killed.

        Args: anew: the passages of the document as a first reading cuts it.
        """
        if not self.ids or self._stored.was_called(document) != document.id:
            return None
        own = {key for key in self._ids_under(document.id, True) if is_of(key, document.id)}
        if not own:
            return None
        kept, missing, times = dict[int, Passage](), list[int](), Counter[str]()
        passages = list(anew)
        for i, passage in enumerate(passages):
            of_text = id_of_part(document.id, passage.text, times[passage.text])
            times[passage.text] += 1
            names = (document.id, f"{document.id}#{i}", of_text)
            known = (replace(passage, id=key) for key in names if key in own and key not in self.used)
            found = next(filter(self._has, known), None)
            if found is None:
                missing.append(i)
            else:
                kept[i] = found
                self.used.add(found.id)
        if len(kept) < len(own):
            self.used -= {passage.id for passage in kept.values()}
            return None
        for i in missing:
            key = self.id_for(document, passages[i].text, is_whole=False)
            kept[i] = replace(passages[i], id=key)
        return [kept[i] for i in range(len(passages))]

    def _has(self, passage: Passage) -> bool:
        if self._stored.has is not None:
            return self._stored.has(passage)
        return self._hashes.get(passage.id) == _hash(passage)

    def gone(self) -> list[str]:
        """Ids that no passage of the file has any more. Call it when all documents of the file have been read."""
        return sorted(self.ids - self.used)

    def _use(self, key: str) -> str:
        self.used.add(key)
        return key

    @property
    def cuts(self) -> str:
        return self._stored.cuts


def _hash(passage: Passage) -> int:
    return hash((passage, *sorted(passage.fields.items())))  # a passage's own hash leaves its fields out


class Words:
    """Words in a row, which a passage may hold: 16 bytes each."""

    def __init__(self, spans: Iterable[Span]) -> None:
        self.starts, self.ends = array("q"), array("q")
        for start, end in spans:
            self.starts.append(start)
            self.ends.append(end)

    def __len__(self) -> int:
        return len(self.starts)

    def between(self, first: int, last: int) -> list[Span]:
        return list(zip(self.starts[first:last], self.ends[first:last], strict=True))

    def up_to_start(self, start: int) -> int:
        """How many begin before the one that begins there; all if none begins there."""
        place = bisect_left(self.starts, start)
        return place if place < len(self) and self.starts[place] == start else len(self)

    def up_to(self, end: int) -> int:
        """How many end there or before; 0 if none ends there."""
        place = bisect_left(self.ends, end)
        return place + 1 if place < len(self.ends) and self.ends[place] == end else 0


@dataclass(frozen=True, slots=True)
class Aligner:
    """Cuts a text where the passages of a pool were cut.

    Attributes:
        words: length of a passage in a text that is new; others have half as many to half as many again.
        fits: whether a part of the text may be a passage.
        pieces: words as a passage, or as several if that would go beyond a bound.
    """

    document: Document
    pool: Pool
    words: int
    fits: Callable[[int, int], bool]
    pieces: Callable[[Sequence[Span]], Iterator[Span]]

    def spans(self, runs: Sequence[Words]) -> list[Span] | None:
        """The passages of these words; None if no old passage is found among them."""
        as_it_was = self._as_it_was(runs)
        if as_it_was is not None:
            return as_it_was
        kept = [self._kept(words) for words in runs]
        if not any(kept):
            return None
        return [span for words, parts in zip(runs, kept, strict=True) for span in self._cut(words, parts)]

    def _as_it_was(self, runs: Sequence[Words]) -> list[Span] | None:
        """The old cuts, if every old passage still stands at its place and together they hold all words; else None."""
        old, text = self.pool.of(self.document), self.document.text
        if any(text[passage.start : passage.end] != passage.text for passage in old):
            return None
        found: list[Span] = []
        for words in runs:
            first = 0
            for passage in old:
                last = words.up_to(passage.end)
                if first < len(words) and words.starts[first] == passage.start and last > first:
                    if self.pool.cuts != "all" and not self._is_usual(words, first, last):
                        return None
                    found += self.pieces(words.between(first, last))
                    first = last
            if first < len(words):
                return None
        return found

    def _kept(self, words: Words) -> list[Span]:
        """The ranges of words that are old passages and stay.

        Those at their old places come first, then others: from the left, the longest first, each passage once. The
        order is fixed, so an update that follows a killed one finds what that wrote.
        """
        refused: set[Span] = set()
        while True:
            left = Counter({text: len(ids) for text, ids in self.pool.ids_of.items()})
            kept = self._in_place(words, left, refused)
            gaps = [(done, first) for (_, done), (first, _) in pairwise([(0, 0), *kept, (len(words), len(words))])]
            kept = sorted(kept + [found for gap in gaps for found in self._moved(words, gap, left, refused)])
            with_room = self._with_room(words, kept)
            if len(with_room) == len(kept):
                return kept
            # A passage that cannot stay in one place may in another.
            refused.update(set(kept).difference(with_room))

    def _in_place(self, words: Words, left: Counter[str], refused: Set[Span]) -> list[Span]:
        """Args: left: how many passages of each text may still be found; counted down here."""
        text = self.document.text
        kept: list[Span] = []
        for passage in sorted(self.pool.of(self.document), key=lambda passage: (passage.start, -passage.end)):
            first, last = words.up_to_start(passage.start), words.up_to(passage.end)
            is_free = first < last and (not kept or kept[-1][1] <= first) and (first, last) not in refused
            is_there = is_free and text[passage.start : passage.end] == passage.text
            if is_there and self._is_kept(words, first, last):
                kept.append((first, last))
                left[passage.text] -= 1
        return kept

    def _moved(self, words: Words, gap: Span, left: Counter[str], refused: Set[Span]) -> Iterator[Span]:
        """Old passages among the words of a gap."""
        text, (first, stop) = self.document.text, gap
        while first < stop:
            start = words.starts[first]
            ends = (end for end in self.pool.ends(text, start) if left[text[start:end]] > 0)
            found = (last for last in map(words.up_to, ends) if first < last <= stop and (first, last) not in refused)
            last = next((last for last in found if self._is_kept(words, first, last)), first)
            if last > first:
                left[text[start : words.ends[last - 1]]] -= 1
                yield first, last
            first = max(last, first + 1)

    def _is_kept(self, words: Words, first: int, last: int) -> bool:
        return self._is_usual(words, first, last) and self.fits(words.starts[first], words.ends[last - 1])

    def _is_usual(self, words: Words, first: int, last: int) -> bool:
        return last - first <= self._most and (last == len(words) or not self._is_short(words, first, last))

    def _is_short(self, words: Words, first: int, last: int) -> bool:
        """Whether a passage of these words is shorter than half of what it might be."""
        after = min(2 * last - first, len(words))
        return last - first < (self.words + 1) // 2 and self.fits(words.starts[first], words.ends[after - 1])

    @property
    def _most(self) -> int:
        return self.words + self.words // 2

    def _cut(self, words: Words, kept: list[Span]) -> Iterator[Span]:
        """The kept parts, and what is between them in passages of a usual length."""
        for (_, done), (last, end) in pairwise([(0, 0), *kept, (len(words), len(words))]):
            first = done
            while first < last:
                number = self._next(words, first, last)
                yield from self.pieces(words.between(first, first + number))
                first += number
            if last < end:
                yield words.starts[last], words.ends[end - 1]

    def _next(self, words: Words, first: int, last: int) -> int:
        """How many words the next passage has. It depends on no earlier cut, so a killed update can be continued."""
        rest = last - first
        if last == len(words) or rest > self._most:
            return min(rest, self.words)
        return rest if rest == 1 or self.fits(words.starts[first], words.ends[last - 1]) else rest // 2

    def _with_room(self, words: Words, kept: list[Span]) -> list[Span]:
        """Without the shorter neighbour of each gap too short for a passage: both are cut anew as one."""
        kept, i = list(kept), 0
        while i < len(kept):
            first, last = kept[i - 1][1] if i else 0, kept[i][0]
            if first == last or not self._is_short(words, first, last):
                i += 1
                continue
            before, after = kept[i - 1][1] - kept[i - 1][0] if i else 0, kept[i][1] - kept[i][0]
            i -= 0 < before < after
            del kept[i]
        return kept
