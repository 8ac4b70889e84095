"""What is found without a part of the memory says so in every way of asking; what is measured or learned refuses it."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import latentrag
from latentrag.cli.render import show_answer, show_classification, show_scores, show_turn
from latentrag.decoding import Sources
from latentrag.errors import UnavailableError
from latentrag.integrations.replies import found
from latentrag.memory import Memory
from latentrag.rag import Rag
from latentrag.records import answer_of, answer_record, classification_record, score_record
from latentrag.types import SearchResult

MISSING = ("shard 2 of 2 of cluster:facts",)
QUESTION = "What is the capital of France?"
MESSAGES = [
    {"role": "user", "content": QUESTION},
    {"role": "assistant", "content": "Paris"},
    {"role": "user", "content": "Where is it?"},
]
DECODING: Any = {"max_tokens": 3, "num_beams": 2}


class Incomplete:
    """A memory of which a part does not answer."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def __getattr__(self, name: str) -> Any:
        return getattr(self._memory, name)

    def __len__(self) -> int:
        return len(self._memory)

    def snapshot(self) -> "Incomplete":
        return self

    def search(self, q: np.ndarray, k: int) -> SearchResult:
        return replace(self._memory.search(q, k), missing=MISSING)


@pytest.fixture
def make(pair, filled):
    def made(**how: Any) -> Rag:
        memory: Any = Incomplete(Memory.open(filled))
        return latentrag.load(pair, memory=memory, k=3, **how)

    return made


WAYS: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "plain": ({}, {}),
    "token": ({}, {"variant": "token"}),
    "thorough": ({}, {"decoding": "thorough"}),
    "samples": ({}, {"sample": True, "seed": 1}),
    "no passage": ({"null_passage": 0.5}, {}),
    "sets": ({"set_size": 2}, {}),
    "neighbours": ({"neighbours": 1}, {}),
    "without one": ({}, {"without": "first"}),
    "sentences": ({}, {"sentences": True}),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_answer_names_what_is_missing(make, way) -> None:
    loading, how = WAYS[way]
    rag = make(**loading)
    first = rag.retrieve(QUESTION).passages[0][0].id
    how = {**how, "without": [first]} if "without" in how else how
    assert rag.answer(QUESTION, **how, **DECODING).missing == MISSING
    if not how:
        assert rag.score(QUESTION, "Paris").missing == MISSING
        assert rag.classify(QUESTION, ["paris", "rome"]).missing == MISSING
        assert rag.retrieve(QUESTION).missing == MISSING
        assert [each.missing for each in rag.answer_batch([QUESTION, MESSAGES], **DECODING)] == [MISSING, MISSING]


def test_a_conversation_and_its_first_event(make) -> None:
    rag = make()
    assert rag.answer(MESSAGES, **DECODING).missing == MISSING
    assert rag.retrieve(MESSAGES).missing == MISSING
    events = list(rag.answering([MESSAGES], rag.asking(**DECODING)).events())
    assert [each.missing for each in events if isinstance(each, Sources)] == [MISSING]


def test_what_is_written_down_names_it(make) -> None:
    rag = make()
    answer, score = rag.answer(QUESTION, **DECODING), rag.score(QUESTION, "Paris")
    labels = rag.classify(QUESTION, ["paris", "rome"])
    for record in (answer_record(answer), score_record(score), classification_record(labels)):
        assert record["missing"] == list(MISSING)
    assert answer_of(json.loads(json.dumps(answer_record(answer)))).missing == MISSING
    assert found(rag, QUESTION, k=2, where=None)[0].metadata["missing"] == list(MISSING)
    shown = Console(record=True, width=200)
    for each in (show_answer, show_turn):
        each(answer, shown)
    show_classification(labels, shown)
    show_scores([score], shown, header=False)
    said = "Incomplete: shard 2 of 2 of cluster:facts did not answer, so passages there could not be found."
    assert shown.export_text().count(said) == 4


def test_whole_answers_say_nothing_of_it(pair, filled) -> None:
    answer = latentrag.load(pair, memory=filled, k=3).answer(QUESTION, **DECODING)
    assert answer.missing == ()
    assert "missing" not in answer_record(answer)


def test_what_is_measured_or_learned_needs_all_of_it(make) -> None:
    retrieved = make().retriever.retrieve([QUESTION], 3)
    for part in (retrieved, retrieved.between(0, 2), retrieved.at([[0, 2]])):
        with pytest.raises(UnavailableError, match="^shard 2 of 2 of cluster:facts did not answer, and what is"):
            part.whole()
    assert replace(retrieved, missing=()).whole().version == retrieved.version
