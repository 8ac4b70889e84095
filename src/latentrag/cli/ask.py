"""`latentrag ask`, `classify` and `demo`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Literal

import typer

from latentrag.cli import arguments as arg
from latentrag.cli.output import print_json, say, working
from latentrag.options import (
    DEMO,
    AskOptions,
    ConfidenceOptions,
    DecodingOptions,
    EvidenceOptions,
    FilterOptions,
    Given,
    MemoryOptions,
    ModelOptions,
    OneAnswerOptions,
    PlaceOptions,
    VersionOptions,
)
from latentrag.records import answer_record, classification_record


def ask(
    question: Annotated[str, typer.Argument(help="The question, in quotes.")],
    memory: MemoryOptions,
    version: VersionOptions,
    which: FilterOptions,
    model: ModelOptions,
    place: PlaceOptions,
    how: OneAnswerOptions,
    evidence: EvidenceOptions,
    confidence: ConfidenceOptions,
    decoding: Given[DecodingOptions],
    as_json: arg.AsJson = False,
) -> None:
    """Answer a question, with the answer's probability and sources."""
    arg.check_text(question, "question")
    rag = arg.open_rag(model, memory, version, place, which)
    with working("answering"):
        answer = rag.answer(question, **asdict(how), **asdict(evidence), **asdict(confidence), **decoding)
    if as_json:
        print_json(answer_record(answer))
    else:
        from latentrag.cli.render import show_answer, terminal

        show_answer(answer, terminal())


def classify(
    question: Annotated[str, typer.Argument(help="What to classify, in quotes.")],
    labels: Annotated[list[str], typer.Argument(help="Two or more labels, each in quotes.")],
    memory: MemoryOptions,
    version: VersionOptions,
    which: FilterOptions,
    model: ModelOptions,
    place: PlaceOptions,
    how: AskOptions,
    as_json: arg.AsJson = False,
) -> None:
    """Choose among labels, with the probability of each."""
    arg.check_text(question, "question")
    for label in labels:
        arg.check_text(label, "label")
    rag = arg.open_rag(model, memory, version, place, which)
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
    rag = arg.open_rag(ModelOptions(model=model), MemoryOptions(), VersionOptions(), place)
    if as_json:
        print_json({"answers": [answer_record(rag.answer(question)) for question in QUESTIONS]})
        return
    from rich.rule import Rule
    from rich.text import Text

    from latentrag.cli.render import show_answer, terminal

    console = terminal()
    for question in QUESTIONS:
        console.print(Rule(Text(question), align="left"))
        show_answer(rag.answer(question), console)
        console.print()
    named = "" if model == DEMO else f" -m {model}"
    say(f'Next, ask something yourself: latentrag ask "Who discovered penicillin?"{named}')
    say(f"or ask documents of your own: latentrag index add notes.lance FOLDER{named}")
    say(f'and then: latentrag ask "…" -i notes.lance{named}')
    if model == DEMO:
        say("A model that answers better: latentrag demo --model good")
