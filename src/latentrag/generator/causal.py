"""Causal language models as p_θ(y|x,z): the prompt holds z, then x; y is what follows."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

import torch
from torch import Tensor

from latentrag.errors import InputError, ModelError
from latentrag.generator.beam_cache import beam_cache, select_contexts
from latentrag.generator.caches import joined, selected, token_positions
from latentrag.generator.gold import OutputHead, Room, log_probabilities
from latentrag.generator.grid import are_all, check_lengths, padded, pairs, rows_of_parents, rows_of_questions
from latentrag.generator.inputs import PromptTemplate
from latentrag.generator.int8 import to_int8
from latentrag.generator.lora import Lora, add_lora
from latentrag.generator.memory_saving import fixed
from latentrag.generator.own_logits import OwnLogits
from latentrag.generator.passage_cache import PassageCache
from latentrag.generator.passage_reader import PassageReader
from latentrag.generator.prompts import PromptTokens
from latentrag.generator.scoring import GoldScorer, one_at_a_time
from latentrag.generator.shared_context import share_context
from latentrag.generator.text import pieces
from latentrag.packed import pack
from latentrag.protocols import Capabilities
from latentrag.types import Asked, Latent, LatentLists, Targets

_TARGET_ROOM = 256
"""Positions kept free for y where the model's window is the only limit."""
_PART_TOKENS = 640
"""Tokens of questions that a processor reads in one forward pass, padding included."""
_INPUT_LIMIT = 2048
"""Prompt tokens at most, unless told otherwise: enough for long passages, small enough for a small machine."""


@dataclass(frozen=True, slots=True)
class _Read:
    """What the model makes of the prompts: its cache, left-padded, and the last position before and after the
    output layer."""

    cache: Any
    mask: Tensor  # (R, S) bool, which positions of the cache hold a token
    hidden: Tensor  # (R, 1, H)
    logits: Tensor  # (R, V)


@dataclass(slots=True)
class _Prompts:
    """R prompts in two parts: what stands for the passage, and the question. ``read`` is computed on first use.
    ``recurring``: a first part may come again with another question, so that it is worth keeping."""

    passages: list[list[int]]
    questions: list[list[int]]
    recurring: bool = True
    read: _Read | None = None


@dataclass(frozen=True, slots=True)
class PreparedPrompts:
    """Prompts of B questions × K passages. ``index`` (B·K,) says which prompt each row is."""

    prompts: _Prompts
    index: Tensor
    num_questions: int
    num_passages: int

    def rows(self, index: Tensor) -> Self:
        rows = rows_of_questions(index, self.num_passages)
        return type(self)(self.prompts, self.index[rows], len(index), self.num_passages)

    def each_passage(self) -> Self:
        return type(self)(self.prompts, self.index, self.num_questions * self.num_passages, 1)


@dataclass(slots=True)
class _State:
    """Caches of B·K·M rows, and which of their positions hold a token."""

    cache: Any
    mask: Tensor  # (B·K·M, S + tokens so far)
    num_questions: int
    num_passages: int
    num_beams: int
    room: Room = field(default_factory=Room)


class CausalGenerator(GoldScorer[PreparedPrompts]):
    """A causal language model of transformers as generator.

    Args:
        model: any transformers causal language model.
        tokenizer: its tokenizer (a fast one).
        template: the prompt, passage first.
        max_input_tokens: longer prompts lose words of the passage; default: what the model reads, at most 2,048.
        lora: an adapter to train instead of the model's own weights.
        seed: of the adapter's first weights.
        passage_cache: keeps what the model reads of passages. The model's own weights must not change then, and an
            adapter must leave passages alone (scope "question").
        int8: its linear layers, an adapter's aside, compute in eight bits; it cannot be trained or saved then.
    Raises: ModelError if the template's end is not one token of this tokenizer.
    """

    kind = "causal"
    capabilities = Capabilities(keeps_prefixes=True)

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        template: PromptTemplate | None = None,
        max_input_tokens: int | None = None,
        lora: Lora | None = None,
        seed: int = 0,
        passage_cache: PassageCache | None = None,
        int8: bool = False,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.template = template or PromptTemplate()
        self.max_input_tokens = max_input_tokens or _input_limit(model)
        self._cue: list[int] = tokenizer(self.template.cue, add_special_tokens=False)["input_ids"]
        self.end_id = self._end_token()
        self.end_ids = (self.end_id,)
        self._pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.end_id
        self._prompts = PromptTokens(tokenizer, self.template)
        self.lora = lora
        if lora is not None:
            add_lora(model, lora, seed=seed)
        self.int8 = int8
        if int8:
            to_int8(model)
        pack(model)
        head = OutputHead(model)
        probe = torch.tensor([[self.end_id, self.end_id]], device=self.device)
        self._head: OutputHead | OwnLogits = head if head.agrees(input_ids=probe) else OwnLogits(model)
        self._shares_context = share_context(model)
        self._passages = PassageReader(
            model,
            self._head,
            pad_id=self._pad_id,
            untouched=lora is not None and lora.scope == "question",
            cache=passage_cache,
        )

    @property
    def passage_cache(self) -> PassageCache | None:
        """What keeps the passages that were read; None: nothing does."""
        return self._passages.cache

    @passage_cache.setter
    def passage_cache(self, cache: PassageCache | None) -> None:
        self._passages.cache = cache

    @property
    def max_target_tokens(self) -> int | None:
        window = _window(self.model)
        return None if window is None else window - self.max_input_tokens + 1

    def prepare(self, x: Sequence[Asked], latents: LatentLists) -> PreparedPrompts:
        rows, num_latents = pairs(x, latents)
        return self._prepared(rows, num_latents)

    def prepare_together(self, x: Sequence[Asked], latents: LatentLists) -> PreparedPrompts:
        """Worst passage first, so that the best stands next to the question."""
        rows, _ = pairs(x, [[tuple(passage for z in of_question[::-1] for passage in z)] for of_question in latents])
        return self._prepared(rows, 1, recurring=False)

    def _prepared(
        self, rows: Sequence[tuple[str, Latent]], num_latents: int, *, recurring: bool = True
    ) -> PreparedPrompts:
        first, questions = self._prompts.parts(rows, limit=self.max_input_tokens, keep=recurring)
        index = torch.arange(len(rows), device=self.device)
        return PreparedPrompts(_Prompts(first, questions, recurring), index, len(rows) // num_latents, num_latents)

    def targets(self, y: Sequence[str]) -> Targets:
        rows = [[*self._after_cue(" " + text.strip() if text.strip() else ""), self.end_id] for text in y]
        if any(self.end_id in row[:-1] for row in rows):
            raise InputError(
                f"a target contains {self.template.end!r}, which ends every target of this generator; "
                "write it in one line"
            )
        check_lengths(rows, self.max_target_tokens)
        ids, mask = padded(rows, pad=self._pad_id)
        return Targets(ids.to(self.device), mask.to(self.device))

    def _hidden(self, prepared: PreparedPrompts, each: Targets) -> Tensor:
        learns = torch.is_grad_enabled() and self._learns()
        # What was read of the prompts serves every target, but only where there is no gradient.
        several = prepared.prompts.read is not None or len(each.ids) > len(prepared.prompts.questions)
        return (self._from_read if several and not learns else self._at_once)(prepared, each.ids, each.mask)

    def _learns(self) -> bool:
        return any(parameter.requires_grad for parameter in self.model.parameters())

    def _at_once(self, prepared: PreparedPrompts, ids: Tensor, mask: Tensor) -> Tensor:
        """(B·K, T, H) in one forward pass: of the whole prompts, or after passages that teach nothing."""
        rows = prepared.index.tolist()
        passages = [prepared.prompts.passages[row] for row in rows]
        questions = [prepared.prompts.questions[row] for row in rows]
        past = None
        learns = torch.is_grad_enabled() and self._learns()
        if learns and not (self.lora is not None and self.lora.scope == "question"):
            questions = [first + rest for first, rest in zip(passages, questions, strict=True)]
        else:
            past = self._passages.past(passages, recurring=prepared.prompts.recurring)
            fixed(past[0])
        lengths = mask.sum(dim=1).tolist()
        targets = ids.tolist()
        blocks = [
            question + target[: length - 1]
            for question, target, length in zip(questions, targets, lengths, strict=True)
        ]
        with nullcontext() if learns else torch.no_grad():
            hidden, _, _ = self._block(past, blocks)
        last = torch.tensor([len(question) - 1 for question in questions], device=hidden.device)
        places = (last[:, None] + torch.arange(ids.shape[1], device=hidden.device)).clamp(max=hidden.shape[1] - 1)
        return hidden.gather(1, places[:, :, None].expand(-1, -1, hidden.shape[2]))

    def _from_read(self, prepared: PreparedPrompts, ids: Tensor, mask: Tensor) -> Tensor:
        """(B·K, T, H), without gradient, from what was read of the prompts."""
        read, index = self._read(prepared.prompts), prepared.index
        hidden = read.hidden[index]
        if ids.shape[1] == 1:
            return hidden
        prompt_mask = read.mask[index]
        all_mask = torch.cat([prompt_mask, mask[:, :-1]], dim=1)
        with torch.no_grad():
            more, _ = self._head.run(
                input_ids=ids[:, :-1],
                attention_mask=all_mask.long(),
                position_ids=token_positions(all_mask)[:, prompt_mask.shape[1] :],
                past_key_values=selected(read.cache, index),
                use_cache=True,
            )
        return torch.cat([hidden, more], dim=1)

    def _block(self, past: tuple[Any, Tensor] | None, blocks: Sequence[Sequence[int]]) -> tuple[Tensor, Any, Tensor]:
        """A forward pass of right-padded rows after their past.

        Returns: the inputs of the output layer (R, Q, H), the cache, and which of its positions hold a token.
        """
        ids, mask = padded(blocks, pad=self._pad_id)
        ids, mask = ids.to(self.device), mask.to(self.device)
        inputs: dict[str, Any] = {"use_cache": False}
        if past is not None:
            cache, before = past
            mask = torch.cat([before, mask], dim=1)
            inputs = {"past_key_values": cache, "use_cache": True}
        positions = token_positions(mask)[:, -ids.shape[1] :]
        hidden, output = self._head.run(input_ids=ids, attention_mask=mask.long(), position_ids=positions, **inputs)
        return hidden, output.past_key_values, mask

    @one_at_a_time
    @torch.no_grad()
    def start(self, prepared: PreparedPrompts) -> tuple[Tensor, _State]:
        read, index = self._read(prepared.prompts), prepared.index
        cache = beam_cache(read.cache, index) if self._shares_context else selected(read.cache, index)
        state = _State(cache, read.mask[index], prepared.num_questions, prepared.num_passages, 1)
        return self._grid(state, read.logits[index]), state

    @one_at_a_time
    @torch.no_grad()
    def step(self, state: _State, parents: Tensor, tokens: Tensor) -> tuple[Tensor, _State]:
        rows = rows_of_parents(parents, state.num_passages, state.num_beams)
        if not are_all(rows, len(state.mask)):
            state.cache.batch_select_indices(rows)
        questions = parents[:, 0] // state.num_beams
        if self._shares_context and not are_all(questions, state.num_questions):
            select_contexts(state.cache, rows_of_questions(questions, state.num_passages))
        state.num_questions, state.num_beams = parents.shape
        state.mask = torch.cat([state.mask[rows], state.mask.new_ones(len(rows), 1)], dim=1)
        hidden, _ = self._head.run(
            input_ids=tokens[:, None, :].expand(-1, state.num_passages, -1).reshape(-1, 1),
            attention_mask=state.mask.long(),
            position_ids=token_positions(state.mask)[:, -1:],
            past_key_values=state.cache,
            use_cache=True,
        )
        return self._grid(state, self._head.after(self._head.linear(hidden[:, -1]))), state

    def _grid(self, state: _State, logits: Tensor) -> Tensor:
        return log_probabilities(logits, state.room).view(state.num_questions, state.num_passages, state.num_beams, -1)

    def _parts(self, questions: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """The rows, in parts of about the same length, which a processor reads one after the other: beyond a few
        hundred tokens more of them are no quicker, and padding costs as much as tokens do."""
        rows = sorted(range(len(questions)), key=lambda row: len(questions[row]))
        if self.device.type != "cpu":
            yield rows
            return
        start = 0
        for stop in range(1, len(rows) + 1):
            if stop == len(rows) or (stop + 1 - start) * len(questions[rows[stop]]) > _PART_TOKENS:
                yield rows[start:stop]
                start = stop

    def _read_part(self, prompts: _Prompts, rows: Sequence[int]) -> tuple[Tensor, Any, Tensor]:
        """What comes out at the last positions (R', 1, H), the cache, and which of its positions hold a token."""
        passages, questions = ([of_all[row] for row in rows] for of_all in (prompts.passages, prompts.questions))
        past = self._passages.past(passages, recurring=prompts.recurring)
        hidden, cache, mask = self._block(past, questions)
        last = torch.tensor([len(question) - 1 for question in questions], device=hidden.device)
        return hidden[torch.arange(len(rows), device=hidden.device), last][:, None], cache, mask

    @torch.no_grad()
    def _read(self, prompts: _Prompts) -> _Read:
        if prompts.read is None:
            parts = list(self._parts(prompts.questions))
            found = [self._read_part(prompts, rows) for rows in parts]
            order = torch.tensor([row for rows in parts for row in rows], device=self.device).argsort()
            last = torch.cat([hidden for hidden, _, _ in found])[order]
            cache, held = joined([(cache, mask) for _, cache, mask in found], parts)
            logits = self._head.after(self._head.linear(last))[:, 0]
            prompts.read = _Read(cache, held, last, logits)
        return prompts.read

    def _after_cue(self, text: str) -> list[int]:
        """Tokens of text as it follows the prompt's last characters."""
        both: list[int] = self.tokenizer(self.template.cue + text, add_special_tokens=False)["input_ids"]
        if both[: len(self._cue)] != self._cue:
            raise InputError(
                f"{(self.template.cue + text)!r} is tokenised across the border between prompt and target; "
                "end the prompt template with a character that stands alone, such as ':'"
            )
        return both[len(self._cue) :]

    def _end_token(self) -> int:
        if self.template.end is None:
            end: int | None = self.tokenizer.eos_token_id
            if end is None:
                raise ModelError("the generator's tokenizer has no end-of-sequence token; name an end in the template")
            return end
        ids = self._after_cue(self.template.end)
        if len(ids) != 1:
            raise ModelError(
                f"the prompt template's end {self.template.end!r} is {len(ids)} tokens of this generator, needed one; "
                "choose another end, or null for the end-of-sequence token"
            )
        return ids[0]

    def text(self, ids: Sequence[int]) -> str:
        return "".join(self.token_texts(ids))

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        return pieces(self.tokenizer, ids, cue=self._cue)

    def settings(self) -> dict[str, Any]:
        """What ``load_generator`` needs besides the model's own files, as JSON values."""
        return {
            "kind": self.kind,
            "template": {field.name: getattr(self.template, field.name) for field in fields(self.template)},
            "max_input_tokens": self.max_input_tokens,
            **({} if self.lora is None else {"lora": asdict(self.lora)}),
        }


def _window(model: Any) -> int | None:
    """Positions for prompt and target together."""
    window: int | None = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return window


def _input_limit(model: Any) -> int:
    window = _window(model)
    if window is None:
        return _INPUT_LIMIT
    return max(1, min(_INPUT_LIMIT, window - min(_TARGET_ROOM, window // 2)))
