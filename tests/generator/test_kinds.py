"""A third kind of generator, in one file and one row of the table: it scores, and does not decode."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from torch import Tensor

from latentrag import io
from latentrag.assemble import load, save
from latentrag.errors import InputError, ModelError
from latentrag.generator import GENERATOR_KINDS, SETTINGS_FILE, load_generator
from latentrag.place import Place
from latentrag.protocols import Capabilities
from latentrag.types import Asked, LatentLists, Targets


@dataclass(frozen=True, slots=True)
class Overlap:
    """Which words each of B·K z has, as tokens."""

    words: list[set[int]]
    num_questions: int
    num_passages: int

    def rows(self, index: Tensor) -> Self:
        chosen = [self.words[b * self.num_passages + k] for b in index.tolist() for k in range(self.num_passages)]
        return type(self)(chosen, len(index), self.num_passages)

    def each_passage(self) -> Self:
        return type(self)(self.words, len(self.words), 1)


class OverlapGenerator:
    """p_θ(y|x,z) = ``hit`` for each word of y that z has, else 1 − ``hit``."""

    kind = "overlap"
    capabilities = Capabilities(decodes=False, differentiable=False)
    device = torch.device("cpu")
    end_ids = (0,)
    max_target_tokens = None
    decoding_defaults: Mapping[str, Any] = {}

    def __init__(self, hit: float = 0.9) -> None:
        self.hit = hit
        self.vocabulary = ["", "paris", "rome", "moon"]

    @classmethod
    def load(cls, folder: Path, settings: Mapping[str, Any], place: Place) -> Self:
        return cls(**settings)

    def settings(self) -> Mapping[str, Any]:
        return {"kind": self.kind, "hit": self.hit}

    def save(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        io.write_json(folder / SETTINGS_FILE, self.settings())

    def prepare(self, x: Sequence[Asked], latents: LatentLists) -> Overlap:
        texts = [" ".join(passage.text for passage in z).split() for of_question in latents for z in of_question]
        words = [{0, *(self.vocabulary.index(word) for word in text if word in self.vocabulary)} for text in texts]
        return Overlap(words, len(x), len(latents[0]))

    def targets(self, y: Sequence[str]) -> Targets:
        rows = [[*map(self.vocabulary.index, text.split()), 0] for text in y]
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        return Targets(ids, torch.tensor([[i < len(row) for i in range(width)] for row in rows]))

    def log_p_theta(self, prepared: Overlap, targets: Targets) -> Tensor:
        ids = targets.ids.repeat_interleave(prepared.num_passages, dim=0).tolist()
        share = [
            [self.hit if token in words else 1 - self.hit for token in row]
            for row, words in zip(ids, prepared.words, strict=True)
        ]
        return torch.tensor(share).log().view(prepared.num_questions, prepared.num_passages, -1)

    def text(self, ids: Sequence[int]) -> str:
        return "".join(self.token_texts(ids))

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        return [self.vocabulary[token] for token in ids]


@pytest.fixture
def kind() -> Iterator[None]:
    GENERATOR_KINDS.add("overlap", OverlapGenerator)
    yield
    GENERATOR_KINDS.remove("overlap")


@pytest.fixture
def parts(pair: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    OverlapGenerator(hit=0.8).save(tmp_path / "overlap")
    return pair[0], tmp_path / "overlap"


@pytest.mark.usefixtures("kind")
def test_it_scores_and_classifies(parts: tuple[Path, Path], filled: Path) -> None:
    """Two of the four passages of the memory hold none of the words, one each holds "paris" and "rome"."""
    rag = load(parts, memory=filled, k=4)
    score = rag.score("which city", "rome")
    priors = {source.passage.id: source.prior for source in score.sources}
    expected = sum(prior * (0.8 if name == "rome" else 0.2) * 0.8 for name, prior in priors.items())
    assert score.log_likelihood == pytest.approx(math.log(expected), abs=1e-5)
    best = max(score.sources, key=lambda source: source.posterior / source.prior)
    assert best.passage.id == "rome"
    assert {label.text for label in rag.classify("which city", ["rome", "moon"]).labels} == {"rome", "moon"}


@pytest.mark.usefixtures("kind")
def test_asking_it_is_refused_in_one_line(parts: tuple[Path, Path], filled: Path) -> None:
    with pytest.raises(InputError, match=r"^this generator scores given answers and writes none; use score"):
        load(parts, memory=filled, k=4).answer("which city")


@pytest.mark.usefixtures("kind")
def test_it_is_saved_with_its_model(parts: tuple[Path, Path], filled: Path, tmp_path: Path) -> None:
    rag = load(parts, memory=filled, k=4)
    save(rag, tmp_path / "saved")
    again = load(tmp_path / "saved", memory=filled)
    assert again.generator.capabilities == Capabilities(decodes=False, differentiable=False)
    assert again.score("which city", "paris") == rag.score("which city", "paris")


def test_a_kind_that_is_not_there_is_named(tmp_path: Path) -> None:
    OverlapGenerator().save(tmp_path / "overlap")
    with pytest.raises(ModelError, match="generator kind 'overlap' is unknown; needed one of seq2seq, causal"):
        load_generator(tmp_path / "overlap")
