"""Conversations over HTTP: the same as in Python, alone and beside questions of one turn; what is refused."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from latentrag.records import answer_record, classification_record, score_record
from tests.cli.conftest import QUESTION
from tests.serving.test_api import close, to_clients

MESSAGES = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris"},
    {"role": "user", "content": QUESTION},
]


def test_a_conversation_is_answered_as_in_python(served, rag) -> None:
    found = served.post("/v1/answer", {"messages": MESSAGES, "k": 2}).json()
    assert close(found, to_clients(json.loads(json.dumps(answer_record(rag.answer(MESSAGES, k=2))))))
    assert len(found["conversation"]["readings"]) == 2
    events = served.post("/v1/answer/stream", {"messages": MESSAGES, "k": 2}).text
    last = next(line for line in reversed(events.splitlines()) if line.startswith("data: "))
    assert close(json.loads(last.removeprefix("data: ")), found)


def test_scores_labels_and_passages_of_a_conversation(served, rag) -> None:
    score = served.post("/v1/score", {"x": MESSAGES, "y": "beethoven", "k": 2}).json()
    assert close(score, json.loads(json.dumps(score_record(rag.score(MESSAGES, "beethoven", k=2)))))
    body = {"messages": MESSAGES, "labels": ["beethoven", "austen"], "k": 2}
    expected = classification_record(rag.classify(MESSAGES, ["beethoven", "austen"], k=2))
    assert close(served.post("/v1/classify", body).json(), to_clients(json.loads(json.dumps(expected))))
    found = served.post("/v1/search", {"messages": MESSAGES, "k": 2}).json()
    assert found["question"] == QUESTION
    assert [each["id"] for each in found["passages"]] == [
        source.passage.id for source in rag.answer(MESSAGES, k=2).sources
    ]


def test_questions_of_one_turn_that_are_answered_beside_it_are_as_ever(served) -> None:
    alone = served.post("/v1/answer", {"question": QUESTION, "k": 2}).json()
    with ThreadPoolExecutor(4) as pool:
        bodies = [{"messages": MESSAGES, "k": 2}, {"question": QUESTION, "k": 2}] * 2
        found = list(pool.map(lambda body: served.post("/v1/answer", body).json(), bodies))
    assert close(found[1], alone)
    assert close(found[3], alone)
    assert close(found[0], found[2])


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "got neither question nor messages; needed one of them"),
        ({"question": "a", "messages": MESSAGES}, "got question and messages; needed one of them"),
        ({"messages": MESSAGES[:2]}, "the conversation does not end with a user's message"),
        ({"messages": [{"role": "user", "content": " "}]}, "the conversation does not end with a user's message"),
        ({"messages": [{"role": "system", "content": "a"}]}, "the conversation does not end with a user's message"),
    ],
)
def test_what_is_no_conversation_is_refused_in_one_line(served, body, said) -> None:
    for path in ("/v1/answer", "/v1/answer/stream", "/v1/search"):
        response = served.post(path, body)
        assert response.status_code == 422, response.text
        message = response.json()["error"]["message"]
        assert said in message
        assert "\n" not in message


def test_a_last_question_that_is_too_long_is_refused(served) -> None:
    response = served.post("/v1/answer", {"messages": [*MESSAGES[:2], {"role": "user", "content": "paris " * 600}]})
    assert response.status_code == 422
    assert "tokens" in response.json()["error"]["message"]
