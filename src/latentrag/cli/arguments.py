"""What commands have in common: their options, made from dataclasses, and how they open a model."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, fields, is_dataclass, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

import typer

from latentrag import assemble
from latentrag.cli.output import say, working
from latentrag.errors import InputError
from latentrag.options import (
    DEMO,
    Given,
    ModelOptions,
    OptionField,
    RowOptions,
    SystemOptions,
    options_of,
    require_encoder,
)

if TYPE_CHECKING:
    from latentrag.rag import Rag
    from latentrag.training.data import Example

AsJson = Annotated[bool, typer.Option("--json", help="Write JSON.")]
Server = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Ask the `latentrag serve` at this address, with its model and its memory. The variable "
        "LATENTRAG_API_KEY holds its key.",
    ),
]
FileOfReport = Annotated[
    Path | None,
    typer.Option("--report", metavar="FILE", help="Write what became of each file, as JSON lines. Default: none."),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Exit with code 1 if a file was skipped; the others are read all the same.")
]
QuestionFiles = Annotated[
    list[Path],
    typer.Argument(
        metavar="DATA...", help="Questions with answers: JSON lines or an array, also gzipped; one or several files."
    ),
]


def command(function: Callable[..., None]) -> Callable[..., None]:
    """A function for typer, from one of which some parameters are dataclasses of options (see ``latentrag.options``).

    Each of their fields becomes a flag, with its help, default and limits; one that is itself a dataclass of options
    gives its own. A parameter of type ``Given[T]`` gets those
    options of T that the user has given, by field name. "~" in a path is the user's home folder.
    """
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, tuple[type, bool]] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(function).parameters.values():
        hint = hints[parameter.name]
        is_given = get_origin(hint) is Given
        options = get_args(hint)[0] if is_given else hint
        if is_given or (isinstance(options, type) and hasattr(options, "__dataclass_fields__")):
            groups[parameter.name] = options, is_given
            parameters += _flags(options, is_given=is_given)
        else:
            parameters.append(parameter.replace(annotation=hint, kind=inspect.Parameter.KEYWORD_ONLY))

    @wraps(function)
    def run(**values: Any) -> None:
        values = {name: value.expanduser() if isinstance(value, Path) else value for name, value in values.items()}
        options = {name: _taken(values, cls, is_given=is_given) for name, (cls, is_given) in groups.items()}
        function(**values, **options)

    described: Any = run
    described.__signature__ = inspect.Signature(parameters)
    described.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _parts(options: type) -> dict[str, type]:
    """The fields of a dataclass that are groups of options themselves."""
    hints = get_type_hints(options)
    return {field.name: hints[field.name] for field in fields(options) if is_dataclass(hints[field.name])}


def _public(options: type) -> Iterator[OptionField]:
    return (field for field in options_of(options).values() if field.option.public)


def _flags(options: type, *, is_given: bool) -> Iterator[inspect.Parameter]:
    for part in _parts(options).values():
        yield from _flags(part, is_given=is_given)
    for field in _public(options):
        option, default = field.option, field.default
        type_: Any = list[str] if get_origin(field.type) is tuple else field.type
        words = option.default or _words(default)
        if is_given and type_ is not bool:
            type_, default = type_ | None, None
            words = getattr(options, "DEFAULT", "{}").format(words)
        if default == ():
            default = []
        limits = option.limits if option.limits != "0 or more" else ""
        notes = [note for note in (limits, f"default: {words}" if words else "") if note]
        help_ = f"{field.help} [{'; '.join(notes)}]" if notes else field.help
        flag = typer.Option(*field.flags, help=help_, metavar=option.metavar, show_default=False)
        yield inspect.Parameter(
            field.field,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if default is MISSING else default,
            annotation=Annotated[type_, flag],
        )


def _words(default: Any) -> str:
    """A default for the help; empty where nothing is the default."""
    if default is None or default is MISSING or default is False or default == ():
        return ""
    return f"{default:g}" if isinstance(default, float) else f"{default}"


def _taken(values: dict[str, Any], options: type, *, is_given: bool) -> Any:
    """The options of a dataclass, taken out of the values of all flags. Raises: InputError for one out of limits."""
    taken = {name: _taken(values, part, is_given=is_given) for name, part in _parts(options).items()}
    for field in _public(options):
        value = values.pop(field.field)
        if isinstance(value, list):
            value = tuple(value)
        if is_given and (value is False or value == ()):
            value = None
        called = next((flag for flag in field.flags if flag.startswith("--")), field.field)
        field.check(value, called=called)
        taken[field.field] = value
    return Given.of(options, taken) if is_given else options(**taken)


@contextmanager
def uncollected() -> Iterator[None]:
    """Without Python's garbage collector, which looks again and again through the million objects that come into being
    while libraries and a vocabulary are loaded: 1.4 times the processor time (ADR 16)."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def model_source(options: ModelOptions) -> str | assemble.ModelSpec:
    """What ``latentrag.load`` takes. Raises: InputError if the options do not go together."""
    model, encoder, generator = options.model, options.encoder, options.generator
    if options.adapter is not None and generator is None:
        raise InputError("got --adapter without --generator; name the generator that it was trained for")
    settings = _generator_settings(options)
    if settings and generator is None:
        raise InputError("got --generator-kind or --generator-setting without --generator; a model has its own")
    require_encoder(options.of_encoder, None if options.retriever == "bm25" else encoder)
    if encoder is None and generator is None and options.passage_encoder is None:
        return DEMO if model is None else model
    if model is not None:
        raise InputError("got both -m and parts of a model; give either -m, or --encoder and --generator")
    if encoder is None or generator is None:
        missing = "--encoder" if encoder is None else "--generator"
        raise InputError(f"got parts of a model without {missing}; give --encoder and --generator, or -m")
    parts = (encoder, generator, options.passage_encoder, options.adapter)
    return assemble.ModelSpec(*parts, options.of_encoder, generator_settings=settings)


def _generator_settings(options: ModelOptions) -> dict[str, object]:
    """By name. Raises: InputError for one that is not NAME=VALUE."""
    settings: dict[str, object] = {} if options.generator_kind is None else {"kind": options.generator_kind}
    for given in options.generator_settings:
        name, is_there, value = given.partition("=")
        if not is_there or not name or not value:
            raise InputError(f"--generator-setting {given!r} is no setting; write NAME=VALUE, as normalise=passage")
        settings[name] = int(value) if value.isdecimal() else {"true": True, "false": False}.get(value, value)
    return settings


def refuse_rewrites(options: ModelOptions, command: str) -> None:
    """For commands whose questions have no turns before them. Raises: InputError if they were asked for."""
    if options.rewrites is not None:
        raise InputError(f"--rewrites has no effect, since {command} takes no conversations; leave it out")


def loading(options: ModelOptions) -> dict[str, Any]:
    """What else ``latentrag.load`` takes of a model."""
    of_prior = ("retriever", "reranker", "candidates", "null_passage", "set_size", "set_bonus")
    names = (*of_prior, "rewrites", "neighbours", "instruction", "template")
    return {name: getattr(options, name) for name in names}


def open_rag(system: SystemOptions, *, num_given: int | None = None, passage_encoder: str | None = None) -> Rag:
    """The model and its memory. Raises as ``latentrag.load``."""
    source = model_source(system.model)
    with working("loading the model and its memory"), uncollected():
        return assemble.load(
            source,
            memory=system.memory.memory,
            version=system.version.as_of,
            num_given=num_given,
            where=system.which.where,
            passage_encoder=passage_encoder,
            **loading(system.model),
            **asdict(system.place),
        )


def name_of(source: str | assemble.ModelSpec) -> str:
    """What a run is known by."""
    return source if isinstance(source, str) else f"{source.encoder} + {source.generator}"


def about_run(system: SystemOptions, reading: RowOptions, *, keyed: bool = True) -> dict[str, object]:
    """What of a command's options the rows of a run depend on, as JSON values.

    Args: keyed: whether the run can be continued, so that the model's files matter, which takes time to read.
    """
    model, source = system.model, model_source(system.model)
    return {
        "model": name_of(source),
        "model_files": assemble.content_key(source) if keyed else None,
        "dtype": system.place.dtype,
        "prefix_field": reading.prefix_field,
        **({"labels": reading.labels} if reading.labels else {}),
        **({"answers_from": reading.answers_from} if reading.answers_from else {}),
        **about_prior(system, keyed=keyed),
        **assemble.prompt_settings(model.instruction, model.template),
    }


def about_prior(system: SystemOptions, *, keyed: bool) -> dict[str, object]:
    """What of it changes which passages are found, and how probable they are. Args: keyed: as for ``about_run``."""
    model, names = system.model, ("candidates", "null_passage", "set_size", "set_bonus", "rewrites", "neighbours")
    given = {name: value for name in names if (value := getattr(model, name)) is not None}
    reranker: dict[str, object] = {}
    if model.reranker is not None:
        files = assemble.content_key(model.reranker) if keyed else None
        reranker = {"reranker": Path(model.reranker).name, "reranker_files": files}
    return {
        **({"where": system.which.where} if system.which.where else {}),
        **reranker,
        **given,
    }


def usable_examples(
    files: Sequence[Path],
    reading: RowOptions,
    rag: Rag,
    *,
    limit: int | None = None,
    number: int | None = None,
    seed: int = 0,
) -> list[Example]:
    """The examples of all files that the model can read. With several files the file's name stands before an id.

    Args:
        limit: only the first of each file, this many.
        number: of all, so many drawn at random; a larger number begins with the same.
    """
    from latentrag.training.data import order
    from latentrag.training.rows import reads, usable
    from latentrag.training.tasks import read_task

    examples: list[Example] = []
    for file in files:
        rows = read_task(file, reading, say=say).rows[:limit]
        examples += rows if len(files) == 1 else [replace(each, id=f"{file}:{each.id}") for each in rows]
    if number is not None:
        examples = [examples[place] for place in order(len(examples), epoch=0, seed=seed)[:number]]
    return list(
        usable(
            examples,
            name=", ".join(map(str, files)),
            question=reads(rag.retriever, rag.generator),
            y=rag.generator.targets,
            answers="first",
            skip_bad=reading.skip_bad,
            say=say,
        )
    )


def check_text(text: str, what: str) -> None:
    """Raises: InputError for bytes on the command line that are not text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"the {what} has bytes that are not UTF-8; check the terminal's encoding") from None
