"""Which model over which memory, and where it computes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from latentrag.conditions import condition_of
from latentrag.errors import InputError
from latentrag.options.declaring import Option

DEMO = "demo"
"""The name under which `latentrag demo` leaves its model and its memory."""
DEMOS = (DEMO, "good")
"""The names of the demos' models, and of the memories that their encoders made."""

KEY_VARIABLE = "LATENTRAG_API_KEY"
"""The variable of the environment with the API key of a server."""

PASSAGE_FOLDER_BYTES = 20 << 30
"""How large a folder of passages that were read may become, unless told otherwise."""

Dtype = Literal["auto", "float32", "bfloat16", "int8"]
CacheMemory = Literal["ram", "device"]
_DEVICES = "auto|cpu|cuda|cuda:N|mps|xpu"


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
