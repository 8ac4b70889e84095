"""LlamaIndex: a retriever and a chat model over a ``Rag`` in this process.

rag = latentrag.load("demo", memory="demo")
LatentRagRetriever(rag).retrieve("Who wrote the opera Fidelio?")[0].metadata["prior"]
response = LatentRagLLM(rag=rag).complete("Who wrote the opera Fidelio?")
response.raw["latentrag"]["sources"][0]["posterior"]
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from pydantic import Field

from latentrag.asking import HowToAnswer
from latentrag.conditions import Where
from latentrag.integrations import MissingFrameworkError
from latentrag.integrations.replies import Reply, found, pieces, question_of, reply
from latentrag.rag import Rag
from latentrag.types import Question

try:
    from llama_index.core.base.base_retriever import BaseRetriever
    from llama_index.core.base.llms.types import (
        ChatMessage,
        ChatResponse,
        ChatResponseGen,
        CompletionResponse,
        CompletionResponseGen,
        LLMMetadata,
        MessageRole,
    )
    from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
    from llama_index.core.llms.custom import CustomLLM
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
except ImportError as error:
    raise MissingFrameworkError("llama-index", error) from error


class LatentRagRetriever(BaseRetriever):
    """The passages that a model retrieves, best first. A node's score is ``prior`` = p_η(z|x); its metadata has that,
    ``id``, ``source``, …

    Args:
        rag: the model.
        k: how many passages; None: as many as the model takes.
        where: a condition on passages' fields; None: none.
    """

    def __init__(self, rag: Rag, *, k: int | None = None, where: Where | None = None) -> None:
        super().__init__()
        self._rag, self._k, self._where = rag, k, where

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [
            NodeWithScore(
                node=TextNode(id_=each.passage.id, text=each.passage.text, metadata=each.metadata), score=each.prior
            )
            for each in found(self._rag, query_bundle.query_str, k=self._k, where=self._where)
        ]


class LatentRagLLM(CustomLLM):
    """A model that retrieves for itself what it answers from: a question in, its most probable answer out.

    ``raw["latentrag"]`` of a response is the object of ``latentrag ask --json``: ``sources`` with prior and posterior,
    ``log_prob``, ``tokens`` with the share of each source. In a stream the last response has it, and each other one its
    token's as ``raw``.

    Attributes:
        rag: the model.
        how: options of ``Rag.answer``; those that a call is given go before them.
    """

    rag: Rag = Field(exclude=True)
    how: dict[str, Any] = Field(default_factory=dict)

    @property
    def metadata(self) -> LLMMetadata:
        """The most tokens of an answer, and that it is a chat model without tools."""
        num_output = self.rag.asking(**self._how({})).options.max_tokens
        return LLMMetadata(num_output=num_output, is_chat_model=True, model_name="latentrag")

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:  # noqa: ARG002
        """The answer to a question. Raises: as ``Rag.answer``."""
        done = reply(self.rag, Question.of(prompt), self._how(kwargs))
        return CompletionResponse(text=done.text, raw=_raw(done), additional_kwargs=dict(done.usage))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:  # noqa: ARG002
        """The answer in pieces, each as soon as it is certain. Raises: as ``Rag.answer``."""
        return self._completions(Question.of(prompt), self._how(kwargs))

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """The answer to the user's last message. Raises: as ``Rag.answer``; InputError if there is none."""
        done = reply(self.rag, _question(messages), self._how(kwargs))
        return ChatResponse(message=_message(done.text), raw=_raw(done), additional_kwargs=dict(done.usage))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """The same in pieces. Raises: as ``chat``."""
        return _as_chat(self._completions(_question(messages), self._how(kwargs)))

    @classmethod
    def class_name(cls) -> str:
        """Its name where LlamaIndex writes one down."""
        return "LatentRagLLM"

    def _how(self, given: Mapping[str, Any]) -> HowToAnswer:
        return cast("HowToAnswer", {**self.how, **given})

    def _completions(self, question: Question, how: HowToAnswer) -> CompletionResponseGen:
        text = ""
        for each in pieces(self.rag, question, how):
            if isinstance(each, Reply):
                usage = dict(each.usage)
                yield CompletionResponse(text=each.text, delta="", raw=_raw(each), additional_kwargs=usage)
            else:
                text += each.text
                yield CompletionResponse(text=text, delta=each.text, raw=each.token)


def _as_chat(completions: CompletionResponseGen) -> ChatResponseGen:
    for each in completions:
        yield ChatResponse(
            message=_message(each.text), delta=each.delta, raw=each.raw, additional_kwargs=each.additional_kwargs
        )


def _message(text: str) -> ChatMessage:
    return ChatMessage(role=MessageRole.ASSISTANT, content=text)


def _question(messages: Sequence[ChatMessage]) -> Question:
    return question_of((str(message.role.value), message.content or "") for message in messages)


def _raw(done: Reply) -> dict[str, Any]:
    return {"finish_reason": done.finish_reason, "usage": done.usage, "latentrag": done.record}
