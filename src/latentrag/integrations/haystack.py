"""Haystack: a retriever and a chat generator over a ``Rag`` in this process.

rag = latentrag.load("demo", memory="demo")
LatentRagRetriever(rag).run(query="Who wrote the opera Fidelio?")["documents"][0].meta["prior"]
reply = LatentRagChatGenerator(rag).run([ChatMessage.from_user("Who wrote the opera Fidelio?")])["replies"][0]
reply.meta["latentrag"]["sources"][0]["posterior"]
"""

from collections.abc import Mapping
from typing import Any, cast

from latentrag.asking import HowToAnswer
from latentrag.conditions import Where
from latentrag.integrations import MissingFrameworkError
from latentrag.integrations.replies import Piece, Reply, found, pieces, question_of, reply
from latentrag.rag import Rag

try:
    from haystack import Document, component
    from haystack.dataclasses import (
        ChatMessage,
        ComponentInfo,
        StreamingCallbackT,
        StreamingChunk,
        select_streaming_callback,
    )
except ImportError as error:
    raise MissingFrameworkError("haystack", error) from error


@component
class LatentRagRetriever:
    """The passages that a model retrieves, best first. A document's score is ``prior`` = p_η(z|x); its ``meta`` has
    that, ``source``, …

    Args:
        rag: the model.
        top_k: how many passages; None: as many as the model takes.
        where: a condition on passages' fields; None: none.
    """

    def __init__(self, rag: Rag, *, top_k: int | None = None, where: Where | None = None) -> None:
        self.rag, self.top_k, self.where = rag, top_k, where

    @component.output_types(documents=list[Document])
    def run(self, query: str, top_k: int | None = None) -> dict[str, list[Document]]:
        """The passages of a question.

        Args:
            top_k: how many; None: as the component was given.
        Raises: InputError for an empty question or a number that cannot be.
        """
        k = self.top_k if top_k is None else top_k
        return {
            "documents": [
                Document(id=each.passage.id, content=each.passage.text, meta=each.metadata, score=each.prior)
                for each in found(self.rag, query, k=k, where=self.where)
            ]
        }


@component
class LatentRagChatGenerator:
    """A model that retrieves for itself what it answers from: a question in, its most probable answer out.

    ``meta["latentrag"]`` of a reply is the object of ``latentrag ask --json``: ``sources`` with prior and posterior,
    ``log_prob``, ``tokens`` with the share of each source. A streamed chunk has its token's in ``meta["token"]``.

    Args:
        rag: the model.
        generation_kwargs: options of ``Rag.answer``.
        streaming_callback: is called with each chunk.
    """

    def __init__(
        self,
        rag: Rag,
        *,
        generation_kwargs: Mapping[str, Any] | None = None,
        streaming_callback: StreamingCallbackT | None = None,
    ) -> None:
        self.rag = rag
        self.generation_kwargs = dict(generation_kwargs or {})
        self.streaming_callback = streaming_callback

    @component.output_types(replies=list[ChatMessage])
    def run(
        self,
        messages: list[ChatMessage],
        streaming_callback: StreamingCallbackT | None = None,
        generation_kwargs: dict[str, Any] | None = None,
    ) -> dict[str, list[ChatMessage]]:
        """The answer to the user's last message, as one reply.

        Args:
            streaming_callback: goes before the component's own.
            generation_kwargs: go before the component's own.
        Raises: as ``Rag.answer``; InputError if there is no message of the user.
        """
        question = question_of((message.role.value, message.text or "") for message in messages)
        how = cast("HowToAnswer", {**self.generation_kwargs, **(generation_kwargs or {})})
        tell = select_streaming_callback(self.streaming_callback, streaming_callback, requires_async=False)
        if tell is None:
            return {"replies": [_message(reply(self.rag, question, how))]}
        info = ComponentInfo.from_component(self)
        replies = []
        for number, each in enumerate(pieces(self.rag, question, how)):
            tell(_chunk(each, info, starts=number == 0))
            if isinstance(each, Reply):
                replies.append(_message(each))
        return {"replies": replies}


def _chunk(each: Piece | Reply, info: ComponentInfo, *, starts: bool) -> StreamingChunk:
    if isinstance(each, Reply):
        return StreamingChunk("", meta=_meta(each), component_info=info, finish_reason=each.finish_reason)
    meta = {} if each.token is None else {"token": each.token}
    return StreamingChunk(each.text, meta=meta, component_info=info, index=0, start=starts)


def _message(done: Reply) -> ChatMessage:
    return ChatMessage.from_assistant(done.text, meta=_meta(done))


def _meta(done: Reply) -> dict[str, Any]:
    return {
        "model": "latentrag",
        "index": 0,
        "finish_reason": done.finish_reason,
        "usage": done.usage,
        "latentrag": done.record,
    }
