"""LangChain's own classes over a model in this process; where it is not installed, `make test-clients` runs this."""

import asyncio

import pytest

from latentrag.errors import InputError
from latentrag.records import answer_record
from tests.cli.conftest import QUESTION
from tests.clients.conftest import same
from tests.integrations.conftest import TALK, run_example, said_of
from tests.serving.test_api import close

pytest.importorskip("langchain_core")


@pytest.fixture
def llm(rag):
    from latentrag.integrations.langchain import ChatLatentRag

    return ChatLatentRag(rag=rag)


def test_the_example(model, memory, rag, capsys) -> None:
    run_example("in_langchain.py", model, memory)
    assert same(capsys.readouterr().out.splitlines(), said_of(rag))


def test_the_retriever(rag) -> None:
    from latentrag.integrations.langchain import LatentRagRetriever

    expected = rag.retrieve(QUESTION, k=2)
    documents = LatentRagRetriever(rag=rag, k=2).invoke(QUESTION)
    assert [document.page_content for document in documents] == [passage.text for passage, _, _ in expected.passages]
    assert [document.id for document in documents] == [passage.id for passage, _, _ in expected.passages]
    assert [document.metadata["source"] for document in documents] == [z.source for z, _, _ in expected.passages]
    assert close([document.metadata["prior"] for document in documents], [prior for _, _, prior in expected.passages])
    (rome,) = LatentRagRetriever(rag=rag, where="source like '%rome%'").invoke(QUESTION)
    assert rome.metadata["prior"] == pytest.approx(1)
    assert len(asyncio.run(LatentRagRetriever(rag=rag, k=2).ainvoke(QUESTION))) == 2


def test_a_message(llm, rag) -> None:
    answer = rag.answer(TALK)
    message = llm.invoke([dict(each) for each in TALK])
    assert message.content == answer.text
    assert close(message.response_metadata["latentrag"], answer_record(answer))
    assert message.response_metadata["finish_reason"] in {"stop", "length"}
    assert message.usage_metadata["input_tokens"] == answer.num_input_tokens
    assert message.usage_metadata["output_tokens"] == len(answer.log_p_theta[0])


def test_options_of_the_model_of_a_call_and_stop(rag) -> None:
    from latentrag.integrations.langchain import ChatLatentRag

    llm = ChatLatentRag(rag=rag, how={"k": 2, "max_tokens": 2})
    record = llm.invoke(QUESTION, variant="token", max_tokens=3, stop=["zzz"]).response_metadata["latentrag"]
    assert close(record, answer_record(rag.answer(QUESTION, k=2, variant="token", max_tokens=3, stop=("zzz",))))
    assert len(record["sources"]) == 2
    with pytest.raises(InputError, match="colour"):
        llm.invoke(QUESTION, colour="red")


def test_a_stream_adds_up_to_the_message(llm) -> None:
    chunks = list(llm.stream(QUESTION))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk
    plain = llm.invoke(QUESTION)
    assert whole.content == plain.content
    assert close(whole.response_metadata["latentrag"], plain.response_metadata["latentrag"])
    assert close(whole.response_metadata["tokens"], plain.response_metadata["latentrag"]["tokens"])
    assert whole.usage_metadata == plain.usage_metadata


def test_a_chain_and_many_at_once(llm) -> None:
    from langchain_core.output_parsers import StrOutputParser
    from langchain_core.prompts import ChatPromptTemplate

    prompt = ChatPromptTemplate.from_messages([("system", "Be brief."), ("human", "{question}")])
    chain = prompt | llm | StrOutputParser()
    questions = [QUESTION, "What is the capital city of Italy?", "Who wrote the novel Emma?"]
    expected = [chain.invoke({"question": each}) for each in questions]
    assert chain.batch([{"question": each} for each in questions]) == expected
    assert asyncio.run(chain.ainvoke({"question": QUESTION})) == chain.invoke({"question": QUESTION})


def test_nothing_that_asks(llm) -> None:
    from langchain_core.messages import SystemMessage

    with pytest.raises(InputError, match="needed a question"):
        llm.invoke([SystemMessage("Be brief.")])
