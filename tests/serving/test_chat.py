"""OpenAI's own client against a live server."""

import pytest

from tests.cli.conftest import QUESTION
from tests.serving.test_api import close

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "an earlier question"},
    {"role": "assistant", "content": "an earlier answer"},
    {"role": "user", "content": QUESTION},
]
OURS = {"k": 3, "variant": "token", "min_tokens": 3}


@pytest.fixture(scope="module")
def client(served):
    from openai import OpenAI

    with OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_models(client) -> None:
    assert [each.id for each in client.models.list()] == ["tiny"]


@pytest.fixture(scope="module")
def completion(client):
    return client.chat.completions.create(
        model="tiny", messages=MESSAGES, logprobs=True, extra_body={"latentrag": OURS}
    )


def test_a_completion_is_the_answer(completion, served) -> None:
    answer = served.post("/v1/answer", {"messages": MESSAGES, **OURS}).json()
    ours = completion.latentrag
    assert [ours.pop(name) for name in ("messages_not_read", "ignored", "capped")] == [0, [], {}]
    assert close(ours, answer)
    (choice,) = completion.choices
    assert (choice.message.role, choice.message.content) == ("assistant", answer["answer"])
    assert choice.finish_reason == ("stop" if answer["hypotheses"][0]["finished"] else "length")
    assert [each.token for each in choice.logprobs.content] == [token["text"] for token in answer["tokens"]]
    assert close([each.logprob for each in choice.logprobs.content], [t["log_prob"] for t in answer["tokens"]])
    assert completion.model == "tiny"


def test_logprobs_have_the_share_of_each_passage(completion) -> None:
    """Clients that drop `latentrag` keep them."""
    answer, found = completion.latentrag, completion.choices[0].logprobs
    ids = [source["id"] for source in answer["sources"]]
    of_tokens = [dict(zip(ids, token["posterior"], strict=True)) for token in answer["tokens"]]
    assert close([each.posterior for each in found.content], of_tokens)
    assert close(found.posterior, {source["id"]: source["posterior"] for source in answer["sources"]})
    assert sum(found.posterior.values()) == pytest.approx(1, abs=1e-5)


def test_citations_cover_the_answer_and_name_the_most_probable_passage(completion) -> None:
    answer = completion.latentrag
    (choice,) = completion.choices
    cited = [each.url_citation for each in choice.message.annotations]
    assert [each.type for each in choice.message.annotations] == ["url_citation"] * len(cited)
    assert "".join(answer["answer"][each.start_index : each.end_index] for each in cited) == answer["answer"]
    position = 0
    for token in answer["tokens"]:
        best = max(range(3), key=token["posterior"].__getitem__)
        if token["text"]:
            (of_token,) = [each for each in cited if each.start_index <= position < each.end_index]
            assert of_token.title == answer["sources"][best]["title"]
            assert of_token.url.startswith("urn:latentrag:passage:")
        position += len(token["text"])


def test_a_streamed_completion_is_the_same(client, completion) -> None:
    chunks = list(
        client.chat.completions.create(
            model="tiny",
            messages=MESSAGES,
            stream=True,
            stream_options={"include_usage": True},
            logprobs=True,
            extra_body={"latentrag": OURS},
        )
    )
    first, *middle, last, _usage = chunks
    assert len({chunk.id for chunk in chunks}) == 1
    assert first.choices[0].delta.role == "assistant"
    assert len(first.latentrag["sources"]) == 3
    text = "".join(chunk.choices[0].delta.content or "" for chunk in middle)
    assert text == completion.choices[0].message.content
    answer = completion.latentrag
    assert close([chunk.latentrag["posterior"] for chunk in middle], [token["posterior"] for token in answer["tokens"]])
    found = [chunk.choices[0].logprobs.content[0] for chunk in middle]
    assert [each.token for each in found] == [token["text"] for token in answer["tokens"]]
    whole = completion.choices[0].logprobs.content
    assert close([each.posterior for each in found], [each.posterior for each in whole])
    assert last.choices[0].finish_reason == completion.choices[0].finish_reason
    expected = [each.model_dump() for each in completion.choices[0].message.annotations]
    assert last.choices[0].delta.annotations == expected
    assert close({name: last.latentrag[name] for name in answer}, answer)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"temperature": 0}, {}),
        ({"max_tokens": 2}, {"max_tokens": 2}),
        ({"max_completion_tokens": 3, "stop": "of"}, {"max_tokens": 3, "stop": ["of"]}),
        ({"temperature": 1.5, "seed": 4}, {"sample": True, "beams": 1, "temperature": 1.5, "seed": 4}),
        ({"top_p": 0.7, "seed": 4}, {"sample": True, "beams": 1, "top_p": 0.7, "seed": 4}),
    ],
    ids=["search", "length", "stop", "temperature", "nucleus"],
)
def test_openai_options(client, served, theirs, ours) -> None:
    message = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
    done = client.chat.completions.create(model="tiny", messages=message, **theirs)
    assert done.choices[0].message.content == served.post("/v1/answer", {"question": QUESTION, **ours}).json()["answer"]
    if theirs.get("max_tokens") == 2:
        assert done.choices[0].finish_reason == ("stop" if done.latentrag["hypotheses"][0]["finished"] else "length")


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        ({"model": "gpt"}, 404, "no model 'gpt'; needed 'tiny'"),
        ({"messages": [{"role": "system", "content": "hi"}]}, 422, "the user's last message has 0 characters"),
        ({"messages": [{"role": "user", "content": "x" * 4001}]}, 422, "the user's last message has 4001"),
        ({"n": 2}, 422, "n=2 cannot be had"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 422, "this model calls no tools"),
        ({"seed": 1, "extra_body": {"latentrag": {"seed": 2}}}, 422, "seed is given by latentrag and by another field"),
        ({"extra_body": {"latentrag": {"k": 50}}}, 422, "exceeds the memory's 4 passages"),
        ({"stream": True, "extra_body": {"latentrag": {"k": 50}}}, 422, "exceeds the memory's 4 passages"),
        ({"stream": True, "extra_body": {"latentrag": {"decoding": "fast"}}}, 422, "needed 'exact' to stream"),
    ],
)
def test_what_cannot_be_had_is_said(client, changes, status, message) -> None:
    from openai import APIStatusError

    with pytest.raises(APIStatusError, match=message) as error:
        client.chat.completions.create(
            **{"model": "tiny", "messages": [{"role": "user", "content": QUESTION}], **changes}
        )
    assert error.value.status_code == status


def test_citations_of_pages_on_the_web_have_their_address() -> None:
    from latentrag.serving.chat import _url
    from latentrag.types import Passage

    assert _url(Passage("a b/c", "t", source="notes/a.txt")) == "urn:latentrag:passage:a%20b%2Fc"
    assert _url(Passage("a", "t", source='https://x.org/a"b c?q=1')) == "https://x.org/a%22b%20c?q=1"
    assert _url(Passage("a", "t", source="javascript:alert(1)")) == "urn:latentrag:passage:a"
