"""OpenAI's chat completions in front of one question and its answer."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field

from latentrag.errors import InputError
from latentrag.records import answer_record, passage_record
from latentrag.serving import options as limit
from latentrag.serving.failures import Refused
from latentrag.serving.schemas import Answering, Asked, Seed, Stop, Stops
from latentrag.types import Answer, Passage, Token

if sys.version_info >= (3, 12):
    from typing import TypedDict
else:
    from typing_extensions import TypedDict

if TYPE_CHECKING:
    from latentrag.decoding import Sources

Record = dict[str, Any]


class TextPart(Asked):
    """A part of a message."""

    type: Literal["text"]
    text: Annotated[str, Field(max_length=limit.MAX_TEXT)]


class Message(BaseModel):
    """A message; of the last one of the user the content is the question."""

    model_config = ConfigDict(extra="ignore", strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[TextPart], Field(max_length=limit.MAX_MESSAGES)] | None = None


class StreamOptions(Asked):
    """Accepted; there is no usage to include."""

    include_usage: bool = False


class ChatRequest(Asked):
    """As OpenAI's, as far as it can be had; what cannot is refused. ``latentrag`` holds options of ``ask``."""

    model: Annotated[str, Field(min_length=1, max_length=limit.MAX_NAME)]
    messages: Annotated[list[Message], Field(min_length=1, max_length=limit.MAX_MESSAGES)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1, le=limit.MAX_TOKENS)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=limit.MAX_TOKENS)] | None = None
    temperature: Annotated[
        Annotated[float, Field(ge=0, le=2)] | None,
        Field(description="Above 0, as top_p: the answer is drawn; 0 or absent: it is searched."),
    ] = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Literal[1] | None = None
    stop: Stop | Stops | None = None
    seed: Seed | None = None
    logprobs: bool | None = None
    user: Annotated[str, Field(max_length=limit.MAX_NAME)] | None = None
    latentrag: Answering = Field(default_factory=Answering)

    def question(self) -> str:
        """The content of the user's last message. Raises: Refused if there is none that can be asked."""
        last = next((each for each in reversed(self.messages) if each.role == "user"), None)
        content = None if last is None else last.content
        text = content if isinstance(content, str) else "".join(part.text for part in content or [])
        if not text.strip() or len(text) > limit.MAX_TEXT:
            raise Refused(
                422,
                f"the user's last message has {len(text)} characters; needed 1 to {limit.MAX_TEXT}, some of them text",
                "invalid_value",
                param="messages",
            )
        return text

    def answering(self) -> Answering:
        """OpenAI's options and ours together. Raises: InputError for one that is given twice."""
        chosen = self.latentrag.model_dump(exclude_unset=True)
        theirs: dict[str, Any] = {
            "max_tokens": self.max_completion_tokens or self.max_tokens,
            "stop": [self.stop] if isinstance(self.stop, str) else self.stop,
            "seed": self.seed,
        }
        if self.temperature or self.top_p is not None:
            # 0.01 is as good as the limit towards 0, which a search has exactly.
            temperature = None if self.temperature is None else max(self.temperature, 0.01)
            theirs |= {"sample": True, "beams": 1, "temperature": temperature, "top_p": self.top_p}
        theirs = {name: value for name, value in theirs.items() if value is not None}
        twice = sorted(set(chosen) & set(theirs))
        if twice:
            raise InputError(f"{twice[0]} is given by latentrag and by another field; leave one of them out")
        if not {**chosen, **theirs}.get("sample"):
            theirs.pop("seed", None)  # which clients may send with a search, too
        return Answering(**chosen, **theirs)


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
    finish_reason: Literal["stop", "length"]
    logprobs: dict[str, Any] | None


class ChatRecord(TypedDict):
    """As OpenAI's; ``latentrag`` is the object of ``/v1/answer`` and the number of messages that were not read."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChoiceRecord]
    latentrag: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Completion:
    """One completion: what its chunks have in common."""

    request: ChatRequest
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
                    "finish_reason": self._reason(answer),
                    "logprobs": self._logprobs(answer.tokens),
                }
            ],
            "latentrag": self._ours(answer),
        }

    async def chunks(self, sources: Sources, rest: AsyncIterator[tuple[Token, ...] | Answer]) -> AsyncIterator[Record]:
        """The response as a stream: the sources' priors, each token with its posterior, at the end all of it."""
        ours = {
            "memory_version": sources.version,
            "sources": [{**passage_record(passage), "prior": prior} for passage, prior in sources.passages],
        }
        yield self._chunk({"role": "assistant", "content": ""}, ours)
        async for event in rest:
            if isinstance(event, Answer):
                yield self._chunk(
                    {"annotations": citations(event)}, self._ours(event), finish_reason=self._reason(event)
                )
                return
            for token in event:
                told = {"log_prob": token.log_prob, "posterior": list(token.posterior)}
                yield self._chunk({"content": token.text}, told, logprobs=self._logprobs([token]))

    def _chunk(self, delta: Record, ours: Record, *, finish_reason: str | None = None, logprobs: Any = None) -> Record:
        return {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.request.model,
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": logprobs}],
            "latentrag": ours,
        }

    def _ours(self, answer: Answer) -> Record:
        return {**answer_record(answer), "messages_not_read": len(self.request.messages) - 1}

    def _reason(self, answer: Answer) -> Literal["stop", "length"]:
        cut = not answer.hypotheses[0].finished and len(answer.tokens) >= self.max_tokens
        return "length" if cut else "stop"

    def _logprobs(self, tokens: Sequence[Token]) -> Record | None:
        if not self.request.logprobs:
            return None
        return {
            "content": [
                {
                    "token": token.text,
                    "logprob": max(token.log_prob, -9999.0),  # OpenAI's number for what is as good as impossible
                    "bytes": list(token.text.encode()),
                    "top_logprobs": [],
                }
                for token in tokens
            ],
            "refusal": None,
        }


def citations(answer: Answer) -> list[Annotation]:
    """For each stretch of the answer the passage that is most probably behind it."""
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
