"""Server-sent events: tokens as they become certain, then the same answer as without a stream."""

import json
import threading

import pytest

from latentrag.serving.app import create_app
from tests.cli.conftest import QUESTION
from tests.serving.conftest import PATIENCE_S, serving
from tests.serving.test_api import close


def events(text: str) -> list[tuple[str, dict]]:
    """Names and data. Every event ends with an empty line."""
    assert text.endswith("\n\n")
    found = []
    for block in text[:-2].split("\n\n"):
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"variant": "token"},
        {"beams": 1, "max_tokens": 12, "min_tokens": 10},
        {"sample": True, "seed": 5, "beams": 1, "max_tokens": 12},
        {"sample": True, "seed": 5, "beams": 3},
        {"stop": ["of", "the"], "beams": 2, "max_tokens": 12},
        {"as_of": 2},
    ],
    ids=["sequence", "token", "greedy", "sample", "samples", "stop", "as of"],
)
def test_a_stream_ends_with_the_answer_that_it_told(served, options) -> None:
    response = served.post("/v1/answer/stream", {"question": QUESTION, **options})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    (first, begin), *tokens, (last, answer) = events(response.text)
    assert (first, last) == ("sources", "answer")
    assert {name for name, _ in tokens} <= {"token"}
    assert close(answer, served.post("/v1/answer", {"question": QUESTION, **options}).json())
    assert begin["memory_version"] == answer["memory_version"]
    known_at_the_start = [{name: each[name] for name in begin["sources"][0]} for each in answer["sources"]]
    assert close(begin["sources"], known_at_the_start)
    assert answer["sources"][0].keys() - begin["sources"][0].keys() == {"posterior", "sentences", "parts"}
    assert [data.pop("index") for _, data in tokens] == list(range(len(answer["tokens"])))
    assert close([data for _, data in tokens], answer["tokens"])


def test_each_token_is_sent_before_the_next_is_decoded(gated, live) -> None:
    """The generator may take a step only when the token before has arrived here."""
    generator, permits = gated.generator, threading.Semaphore(0)
    generator.gate.set()
    steps = generator.step

    def permitted(state, parents, tokens):
        assert permits.acquire(timeout=PATIENCE_S)
        return steps(state, parents, tokens)

    generator.step = permitted
    body = {"question": "long?", "min_tokens": 6, "max_tokens": 8, "beams": 1}
    with (
        serving(create_app(gated, live, name="toy")) as served,
        served.client.stream("POST", "/v1/answer/stream", json=body) as response,
    ):
        lines = (line for line in response.iter_lines() if line.startswith("event: "))
        assert next(lines) == "event: sources"
        for num_steps in range(6):
            assert next(lines) == "event: token"
            assert generator.num_steps == num_steps
            permits.release()
        permits.release(10)
        assert list(lines)[-1] == "event: answer"


def test_what_goes_wrong_midway_is_an_event(gated, live) -> None:
    generator = gated.generator
    generator.gate.set()
    steps = generator.step

    def fails_late(state, parents, tokens):
        if generator.num_steps >= 2:
            raise RuntimeError("a bug, with a secret in it")
        return steps(state, parents, tokens)

    generator.step = fails_late
    with serving(create_app(gated, live, name="toy")) as served:
        body = {"question": "long?", "min_tokens": 6, "max_tokens": 8, "beams": 1}
        response = served.post("/v1/answer/stream", body)
        (first, _), *tokens, (last, error) = events(response.text)
        assert (first, last, len(tokens)) == ("sources", "error", 3)
        assert error["error"]["message"] == "the server has failed; its log says why"
        whole = served.post("/v1/answer", body)
        assert (whole.status_code, whole.json()) == (500, error)
        generator.step = steps
        assert served.post("/v1/answer", body).status_code == 200
