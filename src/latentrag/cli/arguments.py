"""Arguments and options that several commands share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from latentrag.cli.heap import uncollected
from latentrag.cli.output import working
from latentrag.config import DEMO, RetrieverKind
from latentrag.errors import InputError
from latentrag.types import Decoding, Variant

if TYPE_CHECKING:
    from latentrag.assemble import ModelSpec
    from latentrag.rag import Rag

Dtype = Literal["auto", "float32", "bfloat16", "int8"]
TrainingDtype = Literal["auto", "float32", "bfloat16"]

AsJson = Annotated[bool, typer.Option("--json", help="Write JSON.")]
MemoryName = Annotated[str, typer.Option("-i", "--memory", help="The memory to ask: a path, or demo.")]
ModelName = Annotated[
    str | None, typer.Option("-m", "--model", help="A model folder, a hub id, or demo, which is the default.")
]
EncoderName = Annotated[
    str | None, typer.Option("--encoder", help="In place of -m: the encoder of the questions, a folder or hub id.")
]
GeneratorName = Annotated[
    str | None, typer.Option("--generator", help="With --encoder: any encoder-decoder or causal language model.")
]
PassageEncoderName = Annotated[
    str | None, typer.Option("--passage-encoder", help="With --encoder: where passages have an encoder of their own.")
]
RetrieverName = Annotated[
    RetrieverKind | None,
    typer.Option("--retriever", help="How passages are found: by vectors or by words; default: as the model says."),
]
NumPassages = Annotated[
    int | None, typer.Option("-k", "--k", "--passages", help="Passages to retrieve; default: the model's own number.")
]
VariantName = Annotated[
    Variant | None,
    typer.Option("--variant", help="One passage explains the whole answer, or each token may lean on another."),
]
AsOf = Annotated[
    str | None,
    typer.Option(
        "--as-of",
        metavar="VERSION|DATE|TAG",
        help="A version of the memory, or what was the newest then; see `index log`. Default: see `index use`.",
    ),
]
QuestionFile = Annotated[Path, typer.Argument(help="Questions with answers: JSON lines or an array, also gzipped.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out rows without question or answer.")]
ClosedBook = Annotated[bool, typer.Option("--closed-book", help="No passages: the generator alone.")]
DecodingName = Annotated[Decoding, typer.Option(help="How to search; thorough and fast are for sequence.")]
MaxTokens = Annotated[int | None, typer.Option(help="Longest answer.")]
DtypeName = Annotated[Dtype, typer.Option("--dtype", help="Number format of the generator.")]
TrainingDtypeName = Annotated[TrainingDtype, typer.Option("--dtype", help="Number format of the generator.")]


def model_source(
    model: str | None, *, encoder: str | None, generator: str | None, passage_encoder: str | None
) -> str | ModelSpec:
    """What ``latentrag.load`` takes, from -m or from the parts. Raises: InputError if they do not go together."""
    from latentrag.assemble import ModelSpec

    if encoder is None and generator is None and passage_encoder is None:
        return DEMO if model is None else model
    if model is not None:
        raise InputError("got both -m and parts of a model; give either -m, or --encoder and --generator")
    if encoder is None or generator is None:
        missing = "--encoder" if encoder is None else "--generator"
        raise InputError(f"got parts of a model without {missing}; give --encoder and --generator, or -m")
    return ModelSpec(encoder=encoder, generator=generator, passage_encoder=passage_encoder)


def open_rag(
    source: str | ModelSpec,
    *,
    memory: str,
    version: str | None = None,
    retriever: RetrieverKind | None = None,
    dtype: str = "auto",
) -> Rag:
    """The model and its memory. Raises as ``latentrag.load``."""
    with working("loading the model and its memory"), uncollected():
        from latentrag.assemble import load

        return load(source, memory=memory, version=version, retriever=retriever, dtype=dtype)


def size_in_bytes(text: str, what: str) -> int:
    """A size as people write it: 4GB, 1.5 GiB, 800M. Raises: InputError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", text, re.ASCII | re.IGNORECASE)
    if found is None:
        raise InputError(f"{what} {text!r} is no size; give a number with MB or GB, as 4GB")
    number, prefix, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** (" kmgt".index(prefix.lower() or " ")))


def check_text(text: str, what: str) -> None:
    """Raises: InputError for bytes on the command line that are not text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"the {what} holds bytes that are not UTF-8; check the terminal's encoding") from None
