"""One step of the marginal: p(y_i|x,y_<i) = Σ_z w_z p_θ(y_i|x,z,y_<i), and the weights w that follow.

RAG-Token keeps w at the prior. RAG-Sequence multiplies w by p_θ of the chosen token and renormalises: after i tokens
w is the posterior p(z|x,y_≤i), and the product of the steps is exactly Σ_z p_η(z|x) Π_i p_θ(y_i|x,z,y_<i). One beam
therefore decodes RAG-Sequence without approximation.

Differs: Lewis et al. (2020, §2.5) hold that RAG-Sequence does not break into per-token probabilities. It does, with
weights that depend on the prefix.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Generator as Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from latentrag.decoding.loop import Event, Turns, Work, alone
from latentrag.options import DecodingOptions
from latentrag.protocols import Generator, Prepared, ReadsInSlices, Scores, Step, steps_together
from latentrag.types import Variant

_BLOCK_ELEMENTS = 1 << 18

TextOf = Callable[[Sequence[int]], str]


def reading(generator: Scores, prepared: Prepared) -> Coroutine[Work, Any, None]:
    """The reading that ``start`` and ``log_p_theta`` would do, in slices where the generator can."""
    if isinstance(generator, ReadsInSlices):
        while (yield alone(partial(generator.read_slice, prepared), reads=True)):
            pass


def start(generator: Generator, prepared: Prepared) -> Work:
    """``generator.start`` as a work."""
    return alone(partial(generator.start, prepared), reads=True)


def step(generator: Generator, make: Callable[[], Step]) -> Work:
    """A step of the generator as a work, done together with those of other states where the generator can.

    Args:
        make: makes the step when it is taken.
    """
    if steps_together(generator):
        return Work(make, generator.step_together, ("step", id(generator)))
    return alone(lambda: _single(generator, make()))


class TokenByToken(ABC):
    """A search that takes one token more for every live question at a time.

    Args:
        prepared: of the rows that the generator begins with.
        num_questions: B.
    """

    def __init__(
        self,
        generator: Generator,
        prepared: Prepared,
        num_questions: int,
        *,
        variant: Variant,
        options: DecodingOptions,
    ) -> None:
        self._generator, self._prepared = generator, prepared
        self._variant, self._options = variant, options
        self._live = list(range(num_questions))
        self._state: object = None
        self._length = 0

    @property
    def live(self) -> Sequence[int]:
        """The questions that are not done."""
        return self._live

    def drop(self, question: int) -> None:
        """Do not go on with this question."""
        self._live.remove(question)

    @property
    def num_rows(self) -> int:
        """Question × passage × beam."""
        return len(self._live) * self._prepared.num_passages * self._options.num_beams

    def turns(self) -> Turns:
        """One token at a time, until no question is live."""
        log_p, self._state = yield start(self._generator, self._prepared)
        while True:
            self._length += 1
            yield from self._taken(log_p)
            if not self._live:
                return
            log_p, self._state = yield step(self._generator, self._next)

    @abstractmethod
    def _taken(self, log_p: Tensor) -> Sequence[Event]:
        """What is certain now that there is one token more. log_p: (B', K, M', V) of it, after the beams of
        ``_next``."""

    @abstractmethod
    def _next(self) -> Step:
        """The beams that go on."""


def _single(generator: Generator, step: Step) -> tuple[Tensor, object]:
    return generator.step(step.state, step.parents, step.tokens)


@dataclass(slots=True)
class Beams:
    """The live hypotheses of the questions that are not done.

    Attributes:
        question: (B',) which question of the batch each row belongs to.
        scores: (B', M) log p(y_≤i|x); −inf where a beam holds nothing.
        log_prior: (B', K) log p_η(z|x).
        tokens: (B', M, i) chosen so far.
        history: (B', M, K, i) log p_θ of those tokens.
    """

    question: Tensor
    scores: Tensor
    log_prior: Tensor
    tokens: Tensor
    history: Tensor

    @classmethod
    def initial(cls, log_p_eta: Tensor, num_beams: int = 1) -> "Beams":
        """Empty hypotheses for every question."""
        num_questions, num_passages = log_p_eta.shape
        device = log_p_eta.device
        return cls(
            torch.arange(num_questions, device=device),
            torch.zeros(num_questions, num_beams, device=device),
            log_p_eta.float(),
            torch.zeros(num_questions, num_beams, 0, dtype=torch.long, device=device),
            torch.zeros(num_questions, num_beams, num_passages, 0, device=device),
        )

    def log_weights(self, variant: Variant) -> Tensor:
        """(B', K, M): log w_z, normalised over the passages."""
        prior = self.log_prior[:, :, None].expand(-1, -1, self.scores.shape[1])
        if variant == "token":
            return prior
        return torch.log_softmax(prior + self.history.sum(dim=3).transpose(1, 2), dim=1)

    def extended(self, beam: Tensor, token: Tensor, scores: Tensor, log_p: Tensor) -> "Beams":
        """The hypotheses ``beam`` (B', M') with one more ``token`` (B', M') each.

        Args:
            scores: (B', M') of the longer hypotheses.
            log_p: (B', K, M, V) of the step.
        """
        row = torch.arange(len(beam), device=beam.device)[:, None]
        added = log_p[row, :, beam, token]  # (B', M', K)
        return Beams(
            self.question,
            scores,
            self.log_prior,
            torch.cat([self.tokens[row, beam], token[:, :, None]], dim=2),
            torch.cat([self.history[row, beam], added[..., None]], dim=3),
        )

    def kept(self, rows: Tensor, num_beams: int | None = None) -> "Beams":
        """The questions at ``rows``, of each its first ``num_beams``; None: all."""
        return Beams(
            self.question[rows],
            self.scores[rows, :num_beams],
            self.log_prior[rows],
            self.tokens[rows, :num_beams],
            self.history[rows, :num_beams],
        )


def marginal_step(beams: Beams, log_p: Tensor, variant: Variant) -> Tensor:
    """log p(y_i|x,y_<i) for every next token. log_p: (B', K, M, V). Returns (B', M, V)."""
    log_w = beams.log_weights(variant)[..., None]
    step = log_p.new_empty(len(log_p), *log_p.shape[2:])
    for block in in_blocks(log_p):
        torch.logsumexp(log_w + log_p[..., block], dim=1, out=step[..., block])
    return step


def in_blocks(log_p: Tensor) -> Iterator[slice]:
    """The vocabulary, a block at a time that stays in the processor's cache from the first operation to the last."""
    vocabulary = log_p.shape[3]
    size = vocabulary if log_p.device.type != "cpu" else max(1, _BLOCK_ELEMENTS // log_p[..., 0].numel())
    for start in range(0, vocabulary, size):
        yield slice(start, start + size)


def forbid(step: Tensor, beams: Beams, options: DecodingOptions, end_ids: Sequence[int]) -> Tensor:
    """``step`` (B', M, V) with −inf for tokens that the options rule out. Probabilities are not renormalised."""
    position = beams.tokens.shape[2]
    if position < options.min_tokens:
        step = step.clone()
        step[:, :, list(end_ids)] = float("-inf")
    size = options.no_repeat_ngram_size
    if 0 < size <= position:
        step = step.clone()
        for b, of_question in enumerate(beams.tokens.tolist()):
            for m, tokens in enumerate(of_question):
                banned = _repeats(tokens, size)
                if banned:
                    step[b, m, banned] = float("-inf")
    return step


def _repeats(tokens: Sequence[int], size: int) -> list[int]:
    """Tokens that would complete an n-gram that is there already."""
    last = tokens[len(tokens) - size + 1 :]
    return [
        tokens[start + size - 1] for start in range(len(tokens) - size + 1) if tokens[start : start + size - 1] == last
    ]


def stopped(beams: Beams, options: DecodingOptions, text_of: TextOf) -> Tensor:
    """(B', M) True where a hypothesis' text holds a stop string."""
    found = torch.zeros(beams.scores.shape, dtype=torch.bool, device=beams.scores.device)
    if options.stop:
        for b, of_question in enumerate(beams.tokens.tolist()):
            for m, tokens in enumerate(of_question):
                text = text_of(tokens)
                found[b, m] = any(stop in text for stop in options.stop)
    return found


def is_end(token: Tensor, end_ids: Sequence[int]) -> Tensor:
    """True where a token ends y."""
    return torch.isin(token, token.new_tensor(end_ids)) if len(end_ids) > 1 else token == end_ids[0]
