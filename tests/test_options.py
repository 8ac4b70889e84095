"""Options are written once: commands, HTTP API and Python agree in names, defaults, help and limits."""

import math
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from latentrag.cli.arguments import command
from latentrag.cli.main import app
from latentrag.errors import InputError
from latentrag.options import (
    AnswerOptions,
    AskOptions,
    DecodingOptions,
    EvidenceOptions,
    FilterOptions,
    GeneratorOptions,
    Given,
    MakingOptions,
    MemoryOptions,
    ModelOptions,
    OneAnswerOptions,
    Option,
    OptionField,
    PassageEncoderOptions,
    PlaceOptions,
    PreviewOptions,
    ReadingOptions,
    RetrievalOptions,
    SyncOptions,
    VersionOptions,
    check_options,
    options_of,
)
from latentrag.serving.app import create_app
from latentrag.serving.options import ServeOptions
from latentrag.training.options import RunOptions, TrainingOptions, chosen_for, options_from
from tests.serving.conftest import gated

__all__ = ["gated"]

MODEL = [MemoryOptions, VersionOptions, ModelOptions, PlaceOptions]
SOME = [*MODEL, FilterOptions]
COMMANDS: dict[tuple[str, ...], list[Any]] = {
    ("ask",): [*SOME, OneAnswerOptions, EvidenceOptions, Given[DecodingOptions]],
    ("classify",): [*SOME, AskOptions],
    ("score",): [*SOME, AskOptions, EvidenceOptions],
    ("eval",): [*SOME, AnswerOptions, Given[DecodingOptions]],
    ("serve",): [*SOME, AskOptions, ServeOptions],
    ("mcp",): [*SOME, AskOptions],
    ("train",): [MemoryOptions, FilterOptions, ModelOptions, RunOptions, Given[TrainingOptions]],
    ("doctor",): [MemoryOptions, ModelOptions, PlaceOptions],
    ("demo",): [PlaceOptions],
    ("make-questions",): [VersionOptions, FilterOptions, GeneratorOptions, MakingOptions],
    ("index", "add"): [PassageEncoderOptions, ReadingOptions],
    ("index", "reencode"): [PassageEncoderOptions],
    ("index", "preview"): [PreviewOptions],
    ("index", "sync"): [PassageEncoderOptions, SyncOptions],
    ("index", "push"): [VersionOptions],
}
GROUPS = [(names, group) for names, groups in COMMANDS.items() for group in groups]


def options_in(group: Any) -> tuple[type, bool]:
    """The dataclass, and whether its options are those given."""
    return (group.__args__[0], True) if getattr(group, "__origin__", None) is Given else (group, False)


def public(options: type) -> Iterator[OptionField]:
    return (field for field in options_of(options).values() if field.option.public)


def click_command(names: tuple[str, ...]) -> Any:
    found: Any = typer.main.get_command(app())
    for name in names:
        found = found.commands[name]
    return found


@cache
def shown_help(names: tuple[str, ...]) -> str:
    return CliRunner().invoke(app(), [*names, "--help"]).stdout


@pytest.mark.parametrize(("names", "group"), GROUPS)
def test_commands_have_the_flags_defaults_and_help_of_the_options(names: tuple[str, ...], group: Any) -> None:
    options, is_given = options_in(group)
    parameters = {parameter.name: parameter for parameter in click_command(names).params}
    for field in public(options):
        parameter = parameters[field.field]
        assert field.help
        assert set(parameter.opts) == set(field.flags)
        assert parameter.help.startswith(field.help)
        if field.option.limits not in {"", "0 or more"}:
            assert field.option.limits in parameter.help
        is_flag = field.type is bool
        assert parameter.required == (field.default is MISSING)
        expected = None if is_given and not is_flag else field.default
        if not parameter.required:
            assert parameter.default == ([] if expected == () else expected)
        if is_given and not is_flag:
            number = f"{field.default:g}" if isinstance(field.default, float) else field.default
            shown = field.option.default or number
            assert f"{shown}]" in parameter.help
        if field.choices:
            assert f"<{'|'.join(map(str, field.choices))}>" in shown_help(names)


def test_every_shared_option_is_one_of_a_dataclass() -> None:
    """An option that two commands have is written in one place, unless it is about the command alone."""
    own = {
        "as_json",
        "help",
        "strict",
        "skip_bad",
        "batch_size",
        "seed",
        "words",
        "limit",
        "out",
        "closed_book",
        "model",
    }
    seen: dict[str, tuple[str, ...]] = {}
    for names, groups in COMMANDS.items():
        taken = {field.field for group in groups for field in public(options_in(group)[0])}
        for parameter in click_command(names).params:
            if parameter.param_type_name == "option" and parameter.name not in taken | own:
                assert parameter.name not in seen, (parameter.name, names, seen[parameter.name])
                seen[parameter.name] = names


API: dict[str, list[Any]] = {
    "/v1/answer": [OneAnswerOptions, EvidenceOptions, Given[DecodingOptions]],
    "/v1/answer/stream": [OneAnswerOptions, EvidenceOptions, Given[DecodingOptions]],
    "/v1/score": [AskOptions, EvidenceOptions],
    "/v1/classify": [AskOptions],
    "/v1/search": [RetrievalOptions],
}


@pytest.fixture
def described(gated: Any, tmp_path: Path) -> Any:
    class Live:
        path, version = tmp_path / "m.lance", 1

    return create_app(gated, Live(), name="toy").openapi()  # type: ignore[arg-type]


@pytest.mark.parametrize(("path", "group"), [(path, group) for path, groups in API.items() for group in groups])
def test_the_api_has_the_fields_defaults_limits_and_help_of_the_options(described: Any, path: str, group: Any) -> None:
    options, is_given = options_in(group)
    body = described["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    schema = described["components"]["schemas"][body["$ref"].rsplit("/", 1)[1]]
    for field in public(options):
        found = schema["properties"][field.name]
        assert found["description"] == field.help
        assert field.name not in schema.get("required", ())
        if is_given and field.type is not bool:
            assert found.get("default") is None
        else:
            assert found.get("default") == (list(field.default) if field.default == () else field.default)
        number = next((one for one in found.get("anyOf", [found]) if one.get("type") in {"integer", "number"}), None)
        if number is not None:
            for own, low in ((field.option.ge, "minimum"), (field.option.gt, "exclusiveMinimum")):
                assert own is None or number[low] >= own
            assert field.option.le is None or number["maximum"] <= field.option.le
        if field.choices:
            listed = [one["enum"] for one in found.get("anyOf", [found]) if "enum" in one]
            assert tuple(listed[0]) == field.choices


BAD = [
    (options, field)
    for options in (DecodingOptions, RetrievalOptions, TrainingOptions, RunOptions, ServeOptions, SyncOptions)
    for field in options_of(options).values()
    if field.option.limits
]


def beyond(option: Option) -> Iterator[float]:
    for limit, step in ((option.ge, -1), (option.gt, 0), (option.le, 1), (option.lt, 0)):
        if limit is not None:
            yield limit + step


@pytest.mark.parametrize(("options", "field"), BAD)
def test_python_has_the_limits_of_the_options(options: Callable[..., Any], field: OptionField) -> None:
    required = {"out": Path("run")} if options is RunOptions else {}
    for value in [*beyond(field.option), math.nan]:
        with pytest.raises(InputError, match=f"^{field.field}="):
            options(**required, **{field.field: value})


def test_choices_are_checked_in_python_too() -> None:
    with pytest.raises(InputError, match="objective='mse' is unknown; needed one of nll, emdr2, pdist, loop"):
        TrainingOptions(objective="mse")
    with pytest.raises(InputError, match="early_stopping='always' is unknown; needed one of never"):
        DecodingOptions(early_stopping="always")  # type: ignore[arg-type]


def test_given_knows_its_options() -> None:
    assert Given.of(DecodingOptions, {"num_beams": 2, "seed": None}) == {"num_beams": 2}
    with pytest.raises(InputError, match="unknown option beams"):
        Given.of(DecodingOptions, {"beams": 2})
    with pytest.raises(InputError, match="top_p=2; needed more than 0 and at most 1"):
        Given.of(DecodingOptions, {"top_p": 2})


def test_options_of_a_run_follow_from_its_length() -> None:
    def chosen(**given: Any) -> TrainingOptions:
        return options_from(Given.of(TrainingOptions, given), epochs=2.0, num_examples=800)

    assert (chosen().num_steps, chosen().warmup_steps) == (100, 5)
    assert (chosen(batch_size=4).num_steps, chosen(num_steps=40).warmup_steps) == (400, 2)
    assert (chosen(warmup_steps=0).warmup_steps, chosen(lr_generator=1e-3).lr_generator) == (0, 1e-3)


@pytest.mark.parametrize(
    ("epochs", "num_examples", "batch_size", "num_steps"),
    [
        (1, 23, 16, 2),
        (1, 7, 16, 1),
        (1.0, 32, 16, 2),
        (2, 23, 16, 3),
        (0.7, 10, 1, 7),
        (1.1, 10, 1, 11),
        (0.01, 5, 2, 1),
    ],
)
def test_every_example_counts(epochs, num_examples, batch_size, num_steps) -> None:
    given = Given.of(TrainingOptions, {"batch_size": batch_size})
    assert options_from(given, epochs, num_examples).num_steps == num_steps


def test_the_usual_rate_is_that_of_what_is_trained() -> None:
    def rate(*, trains_adapter: bool, **given: Any) -> float:
        options = TrainingOptions(**given)
        about: Any = {"reads_untrained": True, "trains_adapter": trains_adapter, "num_passages": 9}
        return chosen_for(options, given, **about).lr_generator

    assert (rate(trains_adapter=True), rate(trains_adapter=False)) == (2e-4, 3e-5)
    assert rate(trains_adapter=True, lr_generator=3e-5) == 3e-5


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_numbers_are_finite(value) -> None:
    for options in (DecodingOptions, TrainingOptions, RunOptions, ReadingOptions, ServeOptions):
        for field in options_of(options).values():
            if field.type is float:
                with pytest.raises(InputError, match=f"{field.field}={value}; needed a finite number"):
                    field.check(value)


def test_texts_are_not_empty() -> None:
    for options in (ModelOptions, MemoryOptions, VersionOptions, PassageEncoderOptions, SyncOptions, TrainingOptions):
        for field in options_of(options).values():
            if field.type in (str, str | None):
                with pytest.raises(InputError, match=f"{field.field} is empty; give it a value or leave it out"):
                    field.check("")


@dataclass(frozen=True)
class ToyOptions:
    """Adding an option to every command that has these is a line here and one of its help.

    Attributes:
        size: How large,
            and how wide.
        folder: Where.
        loud: Shout.
        names: Who.
    """

    size: Annotated[int, Option(flags=("-s", "--size"), ge=1, le=9)] = 3
    folder: Annotated[Path | None, Option()] = None
    loud: Annotated[bool, Option()] = False
    names: Annotated[tuple[str, ...], Option(name="name")] = ()
    inner: int = 7

    def __post_init__(self) -> None:
        check_options(self)


_ALL = FilterOptions()


@dataclass(frozen=True)
class ToyGroups:
    """Groups of options in one value."""

    toy: ToyOptions = ToyOptions()
    which: FilterOptions = _ALL


def test_a_group_of_groups_has_the_flags_of_each() -> None:
    seen: list[ToyGroups] = []

    def toy(groups: ToyGroups) -> None:
        seen.append(groups)

    commands = typer.Typer()
    commands.command()(command(toy))
    ran = CliRunner().invoke(commands, ["-s", "2", "--where", "a = 1", "--name", "b"])
    assert (ran.exit_code, seen) == (0, [ToyGroups(ToyOptions(2, names=("b",)), FilterOptions("a = 1"))])
    assert CliRunner().invoke(commands, []).exit_code == 0
    assert seen[1:] == [ToyGroups()]


@pytest.mark.parametrize(
    ("arguments", "whole", "given"),
    [
        ([], ToyOptions(), {}),
        (["-s", 1, "--loud", "--name", "a", "--name", "b"], ToyOptions(1, None, True, ("a", "b")), None),
        (["--folder", "~/x", "--size", 3], ToyOptions(3, Path.home() / "x"), {"folder": Path.home() / "x", "size": 3}),
    ],
)
def test_a_command_gets_dataclasses(arguments: list[object], whole: ToyOptions, given: dict[str, Any] | None) -> None:
    seen: list[Any] = []

    def toy(word: str, options: ToyOptions, last: int = 5) -> None:
        seen.append((word, options, last))

    def partly(options: Given[ToyOptions]) -> None:
        seen.append(options)

    commands = typer.Typer()
    commands.command()(command(toy))
    commands.command()(command(partly))
    words = [str(each) for each in arguments]
    assert CliRunner().invoke(commands, ["toy", "x", "--last", "6", *words]).exit_code == 0
    assert seen.pop() == ("x", whole, 6)
    if given is not None:
        assert CliRunner().invoke(commands, ["partly", *words]).exit_code == 0
        assert seen.pop() == given
    assert options_of(ToyOptions)["size"].help == "How large, and how wide."
    refused = CliRunner().invoke(commands, ["toy", "x", "--size", "10"])
    assert str(refused.exception) == "--size=10; needed 1 or more and at most 9"
