"""What all frameworks are given: passages with their priors, and an answer as it comes, in their terms."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from latentrag.decoding import Answered, Begun
from latentrag.errors import InputError
from latentrag.io import finite
from latentrag.records import FinishReason, answer_record, finish_reason, passage_record, token_record, usage_record
from latentrag.types import Answer, Passage, Question, Role, Token

if TYPE_CHECKING:
    from latentrag.asking import HowToAnswer
    from latentrag.conditions import Where
    from latentrag.rag import Rag


@dataclass(frozen=True, slots=True)
class FoundPassage:
    """A passage that was retrieved, with the retriever's logit and p_η(z|x), its prior. ``missing``: the parts of the
    memory that did not answer."""

    passage: Passage
    score: float
    prior: float
    missing: tuple[str, ...] = ()

    @property
    def metadata(self) -> dict[str, Any]:
        """All that is known of it but its text: id, title, source, …, score, prior."""
        record: dict[str, Any] = {**passage_record(self.passage), "score": self.score, "prior": self.prior}
        record.pop("text")
        return {**record, "missing": list(self.missing)} if self.missing else record


@dataclass(frozen=True, slots=True)
class Piece:
    """The next text of an answer, whatever follows. token: its log_prob and its share of each source; None where the
    text is no token's."""

    text: str
    token: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer.

    Attributes:
        text: the answer.
        finish_reason: "length" if the limit on its tokens cut it, else "stop".
        usage: ``prompt_tokens``, ``completion_tokens``, ``total_tokens``.
        record: the object of ``latentrag ask --json``: ``sources`` with prior and posterior, ``log_prob``, ``tokens``
            with the share of each source, …; −∞ is None.
    """

    text: str
    finish_reason: FinishReason
    usage: dict[str, int]
    record: dict[str, Any]


def found(rag: Rag, query: str, *, k: int | None, where: Where | None) -> list[FoundPassage]:
    """The passages that are retrieved for a question, best first.

    Args:
        k: how many; None: as many as the model takes.
        where: a condition on their fields; None: none.
    Raises: InputError for an empty question, a k that cannot be, or a condition that cannot be.
    """
    retrieved = rag.retrieve(query, k=k, where=where)
    return [FoundPassage(*each, retrieved.missing) for each in retrieved.passages]


def question_of(messages: Iterable[tuple[str, str]]) -> Question:
    """A conversation, (role, text) each, up to the user's last message, which asks. What tools say is left out.

    Raises: InputError if there is none, or it is empty.
    """
    said = [{"role": role, "content": text} for role, text in messages if role in get_args(Role) and text.strip()]
    while said and said[-1]["role"] != "user":
        said.pop()
    if not said:
        raise InputError("got no message of the user with a text; needed a question")
    return Question.of(said)


def pieces(rag: Rag, question: Question, how: HowToAnswer) -> Iterator[Piece | Reply]:
    """An answer's text in pieces, each as soon as it is certain, and at the end the whole.

    Raises: as ``Rag.answer``.
    """
    asking = rag.asking(**how)
    num_told = 0
    for event in rag.answering([question], asking).events():
        if isinstance(event, Begun):
            yield from map(_piece, event.tokens[num_told:])
            num_told = len(event.tokens)
        elif isinstance(event, Answered):
            answer = event.answer
            if answer.best_guess is None:
                yield from map(_piece, answer.tokens[num_told:])
            else:
                yield Piece(answer.text, None)  # the tokens are those of the guess
            yield _reply(answer, asking.options.max_tokens)


def reply(rag: Rag, question: Question, how: HowToAnswer) -> Reply:
    """The answer as a whole. Raises: as ``Rag.answer``."""
    asking = rag.asking(**how)
    return _reply(rag.answer(question, **how), asking.options.max_tokens)


def _piece(token: Token) -> Piece:
    return Piece(token.text, finite(token_record(token)))


def _reply(answer: Answer, max_tokens: int) -> Reply:
    usage = usage_record(answer)
    return Reply(
        answer.text,
        finish_reason(answer, max_tokens),
        {name: usage[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")},
        finite(answer_record(answer)),
    )
