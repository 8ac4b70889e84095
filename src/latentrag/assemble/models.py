"""A model with its memory, and a model as a folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from latentrag import io
from latentrag.assemble.memories import open_memory
from latentrag.assemble.parts import FORMAT, SETTINGS_FILE, ModelSpec, Parts, Source, load_parts
from latentrag.assemble.passages import keep_passages
from latentrag.config import RetrieverKind
from latentrag.errors import InputError, ModelError
from latentrag.options import DecodingOptions, chosen_options

if TYPE_CHECKING:
    import torch

    from latentrag.assemble.parts import Generator
    from latentrag.memory import LiveMemory, Memory
    from latentrag.protocols import PassageEncoder, Retriever
    from latentrag.rag import Rag
    from latentrag.types import Variant


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
    passage_cache_folder: Source | None = None,
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
            that), "float32", "bfloat16", "float16" or a torch dtype; or "int8", for answering on a processor only:
            linear layers in eight bits, the rest in float32.
        passage_cache_bytes: RAM in which a causal generator keeps what it has read of passages for the next
            question; it changes no result.
        passage_cache_folder: keeps that on disk too, for later runs of the same weights.
    Raises: ModelError or MemoryStoreError for what cannot be opened; EncoderMismatchError if they do not fit;
        InputError for options that cannot be.
    """
    from latentrag.generator import CausalGenerator
    from latentrag.rag import Rag

    if retriever is not None and retriever not in get_args(RetrieverKind):
        raise InputError(f"retriever={retriever!r} is unknown; needed {' or '.join(get_args(RetrieverKind))}")
    opened = open_memory(memory, version=version)
    parts = load_parts(source, retriever=retriever, device=device, dtype=dtype)
    defaults = chosen_options(parts.decoding)
    try:
        DecodingOptions(**defaults)
    except (TypeError, InputError) as error:
        raise ModelError(f"{source}: the decoding options in {SETTINGS_FILE} cannot be used ({error})") from error
    if isinstance(parts.generator, CausalGenerator):
        keep_passages(parts.generator, passage_cache_bytes, passage_cache_folder)
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
    from latentrag.generator.loading import save_generator
    from latentrag.retriever import BM25Retriever

    retriever: Any = rag.retriever
    of_words = isinstance(retriever, BM25Retriever)
    settings = {
        "format": FORMAT,
        "variant": rag.variant,
        "k": rag.k,
        "retriever": "bm25" if of_words else "dense",
        **({"bm25_scale": retriever.scale} if of_words else {}),
        "decoding": chosen_options(rag.defaults),
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


def with_parts(rag: Rag, retriever: Retriever, generator: Generator) -> Rag:
    """The same settings around other parts."""
    from latentrag.rag import Rag

    return Rag(retriever, generator, variant=rag.variant, k=rag.k, defaults=rag.defaults)


def with_memory(rag: Rag, memory: Memory | LiveMemory) -> Rag:
    """The same model over another memory. Raises: EncoderMismatchError if it does not fit."""
    retriever: Any = rag.retriever
    generator: Any = rag.generator
    return with_parts(rag, retriever.over(memory), generator)


def _retriever(parts: Parts, memory: Memory | LiveMemory, *, device: str) -> Retriever:
    from latentrag.retriever import BM25Retriever, DenseRetriever

    if parts.query_encoder is None:
        return BM25Retriever(memory, scale=parts.bm25_scale, device=device)
    return DenseRetriever(parts.query_encoder, memory)


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
        io.sync_all(scratch, [str(file.relative_to(scratch)) for file in scratch.rglob("*") if file.is_file()])
        if folder.exists():
            folder.rename(aside)
        scratch.rename(folder)
        io.sync_folder(folder.parent)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error}); choose another place or make room") from error
    finally:
        if aside.exists() and not folder.exists():
            aside.rename(folder)
        for leftover in (scratch, aside):
            if leftover.exists():
                shutil.rmtree(leftover)
