"""LlamaIndex's own classes over a model in this process; where it is not installed, `make test-clients` runs this."""

import asyncio

import pytest

from latentrag.errors import InputError
from latentrag.records import answer_record
from tests.cli.conftest import QUESTION
from tests.clients.conftest import same
from tests.integrations.conftest import TALK, run_example, said_of
from tests.serving.test_api import close

pytest.importorskip("llama_index.core")


@pytest.fixture
def llm(rag):
    from latentrag.integrations.llama_index import LatentRagLLM

    return LatentRagLLM(rag=rag)


@pytest.fixture
def messages():
    from llama_index.core.llms import ChatMessage

    return [ChatMessage(role=each["role"], content=each["content"]) for each in TALK]


def test_the_example(model, memory, rag, capsys) -> None:
    run_example("in_llama_index.py", model, memory)
    assert same(capsys.readouterr().out.splitlines(), said_of(rag))


def test_the_retriever(rag) -> None:
    from latentrag.integrations.llama_index import LatentRagRetriever

    expected = rag.retrieve(QUESTION, k=2)
    nodes = LatentRagRetriever(rag, k=2).retrieve(QUESTION)
    assert [node.text for node in nodes] == [passage.text for passage, _, _ in expected.passages]
    assert [node.node_id for node in nodes] == [passage.id for passage, _, _ in expected.passages]
    assert [node.metadata["source"] for node in nodes] == [passage.source for passage, _, _ in expected.passages]
    assert close([node.score for node in nodes], [prior for _, _, prior in expected.passages])
    assert close([node.metadata["prior"] for node in nodes], [prior for _, _, prior in expected.passages])
    (rome,) = LatentRagRetriever(rag, where="source like '%rome%'").retrieve(QUESTION)
    assert rome.score == pytest.approx(1)
    assert len(asyncio.run(LatentRagRetriever(rag, k=2).aretrieve(QUESTION))) == 2


def test_a_completion_and_a_chat(llm, rag, messages) -> None:
    completion, chat = llm.complete(QUESTION), llm.chat(messages)
    for done, answer in ((completion, rag.answer(QUESTION)), (chat, rag.answer(TALK))):
        assert close(done.raw["latentrag"], answer_record(answer))
        assert done.raw["usage"]["prompt_tokens"] == answer.num_input_tokens
        assert done.additional_kwargs == done.raw["usage"]
    assert completion.text == completion.raw["latentrag"]["answer"]
    assert chat.message.content == chat.raw["latentrag"]["answer"]
    assert chat.message.role == "assistant"
    assert asyncio.run(llm.achat(messages)).message.content == chat.message.content


def test_options_of_the_model_and_of_a_call(rag) -> None:
    from latentrag.integrations.llama_index import LatentRagLLM

    llm = LatentRagLLM(rag=rag, how={"k": 2, "max_tokens": 2})
    record = llm.complete(QUESTION, variant="token", max_tokens=3).raw["latentrag"]
    assert close(record, answer_record(rag.answer(QUESTION, k=2, variant="token", max_tokens=3)))
    assert llm.metadata.num_output == 2
    assert llm.metadata.is_chat_model
    with pytest.raises(InputError, match="colour"):
        llm.complete(QUESTION, colour="red")


def test_streams_add_up_to_the_answer(llm, messages) -> None:
    *completions, last = llm.stream_complete(QUESTION)
    *chats, last_chat = llm.stream_chat(messages)
    plain, plain_chat = llm.complete(QUESTION), llm.chat(messages)
    for parts, end, whole in ((completions, last, plain), (chats, last_chat, plain_chat)):
        assert "".join(part.delta for part in parts) == whole.raw["latentrag"]["answer"]
        assert close([part.raw for part in parts], whole.raw["latentrag"]["tokens"])
        assert close(end.raw, whole.raw)
        assert end.additional_kwargs == whole.additional_kwargs
    assert (last.text, last_chat.message.content) == (plain.text, plain_chat.message.content)


def test_nothing_that_asks(llm, messages) -> None:
    with pytest.raises(InputError, match="needed a question"):
        llm.chat(messages[:1])
