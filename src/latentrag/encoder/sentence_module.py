"""What a sentence encoder computes, and how texts are written for it.

Dimensions: B texts, D embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn
from torch.nn import functional

from latentrag.errors import InputError, ModelError

if TYPE_CHECKING:
    from jaxtyping import Float

Task = Literal["query", "document"]
"""As sentence-transformers calls what a text is encoded for."""


@dataclass(frozen=True, slots=True)
class SentenceSettings:
    """What goes before the texts and comes after the stages.

    Attributes:
        query_prompt: put before each question.
        passage_prompt: put before each passage.
        dimension: of the vectors, whose first numbers are kept (Matryoshka models); None: all.
        cosine: whether vectors are compared by their cosine, whatever their length.
        lower_case: whether texts are lower-cased here, whatever the tokenizer does.
    """

    query_prompt: str = ""
    passage_prompt: str = ""
    dimension: int | None = None
    cosine: bool = False
    lower_case: bool = False

    def prompt(self, task: Task) -> str:
        return self.query_prompt if task == "query" else self.passage_prompt

    def written(self, text: str, task: Task) -> str:
        """As it is tokenized."""
        written = (self.prompt(task) + text).strip()
        return written.lower() if self.lower_case else written


def passage_text(title: str, text: str) -> str:
    """The title, where there is one, on a line of its own; then the text."""
    return f"{title}\n{text}" if title else text


class SentenceModule(nn.Module):
    """sentence-transformers' stages, one after the other.

    Of the usual ones (Transformer, Pooling, others) the weights are called transformer.* and head.*, whatever that
    library calls them: fingerprints and checkpoints know them by these names.

    Args:
        dimension: of the vectors; None: as the last stage has it.
        cosine: whether vectors get length 1 after the last stage.
    Raises: ModelError for stages that do not fit together; InputError for a dimension that they do not have.
    """

    def __init__(self, stages: Sequence[nn.Module], *, dimension: int | None = None, cosine: bool = False) -> None:
        super().__init__()
        kinds = [type(stage).__name__ for stage in stages]
        if kinds[:2] == ["Transformer", "Pooling"]:
            self.transformer = stages[0].model
            self.head = nn.ModuleList(stages[2:])
        else:
            self.rows = nn.ModuleList(stages)
        self.stages = tuple(stages)
        self.paths: Mapping[Task, tuple[Any, ...]] = {
            "query": _path(stages, "query"),
            "document": _path(stages, "document"),
        }
        sizes = {_size(path) for path in self.paths.values()}
        if len(sizes) > 1:
            raise ModelError(f"its questions and passages have vectors of {sorted(sizes)} numbers; needed the same")
        (size,) = sizes
        if dimension is not None and not 1 <= dimension <= size:
            raise InputError(f"dimension={dimension} of an encoder of {size} dimensions; needed 1 to {size}")
        ends = {type(path[-1]).__name__ for path in self.paths.values()}
        self.dimension = size if dimension is None else dimension
        self.is_cut = self.dimension < size
        self.normalised = cosine or ends == {"Normalize"}
        """Whether its vectors have length 1."""
        self.normalises = self.normalised and (ends != {"Normalize"} or self.is_cut)
        """Whether they get it after the last stage."""

    def forward(self, features: dict[str, Any], task: Task) -> Float[Tensor, "B D"]:
        """Vectors of what the first stage reads. All but transformers compute in float32."""
        for i, stage in enumerate(self.paths[task]):
            features = stage(features)
            for name in ("token_embeddings", "sentence_embedding") if i == 0 else ():
                if name in features:
                    features[name] = features[name].float()
        vectors: Tensor = features["sentence_embedding"][:, : self.dimension]
        return functional.normalize(vectors, dim=-1) if self.normalises else vectors


def _path(stages: Sequence[nn.Module], task: Task) -> tuple[Any, ...]:
    """What the texts of a task go through: of a Router the route that leads there."""
    path: list[nn.Module] = []
    for stage in stages:
        router: Any = stage
        if type(stage).__name__ == "Router":
            try:
                path += router.sub_modules[router._resolve_route(task=task, modality="text")]  # noqa: SLF001
            except ValueError as error:
                names = ", ".join(router.sub_modules)
                raise ModelError(f"its Router has routes {names}; needed one for {task}") from error
        else:
            path.append(stage)
    return tuple(path)


def _size(path: Sequence[Any]) -> int:
    """How many numbers its vectors have."""
    size: int | None = None
    kinds = [type(stage).__name__ for stage in path]
    if getattr(path[0], "module_output_name", None) == "token_embeddings" and "Pooling" not in kinds:
        raise ModelError(f"it lists {', '.join(kinds)}, which make no vector of a whole text; needed a Pooling")
    for stage in path:
        needed = getattr(stage, "in_features", None)
        if size is not None and needed is not None and needed != size:
            raise ModelError(
                f"its files do not belong together: a Dense layer for vectors of {needed}, but they have {size} here"
            )
        if hasattr(stage, "get_embedding_dimension"):
            size = int(stage.get_embedding_dimension())
    if size is None:
        raise ModelError("its stages do not say how many numbers their vectors have")
    return size
