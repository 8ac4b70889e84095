"""Passages read with their neighbours: which those are, what the generator reads, what stays the passage's own."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from latentrag.assemble import ModelSpec, load, load_passage_encoder, save
from latentrag.assemble.runs import Setup, train
from latentrag.errors import InputError, ModelError
from latentrag.ids import id_of_part
from latentrag.memory import Memory
from latentrag.memory.live import LiveMemory
from latentrag.neighbours import with_neighbours
from latentrag.options import Given
from latentrag.rag import Rag
from latentrag.training.options import TrainingOptions
from latentrag.types import Passage, Retrieved, singles
from tests.toy import ToyGenerator, ToyMemory

TEXTS = ["rome is the capital .", "emma is a novel .", "austen wrote emma .", "paris is the capital ."]


def document(name: str, texts: list[str], **fields: str) -> list[Passage]:
    passages, start = [], 0
    for text in texts:
        passages.append(
            Passage(id_of_part(name, text), text, name, start=start, end=start + len(text), fields=dict(fields))
        )
        start += len(text) + 1
    return passages


FIRST, SECOND = document("a", TEXTS), document("a#b", ["hamlet is a play .", "who wrote hamlet ?"], kind="x")
WHOLE = Passage("whole", "moon", "whole")


@pytest.fixture
def memory(pair, tmp_path) -> Memory:
    """In another order than that of the documents."""
    encoder = load_passage_encoder(pair[0])
    shuffled = [FIRST[2], SECOND[1], WHOLE, FIRST[0], FIRST[3], SECOND[0], FIRST[1]]
    return Memory.create(tmp_path / "documents.lance", encoder).add(shuffled, encoder)


def ids(found: list[tuple[list[Passage], list[Passage]]]) -> list[tuple[list[str], list[str]]]:
    return [([z.id for z in before], [z.id for z in after]) for before, after in found]


def test_neighbours_are_those_of_the_document_in_its_order(memory: Memory) -> None:
    for num in (1, 2, 9):
        for name, passages in (("a", FIRST), ("a#b", SECOND)):
            for place, passage in enumerate(passages):
                before = [z.id for z in passages[max(0, place - num) : place]]
                after = [z.id for z in passages[place + 1 : place + 1 + num]]
                assert ids(memory.around([passage.id], num)) == [(before, after)], name
    assert memory.around(["whole"], 2) == [([], [])]
    assert ids(LiveMemory(memory).around([FIRST[1].id, WHOLE.id], 1)) == [([FIRST[0].id], [FIRST[2].id]), ([], [])]
    with pytest.raises(InputError, match="1 ids are not in the memory: 'none'"):
        memory.around(["none"], 1)


def test_what_is_deleted_is_no_neighbour_any_more(memory: Memory) -> None:
    left = memory.delete([FIRST[1].id])
    assert ids(left.around([FIRST[2].id], 1)) == [([FIRST[0].id], [FIRST[3].id])]
    assert ids(memory.around([FIRST[2].id], 1)) == [([FIRST[1].id], [FIRST[3].id])]


def test_a_condition_holds_for_neighbours_too(pair, tmp_path) -> None:
    """And what is behind one that may not be known of is none."""
    encoder = load_passage_encoder(pair[0])
    kinds = ["x", "x", "y", "x"]
    passages = [document("a", TEXTS, kind=kind)[place] for place, kind in enumerate(kinds)]
    memory = Memory.create(tmp_path / "kinds.lance", encoder).add(passages, encoder)
    some: Any = memory.where("kind = 'x'")
    assert ids(some.around([passages[1].id], 2)) == [([passages[0].id], [])]
    assert ids(some.around([passages[3].id], 3)) == [([], [])]


def test_what_may_not_be_known_of_changes_no_neighbours(pair, tmp_path) -> None:
    """A memory without it has the same; a condition beside the scope is still no way past what it hides."""
    encoder = load_passage_encoder(pair[0])
    kinds = ["x", "y", "x", "x"]
    passages = [
        replace(each, fields={"kind": kind, "level": level})
        for each, kind, level in zip(document("a", TEXTS), kinds, (1, 1, 2, 1), strict=True)
    ]
    whole = Memory.create(tmp_path / "whole.lance", encoder).add(passages, encoder)
    seen = Memory.create(tmp_path / "seen.lance", encoder).add([passages[0], *passages[2:]], encoder)
    first, third, fourth = passages[0].id, passages[2].id, passages[3].id
    for memory in (whole, seen):
        bound: Any = memory.only("kind = 'x'")
        assert ids(bound.around([first, third], 1)) == [([], [third]), ([first], [fourth])]
        assert ids(bound.where("level = 1").around([first, fourth], 2)) == [([], []), ([], [])]
        assert ids(bound.where("level < 3").around([first], 2)) == [([], [third, fourth])]
    scores = [
        load(pair, memory=memory.only("kind = 'x'"), k=3, neighbours=1).score("who wrote emma ?", "austen")
        for memory in (whole, seen)
    ]
    assert scores[0].log_likelihood == scores[1].log_likelihood


def test_the_generator_reads_the_joined_text_and_the_rest_is_as_before(pair, memory: Memory) -> None:
    plain, wide = load(pair, memory=memory, k=3), load(pair, memory=memory, k=3, neighbours=1)
    question = "who wrote emma ?"
    answer, before = wide.answer(question, max_tokens=4), plain.answer(question, max_tokens=4)
    assert [source.passage for source in answer.sources] == [source.passage for source in before.sources]
    assert [source.prior for source in answer.sources] == [source.prior for source in before.sources]
    assert answer.log_p_theta != before.log_p_theta
    found = plain.model.retrieve([question], 3)
    joined = [
        Passage(z.id, " ".join(part.text for part in (*left, z, *right)), z.title)
        for z, (left, right) in zip(found.passages[0], memory.around([z.id for z in found.passages[0]], 1), strict=True)
    ]
    targets = plain.generator.targets(["austen"])
    with torch.no_grad():
        prepared = plain.generator.prepare([question], singles([joined]))
        expected = plain.generator.log_p_theta(prepared, targets)
        got = wide.model.read([question], k=3).evidence(targets).log_p_theta
    assert torch.equal(got, expected)


def test_sets_sentences_and_conversations_read_neighbours(pair, memory: Memory) -> None:
    rag = load(pair, memory=memory, k=3, neighbours=1, set_size=2)
    talk = [{"role": "user", "content": "what is emma ?"}, {"role": "user", "content": "who wrote emma ?"}]
    score = rag.score(talk, "austen", sentences=True)
    assert score.conversation is not None
    assert sum(each.posterior for each in score.conversation.readings) == pytest.approx(1, abs=1e-5)
    best = max(score.sources, key=lambda source: source.posterior)
    (sentence,) = best.sentences  # the passage is one sentence: without it its neighbours are read alone
    assert sentence.log_prob_without != pytest.approx(score.log_likelihood, abs=1e-6)


def test_a_memory_that_knows_no_neighbours_is_refused() -> None:
    from tests.test_seams import FourPassages, ToyRetriever

    rag = Rag(ToyRetriever(FourPassages()), ToyGenerator(4), neighbours=1)
    with pytest.raises(InputError, match="a FourPassages does not know which passages stand beside each other"):
        rag.answer("one")
    nothing = Retrieved([[()]], {"a": torch.zeros(1, 1)}, 1)
    assert with_neighbours(nothing, ToyMemory(), 0) is nothing
    with pytest.raises(InputError, match="neighbours=-1; needed 0 or more"):
        Rag(ToyRetriever(FourPassages()), ToyGenerator(4), neighbours=-1)


def test_it_is_saved_with_the_model_and_training_reads_so(pair, memory: Memory, tmp_path) -> None:
    save(load(pair, memory=memory, neighbours=2), tmp_path / "saved")
    content = json.loads((tmp_path / "saved" / "latentrag.json").read_text())
    assert content["prior"]["neighbours"] == 2
    assert load(tmp_path / "saved", memory=memory).neighbours == 2
    assert load(tmp_path / "saved", memory=memory, neighbours=0).neighbours == 0
    content["prior"]["neighbours"] = "two"
    (tmp_path / "saved" / "latentrag.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"no usable prior\.neighbours"):
        load(tmp_path / "saved", memory=memory)
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"question": "who wrote emma ?", "answer": "austen"}) + "\n")
    losses = []
    for num in (0, 1):
        out = tmp_path / f"run{num}"
        setup = Setup(data=(data,), memory=str(memory.path), model=ModelSpec(*pair), out=out, neighbours=num)
        options = {"k": 2, "num_steps": 2, "batch_size": 1, "freeze": "generator", "hindsight": 0}
        losses.append(train(setup, Given.of(TrainingOptions, options)).last_nll)
        saved = json.loads((out / "model" / "latentrag.json").read_text())
        assert saved["prior"].get("neighbours", 0) == num
    assert losses[0] != losses[1]
