"""Haystack's own classes over a model in this process; where it is not installed, `make test-clients` runs this."""

from typing import Any

import pytest

from latentrag.errors import InputError
from latentrag.records import answer_record
from tests.cli.conftest import QUESTION
from tests.clients.conftest import same
from tests.integrations.conftest import TALK, run_example, said_of
from tests.serving.test_api import close

pytest.importorskip("haystack")


@pytest.fixture
def messages():
    from haystack.dataclasses import ChatMessage

    made = {
        "system": ChatMessage.from_system,
        "user": ChatMessage.from_user,
        "assistant": ChatMessage.from_assistant,
    }
    return [made[each["role"]](each["content"]) for each in TALK]


def test_the_example(model, memory, rag, capsys) -> None:
    run_example("in_haystack.py", model, memory)
    assert same(capsys.readouterr().out.splitlines(), said_of(rag))


def test_the_retriever(rag) -> None:
    from latentrag.integrations.haystack import LatentRagRetriever

    expected = rag.retrieve(QUESTION, k=2)
    documents = LatentRagRetriever(rag, top_k=3).run(query=QUESTION, top_k=2)["documents"]
    assert [document.content for document in documents] == [passage.text for passage, _, _ in expected.passages]
    assert [document.id for document in documents] == [passage.id for passage, _, _ in expected.passages]
    assert [document.meta["source"] for document in documents] == [z.source for z, _, _ in expected.passages]
    assert close([document.score for document in documents], [prior for _, _, prior in expected.passages])
    assert close([document.meta["prior"] for document in documents], [prior for _, _, prior in expected.passages])
    (rome,) = LatentRagRetriever(rag, where="source like '%rome%'").run(query=QUESTION)["documents"]
    assert rome.score == pytest.approx(1)


def test_a_reply(rag, messages) -> None:
    from latentrag.integrations.haystack import LatentRagChatGenerator

    answer = rag.answer(TALK)
    (reply,) = LatentRagChatGenerator(rag).run(messages)["replies"]
    assert reply.text == answer.text
    assert close(reply.meta["latentrag"], answer_record(answer))
    assert reply.meta["usage"]["prompt_tokens"] == answer.num_input_tokens
    assert reply.meta["finish_reason"] in {"stop", "length"}


def test_options_of_the_component_and_of_a_run(rag, messages) -> None:
    from latentrag.integrations.haystack import LatentRagChatGenerator

    generator = LatentRagChatGenerator(rag, generation_kwargs={"k": 2, "max_tokens": 2})
    (reply,) = generator.run(messages, generation_kwargs={"variant": "token", "max_tokens": 3})["replies"]
    expected = answer_record(rag.answer(TALK, k=2, variant="token", max_tokens=3))
    assert close(reply.meta["latentrag"], expected)
    with pytest.raises(InputError, match="colour"):
        generator.run(messages, generation_kwargs={"colour": "red"})


def test_a_stream_adds_up_to_the_reply(rag, messages) -> None:
    from latentrag.integrations.haystack import LatentRagChatGenerator

    chunks: list[Any] = []
    (plain,) = LatentRagChatGenerator(rag).run(messages)["replies"]
    (streamed,) = LatentRagChatGenerator(rag, streaming_callback=chunks.append).run(messages)["replies"]
    *told, last = chunks
    assert "".join(chunk.content for chunk in chunks) == streamed.text == plain.text
    assert close([chunk.meta["token"] for chunk in told], plain.meta["latentrag"]["tokens"])
    assert [chunk.start for chunk in told] == [True] + [False] * (len(told) - 1)
    assert (last.content, last.finish_reason) == ("", plain.meta["finish_reason"])
    assert close(last.meta, plain.meta)
    assert close(streamed.meta, plain.meta)


def test_in_a_pipeline(rag, messages) -> None:
    from haystack import Pipeline
    from haystack.components.builders import ChatPromptBuilder
    from haystack.dataclasses import ChatMessage

    from latentrag.integrations.haystack import LatentRagChatGenerator, LatentRagRetriever

    pipeline = Pipeline()
    template = [ChatMessage.from_user("{{ question }}")]
    pipeline.add_component("prompt", ChatPromptBuilder(template=template, required_variables="*"))
    pipeline.add_component("generator", LatentRagChatGenerator(rag))
    pipeline.add_component("retriever", LatentRagRetriever(rag, top_k=2))
    pipeline.connect("prompt", "generator.messages")
    done = pipeline.run({"prompt": {"question": QUESTION}, "retriever": {"query": QUESTION}})
    assert done["generator"]["replies"][0].text == rag.answer(QUESTION).text
    assert len(done["retriever"]["documents"]) == 2


def test_nothing_that_asks(rag, messages) -> None:
    from latentrag.integrations.haystack import LatentRagChatGenerator

    with pytest.raises(InputError, match="needed a question"):
        LatentRagChatGenerator(rag).run(messages[:1])
