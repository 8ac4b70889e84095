"""What a causal model has read of passages, kept for the next question."""

from __future__ import annotations

from typing import TYPE_CHECKING

from latentrag.errors import InputError

if TYPE_CHECKING:
    from latentrag.assemble.parts import Source
    from latentrag.generator import CausalGenerator


def keep_passages(generator: CausalGenerator, max_bytes: int, folder: Source | None) -> None:
    """Let a generator keep the passages it reads.

    Args:
        max_bytes: of RAM. With 0 and no folder nothing is kept.
        folder: keeps them on disk too, for later runs of the same weights.
    Raises: InputError for a folder that nothing can be kept in.
    """
    from latentrag.generator.lora import split_weights
    from latentrag.generator.passage_cache import PassageCache, weights_key

    if folder is None:
        generator.passage_cache = PassageCache(max_bytes) if max_bytes else None
        return
    if generator.int8:
        raise InputError("what is read in eight bits is not kept on disk; choose another --dtype, or no folder")
    weights = generator.model.state_dict()
    if generator.lora is not None and generator.lora.scope == "question":  # the adapter reads no passage
        weights = split_weights(weights)[0]
    try:
        generator.passage_cache = PassageCache(max_bytes, folder=folder, model=weights_key(weights))
    except OSError as error:
        raise InputError(f"{folder}: cannot be a folder ({error.strerror}); name another") from error
