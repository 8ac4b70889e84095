"""A model's parts made ready to be trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from latentrag.assemble.parts import ModelSpec, Source, load_passage_encoder
from latentrag.errors import InputError
from latentrag.options import PASSAGE_FOLDER_BYTES, CacheMemory
from latentrag.protocols import KeepsPassages

if TYPE_CHECKING:
    from latentrag.generator import Lora
    from latentrag.generator.base import TransformersGenerator
    from latentrag.memory import Memory
    from latentrag.protocols import Retriever
    from latentrag.rag import Rag


G = TypeVar("G", bound="TransformersGenerator[Any, Any]")


def check_trainable(generator: Any) -> None:
    """Raises: InputError for a generator whose log-probabilities have no gradients."""
    if not generator.capabilities.differentiable:
        raise InputError(f"a generator of the kind {generator.kind} cannot be trained; give a folder or hub id")


def generator_for_training(
    generator: G,
    *,
    lora: Lora | None,
    frozen: bool = False,
    whole: bool = False,
    recompute: bool = False,
    seed: int = 0,
    keep_preamble: bool = False,
    multiline: bool = False,
    passage_cache_bytes: int = 0,
    passage_cache_in: CacheMemory = "ram",
    passage_cache_folder: Source | None = None,
    passage_cache_folder_bytes: int = PASSAGE_FOLDER_BYTES,
) -> G:
    """The generator, ready to be trained.

    Args:
        lora, whole, recompute, seed, keep_preamble, multiline: as for ``TransformersGenerator.for_training``.
        frozen: nothing of it is trained.
        passage_cache_bytes, passage_cache_in, passage_cache_folder, passage_cache_folder_bytes: for a generator that
            keeps passages and reads them without learning, so that each is read once.
    Raises: InputError for a generator that cannot be trained.
    """
    check_trainable(generator)
    ready = generator.for_training(
        lora=lora, whole=whole, recompute=recompute, seed=seed, keep_preamble=keep_preamble, multiline=multiline
    )
    spares_passages = ready.lora is not None and ready.lora.scope == "question"
    if isinstance(ready, KeepsPassages) and (frozen or spares_passages):
        ready.keep_passages(
            passage_cache_bytes,
            on_device=passage_cache_in == "device",
            folder=passage_cache_folder,
            max_folder_bytes=passage_cache_folder_bytes,
        )
    return ready


def retriever_for_training(
    rag: Rag, source: Source | ModelSpec, memory: Memory | None, refresh: bool, *, device: str, frozen: bool = False
) -> Retriever:
    """The model's retriever, made ready to be trained: weights that are become float32.

    Args:
        frozen: none is.
        source: the model, for its passage encoder.
        memory: None: passages come with the questions, and nothing can be refreshed.
        device: where that computes.
        refresh: train the passage encoder too and re-encode the memory meanwhile. It is loaded apart from the query
            encoder, also where one model serves as both: they part as they learn.
    Raises: InputError for BM25, which has no encoders; ModelError if the model has no passage encoder;
        EncoderMismatchError if it is not that of the memory.
    """
    from latentrag.retriever import DenseRetriever, HybridRetriever, RefreshingRetriever
    from latentrag.retriever.given import GivenRetriever

    retriever: Any = rag.retriever
    learns = isinstance(retriever, DenseRetriever | GivenRetriever | HybridRetriever)
    learns = learns and retriever.query_encoder is not None
    if learns and not frozen:
        retriever.query_encoder.module.float()
    if not refresh or memory is None:
        return rag.retriever
    if retriever.kind != "dense":
        raise InputError(
            f"{retriever.kind} retrieval has no passage encoder to refresh; leave refresh_every out or retrieve with "
            "vectors (dense)"
        )
    if not hasattr(memory, "at"):
        raise InputError(
            f"refresh_every re-encodes the memory, which {memory.name} does not allow; leave it out, or name a memory "
            "in a folder or a cluster"
        )
    passage_encoder = load_passage_encoder(source, device=device)
    refreshing = RefreshingRetriever(retriever.query_encoder, passage_encoder, memory)
    passage_encoder.module.float()  # after its vectors were compared with the memory's
    return refreshing
