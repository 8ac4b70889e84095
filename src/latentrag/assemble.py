"""Settings to objects: models and memories from folders, hub ids and names, and back into folders.

The only place that names concrete classes. A model folder of ours holds

    latentrag.json      variant, k, decoding options, retriever
    query_encoder/      as ``encoder.save`` writes it; not with BM25, which has none
    passage_encoder/    where it is another model than the query encoder
    generator/          transformers' layout and latentrag_generator.json
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, overload

from latentrag.config import RetrieverKind, resolve_memory, resolve_model
from latentrag.errors import InputError, ModelError

if TYPE_CHECKING:
    import torch

    from latentrag.encoder import DprQueryEncoder, SentenceEncoder
    from latentrag.generator import CausalGenerator, Seq2SeqGenerator
    from latentrag.generator.lora import Lora
    from latentrag.memory import LiveMemory, Memory
    from latentrag.protocols import PassageEncoder, Retriever
    from latentrag.rag import Rag
    from latentrag.types import Variant

    Generator = CausalGenerator | Seq2SeqGenerator
    QueryEncoder = DprQueryEncoder | SentenceEncoder

SETTINGS_FILE = "latentrag.json"
FORMAT = 1

Source = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model put together from parts, each a folder or hub id.

    Attributes:
        encoder: of the questions, and of the passages unless ``passage_encoder`` says otherwise.
        generator: any encoder–decoder or causal language model.
        passage_encoder: DPR's context encoder, for instance.
    """

    encoder: Source
    generator: Source
    passage_encoder: Source | None = None


@dataclass(frozen=True, slots=True)
class _Parts:
    """What every kind of source gives. Without a query encoder the retriever is BM25."""

    query_encoder: QueryEncoder | None
    generator: Generator
    variant: Variant = "sequence"
    k: int = 5
    decoding: Mapping[str, Any] | None = None
    bm25_scale: float = 1.0


def load(
    source: Source | ModelSpec | tuple[Source, Source],
    *,
    memory: Source | Memory | LiveMemory,
    version: int | str | None = None,
    variant: Variant | None = None,
    k: int | None = None,
    retriever: RetrieverKind | None = None,
    device: str = "cpu",
    dtype: torch.dtype | str = "auto",
    passage_cache_bytes: int = 1 << 30,
) -> Rag:
    """A model with its memory, ready to answer.

    Args:
        source: a folder that ``save`` wrote, a folder or hub id in the layout of ``facebook/rag-*``, the name
            "demo", or a pair (encoder, generator) of folders or hub ids.
        memory: a path, "demo", or an open memory; a ``LiveMemory`` to exchange it while the model answers.
        version: of the memory, as for ``Memory.open``; None: the one that `latentrag index use` has chosen, else the
            newest.
        variant: "sequence" or "token"; None: as the model says, else "sequence".
        k: passages retrieved for a question; None: as the model says, else 5.
        retriever: "dense", or "bm25", which needs no query encoder and fits any memory; None: as the model says,
            else "dense".
        dtype: of the generator: "auto" (as its files have it, float32 where this machine does not compute in
            that), "float32", "bfloat16", "float16" or a torch dtype.
        passage_cache_bytes: RAM in which a causal generator keeps what it has read of passages for the next
            question; it changes no result. 0: none.
    Raises: ModelError or MemoryStoreError for what cannot be opened; EncoderMismatchError if they do not fit.
    """
    from latentrag.decoding import DecodingOptions
    from latentrag.generator import CausalGenerator
    from latentrag.generator.passage_cache import PassageCache
    from latentrag.rag import Rag

    if retriever is not None and retriever not in get_args(RetrieverKind):
        raise InputError(f"retriever={retriever!r} is unknown; needed {' or '.join(get_args(RetrieverKind))}")
    opened = open_memory(memory, version=version)
    parts = _load_parts(source, retriever=retriever, device=device, dtype=dtype)
    try:
        defaults = DecodingOptions(**_tupled(parts.decoding or {}))
    except (TypeError, InputError) as error:
        raise ModelError(f"{source}: the decoding options in {SETTINGS_FILE} cannot be used ({error})") from error
    if isinstance(parts.generator, CausalGenerator) and passage_cache_bytes > 0:
        parts.generator.passage_cache = PassageCache(passage_cache_bytes)
    return Rag(
        _retriever(parts, opened, device=device),
        parts.generator,
        variant=variant or parts.variant,
        k=parts.k if k is None else k,
        defaults=defaults,
    )


def save(rag: Rag, folder: str | os.PathLike[str], *, passage_encoder: PassageEncoder | None = None) -> None:
    """Write a model as a folder that ``load`` opens: safetensors and JSON, whole or not at all.

    Args:
        passage_encoder: saved too, where passages have an encoder of their own, so that the folder can also
            fill memories.
    Raises: InputError if the folder exists and is not a model that latentrag saved.
    """
    from latentrag.decoding import DecodingOptions
    from latentrag.generator.loading import save_generator
    from latentrag.retriever import BM25Retriever

    usual = asdict(DecodingOptions())
    retriever: Any = rag.retriever
    of_words = isinstance(retriever, BM25Retriever)
    settings = {
        "format": FORMAT,
        "variant": rag.variant,
        "k": rag.k,
        "retriever": "bm25" if of_words else "dense",
        **({"bm25_scale": retriever.scale} if of_words else {}),
        "decoding": {name: value for name, value in asdict(rag.defaults).items() if value != usual[name]},
    }
    generator: Any = rag.generator
    encoder: Any = passage_encoder
    with _published(Path(folder)) as scratch:
        if not of_words:
            retriever.query_encoder.save(scratch / "query_encoder")
        if encoder is not None:
            encoder.save(scratch / "passage_encoder")
        save_generator(generator, scratch / "generator")
        (scratch / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", "utf-8")


def generator_for_training(
    generator: Generator,
    *,
    lora: Lora | None,
    frozen: bool = False,
    whole: bool = False,
    recompute: bool = False,
    seed: int = 0,
    keep_preamble: bool = False,
    passage_cache_bytes: int = 0,
    passage_cache_folder: Source | None = None,
) -> Generator:
    """The same generator, made ready to be trained.

    Args:
        lora: the adapter to train; None: all weights, or none of them.
        frozen: nothing of it is trained.
        whole: its weights are trained and should be float32.
        recompute: keep fewer activations, compute them again in the backward pass.
        keep_preamble: of a causal model's prompt.
        passage_cache_bytes, passage_cache_folder: for a causal model that reads passages without learning, which
            are then read once.
    """
    from latentrag.generator import CausalGenerator, Seq2SeqGenerator
    from latentrag.generator.lora import split_weights
    from latentrag.generator.memory_saving import recompute_activations
    from latentrag.generator.passage_cache import PassageCache, weights_key

    model = generator.model.float() if whole else generator.model
    if recompute:
        recompute_activations(model)
    added = lora if generator.lora is None else None
    if isinstance(generator, Seq2SeqGenerator):
        if added is None:
            return generator
        return Seq2SeqGenerator(
            model,
            generator.tokenizer,
            template=generator.template,
            max_input_tokens=generator.max_input_tokens,
            decoder_prefix=generator.decoder_prefix,
            lora=added,
            seed=seed,
        )
    template = (
        generator.template if keep_preamble else replace(generator.template, preamble="", closed_book_preamble="")
    )
    cache = None
    if passage_cache_bytes and (frozen or (lora is not None and lora.scope == "question")):
        key = "" if passage_cache_folder is None else weights_key(split_weights(model.state_dict())[0])
        cache = PassageCache(passage_cache_bytes, folder=passage_cache_folder, model=key)
    ready = CausalGenerator(
        model,
        generator.tokenizer,
        template=template,
        max_input_tokens=generator.max_input_tokens,
        lora=added,
        seed=seed,
        passage_cache=cache,
    )
    ready.lora = lora or generator.lora
    return ready


def retriever_for_training(
    rag: Rag, source: Source | ModelSpec, memory: Memory, refresh: bool, *, device: str
) -> Retriever:
    """The model's retriever, made ready to be trained.

    Args:
        source: the model, for its passage encoder.
        refresh: train the passage encoder too and re-encode the memory meanwhile. It is loaded apart from the query
            encoder, also where one model serves as both: they part as they learn.
    Raises: InputError for BM25, which has no encoders; ModelError if the model has no passage encoder;
        EncoderMismatchError if it is not that of the memory.
    """
    from latentrag.retriever import BM25Retriever, RefreshingRetriever

    if not refresh:
        return rag.retriever
    retriever: Any = rag.retriever
    if isinstance(retriever, BM25Retriever):
        raise InputError("BM25 has no passage encoder to refresh; leave refresh_every out or retrieve with vectors")
    passage_encoder: Any = load_passage_encoder(source, device=device)
    return RefreshingRetriever(retriever.query_encoder, passage_encoder, memory)


def with_parts(rag: Rag, retriever: Retriever, generator: Generator) -> Rag:
    """The same settings around other parts."""
    from latentrag.rag import Rag

    return Rag(retriever, generator, variant=rag.variant, k=rag.k, defaults=rag.defaults)


def with_memory(rag: Rag, memory: Memory | LiveMemory) -> Rag:
    """The same model over another memory. Raises: EncoderMismatchError if it does not fit."""
    retriever: Any = rag.retriever
    generator: Any = rag.generator
    return with_parts(rag, retriever.over(memory), generator)


def live_memory(name: Source | Memory, *, version: int | str | None = None) -> LiveMemory:
    """A memory that can be exchanged while it is asked; otherwise as ``open_memory``."""
    from latentrag.memory import LiveMemory

    return LiveMemory(open_memory(name, version=version))


@overload
def open_memory(name: Source | Memory, *, version: int | str | None = None) -> Memory: ...
@overload
def open_memory(name: Source | Memory | LiveMemory, *, version: int | str | None = None) -> Memory | LiveMemory: ...
def open_memory(name: Source | Memory | LiveMemory, *, version: int | str | None = None) -> Memory | LiveMemory:
    """A memory by path or name ("demo"), to be asked. An open one is returned as it is.

    Args:
        version: as for ``Memory.open``; None: the one that `latentrag index use` has chosen, else the newest.
    Raises: MemoryStoreError if there is none or it has no such version.
    """
    from latentrag.memory import LiveMemory, Memory

    if isinstance(name, Memory | LiveMemory):
        return name if version is None else (name.snapshot() if isinstance(name, LiveMemory) else name).at(version)
    return Memory.open(resolve_memory(name), version="served" if version is None else version)


def load_passage_encoder(
    source: Source | ModelSpec, *, device: str = "cpu", dtype: torch.dtype | None = None
) -> PassageEncoder:
    """d(z) of a model (as for ``load``), or from an encoder's own folder or hub id.

    Raises: ModelError if the model has none, as ``facebook/rag-*``, which ship without their passage encoder.
    """
    from latentrag import encoder

    if isinstance(source, ModelSpec):
        source = source.passage_encoder or source.encoder
    place = resolve_model(source)
    folder = Path(place)
    if (folder / SETTINGS_FILE).is_file():
        for own in (folder / "passage_encoder", folder / "query_encoder"):
            if own.is_dir():
                return encoder.load_passage_encoder(own, device=device, dtype=dtype)
        raise ModelError(f"{source} holds no encoder; name the one whose vectors the memory has or is to have")
    if _model_type(folder) == "rag":
        raise ModelError(
            f"{source} holds no passage encoder; name the one it was trained with, "
            "for instance facebook/dpr-ctx_encoder-multiset-base"
        )
    return encoder.load_passage_encoder(place, device=device, dtype=dtype)


def _retriever(parts: _Parts, memory: Memory | LiveMemory, *, device: str) -> Retriever:
    from latentrag.retriever import BM25Retriever, DenseRetriever

    if parts.query_encoder is None:
        return BM25Retriever(memory, scale=parts.bm25_scale, device=device)
    return DenseRetriever(parts.query_encoder, memory)


def _load_parts(
    source: Source | ModelSpec | tuple[Source, Source],
    *,
    retriever: RetrieverKind | None,
    device: str,
    dtype: torch.dtype | str,
) -> _Parts:
    if isinstance(source, tuple):
        source = ModelSpec(*source)
    if isinstance(source, ModelSpec):
        return _load_pair(source, retriever=retriever, device=device, dtype=dtype)
    place = resolve_model(source)
    folder = Path(place)
    if folder.is_dir():
        if (folder / SETTINGS_FILE).is_file():
            return _load_own(folder, retriever=retriever, device=device, dtype=dtype)
        if not (folder / "config.json").is_file():
            raise ModelError(f"{source} holds neither {SETTINGS_FILE} nor config.json; needed a model folder")
    else:
        from latentrag.pretrained import resolve

        folder = resolve(str(place))
    if _model_type(folder) == "rag":
        return _of_rag_layout(folder, name=str(source), retriever=retriever, device=device, dtype=dtype)
    raise ModelError(
        f"{source} is one model; needed a folder that latentrag saved, one in the layout of facebook/rag-*, "
        "or a pair of encoder and generator"
    )


def _load_own(folder: Path, *, retriever: RetrieverKind | None, device: str, dtype: torch.dtype | str) -> _Parts:
    from latentrag.pretrained import read_object

    settings = read_object(folder / SETTINGS_FILE)
    variant, k, decoding = settings.get("variant"), settings.get("k"), settings.get("decoding")
    if settings.get("format") != FORMAT:
        raise ModelError(
            f"{folder / SETTINGS_FILE} has format={settings.get('format')!r}; this version reads {FORMAT}; "
            "save the model again or update latentrag"
        )
    if variant not in {"sequence", "token"} or not isinstance(k, int) or k < 1 or not isinstance(decoding, dict):
        raise ModelError(f"{folder / SETTINGS_FILE} has no usable variant, k and decoding; save the model again")
    saved, scale = settings.get("retriever", "dense"), settings.get("bm25_scale", 1.0)
    if saved not in get_args(RetrieverKind) or not isinstance(scale, int | float) or not scale > 0:
        raise ModelError(f"{folder / SETTINGS_FILE} has no usable retriever or bm25_scale; save the model again")
    return _Parts(
        _own_query_encoder(folder, saved=saved, wanted=retriever or saved, device=device),
        _generator(folder / "generator", device=device, dtype=dtype),
        variant,
        k,
        decoding,
        scale,
    )


def _own_query_encoder(
    folder: Path, *, saved: RetrieverKind, wanted: RetrieverKind, device: str
) -> QueryEncoder | None:
    from latentrag.encoder import load_query_encoder

    if wanted == "bm25":
        return None
    if saved == "bm25":
        raise ModelError(f"{folder} was saved with BM25 and has no query encoder; leave retriever='dense' out")
    return load_query_encoder(folder / "query_encoder", device=device)


def _load_pair(spec: ModelSpec, *, retriever: RetrieverKind | None, device: str, dtype: torch.dtype | str) -> _Parts:
    from latentrag import encoder

    if retriever == "bm25":
        return _Parts(None, _generator(resolve_model(spec.generator), device=device, dtype=dtype))
    fingerprint = None
    if spec.passage_encoder is not None:
        fingerprint = encoder.load_passage_encoder(resolve_model(spec.passage_encoder)).fingerprint
    query_encoder = encoder.load_query_encoder(
        resolve_model(spec.encoder), passage_fingerprint=fingerprint, device=device
    )
    return _Parts(query_encoder, _generator(resolve_model(spec.generator), device=device, dtype=dtype))


def _of_rag_layout(
    folder: Path, *, name: str, retriever: RetrieverKind | None, device: str, dtype: torch.dtype | str
) -> _Parts:
    """facebook/rag-*: both models in one file, their tokenizers in folders of their own."""
    from latentrag import rag_layout
    from latentrag.pretrained import read_object

    content = read_object(folder / "config.json")
    query_encoder, generator = rag_layout.load(folder, content, name=name, dtype=_dtype(dtype, content))
    query_encoder.module.to(device)
    generator.model.to(device)
    architecture = str(content.get("architectures"))
    return _Parts(
        None if retriever == "bm25" else query_encoder,
        generator,
        "token" if "RagToken" in architecture else "sequence",
        int(content.get("n_docs", 5)),
    )


def _generator(source: Source, *, device: str, dtype: torch.dtype | str) -> Generator:
    from latentrag.generator import load_generator
    from latentrag.pretrained import read_object, resolve

    folder = resolve(source)
    return load_generator(folder, device=device, dtype=_dtype(dtype, read_object(folder / "config.json")))


def _dtype(wanted: torch.dtype | str, config: Mapping[str, Any]) -> torch.dtype:
    """The dtype to compute in. Raises: InputError for an unknown name."""
    import torch

    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if isinstance(wanted, torch.dtype):
        return wanted
    if wanted in names:
        return names[wanted]
    if wanted != "auto":
        raise InputError(f"dtype={wanted!r} is unknown; needed auto, {', '.join(names)}")
    saved = names.get(str(config.get("dtype", config.get("torch_dtype"))), torch.float32)
    if saved is torch.float32 or torch.cuda.is_available():
        return saved
    return saved if saved is torch.bfloat16 and computes_bfloat16() else torch.float32


def computes_bfloat16() -> bool:
    """Whether this machine's CPU has instructions for bfloat16; without them float32 is faster and better."""
    try:
        flags = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return False
    return any(f" {flag}" in flags for flag in ("avx512_bf16", "amx_bf16", "bf16"))


def _model_type(folder: Path) -> str | None:
    from latentrag.pretrained import read_object

    if not (folder / "config.json").is_file():
        return None
    model_type = read_object(folder / "config.json").get("model_type")
    return None if model_type is None else str(model_type)


def _tupled(options: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has lists where our options have tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}


@contextmanager
def _published(folder: Path) -> Iterator[Path]:
    """A scratch folder beside ``folder`` that takes its place at the end, or vanishes."""
    if folder.exists() and not (folder / SETTINGS_FILE).is_file() and (folder.is_file() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is no model that latentrag saved; name a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = folder.with_name(f".{folder.name}.saving-{os.getpid()}")
    aside = folder.with_name(f".{folder.name}.replaced-{os.getpid()}")
    try:
        scratch.mkdir()
        yield scratch
        if folder.exists():
            folder.rename(aside)
        scratch.rename(folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error}); choose another place or make room") from error
    finally:
        for leftover in (scratch, aside):
            if leftover.exists():
                shutil.rmtree(leftover)
