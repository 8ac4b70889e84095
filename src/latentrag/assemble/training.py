"""A model's parts made ready to be trained."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from latentrag.assemble.parts import ModelSpec, Source, load_passage_encoder
from latentrag.assemble.passages import keep_passages
from latentrag.errors import InputError
from latentrag.place import Place

if TYPE_CHECKING:
    from latentrag.assemble.parts import Generator
    from latentrag.generator.lora import Lora
    from latentrag.memory import Memory
    from latentrag.protocols import Retriever
    from latentrag.rag import Rag


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
    Raises: InputError for a generator in int8.
    """
    from latentrag.generator import CausalGenerator, Seq2SeqGenerator
    from latentrag.generator.memory_saving import recompute_activations

    if generator.int8:
        raise InputError("a generator in int8 cannot be trained; use dtype auto, float32 or bfloat16")
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
    ready = CausalGenerator(
        model,
        generator.tokenizer,
        template=template,
        max_input_tokens=generator.max_input_tokens,
        lora=added,
        seed=seed,
    )
    ready.lora = lora or generator.lora
    if frozen or (lora is not None and lora.scope == "question"):
        keep_passages(ready, passage_cache_bytes, passage_cache_folder)
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
    from latentrag.retriever import RefreshingRetriever

    retriever: Any = rag.retriever
    if not refresh:
        return rag.retriever
    if retriever.kind != "dense":
        raise InputError(
            f"{retriever.kind} retrieval has no passage encoder to refresh; leave refresh_every out or retrieve with "
            "vectors (dense)"
        )
    passage_encoder = load_passage_encoder(source, place=Place(device))
    return RefreshingRetriever(retriever.query_encoder, passage_encoder, memory)
