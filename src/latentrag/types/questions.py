"""What is asked: x, the turns of a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

from latentrag.errors import InputError
from latentrag.types.passages import Passage

Role = Literal["system", "user", "assistant"]
"""Who says a turn; what the system says is the instruction."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Question:
    """x: the turns of a conversation, at least one, of which the last asks.

    ``passages`` are those that come with it, in place of a memory (``retriever.given``). ``num_dropped`` is how many
    turns there were before these that are not read.
    """

    turns: tuple[Turn, ...]
    passages: tuple[Passage, ...] = ()
    num_dropped: int = 0

    @property
    def text(self) -> str:
        """What the last turn asks."""
        return self.turns[-1].text

    @property
    def instruction(self) -> str:
        """What the system's turns say; empty where there are none."""
        return "\n".join(turn.text for turn in self.turns if turn.role == "system")

    @property
    def exchanges(self) -> tuple[tuple[str, str], ...]:
        """Earlier questions, each with the answer that it got; either is empty where there was none."""
        pairs: list[tuple[str, str]] = []
        for turn in self.turns[:-1]:
            if turn.role == "user":
                pairs.append((turn.text, ""))
            elif turn.role == "assistant":
                asked = pairs.pop()[0] if pairs and not pairs[-1][1] else ""
                pairs.append((asked, turn.text))
        return tuple(pairs)

    @property
    def is_conversation(self) -> bool:
        """Whether anything was said before what is asked, by the system or anybody else."""
        return len(self.turns) > 1 or self.num_dropped > 0

    def since(self, num_exchanges: int) -> Question:
        """The same question after the last of so many exchanges, with what the system said."""
        first = len(self.exchanges) - num_exchanges
        kept = [turn for question, answer in self.exchanges[first:] for turn in _turns(question, answer)]
        system = (Turn("system", self.instruction),) if self.instruction else ()
        before = sum(turn.role != "system" for turn in self.turns[:-1])
        dropped = self.num_dropped + before - len(kept)
        return Question((*system, *kept, self.turns[-1]), self.passages, dropped)

    @classmethod
    def of(cls, x: Asked, passages: tuple[Passage, ...] = ()) -> Question:
        """A plain text as a conversation of one turn, with the passages that come with it; messages, as OpenAI's
        clients have them ({"role": "user", "content": "…"}), as their turns; a question as it is.

        Raises: InputError for messages that are no conversation, or whose last is not a user's with some text.
        """
        if isinstance(x, Question):
            return x
        return cls((Turn("user", x),) if isinstance(x, str) else turns_of(x), passages)


def _turns(question: str, answer: str) -> list[Turn]:
    turns = (Turn("user", question), Turn("assistant", answer))
    return [turn for turn in turns if turn.text]


Messages = Sequence[Mapping[str, object]]
"""Turns as OpenAI's clients have them."""

Asked = str | Question | Messages
"""x as callers may give it."""


def turns_of(messages: Messages) -> tuple[Turn, ...]:
    """The turns that have a text. Raises: InputError for what is no message, or if the last is not a user's text."""
    turns: list[Turn] = []
    if not isinstance(messages, Sequence):
        raise InputError(f"got a {type(messages).__name__} as a question; needed a text, or a list of messages")
    for number, message in enumerate(messages, start=1):
        role, text = (message.get("role"), message.get("content")) if isinstance(message, Mapping) else (None, None)
        if role not in get_args(Role) or not isinstance(text, str):
            raise InputError(
                f'message {number} of {len(messages)} is not {{"role": "user", "content": "…"}}; needed a text and one '
                f"of the roles {', '.join(get_args(Role))}"
            )
        if text.strip():
            turns.append(Turn(cast("Role", role), text))
    if not turns or turns[-1].role != "user":
        raise InputError("the conversation does not end with a user's message that has some text; add what is asked")
    return tuple(turns)


def question_texts(x: Sequence[Asked], *, with_passages: bool = False) -> list[str]:
    """What each question asks.

    Args:
        with_passages: whether passages that come with a question are read.
    Raises: InputError for one text in place of a list, and for a question that is no text, blank or no valid Unicode,
        or comes with passages that are not read.
    """
    if isinstance(x, str):
        raise InputError("got one text, needed a list of texts; write [question]")
    texts = [Question.of(question).text for question in x]
    for i, text in enumerate(texts):
        which = f"question {i + 1} of {len(x)}"
        if not with_passages and Question.of(x[i]).passages:
            raise InputError(f"{which} comes with passages of its own, which this retriever does not read")
        if not isinstance(text, str):
            raise InputError(f"{which} is a {type(text).__name__}, needed a text")
        if not text.strip():
            raise InputError(f"{which} is empty; write at least one word")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InputError(f"{which} is not valid Unicode text; remove its lone surrogates") from None
    return texts
