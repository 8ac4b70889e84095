"""Settings to objects: models and memories from folders, hub ids and names, and back into folders.

The only room that names concrete classes. A model folder of ours holds

    latentrag.json      variant, k, decoding options, retriever
    query_encoder/      as ``encoder.save`` writes it; not with BM25, which has none
    passage_encoder/    where it is another model than the query encoder
    generator/          transformers' layout and latentrag_generator.json
"""

from latentrag.assemble.memories import live_memory, open_memory
from latentrag.assemble.models import load, save, with_memory, with_parts
from latentrag.assemble.parts import FORMAT, SETTINGS_FILE, ModelSpec, Source, computes_bfloat16, load_passage_encoder
from latentrag.assemble.training import generator_for_training, retriever_for_training

__all__ = [
    "FORMAT",
    "SETTINGS_FILE",
    "ModelSpec",
    "Source",
    "computes_bfloat16",
    "generator_for_training",
    "live_memory",
    "load",
    "load_passage_encoder",
    "open_memory",
    "retriever_for_training",
    "save",
    "with_memory",
    "with_parts",
]
