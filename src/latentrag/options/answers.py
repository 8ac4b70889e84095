"""How a question is answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, Literal

from latentrag.errors import InputError, OptionError
from latentrag.options.declaring import Given, Option, OptionField, check_options, options_of
from latentrag.types import Decoding, Variant


@dataclass(frozen=True, slots=True)
class RetrievalOptions:
    """How many passages.

    Attributes:
        k: Passages to retrieve.
    """

    k: Annotated[int | None, Option(flags=("-k", "--k", "--passages"), ge=1, default="the model's own number")] = None

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True, slots=True)
class AskOptions(RetrievalOptions):
    """Which distribution over answers.

    Attributes:
        variant: sequence: one passage explains the whole answer; token: each token may have its own.
    """

    variant: Annotated[Variant | None, Option(default="the model's own")] = None


@dataclass(frozen=True, slots=True)
class AnswerOptions(AskOptions):
    """How the most probable answer is searched.

    Attributes:
        decoding: How to search; thorough and fast are for sequence only.
    """

    decoding: Annotated[Decoding, Option()] = "exact"


@dataclass(frozen=True, slots=True)
class OneAnswerOptions(AnswerOptions):
    """An answer from some of the passages retrieved.

    Attributes:
        without: Answer as if the passage with this id had not been retrieved; may be repeated.
    """

    without: Annotated[tuple[str, ...], Option(metavar="ID")] = ()


@dataclass(frozen=True, slots=True)
class EvidenceOptions:
    """What else is computed about an answer.

    Attributes:
        sentences: Also log p of the answer without each sentence of the passage that contributed most.
    """

    sentences: Annotated[bool, Option()] = False


@dataclass(frozen=True, slots=True)
class ConfidenceOptions:
    """What is answered by a model that is calibrated.

    Attributes:
        abstain_below: Answer "not known from these passages" where the probability of being right is below this; the
            best guess stands apart. It takes a model that `calibrate` made.
    """

    abstain_below: Annotated[float | None, Option(metavar="PROBABILITY", default="never", ge=0, le=1)] = None

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True, slots=True)
class DecodingOptions:
    """Options of every decoder.

    The length penalty α decides which hypotheses a beam keeps, never a reported log-probability; Thorough and Fast
    Decoding use it in the per-passage beams only and rank by the marginal.

    Attributes:
        num_beams: Hypotheses kept alive (1: greedy search), or samples drawn.
        num_best: Answers to find, best first; at most as many as --beams.
        max_tokens: Longest answer, in tokens; what is longer is cut there.
        min_tokens: Shortest answer, in tokens.
        no_repeat_ngram_size: No run of this many tokens occurs twice in an answer; 0: no limit.
        length_penalty: α in the rank log p / length^α of answers; above 0 longer ones rank higher, 0 ranks by
            probability.
        early_stopping: When the search ends: True: as soon as num_beams answers are finished; False: when no
            better one is likely; 'never': when no better one is possible.
        stop: Cut the answer before this text; may be repeated.
        sample: Draw answers at random instead of searching.
        temperature: With --sample: below 1 favours probable tokens, above 1 improbable ones.
        top_k: With --sample: draw among this many tokens; 0: all.
        top_p: With --sample: draw among the most probable tokens of this total probability.
        seed: Random seed for --sample.
    Raises: InputError if a value is out of range.
    """

    DEFAULT: ClassVar[str] = "the model's own, else {}"

    num_beams: Annotated[int, Option(name="beams", ge=1)] = 4
    num_best: Annotated[int, Option(name="best", ge=1)] = 1
    max_tokens: Annotated[int, Option(ge=1)] = 64
    min_tokens: Annotated[int, Option(ge=0)] = 0
    no_repeat_ngram_size: Annotated[int, Option(name="no_repeat_ngram", ge=0)] = 0
    length_penalty: Annotated[float, Option()] = 0.0
    early_stopping: Annotated[bool | Literal["never"], Option(public=False)] = False
    stop: Annotated[tuple[str, ...], Option(default="none")] = ()
    sample: Annotated[bool, Option()] = False
    temperature: Annotated[float, Option(gt=0)] = 1.0
    top_k: Annotated[int, Option(ge=0)] = 0
    top_p: Annotated[float, Option(gt=0, le=1)] = 1.0
    seed: Annotated[int | None, Option(default="a different one each time")] = None

    def __post_init__(self) -> None:
        if isinstance(self.stop, str) or not all(self.stop):
            raise InputError(f"stop={self.stop!r}; needed a tuple of strings that are not empty")
        check_options(self)
        if self.num_best > self.num_beams:
            raise OptionError(
                "{num_best}={best}; needed {beams} at most, which {num_beams} keeps; raise {num_beams}",
                best=self.num_best,
                beams=self.num_beams,
            )
        if self.min_tokens >= self.max_tokens:
            raise OptionError(
                "{min_tokens}={least} leaves no room in {max_tokens}={most}; needed less than that",
                least=self.min_tokens,
                most=self.max_tokens,
            )


@cache
def options_of_answers() -> Mapping[str, OptionField]:
    """Every option of a question, by field name."""
    groups = (OneAnswerOptions, EvidenceOptions, DecodingOptions)
    return {name: field for group in groups for name, field in options_of(group).items()}


Defaults = DecodingOptions | Mapping[str, object] | None
"""Decoding options that somebody chose for a model: all of them, or some by name, or none."""


OF_SAMPLING = ("temperature", "top_k", "top_p", "seed")
"""Decoding options that only sampling uses."""
OF_SEARCH = ("length_penalty", "early_stopping")
"""Those that only searching uses."""


def chosen_options(defaults: Defaults) -> dict[str, Any]:
    """The decoding options that were chosen, by field name, as JSON or Python may have them."""
    values = asdict(defaults) if isinstance(defaults, DecodingOptions) else dict(defaults or {})
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def decoding_options(
    given: Mapping[str, object], *, defaults: Defaults, saved: Mapping[str, object], most_tokens: int | None = None
) -> DecodingOptions:
    """The options of a call: those given, else those chosen for the model, else its saved settings, else the usual.

    A minimum that the call did not ask for gives way to what it did ask for: ``max_tokens=10`` is possible with a model
    whose settings have a minimum of 30 tokens.

    Args:
        given: by the call; None stands for not given.
        saved: the generator's ``generation_config``, under our names.
        most_tokens: the longest answer that the generator can write; None: any.
    Raises: InputError for an unknown name, a value out of range, or one that the call would not use.
    """
    asked = Given.of(DecodingOptions, given)
    values = {name: field.default for name, field in options_of(DecodingOptions).items()}
    usual = {**values, **saved, **chosen_options(defaults)}
    values = {**usual, **asked}
    own = {name: field.default for name, field in options_of(DecodingOptions).items()}
    unused = OF_SEARCH if values["sample"] else OF_SAMPLING
    if name := next((name for name in unused if name in asked and values[name] != own[name]), None):
        kind, remedy = ("sampling", "leave one of them out") if values["sample"] else ("a search", "add {sample}")
        raise OptionError(f"{{{name}}} has no effect on {kind}; leave it out, or {remedy}")
    values |= {name: own[name] for name in unused}
    if most_tokens is not None and values["max_tokens"] > most_tokens:
        if "max_tokens" in asked:
            raise OptionError(
                "{max_tokens}={given}; this generator writes {most} at most; lower it",
                given=values["max_tokens"],
                most=most_tokens,
            )
        values["max_tokens"] = most_tokens
    for smaller, larger, gap in (("min_tokens", "max_tokens", 1), ("num_best", "num_beams", 0)):
        if smaller not in asked:
            values[smaller] = max(0, min(values[smaller], values[larger] - gap))
    return DecodingOptions(**values)
