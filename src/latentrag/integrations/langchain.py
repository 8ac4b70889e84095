"""LangChain: a retriever and a chat model over a ``Rag`` in this process.

rag = latentrag.load("demo", memory="demo")
LatentRagRetriever(rag=rag).invoke("Who wrote the opera Fidelio?")[0].metadata["prior"]
message = ChatLatentRag(rag=rag).invoke("Who wrote the opera Fidelio?")
message.response_metadata["latentrag"]["sources"][0]["posterior"]
"""

from collections.abc import Iterator
from typing import Any, cast

from pydantic import Field

from latentrag.asking import HowToAnswer
from latentrag.conditions import Condition
from latentrag.integrations import MissingFrameworkError
from latentrag.integrations.replies import Reply, found, pieces, question_of, reply
from latentrag.rag import Rag
from latentrag.types import Question

try:
    from langchain_core.callbacks import CallbackManagerForLLMRun, CallbackManagerForRetrieverRun
    from langchain_core.documents import Document
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
    from langchain_core.messages.ai import UsageMetadata
    from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
    from langchain_core.retrievers import BaseRetriever
except ImportError as error:
    raise MissingFrameworkError("langchain", error) from error

_ROLES = {"human": "user", "ai": "assistant", "system": "system"}


class LatentRagRetriever(BaseRetriever):
    """The passages that a model retrieves, best first, each with ``prior`` = p_η(z|x), ``id``, ``source``, … in its
    metadata.

    Attributes:
        rag: the model.
        k: how many passages; None: as many as the model takes.
        where: a condition on passages' fields; None: none.
    """

    rag: Rag = Field(exclude=True)
    k: int | None = None
    where: str | Condition | None = None

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:  # noqa: ARG002
        return [
            Document(page_content=each.passage.text, id=each.passage.id, metadata=each.metadata)
            for each in found(self.rag, query, k=self.k, where=self.where)
        ]


class ChatLatentRag(BaseChatModel):
    """A model that retrieves for itself what it answers from: a question in, its most probable answer out.

    ``response_metadata["latentrag"]`` of a message is the object of ``latentrag ask --json``: ``sources`` with prior
    and posterior, ``log_prob``, ``tokens`` with the share of each source. In a stream the last chunk has it, and each
    other one its token's in ``response_metadata["tokens"]``.

    Attributes:
        rag: the model.
        how: options of ``Rag.answer``; those that a call is given go before them.
    """

    rag: Rag = Field(exclude=True)
    how: dict[str, Any] = Field(default_factory=dict)

    @property
    def _llm_type(self) -> str:
        return "latentrag"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return dict(self.how)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> ChatResult:
        done = reply(self.rag, _question(messages), self._how(stop, kwargs))
        message = AIMessage(done.text, response_metadata=_metadata(done), usage_metadata=_usage(done))
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        for each in pieces(self.rag, _question(messages), self._how(stop, kwargs)):
            if isinstance(each, Reply):
                last = AIMessageChunk(
                    content="", response_metadata=_metadata(each), usage_metadata=_usage(each), chunk_position="last"
                )
                yield ChatGenerationChunk(message=last)
                continue
            tokens = {} if each.token is None else {"tokens": [each.token]}
            chunk = ChatGenerationChunk(message=AIMessageChunk(content=each.text, response_metadata=tokens))
            if run_manager is not None:
                run_manager.on_llm_new_token(each.text, chunk=chunk)
            yield chunk

    def _how(self, stop: list[str] | None, given: dict[str, Any]) -> HowToAnswer:
        stops = {} if stop is None else {"stop": tuple(stop)}
        return cast("HowToAnswer", {**self.how, **given, **stops})


def _question(messages: list[BaseMessage]) -> Question:
    return question_of((_ROLES.get(message.type, message.type), str(message.text)) for message in messages)


def _metadata(done: Reply) -> dict[str, Any]:
    return {"model_provider": "latentrag", "finish_reason": done.finish_reason, "latentrag": done.record}


def _usage(done: Reply) -> UsageMetadata:
    return UsageMetadata(
        input_tokens=done.usage["prompt_tokens"],
        output_tokens=done.usage["completion_tokens"],
        total_tokens=done.usage["total_tokens"],
    )
