"""What every framework is given, without any of them."""

import subprocess
import sys

import pytest

from latentrag.confidence import ABSTAINED
from latentrag.errors import InputError, LatentRagError
from latentrag.integrations.replies import Piece, Reply, found, pieces, question_of, reply
from latentrag.records import answer_record
from tests.cli.conftest import QUESTION
from tests.clients.environments import ROOT
from tests.serving.test_api import close
from tests.test_confidence import OPTIONS, a_calibration, a_rag

ASKED = question_of([("user", QUESTION)])


def told_and_last(rag, question, how) -> tuple[list[Piece], Reply]:
    *told, last = pieces(rag, question, how)
    assert isinstance(last, Reply)
    return [each for each in told if isinstance(each, Piece)], last


def test_found_passages_are_those_of_an_answer_with_their_priors(rag) -> None:
    sources = rag.answer(QUESTION).sources
    passages = found(rag, QUESTION, k=None, where=None)
    assert [each.passage.id for each in passages] == [source.passage.id for source in sources]
    assert close([each.prior for each in passages], [source.prior for source in sources])
    assert [each.metadata["id"] for each in passages] == [source.passage.id for source in sources]
    assert all({"title", "source", "score", "prior"} <= each.metadata.keys() for each in passages)
    assert all("text" not in each.metadata for each in passages)


def test_found_passages_satisfy_a_condition(rag) -> None:
    passages = found(rag, QUESTION, k=2, where="source like '%rome%'")
    assert ["rome" in each.metadata["id"] for each in passages] == [True]
    assert passages[0].prior == pytest.approx(1)


@pytest.mark.parametrize(
    "how", [{}, {"variant": "token"}, {"sample": True, "seed": 3, "num_beams": 1}, {"stop": ("the",)}]
)
def test_pieces_make_the_answer(rag, how) -> None:
    answer = rag.answer(QUESTION, **how)
    told, last = told_and_last(rag, ASKED, how)
    assert "".join(each.text for each in told) == last.text == answer.text
    tokens = answer_record(answer)["tokens"]
    assert close([each.token for each in told], tokens)
    assert close(last.record, answer_record(answer))
    assert close(reply(rag, ASKED, how).record, last.record)


def test_an_answer_that_abstains_tells_no_token() -> None:
    sure = a_rag(a_calibration())
    told, last = told_and_last(sure, question_of([("user", "who 1")]), {**OPTIONS, "abstain_below": 1})
    assert told == [Piece(ABSTAINED, None)]
    assert (last.text, last.record["best_guess"]) == (ABSTAINED, sure.answer("who 1", **OPTIONS).text)


@pytest.mark.parametrize(("limit", "reason"), [(1, "length"), (5, None)])
def test_why_it_ends_and_what_was_read(rag, limit, reason) -> None:
    done, answer = reply(rag, ASKED, {"max_tokens": limit}), rag.answer(QUESTION, max_tokens=limit)
    assert done.finish_reason == (reason or ("stop" if answer.hypotheses[0].finished else "length"))
    assert done.usage == {
        "prompt_tokens": answer.num_input_tokens,
        "completion_tokens": len(answer.log_p_theta[0]),
        "total_tokens": answer.num_input_tokens + len(answer.log_p_theta[0]),
    }
    assert answer.num_input_tokens > 0


def test_a_conversation_ends_with_the_users_last_message() -> None:
    messages = [("system", "Be brief."), ("user", "One?"), ("assistant", ""), ("tool", "7"), ("user", "Two?")]
    asked = question_of([*messages, ("assistant", "Two.")])
    turns = [(turn.role, turn.text) for turn in asked.turns]
    assert turns == [("system", "Be brief."), ("user", "One?"), ("user", "Two?")]
    assert asked.text == "Two?"


@pytest.mark.parametrize("messages", [[], [("assistant", "Hello.")], [("user", " ")]])
def test_nothing_that_asks(messages) -> None:
    with pytest.raises(InputError, match="got no message of the user with a text; needed a question"):
        question_of(messages)


@pytest.mark.parametrize(
    ("module", "framework", "extra"),
    [
        ("langchain", "langchain_core", "langchain"),
        ("llama_index", "llama_index", "llama-index"),
        ("haystack", "haystack", "haystack"),
    ],
)
def test_a_framework_that_is_missing_is_named_in_a_line(module, framework, extra) -> None:
    code = f"""
import sys
sys.modules[{framework!r}] = None
try:
    import latentrag.integrations.{module}
except ImportError as error:
    from latentrag.errors import LatentRagError
    assert isinstance(error, LatentRagError)
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"this needs {extra} (")
    assert line.endswith(f"; run `pip install 'latentrag[{extra}]'`")


def test_the_room_itself_imports_no_framework() -> None:
    code = "import latentrag.integrations.replies, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not {"langchain_core", "llama_index", "haystack"} & set(done.stdout.split())
    assert issubclass(InputError, LatentRagError)
