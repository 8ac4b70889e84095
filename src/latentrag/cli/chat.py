"""`latentrag chat`: a conversation in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from latentrag.cli import arguments as arg
from latentrag.cli import remote
from latentrag.cli.output import message_of, print_json, print_line, say, working
from latentrag.errors import DataError, InputError
from latentrag.options import (
    DecodingOptions,
    Given,
    OneAnswerOptions,
    SystemOptions,
)
from latentrag.records import answer_record

if TYPE_CHECKING:
    from latentrag.types import Answer

COMMANDS = "/new begins anew, /sources shows all of the last answer, Ctrl-D ends"

Messages = list[dict[str, object]]


def chat(
    *,
    system: SystemOptions,
    how: OneAnswerOptions,
    decoding: Given[DecodingOptions],
    server: arg.Server = None,
    as_json: arg.AsJson = False,
) -> None:
    """Ask questions that go on from the last one: each line of the terminal or of standard input is a turn.

    How a question is to be read (alone, with the turn before, with all turns) is a latent value of its own; each answer
    says which reading it owes most to. /new begins a new conversation, /sources shows all of the last answer, Ctrl-D
    ends.
    """
    if server is None:
        rag = arg.open_rag(system)
        options: dict[str, Any] = {**asdict(how), **decoding}
        rag.asking(**options)  # refused before the first question

        def answer(messages: Messages) -> Answer:
            with working("answering"):
                return rag.answer(messages, **options)
    else:
        from latentrag.serving.options import MAX_MESSAGES

        newest = -(MAX_MESSAGES - 1)  # a server takes no more; the first is a user's
        remote.refuse_own(system.model, system.memory, system.place)
        body = remote.options_body(decoding, system.version, system.which, how)

        def answer(messages: Messages) -> Answer:
            return remote.answer(server, {"messages": messages[newest:], **body})

    is_typed = sys.stdin.isatty()
    if is_typed:
        say(COMMANDS)
    converse(_lines(is_typed=is_typed), answer, as_json=as_json, goes_on=is_typed)


def converse(
    lines: Iterator[str], answer: Callable[[Messages], Answer], *, as_json: bool = False, goes_on: bool = True
) -> None:
    """Answers each line after the ones before.

    Args:
        goes_on: a line that cannot be answered costs a message and is no part of the conversation.
    Raises: DataError for a line that cannot be answered, if it does not go on.
    """
    messages: Messages = []
    last: Answer | None = None
    for number, line in enumerate(lines, start=1):
        if line == "/new":
            messages, last = [], None
        elif line == "/sources":
            _show_whole(last)
        elif line.startswith("/"):
            say(f"no command {line.split()[0]}; {COMMANDS}")
        elif line:
            asked: Messages = [*messages, {"role": "user", "content": line}]
            try:
                last = answer(asked)
            except InputError as error:
                if not goes_on:
                    raise DataError(f"standard input line {number}: {message_of(error)}") from error
                say(f"error: {message_of(error)}")
                continue
            messages = [*asked, {"role": "assistant", "content": last.text}]
            if as_json:
                print_json(answer_record(last))
            else:
                _show(last)


def _lines(*, is_typed: bool) -> Iterator[str]:
    """What is typed or piped in, line by line, until it ends."""
    if is_typed:
        with suppress(ImportError):
            import readline  # noqa: F401  the line can be edited, and earlier ones come back
    while True:
        try:
            yield input("> " if is_typed else "").strip()
        except EOFError:
            if is_typed:
                print_line("")
            return
        except UnicodeDecodeError:
            raise InputError("standard input is not UTF-8; write it in UTF-8") from None


def _show(answer: Answer) -> None:
    from latentrag.cli.render import show_turn, terminal

    show_turn(answer, terminal())
    sys.stdout.flush()


def _show_whole(answer: Answer | None) -> None:
    from latentrag.cli.render import show_answer, terminal

    if answer is None:
        say("there is no answer yet; ask something")
    else:
        show_answer(answer, terminal())
