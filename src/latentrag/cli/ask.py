"""`latentrag ask`, `classify` and `demo`."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from latentrag.cli import arguments as arg
from latentrag.cli import remote
from latentrag.cli.output import message_of, print_json, say, working
from latentrag.errors import DataError, InputError
from latentrag.options import (
    DEMO,
    AskOptions,
    ConfidenceOptions,
    DecodingOptions,
    EvidenceOptions,
    Given,
    ModelOptions,
    OneAnswerOptions,
    PlaceOptions,
    SystemOptions,
)
from latentrag.records import answer_record, classification_record

if TYPE_CHECKING:
    from latentrag.types import Answer

STANDARD_INPUT = "-"


def ask(
    question: Annotated[
        str | None, typer.Argument(help="The question, in quotes; -: every line of standard input.", show_default=False)
    ] = None,
    *,
    system: SystemOptions,
    how: OneAnswerOptions,
    evidence: EvidenceOptions,
    confidence: ConfidenceOptions,
    decoding: Given[DecodingOptions],
    file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Answer every line of this file; the model is loaded once.")
    ] = None,
    server: arg.Server = None,
    as_json: arg.AsJson = False,
) -> None:
    """Answer a question, with the answer's probability and sources."""
    asked = _questions(question, file)
    if server is None:
        arg.refuse_rewrites(system.model, "ask")
        rag = arg.open_rag(system)
        wanted: dict[str, Any] = {**asdict(how), **asdict(evidence), **asdict(confidence), **decoding}

        def answer(text: str) -> Answer:
            with working("answering"):
                return rag.answer(text, **wanted)
    else:
        remote.refuse_own(system.model, system.memory, system.place)
        options = remote.options_body(decoding, system.version, system.which, how, evidence, confidence)

        def answer(text: str) -> Answer:
            return remote.answer(server, {"question": text, **options})

    _answer_each(asked, answer, as_json=as_json, is_one=question not in {None, STANDARD_INPUT})


def _answer_each(
    asked: Iterable[tuple[str, str]], answer: Callable[[str], Answer], *, as_json: bool, is_one: bool
) -> None:
    """Writes each answer as soon as it is there. Raises: DataError for a line that cannot be answered."""
    from latentrag.cli.render import show_answer, show_question, terminal

    console, number = terminal(), 0
    for number, (where, text) in enumerate(asked, start=1):
        try:
            found = answer(text)
        except InputError as error:
            if is_one:
                raise
            raise DataError(f"{where}: {message_of(error)}") from error
        if as_json:
            print_json(answer_record(found))
            continue
        if not is_one:
            show_question(text, console, is_first=number == 1)
        show_answer(found, console)
    if not number:
        raise InputError("there is no question; write one a line")


def _questions(question: str | None, file: Path | None) -> Iterator[tuple[str, str]]:
    """Each question, and where it stands. Raises: InputError for none, or two places; DataError."""
    if (question is None) == (file is None):
        needed = "needed a question in quotes, - for the lines of standard input, or --file FILE"
        raise InputError(f"got {'no question' if file is None else 'a question and --file'}; {needed}")
    if file is not None:
        try:
            return _lines(io.BytesIO(file.read_bytes()), str(file))
        except OSError as error:
            raise InputError(f"{file} cannot be read ({error.strerror}); name a file with a question a line") from error
    if question == STANDARD_INPUT:
        return _lines(sys.stdin.buffer, "standard input")
    arg.check_text(question or "", "question")
    return iter([("question", question or "")])


def _lines(stream: Iterable[bytes], name: str) -> Iterator[tuple[str, str]]:
    for number, raw in enumerate(stream, start=1):
        where = f"{name} line {number}"
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError:
            raise DataError(f"{where} is not UTF-8; write it in UTF-8") from None
        if text:
            yield where, text


def classify(
    question: Annotated[str, typer.Argument(help="What to classify, in quotes.")],
    labels: Annotated[list[str], typer.Argument(help="Two or more labels, each in quotes.")],
    system: SystemOptions,
    how: AskOptions,
    as_json: arg.AsJson = False,
) -> None:
    """Choose among labels, with the probability of each."""
    arg.refuse_rewrites(system.model, "classify")
    arg.check_text(question, "question")
    for label in labels:
        arg.check_text(label, "label")
    rag = arg.open_rag(system)
    with working("comparing the labels"):
        result = rag.classify(question, labels, k=how.k, variant=how.variant)
    if as_json:
        print_json(classification_record(result))
    else:
        from latentrag.cli.render import show_classification, terminal

        show_classification(result, terminal())


DemoName = Annotated[
    Literal["demo", "good"],
    typer.Option("-m", "--model", help="demo: small, 0.3 GB to fetch; good: answers well, 1.5 GB to fetch."),
]


def demo(place: PlaceOptions, model: DemoName = "demo", as_json: arg.AsJson = False) -> None:
    """Fetch a model and an encyclopedia, and ask them three questions.

    The first run downloads them and prepares for some minutes; `-m good` in every other command is the good one, and
    `-i demo` beside it its own memory.
    """
    from latentrag.demo import QUESTIONS, prepare

    prepare(name=model, progress=True, device=place.encoder_device or place.device)
    rag = arg.open_rag(SystemOptions(model=ModelOptions(model=model), place=place))
    if as_json:
        print_json({"answers": [answer_record(rag.answer(question)) for question in QUESTIONS]})
        return
    from latentrag.cli.render import show_answer, show_question, terminal

    console = terminal()
    for number, question in enumerate(QUESTIONS):
        show_question(question, console, is_first=number == 0)
        show_answer(rag.answer(question), console)
    console.print()
    named = "" if model == DEMO else f" -m {model}"
    say(f'Next, ask something yourself: latentrag ask "Who discovered penicillin?"{named}')
    say(f"or ask documents of your own: latentrag index add notes.lance FOLDER{named}")
    say(f'and then: latentrag ask "…" -i notes.lance{named}')
    if model == DEMO:
        say("A model that answers better: latentrag demo --model good")
