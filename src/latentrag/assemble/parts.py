"""What every kind of source of a model gives: encoder, generator, settings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from latentrag.config import RetrieverKind, resolve_model
from latentrag.errors import InputError, ModelError

if TYPE_CHECKING:
    import torch

    from latentrag.encoder import DprQueryEncoder, SentenceEncoder
    from latentrag.generator import CausalGenerator, Seq2SeqGenerator
    from latentrag.protocols import PassageEncoder
    from latentrag.types import Variant

    Generator = CausalGenerator | Seq2SeqGenerator
    QueryEncoder = DprQueryEncoder | SentenceEncoder

SETTINGS_FILE = "latentrag.json"
FORMAT = 1
INT8 = "int8"
"""A generator's linear layers in eight bits, everything else in float32."""

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
class Parts:
    """What every kind of source gives. Without a query encoder the retriever is BM25."""

    query_encoder: QueryEncoder | None
    generator: Generator
    variant: Variant = "sequence"
    k: int = 5
    decoding: Mapping[str, Any] | None = None
    bm25_scale: float = 1.0


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


def load_parts(
    source: Source | ModelSpec | tuple[Source, Source],
    *,
    retriever: RetrieverKind | None,
    device: str,
    dtype: torch.dtype | str,
) -> Parts:
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


def _load_own(folder: Path, *, retriever: RetrieverKind | None, device: str, dtype: torch.dtype | str) -> Parts:
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
    return Parts(
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


def _load_pair(spec: ModelSpec, *, retriever: RetrieverKind | None, device: str, dtype: torch.dtype | str) -> Parts:
    from latentrag import encoder

    if retriever == "bm25":
        return Parts(None, _generator(resolve_model(spec.generator), device=device, dtype=dtype))
    fingerprint = None
    if spec.passage_encoder is not None:
        fingerprint = encoder.load_passage_encoder(resolve_model(spec.passage_encoder)).fingerprint
    query_encoder = encoder.load_query_encoder(
        resolve_model(spec.encoder), passage_fingerprint=fingerprint, device=device
    )
    return Parts(query_encoder, _generator(resolve_model(spec.generator), device=device, dtype=dtype))


def _of_rag_layout(
    folder: Path, *, name: str, retriever: RetrieverKind | None, device: str, dtype: torch.dtype | str
) -> Parts:
    """facebook/rag-*: both models in one file, their tokenizers in folders of their own."""
    from latentrag import rag_layout
    from latentrag.pretrained import read_object

    content = read_object(folder / "config.json")
    query_encoder, generator = rag_layout.load(
        folder, content, name=name, dtype=_dtype(dtype, content), int8=_is_int8(dtype, device)
    )
    query_encoder.module.to(device)
    generator.model.to(device)
    architecture = str(content.get("architectures"))
    return Parts(
        None if retriever == "bm25" else query_encoder,
        generator,
        "token" if "RagToken" in architecture else "sequence",
        int(content.get("n_docs", 5)),
    )


def _generator(source: Source, *, device: str, dtype: torch.dtype | str) -> Generator:
    from latentrag.generator import load_generator
    from latentrag.pretrained import read_object, resolve

    folder = resolve(source)
    computed = _dtype(dtype, read_object(folder / "config.json"))
    return load_generator(folder, device=device, dtype=computed, int8=_is_int8(dtype, device))


def _dtype(wanted: torch.dtype | str, config: Mapping[str, Any]) -> torch.dtype:
    """The dtype to compute in. Raises: InputError for an unknown name."""
    import torch

    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if wanted == INT8:
        return torch.float32
    if isinstance(wanted, torch.dtype):
        return wanted
    if wanted in names:
        return names[wanted]
    if wanted != "auto":
        raise InputError(f"dtype={wanted!r} is unknown; needed auto, {', '.join(names)} or {INT8}")
    saved = names.get(str(config.get("dtype", config.get("torch_dtype"))), torch.float32)
    if saved is torch.float32 or torch.cuda.is_available():
        return saved
    return saved if saved is torch.bfloat16 and computes_bfloat16() else torch.float32


def _is_int8(wanted: torch.dtype | str, device: str) -> bool:
    """Raises: InputError where int8 is asked for on an accelerator."""
    if wanted == INT8 and device.partition(":")[0] != "cpu":
        raise InputError(f"dtype={INT8!r} is for processors, device={device!r} is none; use bfloat16 there")
    return wanted == INT8


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
