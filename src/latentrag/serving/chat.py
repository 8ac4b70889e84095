"""OpenAI's chat completions in front of one question and its answer."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from latentrag.records import FinishReason, UsageRecord, answer_record, finish_reason, passage_record, usage_record
from latentrag.types import Answer, Passage, Token

if sys.version_info >= (3, 12):
    from typing import TypedDict
else:
    from typing_extensions import TypedDict

if TYPE_CHECKING:
    from latentrag.decoding import Sources
    from latentrag.serving.chat_request import ChatRequest, Wanted

Record = dict[str, Any]


class UrlCitation(TypedDict):
    """Which passage is most probably behind characters start_index to end_index of the content."""

    start_index: int
    end_index: int
    title: str
    url: str


class Annotation(TypedDict):
    """A citation."""

    type: Literal["url_citation"]
    url_citation: UrlCitation


class ChatMessageRecord(TypedDict):
    """The answer."""

    role: Literal["assistant"]
    content: str
    refusal: None
    annotations: list[Annotation]


class ChoiceRecord(TypedDict):
    """The only choice."""

    index: Literal[0]
    message: ChatMessageRecord
    finish_reason: FinishReason
    logprobs: dict[str, Any] | None


class ChatRecord(TypedDict):
    """As OpenAI's; ``latentrag`` is the object of ``/v1/answer``, and beside it ``messages_not_read``: how many;
    ``ignored``: names of fields that are not known here; ``capped``: by name, what a value above the limit was lowered
    to."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChoiceRecord]
    usage: UsageRecord
    latentrag: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Completion:
    """One completion: what its chunks have in common. max_tokens: the limit that it was decoded with."""

    request: ChatRequest
    wanted: Wanted
    max_tokens: int
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, answer: Answer) -> ChatRecord:
        """The response where it is not streamed."""
        return {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.request.model,
            "choices": [
                {
                    "index": 0,
                    "message": {
                        "role": "assistant",
                        "content": answer.text,
                        "refusal": None,
                        "annotations": citations(answer),
                    },
                    "finish_reason": finish_reason(answer, self.max_tokens),
                    "logprobs": self._logprobs_of(answer),
                }
            ],
            "usage": usage_record(answer),
            "latentrag": self._ours(answer),
        }

    async def chunks(self, sources: Sources, rest: AsyncIterator[tuple[Token, ...] | Answer]) -> AsyncIterator[Record]:
        """The response as a stream: the sources' priors, each token with its posterior, at the end all of it."""
        ids = [passage.id for passage, _ in sources.passages]
        ours = {
            "memory_version": sources.version,
            "sources": [{**passage_record(passage), "prior": prior} for passage, prior in sources.passages],
        }
        yield self._chunk({"role": "assistant", "content": ""}, ours)
        async for event in rest:
            if isinstance(event, Answer):
                if event.best_guess is not None:
                    yield self._chunk({"content": event.text}, {})
                reason = finish_reason(event, self.max_tokens)
                yield self._chunk({"annotations": citations(event)}, self._ours(event), finish_reason=reason)
                if self.request.wants_usage:
                    yield {**self._chunk({}, {}), "choices": [], "usage": usage_record(event)}
                return
            for token in event:
                told = {"log_prob": token.log_prob, "posterior": list(token.posterior)}
                yield self._chunk({"content": token.text}, told, logprobs=self._logprobs([token], ids))

    def _chunk(self, delta: Record, ours: Record, *, finish_reason: str | None = None, logprobs: Any = None) -> Record:
        return {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.request.model,
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": logprobs}],
            **({"usage": None} if self.request.wants_usage else {}),
            "latentrag": ours,
        }

    def _ours(self, answer: Answer) -> Record:
        return {
            **answer_record(answer),
            "messages_not_read": self.wanted.num_not_read,
            "ignored": self.request.ignored,
            "capped": dict(self.wanted.capped),
        }

    def _logprobs_of(self, answer: Answer) -> Record | None:
        """The tokens of an answer, and the share of each passage in all of it: nothing of either where it abstains."""
        said = answer if answer.best_guess is None else replace(answer, tokens=(), sources=())
        of_tokens = self._logprobs(said.tokens, [source.passage.id for source in said.sources])
        if of_tokens is None:
            return None
        return {**of_tokens, "posterior": {source.passage.id: source.posterior for source in said.sources}}

    def _logprobs(self, tokens: Sequence[Token], ids: Sequence[str]) -> Record | None:
        """Tokens with the share of each passage by its id. Some clients keep nothing else that OpenAI does not have."""
        if not self.request.logprobs:
            return None
        return {
            "content": [
                {
                    **_logprob(token.text, token.log_prob),
                    "top_logprobs": [_logprob(*each) for each in token.top],
                    "posterior": dict(zip(ids, token.posterior, strict=True)),
                }
                for token in tokens
            ],
            "refusal": None,
        }


def _logprob(text: str, log_prob: float) -> Record:
    # −9999 is OpenAI's number for what is as good as impossible.
    return {"token": text, "logprob": max(log_prob, -9999.0), "bytes": list(text.encode())}


def citations(answer: Answer) -> list[Annotation]:
    """For each stretch of the answer the passage that is most probably behind it; none where it abstains."""
    if answer.best_guess is not None:
        return []
    found: list[Annotation] = []
    start = 0
    for k, stretch in groupby(answer.tokens, key=_best_passage):
        end = start + sum(len(token.text) for token in stretch)
        if end > start:
            passage = answer.sources[k].passage
            citation = UrlCitation(start_index=start, end_index=end, title=passage.title, url=_url(passage))
            found.append({"type": "url_citation", "url_citation": citation})
        start = end
    return found


def _best_passage(token: Token) -> int:
    return max(range(len(token.posterior)), key=token.posterior.__getitem__)


def _url(passage: Passage) -> str:
    """Its address on the web where its source is one; else a name."""
    if passage.source.startswith(("https://", "http://")):
        return quote(passage.source, safe=":/?#[]@!$&'()*+,;=%~")
    return f"urn:latentrag:passage:{quote(passage.id, safe='')}"
