"""Retrieval-augmented generation with the passages as a latent variable (Lewis et al. 2020).

    rag = latentrag.load("demo", memory="demo")
    answer = rag.answer("Who wrote the opera Fidelio?")
    answer.text, answer.log_prob, answer.sources[0].posterior

Names are imported when they are first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latentrag.assemble import ModelSpec, load, save
    from latentrag.errors import LatentRagError
    from latentrag.memory import Memory
    from latentrag.options import DecodingOptions
    from latentrag.rag import Rag
    from latentrag.types import Answer, Classification, Passage, Score

_HOME = {
    "Answer": "latentrag.types",
    "Classification": "latentrag.types",
    "DecodingOptions": "latentrag.options",
    "LatentRagError": "latentrag.errors",
    "Memory": "latentrag.memory",
    "ModelSpec": "latentrag.assemble",
    "Passage": "latentrag.types",
    "Rag": "latentrag.rag",
    "Score": "latentrag.types",
    "load": "latentrag.assemble",
    "save": "latentrag.assemble",
}

__all__ = [
    "Answer",
    "Classification",
    "DecodingOptions",
    "LatentRagError",
    "Memory",
    "ModelSpec",
    "Passage",
    "Rag",
    "Score",
    "load",
    "save",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'latentrag' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
