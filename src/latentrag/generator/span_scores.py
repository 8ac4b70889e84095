"""What the spans of rows say, how probable each is, and every y that they add up to."""

from __future__ import annotations

import hashlib
import math
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from latentrag.generator.caches import rows_of_questions
from latentrag.generator.span_rows import SpanRow

LOG_UNREAD = -14.0
"""log ε."""
_KEPT_TEXTS = 1 << 16
"""Targets and answers whose texts are known by their numbers."""
NOWHERE = -1e30
"""log p of what no span reads; finite, for the gradient of a logsumexp."""


def span_log_probs(
    start: Tensor, end: Tensor, part: Tensor, begins: Tensor, ends: Tensor, *, longest: int
) -> tuple[Tensor, Tensor]:
    """log p of every span of a row, and the logarithm of what it is normalised by.

        log p(i, j) = start_i + end_j − log Σ_{i,j} e^{start_i + end_j}

    Args:
        start, end: (R, S) logits.
        part: (R, S) which text each token belongs to. A span lies in one text.
        begins, ends: (R, S) with which tokens a span may begin, and end; one span at least in each row.
        longest: L, tokens of a span.
    Returns: (R, S, L) of the spans from i to j = i + l, −inf where there is none; (R,).
    """
    beyond = (0, longest - 1)
    end_scores = functional.pad(end, beyond).unfold(1, longest, 1)  # (R, S, L)
    parts = functional.pad(part, beyond, value=-1).unfold(1, longest, 1)  # (R, S, L)
    is_end = functional.pad(ends, beyond, value=False).unfold(1, longest, 1)  # (R, S, L)
    is_span = (parts == part[:, :, None]) & begins[:, :, None] & is_end
    scores = (start[:, :, None] + end_scores).masked_fill(~is_span, float("-inf"))
    log_mass = scores.flatten(1).logsumexp(dim=1)  # (R,)
    return scores - log_mass[:, None, None], log_mass


def log_q(said: str) -> float:
    """log q of a text: its bytes and an end, each one of 257."""
    return -(len(said.encode(errors="replace")) + 1) * math.log(257)


def with_unread(log_p: Tensor, log_q: Tensor, *, has_passage: Tensor) -> Tensor:
    """log((1 − ε) p + ε q), and log q where there is no passage."""
    mixed = torch.logaddexp(log_p + math.log1p(-math.exp(LOG_UNREAD)), log_q + LOG_UNREAD)
    return torch.where(has_passage, mixed, log_q)


@dataclass(frozen=True, slots=True, eq=False)
class ReadSpans:
    """What the model makes of R rows that have a passage. log_p: (R, S·L). weights: (R,), their part of the prior."""

    log_p: Tensor
    weights: Tensor


@dataclass(slots=True, eq=False)
class Pairs:
    """Every (x, z), and what is known of them. ``place``: for each its row in ``read``; None: it has no passage."""

    rows: list[SpanRow]
    place: list[int | None]
    longest: int
    read: ReadSpans | None = None
    _spans: dict[int, dict[str, list[int]]] = field(default_factory=dict)

    def spans(self, number: int) -> dict[str, list[int]]:
        """What the spans of a row say, and where those stand in its log_p."""
        if number not in self._spans:
            found: dict[str, list[int]] = {}
            for said, first, last in self.rows[number].spans(self.longest):
                found.setdefault(said, []).append(first * self.longest + last - first)
            self._spans[number] = found
        return self._spans[number]


@dataclass(frozen=True, slots=True)
class PreparedSpans:
    """B questions × K latent values. ``index`` (B·K,) says which pair each is."""

    pairs: Pairs
    index: Tensor
    num_questions: int
    num_passages: int

    @property
    def num_tokens(self) -> list[int]:
        """Of each row."""
        return [len(self.pairs.rows[row].ids) for row in self.index.tolist()]

    def rows(self, index: Tensor) -> Self:
        rows = rows_of_questions(index, self.num_passages)
        return type(self)(self.pairs, self.index[rows], len(index), self.num_passages)

    def each_passage(self) -> Self:
        return type(self)(self.pairs, self.index, self.num_questions * self.num_passages, 1)


class Texts:
    """Texts by number, and back: the newest 65,536."""

    def __init__(self) -> None:
        self._texts: OrderedDict[int, str] = OrderedDict()
        self._lock = threading.Lock()

    def number(self, text: str) -> int:
        digest = hashlib.blake2b(text.encode(errors="replace"), digest_size=8).digest()
        number = int.from_bytes(digest, "little") >> 1  # of 63 bits, as int64 has them
        with self._lock:
            self._texts[number] = text
            self._texts.move_to_end(number)
            while len(self._texts) > _KEPT_TEXTS:
                self._texts.popitem(last=False)
        return number

    def text(self, number: int) -> str:
        with self._lock:
            return self._texts[number]


@dataclass(frozen=True, slots=True, eq=False)
class SpanChoices:
    """Every y of a question. ``where``: for each its spans, as (latent value, place in log_p)."""

    log_p_theta: Tensor
    num_tokens: Tensor
    where: list[list[tuple[int, int]]]
    rows: list[SpanRow]
    log_p: list[Tensor]
    longest: int
    texts: Texts

    def ids(self, number: int) -> tuple[int, ...]:
        """Written as where it is most probable."""
        k, place = max(self.where[number], key=lambda at: self.log_p[at[0]][at[1]].item())
        first, more = divmod(place, self.longest)
        return (self.texts.number(self.rows[k].text(first, first + more)),)


def choices_of(prepared: PreparedSpans, b: int, read: ReadSpans, texts: Texts, *, device: torch.device) -> SpanChoices:
    """Question b's. read: what the model makes of the prepared rows."""
    found, num_passages, longest = prepared.pairs, prepared.num_passages, prepared.pairs.longest
    numbers = prepared.index[b * num_passages : (b + 1) * num_passages].tolist()
    places: dict[str, int] = {}
    where: list[list[tuple[int, int]]] = []
    log_p, masses = [], []
    for k, number in enumerate(numbers):
        at, of = [], []
        for said, spans in found.spans(number).items():
            place = places.setdefault(said, len(places))
            if place == len(where):
                where.append([])
            where[place] += [(k, span) for span in spans]
            at += spans
            of += [place] * len(spans)
        row = found.place[number]
        log_p.append(read.log_p[0 if row is None else row].cpu())
        masses.append((torch.tensor(of, dtype=torch.long), log_p[-1][at].double().exp()))
    mass = torch.zeros(num_passages, len(places), dtype=torch.float64)
    for k, (of_spans, values) in enumerate(masses):
        mass[k].scatter_add_(0, of_spans, values)
    unread = torch.tensor([log_q(said) for said in places], dtype=torch.float64)
    has_passage = torch.tensor([found.place[number] is not None for number in numbers])[:, None]
    log_p_theta = with_unread(mass.log(), unread, has_passage=has_passage)
    num_tokens = torch.tensor([at[0][1] % longest + 1 for at in where], dtype=torch.long)
    rows = [found.rows[number] for number in numbers]
    return SpanChoices(log_p_theta.T.float().to(device), num_tokens.to(device), where, rows, log_p, longest, texts)
