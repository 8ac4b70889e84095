"""Answers told while they are decoded: what ``watch`` says in ids, in texts and posteriors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from latentrag.decoding.decoded import Decoded
from latentrag.decoding.evidence import evidence_of, tokens_of
from latentrag.decoding.watch import settled_length
from latentrag.types import Passage, Token, Variant

if TYPE_CHECKING:
    from torch import Tensor

    from latentrag.model import Read
    from latentrag.protocols import Scores


class Onlooker(Protocol):
    """Who looks on while questions are answered, in the thread that answers; none of its methods may wait."""

    def is_wanted(self, question: int) -> bool:
        """False: this question of the batch need not be answered any more."""
        ...

    def retrieved(self, question: int, sources: tuple[tuple[Passage, float], ...], version: int) -> None:
        """The passages with their priors, best first, and the memory's version, before anything is decoded."""
        ...

    def decided(self, question: int, tokens: tuple[Token, ...]) -> None:
        """The answer begins with these tokens, whatever follows: those told before, and at least one more."""
        ...


class Telling:
    """A ``Watcher`` that tells an ``Onlooker``.

    A token is told once its text is settled, too. A generator whose tokenizer changes text before the last word when
    more follows may answer with other white space there than was told.
    """

    def __init__(self, onlooker: Onlooker, read: Read[Scores], *, variant: Variant, stop: Sequence[str]) -> None:
        self._onlooker, self._read = onlooker, read
        self._variant, self._stop = variant, stop
        self._num_ids = [0] * len(read.questions)
        self._num_told = [0] * len(read.questions)
        for b in range(len(read.questions)):
            passages, priors = read.of_passages(b)
            onlooker.retrieved(b, tuple(zip(passages, priors, strict=True)), read.retrieved.version)

    def is_wanted(self, question: int) -> bool:
        """As the onlooker says."""
        return self._onlooker.is_wanted(question)

    def decided(self, question: int, ids: tuple[int, ...], log_p_theta: Tensor) -> None:
        """Tells those of the tokens whose text is settled, if they are more than before."""
        if len(ids) == self._num_ids[question]:
            return
        self._num_ids[question] = len(ids)
        ended = ids[-1] in self._read.generator.end_ids
        begun = Decoded(ids, 0.0, log_p_theta, finished=ended)
        evidence = evidence_of(begun, self._read, question)
        tokens = tokens_of(self._read.generator, evidence, 0, self._variant, finished=ended)
        if not ended:
            tokens = tokens[: num_settled([token.text for token in tokens], self._stop)]
        if len(tokens) > self._num_told[question]:
            self._num_told[question] = len(tokens)
            self._onlooker.decided(question, tokens)


def num_settled(texts: Sequence[str], stop: Sequence[str]) -> int:
    """How many tokens have a text that stays what it is. One that adds nothing yet waits for what follows."""
    room = settled_length("".join(texts), stop)
    count = 0
    for number, text in enumerate(texts, start=1):
        room -= len(text)
        if room < 0:
            break
        if text:
            count = number
    return count
