"""Options mean what they say: used or refused, called what the user typed, within limits that can be reached."""

import re
import shlex
from contextlib import closing

import pytest

from latentrag.errors import InputError, OptionError, command
from latentrag.options import DecodingOptions, decoding_options
from latentrag.rag import Rag
from latentrag.serving.engine import Engine
from latentrag.serving.metrics import Metrics
from latentrag.serving.options import MAX_PASSAGES, ServeOptions
from tests.cli.conftest import QUESTION, cli
from tests.test_rag import FakeRetriever
from tests.toy import ToyGenerator, passages

SAMPLING = [("temperature", 0.7), ("top_p", 0.5), ("top_k", 3), ("seed", 1)]


@pytest.mark.parametrize(("name", "value"), SAMPLING)
def test_options_of_sampling_are_used_or_refused(served, ask, name, value) -> None:
    response = served.post("/v1/answer", {"question": QUESTION, name: value})
    assert response.status_code == 422
    assert response.json()["error"]["message"] == f"{name} has no effect on a search; leave it out, or add sample"
    flag = f"--{name.replace('_', '-')}"
    assert f"{flag} has no effect on a search; leave it out, or add --sample" in ask(QUESTION, flag, value).error()
    assert served.post("/v1/answer", {"question": QUESTION, name: value, "sample": True}).status_code == 200


@pytest.mark.parametrize(("name", "value"), SAMPLING)
def test_they_are_refused_also_where_the_model_has_the_same_value_saved(name, value) -> None:
    with pytest.raises(OptionError, match=f"{name} has no effect on a search"):
        decoding_options({name: value}, defaults=None, saved={name: value})
    assert getattr(decoding_options({}, defaults=None, saved={name: value}), name) == getattr(DecodingOptions(), name)
    assert getattr(decoding_options({"sample": True}, defaults=None, saved={name: value}), name) == value


@pytest.mark.parametrize(
    ("arguments", "body", "flag_error", "api_error"),
    [
        (
            ["--best", 3, "--beams", 2],
            {"best": 3, "beams": 2},
            "--best=3; needed 2 at most, which --beams keeps; raise --beams",
            "best=3; needed 2 at most, which beams keeps; raise beams",
        ),
        (
            ["--min-tokens", 9, "--max-tokens", 4],
            {"min_tokens": 9, "max_tokens": 4},
            "--min-tokens=9 leaves no room in --max-tokens=4",
            "min_tokens=9 leaves no room in max_tokens=4",
        ),
        (
            ["--decoding", "fast", "--variant", "token"],
            {"decoding": "fast", "variant": "token"},
            "--decoding='fast' is for RAG-Sequence",
            "decoding='fast' is for RAG-Sequence",
        ),
    ],
    ids=["best", "tokens", "decoding"],
)
def test_options_are_called_what_the_user_typed(served, ask, arguments, body, flag_error, api_error) -> None:
    assert flag_error in ask(QUESTION, *arguments).error()
    message = served.post("/v1/answer", {"question": QUESTION, **body}).json()["error"]["message"]
    assert message.startswith(api_error)
    with pytest.raises(InputError) as python:
        raise OptionError("{num_beams}={n}", n="{num_best}")
    assert str(python.value) == "num_beams={num_best}"  # values are no names


@pytest.mark.parametrize(("flag", "value"), [("--batch", 0), ("--queue", 0), ("--wait", 0), ("--rate", -1)])
def test_a_server_calls_its_options_by_their_flags(flag, value) -> None:
    assert cli("serve", flag, value).error().startswith(f"error: {flag}={value}")


# Limits


def test_the_combined_limit_is_said_and_worked_out(served) -> None:
    asked = {"question": QUESTION, "k": 81, "beams": 4}
    message = served.post("/v1/answer", asked).json()["error"]["message"]
    assert message == "k=81 with beams=4 makes 324 pairs; this server computes 320 at once; lower k to 80 or beams to 3"
    labels = [str(number) for number in range(64)]
    message = served.post("/v1/classify", {"question": QUESTION, "k": 6, "labels": labels}).json()["error"]["message"]
    assert message.endswith("lower k to 5 or labels to 53")
    for schema in ("AnswerRequest", "ClassifyRequest"):
        assert "is 320 at most" in served.get("/openapi.json").json()["components"]["schemas"][schema]["description"]


def test_the_limit_counts_every_value_of_z() -> None:
    retriever, generator = FakeRetriever(passages(4)), ToyGenerator(4, seed=11)
    engine = Engine(ServeOptions(), Metrics())
    with closing(engine.batcher):
        sets = Rag(retriever, generator, k=4, set_bonus=0.5)
        with pytest.raises(OptionError) as refused:
            engine.answer(sets, QUESTION, {"k": 100, "num_beams": 3})
        assert str(refused.value) == (
            "k=100 (5050 with sets of two) with num_beams=3 makes 15150 pairs; this server computes 320 at once; lower "
            "k to 14"
        )
        with pytest.raises(OptionError, match="makes 330 pairs; .*; lower k to 9 or num_beams to 5"):
            engine.answer(sets, QUESTION, {"k": 10, "num_beams": 6})
        with pytest.raises(OptionError, match=r"k=25 \(325 with sets of two\) makes 325 pairs; .*; lower k to 24"):
            engine.score(sets, QUESTION, "a", k=25, variant=None)
        with pytest.raises(OptionError, match="makes 330 pairs; .*; lower k to 9 or labels to 5"):
            engine.classify(sets, QUESTION, list("abcdef"), k=10, variant=None)
        assert engine.answer(sets, QUESTION, {"num_beams": 3}).rows == 30
        assert engine.score(sets, QUESTION, "a", k=None, variant=None).rows == 10
        assert engine.classify(sets, QUESTION, ["a", "b"], k=None, variant=None).rows == 20
        both = Rag(retriever, generator, k=4, set_bonus=0.5, null_passage=0.0)
        with pytest.raises(OptionError, match=r'k=100 \(5051 with sets of two and "no passage"\)'):
            engine.answer(both, QUESTION, {"k": 100, "num_beams": 3})


def test_advertised_limits_can_be_reached() -> None:
    """The greatest k with some beams, and the most beams with some k."""
    from latentrag.serving.options import MAX_BEAMS, MAX_LABELS

    most = ServeOptions().max_rows
    assert most >= MAX_PASSAGES * 3
    assert most >= MAX_BEAMS * 10
    assert most >= MAX_LABELS * 5


# Commands


@pytest.mark.parametrize("path", ["notes.lance", "/a b/it's $HOME.lance", "-x"])
def test_commands_in_messages_can_be_pasted(path) -> None:
    shown = re.fullmatch(r"`(.*)`", command("index", "repair", path))
    assert shown
    assert shlex.split(shown[1]) == ["latentrag", "index", "repair", path]
