"""A question's row does not depend on the questions beside it, in any number format, unless batches are asked for."""

import json
import random

import pytest
import torch

from latentrag.errors import InputError
from latentrag.evaluation.run import evaluate
from latentrag.generator import load_generator
from latentrag.options import DecodingOptions
from latentrag.place import Place
from latentrag.rag import Rag
from latentrag.training.data import Example
from latentrag.types import Passage, Question, Retrieved, singles
from tests import tiny
from tests.toy import ToyMemory, ToyRetriever

OPTIONS = DecodingOptions(num_beams=2, max_tokens=5)
WORDS = [word for word in tiny.WORDS if word.isalpha()]


def words(seed: object, most: int) -> str:
    drawn = random.Random(str(seed))
    return " ".join(drawn.choices(WORDS, k=drawn.randint(2, most)))


PASSAGES = [Passage(id=f"z{i}", text=words(i, 20), title=WORDS[i]) for i in range(20)]
EXAMPLES = [Example(str(i), words(f"x{i}", 9), (words(f"y{i}", 4),)) for i in range(12)]


class DrawnRetriever(ToyRetriever):
    """Passages drawn from the question."""

    memory = ToyMemory(PASSAGES)

    def retrieve(self, x, k):
        found = [random.Random(Question.of(question).text).sample(PASSAGES, k) for question in x]
        return Retrieved(singles(found), {"dense": torch.linspace(1, 0, k).repeat(len(x), 1)}, version=7)


@pytest.fixture(scope="module", params=["llama", "bart"])
def folder(request, tmp_path_factory):
    place = tmp_path_factory.mktemp("models") / request.param
    tiny.save_tokenizer(place, end=request.param == "bart")
    {"llama": tiny.save_llama, "bart": tiny.save_bart}[request.param](place)
    return place


def rows(folder, number_format, examples=EXAMPLES, **options):
    """By id."""
    rag = Rag(DrawnRetriever(), load_generator(folder, place=Place("cpu", number_format)), k=3)
    found = evaluate(rag, examples, options=OPTIONS, recall_at=(3,), **options)
    return {row["id"]: row for row in found.rows}


def largest_move(some, others) -> float:
    return max(abs(some[key][name] - others[key][name]) for key in some for name in ("log_likelihood", "log_prob"))


@pytest.mark.parametrize("number_format", ["bfloat16", "int8"])
def test_a_row_is_the_same_to_the_last_bit_alone_in_any_order_and_after_an_interruption(
    folder, number_format, tmp_path
) -> None:
    whole = rows(folder, number_format)
    assert rows(folder, number_format, EXAMPLES[::-1]) == whole
    assert rows(folder, number_format, EXAMPLES[7:8]) == {"7": whole["7"]}
    out = tmp_path / "run.jsonl"
    rows(folder, number_format, EXAMPLES[:5], out=out)
    assert rows(folder, number_format, out=out) == whole
    assert json.loads(out.with_suffix(".json").read_text())["settings"]["batch_size"] == 1
    with pytest.raises(InputError, match="begun with batch_size=1, this run has 8"):
        rows(folder, number_format, out=out, batch_size=8)


def test_batches_hardly_move_rows_in_float32(folder, tmp_path) -> None:
    out = tmp_path / "run.jsonl"
    whole = rows(folder, "float32", EXAMPLES[:8], out=out)
    for batch_size in (1, 3):
        others = rows(folder, "float32", EXAMPLES[:8], batch_size=batch_size)
        assert largest_move(whole, others) < 1e-4
        assert [row["text"] for row in others.values()] == [row["text"] for row in whole.values()]
    rows(folder, "float32", out=out, batch_size=3)  # goes on: the batch size is no setting
