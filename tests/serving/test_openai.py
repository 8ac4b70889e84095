"""OpenAI's interface as its users know it: what they send as a matter of course changes nothing, what cannot be had is
refused in one line, and what their clients read is there."""

import base64
import json

import numpy as np
import pytest

from latentrag.assemble import load_passage_encoder
from latentrag.memory import Memory
from latentrag.serving.app import create_app
from latentrag.serving.options import MAX_HISTORY, MAX_MESSAGES, MAX_TOKENS
from latentrag.types import Passage
from tests.cli.conftest import QUESTION
from tests.serving.conftest import serving
from tests.serving.test_api import close

PATH = "/v1/chat/completions"
ASKED = [{"role": "user", "content": QUESTION}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


def complete(served, **fields):
    return served.post(PATH, {"model": "tiny", "messages": ASKED, **fields})


def refusal(response) -> str:
    """The one line that says why."""
    assert response.status_code == 422, response.text
    message = response.json()["error"]["message"]
    assert "\n" not in message
    return message


def chunks(response) -> list[dict]:
    assert response.headers["content-type"].startswith("text/event-stream")
    *found, end = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line.startswith("data: ")]
    assert end == "[DONE]"
    return [json.loads(each) for each in found]


def same_but_for_id(one: dict, other: dict) -> bool:
    return close({**one, "id": 0, "created": 0}, {**other, "id": 0, "created": 0})


@pytest.fixture(scope="module")
def plain(served) -> dict:
    return complete(served).json()


@pytest.mark.parametrize(
    "neutral",
    [
        {"frequency_penalty": 0, "presence_penalty": 0.0},
        {"logit_bias": {}},
        {"tools": [], "tool_choice": "none", "parallel_tool_calls": True},
        {"tool_choice": "auto"},
        {"functions": [], "function_call": "auto"},
        {"response_format": {"type": "text"}},
        {"store": False},
        {"n": 1},
        {"top_p": 1},
        {"top_p": 1.0, "temperature": 0},
        {"temperature": 0, "top_p": 0.3, "seed": 4},
        {"top_p": 0},
        {"seed": 7},
        {"user": "x" * 300},
        {"metadata": {"a": "b"}},
        {"service_tier": "auto"},
        {"modalities": ["text"]},
        {"stream": None, "stream_options": None, "logprobs": None, "top_logprobs": None, "stop": None, "tools": None},
        {"logprobs": False, "top_logprobs": 0},
    ],
    ids=" ".join,
)
def test_neutral_values_change_nothing(served, plain, neutral) -> None:
    assert same_but_for_id(complete(served, **neutral).json(), plain)


def test_fields_that_other_servers_ignore_are_named(served, plain) -> None:
    done = complete(served, keep_alive="5m", reasoning_effort="low").json()
    assert done["latentrag"].pop("ignored") == ["keep_alive", "reasoning_effort"]
    assert plain["latentrag"]["ignored"] == []
    assert same_but_for_id({**done, "latentrag": {**done["latentrag"], "ignored": []}}, plain)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n": 2}, "n=2 cannot be had: there is one answer"),
        ({"frequency_penalty": 0.5}, "frequency_penalty=0.5 cannot be had: there are no penalties"),
        ({"logit_bias": {"7": 3}}, 'logit_bias={"7": 3} cannot be had'),
        ({"tools": [TOOL]}, "this model calls no tools; leave it out"),
        ({"functions": [TOOL["function"]]}, "this model calls no tools"),
        ({"tool_choice": "required"}, 'tool_choice="required" cannot be had'),
        ({"response_format": {"type": "json_object"}}, "answers are plain text"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x" * 500}}}, "…"),
        ({"store": True}, "store=true cannot be had: nothing is kept"),
        ({"modalities": ["text", "audio"]}, "answers are text"),
        ({"top_logprobs": 3}, "top_logprobs=3 has no effect without logprobs"),
        ({"latentrag": {"temperature": 0.7}}, "temperature has no effect on a search"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else None,
)
def test_what_cannot_be_had_is_refused_in_a_line(served, fields, message) -> None:
    response = complete(served, **fields)
    assert message in refusal(response)


# Messages


def test_text_parts_are_joined_by_a_line_break_and_their_extras_ignored(served) -> None:
    head, tail = QUESTION[:8], QUESTION[8:]
    parts = [
        {"type": "text", "text": head, "cache_control": {"type": "ephemeral"}},
        {"type": "input_text", "text": tail},
    ]
    done = complete(served, messages=[{"role": "user", "content": parts, "name": "me"}]).json()
    assert done["latentrag"]["question"] == f"{head}\n{tail}"


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file", None, 3])
def test_an_image_is_answered_in_words(served, kind) -> None:
    parts = [{"type": "text", "text": QUESTION}, {"type": kind, "image_url": {"url": "data:…"}}]
    response = complete(served, messages=[{"role": "user", "content": parts}])
    assert "this model reads text; leave it out" in refusal(response)
    assert response.json()["error"]["param"] == "messages"


EARLIER = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris"},
]


def test_what_is_no_turn_is_not_read(served, plain) -> None:
    others = [
        {"role": "assistant", "content": None, "refusal": "I cannot", "tool_calls": [{"id": 1}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "user", "content": [{"type": "image_url"}, 7]},
        {"role": "tool", "content": {"any": "thing"}, "tool_call_id": "1"},
    ]
    done = complete(served, messages=[*others, *ASKED, {"role": "assistant", "content": "prefilled"}]).json()
    assert done["latentrag"].pop("messages_not_read") == len(others) + 1
    assert done["choices"] == plain["choices"]


def test_earlier_turns_are_read(served, rag) -> None:
    told = [{"role": "developer", "content": "Say one word."}, {"role": "system", "content": "In red."}]
    ours = complete(served, messages=[*told, *EARLIER, *ASKED]).json()
    assert ours["latentrag"]["messages_not_read"] == 0
    ways = [each["kind"] for each in ours["latentrag"]["conversation"]["readings"]]
    assert ways == ["last", "before"]
    messages = [{"role": "system", "content": "Say one word.\nIn red."}, *EARLIER, *ASKED]
    answer = rag.answer(messages)
    assert ours["choices"][0]["message"]["content"] == answer.text
    assert ours["latentrag"]["log_prob"] == pytest.approx(answer.log_prob, abs=1e-5)
    streamed = chunks(complete(served, messages=[*told, *EARLIER, *ASKED], stream=True))
    assert "".join(each["choices"][0]["delta"].get("content", "") for each in streamed) == answer.text
    assert close(streamed[-1]["latentrag"]["conversation"], ours["latentrag"]["conversation"])


def test_the_newest_turns_are_read_of_many(served) -> None:
    many = [{"role": "user", "content": f"question {number}"} for number in range(252)]
    done = complete(served, messages=[*many, *ASKED]).json()["latentrag"]
    assert done["messages_not_read"] == 252 - MAX_MESSAGES
    long = [{"role": "user", "content": "x" * (MAX_HISTORY + 1)}, *EARLIER, *ASKED]
    assert complete(served, messages=long).json()["latentrag"]["messages_not_read"] == 1


def test_an_instruction_that_is_too_long_is_refused(served) -> None:
    told = [{"role": "system", "content": "x" * 3000}, {"role": "system", "content": "x" * 3000}]
    assert "the system's messages have 6001 characters" in refusal(complete(served, messages=[*told, *ASKED]))


# Limits


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_length_above_the_limit_is_capped_and_the_reply_says_so(served, rag, plain, name) -> None:
    most = min(MAX_TOKENS, rag.generator.max_target_tokens)
    done = complete(served, **{name: 10**6}, latentrag={"beams": 1}).json()
    assert done["latentrag"]["capped"] == {name: most}
    assert done["usage"]["completion_tokens"] <= most
    assert plain["latentrag"]["capped"] == {}
    assert complete(served, **{name: 3}).json()["latentrag"]["capped"] == {}


# Usage and log-probabilities


def test_usage_is_in_every_answer(served, plain, rag) -> None:
    from latentrag.types import singles

    found = rag.retriever.retrieve([QUESTION], 3)
    prepared = rag.generator.prepare([QUESTION], singles(found.passages))
    usage = plain["usage"]
    assert usage["prompt_tokens"] == sum(map(len, prepared.whole_rows()))
    assert usage["completion_tokens"] == len(plain["latentrag"]["log_p_theta"][0])
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_usage_of_a_stream_comes_at_its_end_where_it_is_wanted(served, plain) -> None:
    *told, last = chunks(complete(served, stream=True, stream_options={"include_usage": True, "other": 1}))
    assert (last["choices"], last["usage"]) == ([], plain["usage"])
    assert {each["usage"] for each in told} == {None}
    assert all("usage" not in each for each in chunks(complete(served, stream=True)))


@pytest.mark.parametrize("how", [{}, {"variant": "token"}, {"sample": True, "seed": 3, "beams": 1}])
def test_top_logprobs_are_those_of_the_marginal(served, rag, how) -> None:
    ours = {"latentrag": {**how, "min_tokens": 3}}
    done = complete(served, logprobs=True, top_logprobs=5, **ours).json()
    tokens = done["choices"][0]["logprobs"]["content"]
    assert tokens
    for token in tokens:
        found = [each["logprob"] for each in token["top_logprobs"]]
        assert found == sorted(found, reverse=True)
        assert len(found) == 5
        assert sum(np.exp(found)) <= 1 + 1e-5
        same = [each["logprob"] for each in token["top_logprobs"] if each["token"] == token["token"]]
        if token["logprob"] > found[-1] + 1e-5:
            assert any(each == pytest.approx(token["logprob"], abs=1e-5) for each in same)
    told = chunks(complete(served, logprobs=True, top_logprobs=5, stream=True, **ours))
    streamed = [each["choices"][0]["logprobs"]["content"][0] for each in told if each["choices"][0]["logprobs"]]
    assert close(streamed, tokens)
    without = complete(served, logprobs=True, **ours).json()["choices"][0]["logprobs"]["content"]
    assert [each["top_logprobs"] for each in without] == [[]] * len(without)


def test_top_tokens_are_the_whole_distribution_where_all_are_wanted() -> None:
    from latentrag.rag import Rag
    from tests.test_rag import FakeRetriever
    from tests.toy import ToyGenerator, passages

    generator = ToyGenerator(4, seed=3)
    rag = Rag(FakeRetriever(passages(3)), generator, k=3)
    answer = rag.answer("why?", top_tokens=9, min_tokens=3, max_tokens=5)
    prior = np.exp(answer.log_p_eta)
    ids = [ord(token.text) - 96 for token in answer.tokens]
    for place, token in enumerate(answer.tokens):
        log_p = [generator.log_p(f"why?|z{k}", ids[:place]).double().numpy() for k in range(3)]
        before = np.exp([sum(answer.log_p_theta[k][:place]) for k in range(3)])
        weights = prior * before / (prior * before).sum()
        expected = np.log(sum(w * np.exp(each) for w, each in zip(weights, log_p, strict=True)))
        found = dict(token.top)
        assert [found["" if n == 0 else chr(96 + n)] for n in range(4)] == pytest.approx(expected.tolist(), abs=1e-5)


# Other routes


def test_a_model_by_its_name(served) -> None:
    found = served.get("/v1/models/tiny")
    assert found.json() == served.get("/v1/models").json()["data"][0]
    assert served.client.head("/v1/models/tiny").status_code == 200
    missing = served.get("/v1/models/gpt-4")
    assert missing.status_code == 404
    assert missing.json()["error"]["message"] == "no model 'gpt-4'; needed 'tiny'"


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/responses"])
def test_what_is_elsewhere_is_named(served, path) -> None:
    response = served.post(path, {"model": "tiny", "prompt": "hi"})
    assert response.status_code == 404
    assert "/v1/chat/completions" in response.json()["error"]["message"]


def test_embeddings_are_what_the_retriever_compares(served, memory, encoder) -> None:
    from openai import OpenAI

    with OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        texts = [QUESTION, "Paris"]
        asked = client.embeddings.create(model="tiny", input=texts)  # as base64, which the client asks for
        query = [each.embedding for each in asked.data]
        assert [each.index for each in asked.data] == [0, 1]
        assert asked.usage.prompt_tokens > 0
    passages = list(Memory.open(memory).passages())
    body = {"model": "tiny", "input": [z.text for z in passages] * 20, "input_type": "passage", "truncate": "NONE"}
    found = served.post("/v1/embeddings", body).json()["data"]
    plain = load_passage_encoder(encoder).encode_passages([Passage("", z.text) for z in passages])
    assert np.allclose([each["embedding"] for each in found], plain.repeat(20, 1), atol=1e-5)
    one = served.post("/v1/embeddings", {"model": "tiny", "input": "Paris", "encoding_format": "base64"}).json()
    vector = np.frombuffer(base64.b64decode(one["data"][0]["embedding"]), "<f4")
    assert vector == pytest.approx(query[1], abs=1e-6)


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"input": [[1, 2]]}, 422, "got tokens, needed text; in LangChain pass check_embedding_ctx_length=False"),
        ({"input": [1, 2]}, 422, "got tokens, needed text"),
        ({"input": ""}, 422, "input"),
        ({"input": " "}, 422, "is empty"),
        ({"input": "a", "dimensions": 7}, 422, "dimensions=7, but this encoder's vectors have"),
        ({"input": ["a", "a b " * 999]}, 422, "text 2 of 2 has"),
        ({"input": "a", "model": "x"}, 404, "no model 'x'; needed 'tiny'"),
    ],
)
def test_what_cannot_be_encoded(served, fields, status, message) -> None:
    response = served.post("/v1/embeddings", {"model": "tiny", **fields})
    assert response.status_code == status
    assert message in response.json()["error"]["message"]


def test_a_model_without_an_encoder_says_so(gated, live) -> None:
    with serving(create_app(gated, live, name="toy")) as toy:
        response = toy.post("/v1/embeddings", {"model": "toy", "input": "a"})
    assert "this model retrieves by words, without vectors" in refusal(response)
