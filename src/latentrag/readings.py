"""How the last question of a conversation is to be read: one more latent value, r.

    p(z|h) = Σ_r p(r|h) p_η(z|r)

h is the conversation; a reading is a text that is searched for. The candidates are the union of the passages that each
reading finds, p_η(z|r) is normalised over these, and the K of largest p(z|h) are read. With one turn there is one
reading, and nothing here is computed.

    p(r|h) ∝ exp(w_kind(r) + v·max_z s_r(z)),   w_last = 0

The weights are learned by the marginal likelihood of answers, as everything else; no label says which reading is right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Self

import torch
from torch import nn

from latentrag.errors import InputError
from latentrag.marginal import mixture
from latentrag.protocols import ReadsConversations, is_filtered, takes_question
from latentrag.types import AsRead, Question, Readings, Retrieved

if TYPE_CHECKING:
    from torch import Tensor

    from latentrag.protocols import Memory, Retriever, TrainableRetriever
    from latentrag.types import Latent, Passage, Together

NUM_CANDIDATES = 20
"""Passages that each reading finds, whatever K is, so that the first 5 of 50 are the 5. If K is larger, what further
passages each reading finds comes after them."""
PART = "readings"
"""The part of a conversation's logits that no expert has."""
DEFAULTS: Mapping[str, float] = {"before": -1.8, "all": -2.5, "rewrite": -2.5, "evidence": 0.6}
"""Of a model whose p(r|h) was not trained (ADR 37)."""


Rewritten = Callable[[Sequence[Question]], Sequence[Sequence[tuple[str, float]]]]
"""What a generator proposes in place of the last question of each conversation, with its log p."""


@dataclass(frozen=True, slots=True, eq=False)
class ReadingWeights:
    """What p(r|h) is made of; numbers, learned with the retriever.

    Attributes:
        numbers: the weight of each kind of reading but "last", whose weight is 0, and "evidence", that of the largest
            logit of a passage that the reading finds.
        trained: whether they were trained with the model.
        rewritten: proposes more readings of conversations; None: there are none.
    """

    numbers: Mapping[str, nn.Parameter]
    trained: bool = False
    rewritten: Rewritten | None = None

    @classmethod
    def of(cls, numbers: Mapping[str, float] | None = None) -> Self:
        """Those that were trained; None: the default ones. Raises: InputError for other names, or no finite numbers."""
        given = DEFAULTS if numbers is None else numbers
        if given.keys() != DEFAULTS.keys() or not all(
            isinstance(each, int | float) and math.isfinite(each) for each in given.values()
        ):
            raise InputError(f"weights of readings {dict(given)}; needed finite numbers for {', '.join(DEFAULTS)}")
        made = {name: nn.Parameter(torch.tensor(float(each)), requires_grad=False) for name, each in given.items()}
        return cls(made, numbers is not None)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """By name, "reading." before each."""
        return {f"reading.{name}": number for name, number in self.numbers.items()}

    def saved(self) -> dict[str, float] | None:
        """What ``of`` makes them of again."""
        return {name: number.item() for name, number in self.numbers.items()} if self.trained else None

    def log_p(self, ways: Sequence[AsRead], logits: Tensor, log_share: Sequence[float]) -> Tensor:
        """(R,) log p(r|h), nats.

        Args:
            logits: (R, n) of the passages that the readings have found.
            log_share: (R,) of its kind's probability, where several readings are of one kind.
        """
        zero = logits.new_zeros(())
        of_kind = torch.stack([self.numbers[way.kind].to(logits) if way.kind != "last" else zero for way in ways])
        evidence = self.numbers["evidence"].to(logits) * logits.amax(dim=1)
        return torch.log_softmax(of_kind + evidence + logits.new_tensor(log_share), dim=0)


def retrieve(retriever: Retriever, x: Sequence[Question], k: int, weights: ReadingWeights) -> Retrieved:
    """The K latent values of each question; of a conversation those of largest Σ_r p(r|h) p_η(z|r).

    Raises: as ``Retriever.retrieve``.
    """
    talks = [b for b, question in enumerate(x) if question.exchanges]
    if not talks or not isinstance(retriever, ReadsConversations):
        return _of_last(retriever.retrieve([_alone(question) for question in x], k), x, talks, weights)
    now = of_one_version(retriever)
    retriever = now if isinstance(now, ReadsConversations) else retriever
    others = [b for b in range(len(x)) if b not in set(talks)]
    alone = retriever.retrieve([x[b] for b in others], k) if others else None
    mixed = _Conversations.of(retriever, [x[b] for b in talks], k, weights)
    return _in_order(len(x), alone, others, mixed.top(k), talks)


def retrieve_in_hindsight(
    retriever: TrainableRetriever,
    x: Sequence[Question],
    y: Sequence[str],
    k: int,
    num_hindsight: int,
    weights: ReadingWeights,
) -> Retrieved:
    """As ``TrainableRetriever.retrieve_in_hindsight``: each reading proposes passages together with y, too."""
    talks = [b for b, question in enumerate(x) if question.exchanges]
    if not talks or not isinstance(retriever, ReadsConversations):
        found = retriever.retrieve_in_hindsight([_alone(question) for question in x], y, k, num_hindsight)
        return _of_last(found, x, talks, weights)
    others = [b for b in range(len(x)) if b not in set(talks)]
    alone = None
    if others:
        alone = retriever.retrieve_in_hindsight([x[b] for b in others], [y[b] for b in others], k, num_hindsight)
    mixed = _Conversations.of(
        retriever, [x[b] for b in talks], k, weights, y=[y[b] for b in talks], num_also=k + num_hindsight
    )
    return _in_order(len(x), alone, others, mixed.top(k, num_hindsight), talks)


def ways_of(question: Question, fits: Callable[[str], bool]) -> list[AsRead]:
    """The readings of a conversation that no generator has to propose. Those with earlier turns lose the oldest ones
    until they fit.

    Args:
        fits: whether a text can be searched for.
    """
    ways, exchanges = [AsRead("last", question.text)], question.exchanges
    for kind, most in (("before", 1), ("all", len(exchanges))):
        if kind == "all" and most < 2:  # it would be the one before
            continue
        for number in range(most, 0, -1):
            text = _joined(exchanges[-number:], question.text)
            if fits(text):
                ways.append(AsRead(kind, text, _num_turns(exchanges[: len(exchanges) - number]) * (kind == "all")))
                break
    return ways


def readings_of(retriever: Retriever, question: Question) -> list[AsRead]:
    """``ways_of`` what this retriever can search for."""
    return ways_of(question, partial(takes_question, retriever))


def _joined(exchanges: Sequence[tuple[str, str]], last: str) -> str:
    said = [each.strip() for exchange in exchanges for each in exchange if each.strip()]
    return "\n".join([*said, last])


def _num_turns(exchanges: Sequence[tuple[str, str]]) -> int:
    return sum(bool(each) for exchange in exchanges for each in exchange)


def _alone(question: Question) -> Question:
    """The last turn as a question of its own."""
    return Question(question.turns[-1:], question.passages) if len(question.turns) > 1 else question


def of_one_version(retriever: Retriever) -> Retriever:
    """The same retriever over its memory as it is now, where that may be exchanged between two searches."""
    now = retriever.memory.snapshot()
    return retriever if now is retriever.memory else retriever.over(now)


def _of_last(found: Retrieved, x: Sequence[Question], talks: Sequence[int], weights: ReadingWeights) -> Retrieved:
    """With what there is to say of conversations of which the last question alone was read."""
    if not talks:
        return found
    readings: list[Readings | None] = [None] * len(x)
    for b in talks:
        shares = {passage.id: (1.0,) for passage in found.passages[b]}
        dropped = _num_turns(x[b].exchanges)
        readings[b] = Readings((AsRead("last", x[b].text, dropped),), (1.0,), shares, weights.trained)
    return replace(found, readings=readings)


@dataclass(frozen=True, slots=True, eq=False)
class _Mixed:
    """One conversation: what its readings have found, by falling p(z|h) over all of it.

    Attributes:
        parts: name → (n,), of which ``logits`` (n,) are the sum.
        num_found: how many passages the readings themselves have found, which come first.
    """

    passages: list[Passage]
    parts: Mapping[str, Tensor]
    readings: Readings
    num_found: int


@dataclass(frozen=True, slots=True, eq=False)
class _Conversations:
    """All conversations of a call."""

    mixed: list[_Mixed]
    version: int
    missing: tuple[str, ...]

    @classmethod
    def of(
        cls,
        retriever: ReadsConversations,
        x: Sequence[Question],
        k: int,
        weights: ReadingWeights,
        *,
        y: Sequence[str] = (),
        num_also: int = 0,
    ) -> Self:
        fits = partial(takes_question, retriever)
        ways = [ways_of(question, fits) for question in x]
        shares = [[0.0] * len(of_one) for of_one in ways]
        for b, proposed in enumerate(() if weights.rewritten is None else weights.rewritten(x)):
            known = {way.text for way in ways[b]}
            usable = [(text, log_p) for text, log_p in proposed if text not in known and fits(text)]
            total = torch.tensor([log_p for _, log_p in usable]).logsumexp(dim=0).item() if usable else 0.0
            ways[b] += [AsRead("rewrite", text) for text, _ in usable]
            shares[b] += [log_p - total for _, log_p in usable]
        texts = [[way.text for way in of_one] for of_one in ways]
        also = [
            [both if fits(both := f"{text} {answer}") else text for text in of_one]
            for of_one, answer in zip(texts, y, strict=False)
        ]
        num = _num_candidates(retriever.memory, k)
        if 0 < num < k:
            of_y = also or [[] for _ in texts]
            also = [[*of_one, *others] for of_one, others in zip(texts, of_y, strict=True)]
            num_also = max(num_also, k)
        found = retriever.retrieve_together(texts, num, x=x, also=also, num_also=num_also)
        mixed = [_mixed(*each, weights) for each in zip(ways, found, shares, strict=True)]
        missing = tuple(dict.fromkeys(part for each in found for part in each.missing))
        return cls(mixed, found[0].version, missing)

    def top(self, k: int, num_more: int = 0) -> Retrieved:
        """The K best candidates, where there are fewer also the best others, and so many more of the others; fewer
        where there are fewer."""
        chosen = []
        for each in self.mixed:
            logits = sum(each.parts.values()).detach()  # type: ignore[union-attr]
            order = torch.argsort(logits, descending=True, stable=True).tolist()
            top = sorted(order, key=lambda i, own=each.num_found: i >= own)[:k]  # type: ignore[misc]
            chosen.append([*top, *[i for i in order if i not in set(top)][:num_more]])
        width = max(map(len, chosen))
        device = next(iter(self.mixed[0].parts.values())).device
        latents: list[list[Latent]] = []
        parts: dict[str, list[Tensor]] = {name: [] for name in self.mixed[0].parts}
        for each, places in zip(self.mixed, chosen, strict=True):
            empty = width - len(places)
            latents.append([*((each.passages[i],) for i in places), *[()] * empty])
            index = torch.tensor(places, device=device)
            for name, part in each.parts.items():
                parts[name].append(torch.cat([part[index], part.new_zeros(empty)]))
        lengths = torch.tensor(list(map(len, chosen)), device=device)
        mask = torch.arange(width, device=device) < lengths[:, None]
        stacked = {name: torch.stack(rows) for name, rows in parts.items()}
        readings = [each.readings for each in self.mixed]
        is_full = bool(mask.all())
        return Retrieved(latents, stacked, self.version, None if is_full else mask, readings, self.missing)


def _num_candidates(memory: Memory, k: int) -> int:
    """Passages that each reading finds; a K that cannot be is left to the retriever, which refuses it."""
    if is_filtered(memory):
        memory.require_some()
    size = len(memory)
    return k if k < 1 or (k > size and not is_filtered(memory)) else min(NUM_CANDIDATES, size)


def _mixed(ways: Sequence[AsRead], found: Together, log_share: Sequence[float], weights: ReadingWeights) -> _Mixed:
    logits = Retrieved([], found.parts, 0).logits  # (R, n)
    log_p_r = weights.log_p(ways, logits[:, : found.num_found], log_share)
    mixed, shares = mixture(log_p_r, logits, found.num_found)
    # What an expert says of a passage: the mean over the readings that it is owed to. The rest is "readings".
    parts = {name: (shares * part).sum(dim=0) for name, part in found.parts.items()}
    parts[PART] = mixed - Retrieved([], {name: part[None] for name, part in parts.items()}, 0).logits[0]
    of_passages = {
        passage.id: tuple(row) for passage, row in zip(found.passages, shares.detach().T.tolist(), strict=True)
    }
    prior = tuple(log_p_r.detach().exp().tolist())
    readings = Readings(tuple(ways), prior, of_passages, weights.trained)
    return _Mixed(list(found.passages), parts, readings, found.num_found)


def _in_order(
    num: int, alone: Retrieved | None, others: Sequence[int], mixed: Retrieved, talks: Sequence[int]
) -> Retrieved:
    """Questions of one turn and conversations together again."""
    if alone is None:
        return mixed
    width = max(len(alone.latents[0]), len(mixed.latents[0]))
    first, second = _widened(alone, width, mixed.parts), _widened(mixed, width, mixed.parts)
    place = {b: i for i, b in enumerate([*others, *talks])}
    index = [place[b] for b in range(num)]
    latents = [*first.latents, *second.latents]
    readings: list[Readings | None] = [*[None] * len(others), *second.readings]
    masks = [each.mask for each in (first, second) if each.mask is not None]
    return Retrieved(
        [latents[i] for i in index],
        {name: torch.cat([part, second.parts[name]])[index] for name, part in first.parts.items()},
        mixed.version,
        torch.cat(masks)[index] if masks else None,
        [readings[i] for i in index],
        tuple(dict.fromkeys((*alone.missing, *mixed.missing))),
    )


def _widened(found: Retrieved, width: int, names: Mapping[str, Tensor]) -> Retrieved:
    """With K = ``width``, a mask if any value may be none, and a part of each of these names."""
    some = next(iter(found.parts.values()))
    empty = width - some.shape[1]
    parts = {
        name: torch.cat([found.parts.get(name, torch.zeros_like(some)), some.new_zeros(len(some), empty)], dim=1)
        for name in names
    }
    mask = torch.ones_like(some, dtype=torch.bool) if found.mask is None else found.mask
    mask = torch.cat([mask, mask.new_zeros(len(some), empty)], dim=1)
    return replace(found, latents=[[*row, *[()] * empty] for row in found.latents], parts=parts, mask=mask)
