"""How sure an answer is, over HTTP: said where the model is calibrated, withheld where it is wanted so."""

import pytest

from latentrag.confidence import ABSTAINED
from latentrag.serving.app import create_app
from tests.serving.conftest import serving
from tests.serving.test_stream import events
from tests.test_confidence import OPTIONS, a_calibration, a_rag

ASKED = {"question": "who 1", "beams": OPTIONS["num_beams"], "max_tokens": OPTIONS["max_tokens"]}
CHAT = {
    "messages": [{"role": "user", "content": "who 1"}],
    "max_tokens": OPTIONS["max_tokens"],
    "latentrag": {"beams": OPTIONS["num_beams"], "abstain_below": 1},
}


@pytest.fixture
def sure(live):
    with serving(create_app(a_rag(a_calibration()), live, name="sure")) as served:
        yield served


def test_an_answer_says_how_sure_it_is_and_is_withheld_below(sure) -> None:
    plain = a_rag(a_calibration()).answer("who 1", **OPTIONS)
    answer = sure.post("/v1/answer", ASKED).json()
    assert answer["confidence"] == pytest.approx(plain.confidence, abs=1e-6)
    assert "best_guess" not in answer
    withheld = sure.post("/v1/answer", {**ASKED, "abstain_below": 1}).json()
    assert (withheld["answer"], withheld["best_guess"]) == (ABSTAINED, plain.text)
    streamed = events(sure.post("/v1/answer/stream", {**ASKED, "abstain_below": 1}).text)
    assert [name for name, _ in streamed] == ["sources", "answer"]
    assert streamed[-1][1]["answer"] == ABSTAINED


def test_openai_clients_read_that_it_is_not_known(sure) -> None:
    choice = sure.post("/v1/chat/completions", {**CHAT, "model": "sure", "logprobs": True}).json()["choices"][0]
    assert choice["message"]["content"] == ABSTAINED
    assert choice["message"]["annotations"] == []
    assert (choice["logprobs"]["content"], choice["logprobs"]["posterior"]) == ([], {})
    text = sure.post("/v1/chat/completions", {**CHAT, "model": "sure", "stream": True}).text
    assert ABSTAINED in text
    assert text.count('"content":') - text.count('"content":""') == 1


def test_what_is_not_calibrated_does_not_abstain(sure) -> None:
    other = sure.post("/v1/answer", {**ASKED, "k": 2, "abstain_below": 0.5})
    assert other.status_code == 422
    assert "since the model was calibrated with k=3, not 2" in other.json()["error"]["message"]
    assert sure.post("/v1/answer", {**ASKED, "abstain_below": 1.5}).status_code == 422
    assert "confidence" not in sure.post("/v1/answer", {**ASKED, "k": 2}).json()


def test_a_conversation_has_no_confidence_and_is_not_withheld_by_guess(sure) -> None:
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "who 1"}]
    body = {name: value for name, value in ASKED.items() if name != "question"} | {"messages": talk}
    assert "confidence" not in sure.post("/v1/answer", body).json()
    refused = sure.post("/v1/answer", {**body, "abstain_below": 0.5})
    assert refused.status_code == 422
    assert "calibrated on questions alone" in refused.json()["error"]["message"]
