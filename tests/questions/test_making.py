"""Pairs that are made from a memory: which stay, which are dropped and why, and runs that are interrupted."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from latentrag.errors import DataError, InputError
from latentrag.questions import make_questions
from latentrag.questions.run import shuffled
from latentrag.training.data import read_examples
from latentrag.types import Passage
from tests.toy import ToyMemory

GOOD = Passage("good", "The keys of the Petrel are kept by Ingrid Solheim.", title="Petrel")
TWIN = Passage("twin", "In winter, too, Ingrid Solheim keeps the keys.", title="Petrel in winter")
WORDLESS = Passage("wordless", "Nothing was written about this one.")
ELSEWHERE = Passage("elsewhere", "Somebody keeps the keys of the Tern.")
GIVEN = Passage("given", "Bergen is a port. Bergen has a harbour.")
OTHERWISE = Passage("otherwise", "Harbours are deep in Narvik and shallow in Vardø.")
WRITTEN = {
    "good": ("Question: Who keeps the keys of the Petrel? Answer: Ingrid Solheim", "ingrid solheim."),
    "twin": ("Who keeps the keys of the Petrels? Answer: Ingrid Solheim.", "Ingrid Solheim"),
    "wordless": ("I cannot think of any.", ""),
    "elsewhere": ("Who keeps the keys of the Tern? Answer: Olaf Brekke", "Olaf Brekke"),
    "given": ("What does Bergen have? Answer: Bergen", "Bergen"),
    "otherwise": ("Where are harbours deep? Answer: Narvik", "Vardø"),
}
DROPPED = {
    "wordless": "no_pair",
    "elsewhere": "answer_not_in_passage",
    "given": "answer_in_question",
    "otherwise": "answered_otherwise",
}
PASSAGES = [GOOD, WORDLESS, ELSEWHERE, GIVEN, OTHERWISE]


class Table:
    """Writes and answers what the table says; is interrupted before the n-th batch."""

    def __init__(self, *, stops_before: int | None = None) -> None:
        self.stops_before = stops_before
        self.seen: list[str] = []

    def written(self, passages: Sequence[Passage]) -> list[str]:
        if self.stops_before == 0:
            raise KeyboardInterrupt
        if self.stops_before is not None:
            self.stops_before -= 1
        self.seen += [passage.id for passage in passages]
        texts = [WRITTEN[passage.id.partition("-")[0]][0] for passage in passages]
        return [text.replace("Petrel?", f"{passage.title}?") for text, passage in zip(texts, passages, strict=True)]

    def answered(self, questions: Sequence[str], passages: Sequence[Passage]) -> list[str]:
        return [WRITTEN[passage.id.partition("-")[0]][1] for passage in passages]


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_a_pair_stays_or_is_dropped_for_a_reason(tmp_path):
    out = tmp_path / "pairs.jsonl"
    made = make_questions(Table(), ToyMemory(PASSAGES), out, number=3)
    assert rows(out) == [
        {
            "id": "good",
            "question": "Who keeps the keys of the Petrel?",
            "answer": "Ingrid Solheim",
            "passage_ids": ["good"],
            "title": "Petrel",
        }
    ]
    dropped = [row for row in rows(tmp_path / "pairs.tried.jsonl") if row["reason"]]
    assert {row["id"]: row["reason"] for row in dropped} == DROPPED
    decoded = {row["id"]: row["decoded"] for row in dropped}
    assert decoded == {"wordless": None, "elsewhere": None, "given": None, "otherwise": "Vardø"}
    assert (made.num_pairs, made.num_tried, made.all_tried) == (1, 5, True)
    assert made.dropped == dict.fromkeys(DROPPED.values(), 1) | {"near_duplicate": 0}
    record = json.loads((tmp_path / "pairs.tried.json").read_text("utf-8"))
    assert record == made.as_record()


@pytest.mark.parametrize("batch_size", [1, 8])
def test_of_two_that_are_nearly_the_same_the_first_stays(tmp_path, batch_size):
    memory = ToyMemory([GOOD, TWIN])
    made = make_questions(Table(), memory, tmp_path / "a.jsonl", number=2, batch_size=batch_size)
    first, second = shuffled(memory, 0)
    assert [row["id"] for row in rows(tmp_path / "a.jsonl")] == [first]
    tried = [(row["id"], row["reason"]) for row in rows(tmp_path / "a.tried.jsonl")]
    assert tried == [(first, None), (second, "near_duplicate")]
    assert made.dropped["near_duplicate"] == 1
    both = make_questions(Table(), memory, tmp_path / "b.jsonl", number=2, near=1.0)
    assert both.num_pairs == 2


def test_training_reads_the_file_and_knows_no_passage(tmp_path):
    out = tmp_path / "pairs.jsonl"
    make_questions(Table(), ToyMemory(PASSAGES), out, number=1)
    (example,) = read_examples(out).rows
    assert (example.x, example.answers) == ("Who keeps the keys of the Petrel?", ("Ingrid Solheim",))
    assert example.titles == ("Petrel",)


def many(number: int) -> list[Passage]:
    """Distinct questions, every third of which stays."""
    kinds = (GOOD, OTHERWISE, WORDLESS)
    names = ["Albatross", "Bittern", "Cormorant", "Dunlin", "Eider", "Fulmar", "Gannet", "Heron", "Ibis", "Jackdaw"]
    return [Passage(f"{kinds[i % 3].id}-{i}", kinds[i % 3].text, title=names[i // 3]) for i in range(number)]


def test_an_interrupted_run_goes_on(tmp_path):
    memory = ToyMemory(many(30))
    whole = make_questions(Table(), memory, tmp_path / "whole.jsonl", number=8, batch_size=4)
    out = tmp_path / "parts.jsonl"
    seen = []
    for stop in (0, 1, 2, 1, None):
        writer = Table(stops_before=stop)
        try:
            made = make_questions(writer, memory, out, number=8, batch_size=4)
        except KeyboardInterrupt:
            continue
        finally:
            seen += writer.seen
    assert rows(out) == rows(tmp_path / "whole.jsonl")
    assert made == whole
    assert len(seen) == len(set(seen))  # nothing was tried twice
    assert whole.num_pairs == 8
    assert not whole.all_tried
    more = make_questions(Table(), memory, out, number=9, batch_size=4)
    assert more.num_pairs == 9
    assert rows(out)[:8] == rows(tmp_path / "whole.jsonl")


def test_lines_that_a_kill_cut_short_are_made_again(tmp_path):
    memory = ToyMemory(many(30))
    whole = make_questions(Table(), memory, tmp_path / "whole.jsonl", number=6, batch_size=4)
    out = tmp_path / "cut.jsonl"
    with pytest.raises(KeyboardInterrupt):
        make_questions(Table(stops_before=3), memory, out, number=6, batch_size=4)
    for file in (out, tmp_path / "cut.tried.jsonl"):  # as a kill in the middle of writing leaves them
        file.write_bytes(file.read_bytes()[:-7])
    again = make_questions(Table(), memory, out, number=6, batch_size=4)
    assert again == whole
    assert rows(out) == rows(tmp_path / "whole.jsonl")


def test_what_cannot_be_continued_is_refused(tmp_path):
    out, memory = tmp_path / "pairs.jsonl", ToyMemory(PASSAGES)
    make_questions(Table(), memory, out, number=1)
    with pytest.raises(InputError, match=r"was begun with seed=0, this run has 1"):
        make_questions(Table(), memory, out, number=1, seed=1)
    with pytest.raises(InputError, match=r"was begun with memory_version=7, this run has 8"):
        make_questions(Table(), ToyMemory(PASSAGES, version=8), out, number=1)
    with pytest.raises(InputError, match=r"does not end with \.jsonl"):
        make_questions(Table(), memory, tmp_path / "pairs.txt", number=1)
    with pytest.raises(InputError, match="number=0"):
        make_questions(Table(), memory, out, number=0)
    with (tmp_path / "pairs.tried.jsonl").open("a", encoding="utf-8") as lines:
        lines.write('{"id": "x"}\n')
    with pytest.raises(DataError, match=r"pairs\.tried\.jsonl: its row 'x' is not one of make-questions"):
        make_questions(Table(), memory, out, number=2)
    other = tmp_path / "mine.jsonl"
    other.write_text('{"question": "Who?", "answer": "I"}\n', "utf-8")
    with pytest.raises(InputError, match="was made otherwise"):
        make_questions(Table(), memory, other, number=1)
    assert other.read_text("utf-8").count("Who?") == 1
    with pytest.raises(DataError, match="No such file|Not a directory"):
        make_questions(Table(), memory, out / "below" / "pairs.jsonl", number=1)


def test_settings_are_kept_where_nothing_stayed(tmp_path):
    out, memory = tmp_path / "pairs.jsonl", ToyMemory([OTHERWISE])
    assert make_questions(Table(), memory, out, number=1).num_pairs == 0
    assert rows(out) == []
    with pytest.raises(InputError, match=r"was begun with seed=0, this run has 1"):
        make_questions(Table(), memory, out, number=1, seed=1)


def test_the_order_depends_on_ids_and_seed_alone():
    few, more = many(10), many(20)
    order = shuffled(ToyMemory(more), 3)
    assert sorted(order) == sorted(passage.id for passage in more)
    assert shuffled(ToyMemory(few[::-1]), 3) == [each for each in order if each in {passage.id for passage in few}]
    assert shuffled(ToyMemory(more), 4) != order
