"""Every option once: name, default, help and limits, from which commands, HTTP API and Python take them.

Options are fields of frozen dataclasses, each annotated with an ``Option``; what they do is said in the docstring:

    Attributes:
        num_beams: Hypotheses kept alive.

    num_beams: Annotated[int, Option(name="beams", ge=1)] = 4

A command takes such a dataclass as one parameter (``cli.arguments.command``), the API makes its schema from it
(``serving.schemas``), and Python constructs it. Nothing here imports anything heavy.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import KW_ONLY, asdict, dataclass, fields
from functools import cache
from inspect import cleandoc
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from latentrag.conditions import condition_of
from latentrag.errors import InputError, OptionError
from latentrag.types import Decoding, Variant

T = TypeVar("T")

_ATTRIBUTE = re.compile(r"^    (\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)

DEMO = "demo"
"""The name under which `latentrag demo` leaves its model and its memory."""
DEMOS = (DEMO, "good")
"""The names of the demos' models, and of the memories that their encoders made."""

KEY_VARIABLE = "LATENTRAG_API_KEY"
"""The variable of the environment with the API key of a server."""

TIME_LIMIT_S = 300.0
"""For reading one document; thousands of pages take seconds."""

MEMORY_LIMIT = "2GB"
"""For a process that reads files."""
MIN_MEMORY_LIMIT_BYTES = 100_000_000
"""Such a process has some 25 MB of its own before it reads anything."""

PASSAGE_FOLDER_BYTES = 20 << 30
"""How large a folder of passages that were read may become, unless told otherwise."""

Dtype = Literal["auto", "float32", "bfloat16", "int8"]
CacheMemory = Literal["ram", "device"]
_DEVICES = "auto|cpu|cuda|cuda:N|mps|xpu"


@dataclass(frozen=True, slots=True)
class Option:
    """What is to be known about a field of options.

    Attributes:
        name: in commands and in the API, where it differs from the field's.
        flags: in commands; default: the name after two dashes.
        metavar: what stands for the value in the help of commands.
        default: words for the default, where the value itself says too little.
        ge, gt, le, lt: the value is ≥, >, ≤, < this.
        public: whether commands and the API have it; otherwise Python alone.
    """

    _: KW_ONLY
    name: str | None = None
    flags: tuple[str, ...] = ()
    metavar: str | None = None
    default: str | None = None
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    public: bool = True

    @property
    def limits(self) -> str:
        """The limits in words; empty where there are none."""
        words = (("{:g} or more", self.ge), ("more than {:g}", self.gt), ("at most {:g}", self.le))
        parts = [text.format(limit) for text, limit in (*words, ("less than {:g}", self.lt)) if limit is not None]
        return " and ".join(parts)

    def allows(self, value: float) -> bool:
        """Whether a number is within the limits; NaN and infinities never are."""
        return (
            (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
            and math.isfinite(value)
        )


@dataclass(frozen=True, slots=True)
class OptionField:
    """A field of a dataclass of options.

    Attributes:
        field: its own name.
        type: without the ``Option``.
        help: what it does, with its unit, as the docstring of the class says under "Attributes".
    """

    field: str
    type: Any
    default: Any
    option: Option
    help: str

    @property
    def name(self) -> str:
        """In commands and in the API."""
        return self.option.name or self.field

    @property
    def flags(self) -> tuple[str, ...]:
        """In commands."""
        return self.option.flags or (f"--{self.name.replace('_', '-')}",)

    @property
    def choices(self) -> tuple[object, ...]:
        """The values of a Literal; empty for other types."""
        of_union = get_args(self.type) if get_origin(self.type) in {Union, UnionType} else (self.type,)
        return tuple(value for part in of_union if get_origin(part) is Literal for value in get_args(part))

    def check(self, value: object, *, called: str = "") -> None:
        """Raises: InputError, which calls the option ``called``, for a value that it does not take."""
        if value is None:
            return
        called = called or f"{{{self.field}}}"
        if self.choices and isinstance(value, str) and value not in self.choices:
            known = ", ".join(map(str, self.choices))
            raise OptionError(f"{called}={{value!r}} is unknown; needed one of {{known}}", value=value, known=known)
        if value == "":
            raise OptionError(f"{called} is empty; give it a value or leave it out")
        if isinstance(value, int | float) and not self.option.allows(value):
            wanted = self.option.limits if math.isfinite(value) else "a finite number"
            raise OptionError(f"{called}={{value}}; needed {{wanted}}", value=value, wanted=wanted)


def options_of(options: type) -> Mapping[str, OptionField]:
    """The annotated fields of a dataclass of options, by field name."""
    return _options_of(options)


@cache
def _options_of(cls: Any) -> Mapping[str, OptionField]:
    hints, helps = get_type_hints(cls, include_extras=True), _attributes(cls)
    options = {}
    for field in fields(cls):
        if get_origin(hints[field.name]) is Annotated:
            type_, option = get_args(hints[field.name])
            options[field.name] = OptionField(field.name, type_, field.default, option, helps.get(field.name, ""))
    return options


def _attributes(cls: type) -> dict[str, str]:
    """What the docstrings of a class and its bases say of each attribute."""
    sections = (cleandoc(base.__doc__ or "").partition("Attributes:\n")[2] for base in reversed(cls.__mro__))
    return {name: " ".join(text.split()) for section in sections for name, text in _ATTRIBUTE.findall(section)}


def check_options(options: object) -> None:
    """For ``__post_init__``. Raises: InputError for a value out of its option's limits or choices."""
    for name, field in options_of(type(options)).items():
        field.check(getattr(options, name))


class Given(dict[str, Any], Generic[T]):
    """Those options of a dataclass T that the user has given, by field name.

    T may say in ``DEFAULT`` what takes the place of the others: words around "{}", the default of the field.
    """

    @classmethod
    def of(cls, options: type[T], values: Mapping[str, object]) -> Given[T]:
        """Values that are None are not given.

        Raises: InputError for an unknown name, or a value out of its option's limits.
        """
        known = options_of(options)
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise InputError(f"unknown option {unknown[0]}; needed one of {', '.join(sorted(known))}")
        given: Given[T] = cls({name: value for name, value in values.items() if value is not None})
        for name, value in given.items():
            known[name].check(value)
        return given


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorOptions:
    """How an encoder of a folder or the hub makes the vectors of passages.

    Attributes:
        passage_prompt: With --encoder: text put before each passage, such as E5's "passage: ".
        dimension: With --encoder: numbers kept of each vector, the first ones; for encoders trained for that
            (Matryoshka).
    """

    passage_prompt: Annotated[str | None, Option(metavar="TEXT", default="the encoder's own")] = None
    dimension: Annotated[int | None, Option(ge=1, default="the encoder's own")] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderOptions(VectorOptions):
    """How an encoder of a folder or the hub is used.

    Attributes:
        query_prompt: With --encoder: text put before each question, such as E5's "query: ".
    """

    query_prompt: Annotated[str | None, Option(metavar="TEXT", default="the encoder's own")] = None

    @property
    def of_encoder(self) -> EncoderOptions:
        """These alone."""
        return EncoderOptions(
            query_prompt=self.query_prompt, passage_prompt=self.passage_prompt, dimension=self.dimension
        )


def require_encoder(options: EncoderOptions, encoder: object) -> None:
    """Raises: InputError for options of an encoder without one."""
    if encoder is None and options != EncoderOptions():
        raise InputError(
            "got a prompt or a dimension without --encoder, or with bm25, which uses none; leave them out: a model has "
            "its own"
        )


@dataclass(frozen=True, slots=True)
class ModelOptions(EncoderOptions):
    """Which model: one by name, or one put together from parts.

    Attributes:
        model: A model: a folder, a hub id, or demo.
        encoder: In place of -m: the encoder of questions and passages, a folder or hub id.
        generator: With --encoder: any encoder-decoder or causal language model, a folder or hub id; with
            --generator-kind spans any encoder like BERT.
        passage_encoder: With --encoder, or with --passages-from: the encoder of the passages, where it is not that of
            the questions.
        adapter: With --generator: an adapter for it in PEFT's layout (LoRA, …), a folder or hub id.
        generator_kind: With --generator: what it is used as: seq2seq, causal, spans (an extractive reader), or by the
            name that a package adds.
        generator_settings: With --generator: a setting of its kind, as normalise=passage; may be repeated.
        retriever: How passages are retrieved: dense (by vectors), bm25 (by words), hybrid (by both), or by the name
            that a package adds.
        reranker: With --retriever hybrid: a cross-encoder that reads question and passage together, a folder or hub
            id; its logit is one more part of the prior.
        candidates: With --retriever hybrid: passages that vectors propose for a question, and as many that words do, of
            which the -k of largest logit are read.
        instruction: What an instruct model is told before the passage and the question; saved with a trained model.
        template: In place of --instruction: a JSON file with the generator's whole prompt, as a saved model's
            latentrag.json has it under "template".
        null_passage: Logit of "no passage" beside those of the passages: one more source, for which the generator
            answers by heart. Training learns it.
        set_size: Passages that the generator may read together: 1: one by one; 2: each set of two of them is one more
            source.
        set_bonus: With --set-size 2: γ, by which the logit of a set is raised. Training learns it.
        rewrites: Rewrites of a conversation's last question that the generator proposes before the search, each one
            more way to read it. Default: 0.
        neighbours: Passages on each side of a passage in its document that the generator reads with it. What is
            retrieved and cited stays the passage.
    """

    model: Annotated[str | None, Option(flags=("-m", "--model"), default=DEMO)] = None
    encoder: Annotated[str | None, Option()] = None
    generator: Annotated[str | None, Option()] = None
    passage_encoder: Annotated[str | None, Option()] = None
    adapter: Annotated[str | None, Option()] = None
    generator_kind: Annotated[str | None, Option(default="as its files say")] = None
    generator_settings: Annotated[tuple[str, ...], Option(name="generator_setting", metavar="NAME=VALUE")] = ()
    retriever: Annotated[str | None, Option(default="as the model was saved, else dense")] = None
    reranker: Annotated[str | None, Option(default="as the model was saved, else none")] = None
    candidates: Annotated[int | None, Option(ge=1, default="as the model was saved, else 20")] = None
    instruction: Annotated[
        str | None,
        Option(metavar="TEXT", default="to answer in as few words as the passage allows, in the question's language"),
    ] = None
    template: Annotated[
        Path | None, Option(metavar="FILE", default="as the model was saved, else its chat template")
    ] = None
    null_passage: Annotated[float | None, Option(metavar="LOGIT", default="as the model was saved, else none")] = None
    set_size: Annotated[int | None, Option(ge=1, le=2, default="as the model was saved, else 1")] = None
    set_bonus: Annotated[float | None, Option(metavar="LOGIT", default="as the model was saved, else 0")] = None
    rewrites: Annotated[int | None, Option(ge=0, le=16, metavar="M")] = None
    neighbours: Annotated[int | None, Option(ge=0, le=16, metavar="N", default="as the model was saved, else 0")] = None


@dataclass(frozen=True)  # without slots: those of a run have a second base
class DeviceOptions:
    """Where the model computes.

    Attributes:
        device: Where the generator computes; auto: on the best device of this machine. `doctor` lists them.
        encoder_device: Where the encoders compute.
        passage_cache_in: Memory in which a causal generator keeps passages that it has read: ram (the computer's)
            or device (that of --device). The size given for them counts this memory.
    """

    device: Annotated[str, Option(metavar=_DEVICES)] = "auto"
    encoder_device: Annotated[str | None, Option(metavar=_DEVICES, default="as --device")] = None
    passage_cache_in: Annotated[CacheMemory, Option()] = "ram"


@dataclass(frozen=True, slots=True)
class PlaceOptions(DeviceOptions):
    """Where and in which number format the model computes.

    Attributes:
        dtype: Number format of the generator.
    """

    dtype: Annotated[Dtype, Option()] = "auto"


@dataclass(frozen=True, slots=True)
class MemoryOptions:
    """Which memory.

    Attributes:
        memory: The memory to ask: a path, or demo.
    """

    memory: Annotated[str, Option(flags=("-i", "--memory"))] = DEMO


@dataclass(frozen=True, slots=True)
class VersionOptions:
    """Which version of a memory.

    Attributes:
        as_of: The version of the memory, or the one that was newest at a date; see `index log`.
    """

    as_of: Annotated[
        str | None, Option(metavar="VERSION|DATE|TAG", default="the one chosen by `index use`, else the newest")
    ] = None


@dataclass(frozen=True, slots=True)
class FilterOptions:
    """Which of a memory's passages.

    Attributes:
        where: Retrieve only passages whose fields satisfy this condition, as "date >= '2024-01-01' and source like
            'manual/%'".
    """

    where: Annotated[str | None, Option(metavar="CONDITION", default="none; all passages")] = None

    def __post_init__(self) -> None:
        if self.where is not None:
            condition_of(self.where)


@dataclass(frozen=True, slots=True)
class SystemOptions:
    """Which model over which memory: what most commands open. Each field is a group of options.

    Attributes:
        memory, version, which: The passages.
        model, place: The model, and where it computes.
    """

    memory: MemoryOptions = MemoryOptions()
    version: VersionOptions = VersionOptions()
    which: FilterOptions = FilterOptions()
    model: ModelOptions = ModelOptions()
    place: PlaceOptions = PlaceOptions()


@dataclass(frozen=True, slots=True)
class PassageEncoderOptions(VectorOptions):
    """What encodes passages.

    Attributes:
        model: A model whose encoder is used: a folder, a hub id, or demo.
        encoder: In place of -m: the encoder of the passages, a folder or hub id.
        device: Where the encoder computes; auto: on the best device of this machine. `doctor` lists them.
    """

    model: Annotated[str | None, Option(flags=("-m", "--model"), default=DEMO)] = None
    encoder: Annotated[str | None, Option()] = None
    device: Annotated[str, Option(flags=("--device", "--encoder-device"), metavar=_DEVICES)] = "auto"

    def __post_init__(self) -> None:
        if self.model is not None and self.encoder is not None:
            raise InputError("got both -m and --encoder; give one of them")
        require_encoder(self.of_encoder, self.encoder)

    @property
    def of_encoder(self) -> EncoderOptions:
        """How the encoder is used."""
        return EncoderOptions(passage_prompt=self.passage_prompt, dimension=self.dimension)

    @property
    def source(self) -> str:
        """A model, or an encoder."""
        return self.encoder or self.model or DEMO


@dataclass(frozen=True, slots=True)
class GeneratorOptions:
    """A generator alone.

    Attributes:
        model: A model whose generator is used, or a generator: a folder, a hub id, a GGUF file, or demo.
        device: Where the generator computes; auto: on the best device of this machine. `doctor` lists them.
        dtype: Number format of the generator.
    """

    model: Annotated[str, Option(flags=("-m", "--model"))] = DEMO
    device: Annotated[str, Option(metavar=_DEVICES)] = "auto"
    dtype: Annotated[Dtype, Option()] = "auto"


@dataclass(frozen=True, slots=True)
class MakingOptions:
    """How questions are made of a memory's passages.

    Attributes:
        number: Pairs of a question and an answer to make, each from another passage.
        seed: Random seed for the order of the passages.
        near: Share of the character trigrams of two questions, of those in either, that both have, from which on they
            count as near-duplicates.
        batch_size: Passages written to together. Except in float32 a pair depends a little on those beside it.
    """

    number: Annotated[int, Option(flags=("-n", "--number"), ge=1)] = 500
    seed: Annotated[int, Option(ge=0)] = 0
    near: Annotated[float, Option(gt=0, le=1)] = 0.75
    batch_size: Annotated[int, Option(ge=1)] = 8


@dataclass(frozen=True, slots=True)
class FileOptions:
    """How files are read.

    Attributes:
        workers: Processes that read the files; 0: read in this process, without limits of time and memory.
        time_limit_s: Longest time for reading one document; a file with a longer one is skipped.
        memory_limit: Most memory that a process which reads files may take; a file that needs more is skipped.
        encoding: Encoding of text files that do not state theirs, such as cp1252.
        exclude: Files and folders to leave out, by a pattern as in .gitignore; may be repeated.
        no_gitignore: Read files of a folder that its .gitignore files exclude.
        follow_links: Read what links in a folder lead to outside of it.
    """

    workers: Annotated[int, Option(ge=0)] = 1
    time_limit_s: Annotated[float, Option(name="time_limit", metavar="SECONDS", gt=0)] = TIME_LIMIT_S
    memory_limit: Annotated[str, Option(metavar="SIZE")] = MEMORY_LIMIT
    encoding: Annotated[str | None, Option(default="UTF-8, else a guess, which is reported")] = None
    exclude: Annotated[tuple[str, ...], Option(metavar="PATTERN")] = ()
    no_gitignore: Annotated[bool, Option()] = False
    follow_links: Annotated[bool, Option()] = False

    def __post_init__(self) -> None:
        check_options(self)
        if self.memory_limit_bytes < MIN_MEMORY_LIMIT_BYTES:
            raise InputError(f"memory_limit={self.memory_limit!r} is too little to read anything; give at least 100MB")
        if self.encoding is not None and not _is_text_encoding(self.encoding):
            raise InputError(f"encoding={self.encoding!r} is unknown; needed the name of one, as utf-16 or cp1252")
        if not self.workers and self.time_limit_s != TIME_LIMIT_S:
            raise InputError("time_limit has no effect, since workers=0 reads in this process; leave one of them out")
        if not self.workers and self.memory_limit != MEMORY_LIMIT:
            raise InputError("memory_limit has no effect, since workers=0 reads in this process; leave one of them out")

    @property
    def memory_limit_bytes(self) -> int:
        """Raises: InputError if it is no size."""
        return size_in_bytes(self.memory_limit, "memory_limit")

    def of_files(self) -> dict[str, Any]:
        """What ``corpus.read`` takes of them, by name."""
        return {each.name: getattr(self, each.name) for each in fields(FileOptions)}


@dataclass(frozen=True, slots=True)
class PreviewOptions(FileOptions):
    """How files are read, and cut as `index add` does.

    Attributes:
        encoder: Cut passages that are longer than this encoder reads: a model, a folder, a hub id, or demo. It is
            loaded.
    """

    encoder: Annotated[str | None, Option(default="none; passages are as long as --words says")] = None


def size_in_bytes(text: str, what: str) -> int:
    """A size as people write it: 4GB, 1.5 GiB, 800M. Raises: InputError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", text, re.ASCII | re.IGNORECASE)
    if match is None:
        raise InputError(f"{what} {text!r} is not a size; give a number with MB or GB, as 4GB")
    number, prefix, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** (" kmgt".index(prefix.lower() or " ")))


def _is_text_encoding(name: str) -> bool:
    try:
        return bool(" ".encode(name))
    except (LookupError, ValueError):
        return False


@dataclass(frozen=True, slots=True)
class ReadingOptions(FileOptions):
    """How files are read into a memory.

    Attributes:
        passages_per_commit: Passages per commit; each commit is a version, and an interrupted run loses at most
            this many.
    """

    passages_per_commit: Annotated[int, Option(name="commit_every", metavar="PASSAGES", ge=1)] = 8_192


@dataclass(frozen=True, slots=True)
class SyncOptions(ReadingOptions):
    """How a folder is synced with a memory.

    Attributes:
        name: Name of the folder, with which ids and sources begin.
        words: Length of a passage, in words.
        delete_missing: Remove the passages of files that are gone.
        dry_run: Show what would be done, and change nothing.
        checksum: Hash all files, also those whose size and time are unchanged.
        keep: Afterwards keep so many of the newest versions, as `index prune --keep`.
    """

    name: Annotated[str | None, Option(default="the folder's own name")] = None
    words: Annotated[int | None, Option(default="as in the last sync, else 100", ge=1)] = None
    delete_missing: Annotated[bool, Option()] = False
    dry_run: Annotated[bool, Option()] = False
    checksum: Annotated[bool, Option()] = False
    keep: Annotated[int | None, Option(default="all", ge=1)] = None


@dataclass(frozen=True, slots=True)
class RowOptions:
    """How a file of questions with answers is read.

    Attributes:
        task: What the rows are for: open-qa, abstractive-qa, question-generation, fact-verification-2way or -3way,
            yes-no, classification, choice, or a package's own; docs/evaluation.md.
        labels: Words that the model says for a label of the task, as SUPPORTS=true; may be repeated.
        prefix_field: Field of a row whose text is put before its question: "category" makes "CATEGORY: clue" of
            Jeopardy's rows.
        answers_from: Field of a row with its answers; "answer.2020" is the field 2020 of the object in answer.
        skip_bad: Leave out rows without question or answer; in training also those too long for the model.
    """

    task: Annotated[str, Option(metavar="NAME")] = "open-qa"
    labels: Annotated[
        tuple[str, ...], Option(flags=("--label",), metavar="NAME=WORDS", default="the task's own words")
    ] = ()
    prefix_field: Annotated[str | None, Option(metavar="NAME", default="none")] = None
    answers_from: Annotated[str | None, Option(metavar="FIELD", default="where the rows' format has them")] = None
    skip_bad: Annotated[bool, Option()] = False


@dataclass(frozen=True)  # without slots: those of a run have a second base
class GivenOptions:
    """Passages that come with a question.

    Attributes:
        passages_from: Field of a row with the passages that come with its question: each question then has a memory
            of its own. "id:FIELD": the field has ids of passages or documents, whose texts the memory (-i) has.
    """

    passages_from: Annotated[str | None, Option(metavar="FIELD", default="none: the memory is searched")] = None


@dataclass(frozen=True, slots=True)
class RankingOptions:
    """How retrieval is measured by itself.

    Attributes:
        retrieval_only: Measure what is retrieved, without a generator: recall of answers, titles and passages,
            R-precision, nDCG@10 and reciprocal rank. DATA may be a BEIR folder.
        by: With --retrieval-only: what is ranked and relevant: passages by their ids, the documents that they are
            parts of, or articles by title.
        qrels: With --retrieval-only: judgements in TREC's or BEIR's columns, in place of what the rows name.
        run_in: With --retrieval-only: measure this TREC run; no model is opened.
        run_out: With --retrieval-only: write what was retrieved as a TREC run.
        qrels_out: With --retrieval-only: write what is relevant as TREC judgements.
    """

    retrieval_only: Annotated[bool, Option()] = False
    by: Annotated[
        Literal["passage", "document", "title"] | None,
        Option(default="passage where the rows have their ids, else title"),
    ] = None
    qrels: Annotated[Path | None, Option(metavar="FILE")] = None
    run_in: Annotated[Path | None, Option(metavar="FILE")] = None
    run_out: Annotated[Path | None, Option(metavar="FILE")] = None
    qrels_out: Annotated[Path | None, Option(metavar="FILE")] = None

    def __post_init__(self) -> None:
        given = next((name for name in ("by", "qrels", "run_in", "run_out", "qrels_out") if getattr(self, name)), None)
        if given is not None and not self.retrieval_only:
            raise InputError(f"--{given.replace('_', '-')} has no effect without --retrieval-only; leave it out")


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
