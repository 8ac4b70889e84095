"""Options to objects: models and memories from folders, hub ids and names, and back into folders.

The only room that names concrete classes. A model folder of ours holds

    latentrag.json      what belongs to no part; see model_file.py
    query_encoder/      as ``encoder.save`` writes it; not with BM25, which has none
    passage_encoder/    where it is another model than the query encoder
    generator/          transformers' layout and latentrag_generator.json
"""

from latentrag.assemble.memories import live_memory, memory_at, open_memory, served_memory, some_of
from latentrag.assemble.model_file import FILE_NAME, ModelFile
from latentrag.assemble.models import (
    check_save,
    check_save_settings,
    experts_of,
    export,
    load,
    load_readings,
    load_retriever,
    prompt_settings,
    save,
    save_settings,
    with_memory,
    with_parts,
    with_weights,
)
from latentrag.assemble.parts import ModelSpec, Source, content_key, load_generator, load_passage_encoder
from latentrag.assemble.training import generator_for_training, retriever_for_training

__all__ = [
    "FILE_NAME",
    "ModelFile",
    "ModelSpec",
    "Source",
    "check_save",
    "check_save_settings",
    "content_key",
    "experts_of",
    "export",
    "generator_for_training",
    "live_memory",
    "load",
    "load_generator",
    "load_passage_encoder",
    "load_readings",
    "load_retriever",
    "memory_at",
    "open_memory",
    "prompt_settings",
    "retriever_for_training",
    "save",
    "save_settings",
    "served_memory",
    "some_of",
    "with_memory",
    "with_parts",
    "with_weights",
]
