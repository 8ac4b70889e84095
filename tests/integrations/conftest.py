"""The tiny real model, in this process."""

from pathlib import Path

import pytest

import latentrag
from latentrag.rag import Rag
from tests.cli.conftest import QUESTION, encoder, files, generator, memory, model
from tests.clients.environments import ROOT

__all__ = ["encoder", "files", "generator", "memory", "model"]


TALK = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is the capital city of Italy?"},
    {"role": "assistant", "content": "Rome"},
    {"role": "user", "content": QUESTION},
)
"""A conversation."""


@pytest.fixture(scope="module")
def rag(model, memory) -> Rag:
    return latentrag.load(model, memory=memory)


def run_example(name: str, model: Path, memory: Path) -> None:
    """Runs an example of docs/clients over the tiny model."""
    text = (ROOT / "docs" / "clients" / name).read_text("utf-8")
    own = text.replace('load("demo", memory="notes.lance")', f"load({str(model)!r}, memory={str(memory)!r})")
    assert own != text
    exec(compile(own, name, "exec"), {})  # noqa: S102


def said_of(rag: Rag) -> list[str]:
    """What an example prints."""
    answer = rag.answer(QUESTION, variant="token")
    priors = [f"prior {passage.id} {prior}" for passage, _, prior in rag.retrieve(QUESTION).passages]
    shares = [f"share {source.passage.id} {source.posterior}" for source in answer.sources]
    return [*priors, answer.text, *shares, answer.text]
