"""Causal language models as p_θ(y|x,z): the prompt holds z, then x; y is what follows."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor

from latentrag.errors import InputError, ModelError
from latentrag.generator.gold import OutputHead, pick
from latentrag.generator.grid import check_lengths, padded, pairs, rows_of_parents, rows_of_questions
from latentrag.generator.inputs import PromptTemplate, input_ids
from latentrag.generator.settings import decoding_defaults
from latentrag.generator.text import pieces
from latentrag.types import PassageLists, Targets

_TARGET_ROOM = 256
"""Positions kept free for y where the model's window is the only limit."""
_INPUT_LIMIT = 2048
"""Prompt tokens at most, unless told otherwise: enough for long passages, small enough for a small machine."""


@dataclass(frozen=True, slots=True)
class _Read:
    """What the model makes of the prompts: its cache, and the last position before and after the output layer."""

    cache: Any
    hidden: Tensor  # (R, 1, H)
    logits: Tensor  # (R, V)


@dataclass(slots=True)
class _Prompts:
    """The prompts as a left-padded batch; ``read`` is computed once, on first use."""

    ids: Tensor  # (R, S)
    mask: Tensor  # (R, S) bool
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


class CausalGenerator:
    """A causal language model of transformers as generator.

    Args:
        model: any transformers causal language model.
        tokenizer: its tokenizer (a fast one).
        template: the prompt, passage first.
        max_input_tokens: longer prompts lose words of the passage; default: what the model reads, at most 2,048.
    Raises: ModelError if the template's end is not one token of this tokenizer.
    """

    kind = "causal"

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        template: PromptTemplate | None = None,
        max_input_tokens: int | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.template = template or PromptTemplate()
        self.max_input_tokens = max_input_tokens or _input_limit(model)
        self._cue: list[int] = tokenizer(self.template.cue, add_special_tokens=False)["input_ids"]
        self.end_id = self._end_token()
        self._pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.end_id
        self._head = OutputHead(model)
        probe = torch.tensor([[self.end_id, self.end_id]], device=self.device)
        self._head_agrees = self._head.agrees(input_ids=probe)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self.model.device
        return device

    @property
    def max_target_tokens(self) -> int | None:
        window = _window(self.model)
        return None if window is None else window - self.max_input_tokens + 1

    @property
    def decoding_defaults(self) -> Mapping[str, Any]:
        return decoding_defaults(self.model)

    def prepare(self, x: Sequence[str], passages: PassageLists | None) -> PreparedPrompts:
        rows, num_passages = pairs(x, passages)
        rendered = [self.template.render(question, passage) for question, passage in rows]
        # Left padding: y follows its prompt without a gap, also for attention windows that count positions.
        prompt_ids = input_ids(self.tokenizer, rendered, limit=self.max_input_tokens)
        eos = self.tokenizer.eos_token_id
        open_ended = [ids[:-1] if ids[-1] == eos else ids for ids in prompt_ids]  # some tokenizers close every text
        ids, mask = padded(open_ended, pad=self._pad_id, left=True)
        prompts = _Prompts(ids.to(self.device), mask.to(self.device))
        return PreparedPrompts(prompts, torch.arange(len(rows), device=self.device), len(x), num_passages)

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

    def log_p_theta(self, prepared: PreparedPrompts, targets: Targets) -> Tensor:
        num_passages = prepared.num_passages
        ids = targets.ids.repeat_interleave(num_passages, dim=0)  # (B·K, T)
        mask = targets.mask.repeat_interleave(num_passages, dim=0)
        # Gradients need the whole forward pass; without them the prompts' cache is as good and much cheaper.
        log_p = (self._scored_at_once if torch.is_grad_enabled() else self._scored_from_cache)(prepared, ids, mask)
        return log_p.view(prepared.num_questions, num_passages, -1)  # (B, K, T)

    def _scored_at_once(self, prepared: PreparedPrompts, ids: Tensor, mask: Tensor) -> Tensor:
        prompts = prepared.prompts
        all_ids = torch.cat([prompts.ids[prepared.index], ids[:, :-1]], dim=1)
        all_mask = torch.cat([prompts.mask[prepared.index], mask[:, :-1]], dim=1)
        inputs = {
            "input_ids": all_ids,
            "attention_mask": all_mask.long(),
            "position_ids": _positions(all_mask),
            "use_cache": False,
        }
        before = prompts.ids.shape[1] - 1
        if self._head_agrees:
            hidden, _ = self._head.run(**inputs)
            return self._head.gold_log_probs(hidden[:, before:], ids, mask)
        return pick(self.model(**inputs).logits[:, before:], ids).masked_fill(~mask, 0.0)

    def _scored_from_cache(self, prepared: PreparedPrompts, ids: Tensor, mask: Tensor) -> Tensor:
        read, index = self._read(prepared.prompts), prepared.index
        prompt_mask = prepared.prompts.mask[index]
        inputs = {}
        if ids.shape[1] > 1:
            all_mask = torch.cat([prompt_mask, mask[:, :-1]], dim=1)
            inputs = {
                "input_ids": ids[:, :-1],
                "attention_mask": all_mask.long(),
                "position_ids": _positions(all_mask)[:, prompt_mask.shape[1] :],
                "past_key_values": _selected(read.cache, index),
                "use_cache": True,
            }
        if self._head_agrees:
            hidden = read.hidden[index]
            if inputs:
                hidden = torch.cat([hidden, self._head.run(**inputs)[0]], dim=1)
            return self._head.gold_log_probs(hidden, ids, mask)
        logits = read.logits[index][:, None]
        if inputs:
            logits = torch.cat([logits, self.model(**inputs).logits], dim=1)
        return pick(logits, ids).masked_fill(~mask, 0.0)

    def start(self, prepared: PreparedPrompts) -> tuple[Tensor, _State]:
        read, index = self._read(prepared.prompts), prepared.index
        state = _State(
            _selected(read.cache, index),
            prepared.prompts.mask[index],
            prepared.num_questions,
            prepared.num_passages,
            1,
        )
        return self._grid(state, read.logits[index]), state

    def step(self, state: _State, parents: Tensor, tokens: Tensor) -> tuple[Tensor, _State]:
        rows = rows_of_parents(parents, state.num_passages, state.num_beams)
        if not torch.equal(rows, torch.arange(len(state.mask), device=rows.device)):
            state.cache.batch_select_indices(rows)
        state.num_questions, state.num_beams = parents.shape
        state.mask = torch.cat([state.mask[rows], state.mask.new_ones(len(rows), 1)], dim=1)
        output = self.model(
            input_ids=tokens[:, None, :].expand(-1, state.num_passages, -1).reshape(-1, 1),
            attention_mask=state.mask.long(),
            position_ids=_positions(state.mask)[:, -1:],
            past_key_values=state.cache,
            use_cache=True,
        )
        return self._grid(state, output.logits[:, -1]), state

    def _grid(self, state: _State, logits: Tensor) -> Tensor:
        log_p = torch.log_softmax(logits.float(), dim=-1)
        return log_p.view(state.num_questions, state.num_passages, state.num_beams, -1)

    @torch.no_grad()
    def _read(self, prompts: _Prompts) -> _Read:
        if prompts.read is None:
            from transformers import DynamicCache

            cache = DynamicCache()
            # Narrowed to the last position even where its hidden states are of no use: (R, S, V) would be huge.
            hidden, output = self._head.run(
                input_ids=prompts.ids,
                attention_mask=prompts.mask.long(),
                position_ids=_positions(prompts.mask),
                past_key_values=cache,
                use_cache=True,
            )
            prompts.read = _Read(cache, hidden[:, -1:].clone(), output.logits[:, -1].clone())
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
        }


def _positions(mask: Tensor) -> Tensor:
    """(R, S) position of every token in its row; padding gets 0."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


def _selected(cache: Any, index: Tensor) -> Any:
    """The rows at ``index`` as a cache of their own: what is appended to it does not reach the given one."""
    own = copy.copy(cache)
    own.layers = [copy.copy(layer) for layer in cache.layers]
    if not torch.equal(index, torch.arange(cache.layers[0].keys.shape[0], device=index.device)):
        own.batch_select_indices(index)
    return own


def _window(model: Any) -> int | None:
    """Positions for prompt and target together."""
    window: int | None = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return window


def _input_limit(model: Any) -> int:
    window = _window(model)
    if window is None:
        return _INPUT_LIMIT
    return max(1, min(_INPUT_LIMIT, window - min(_TARGET_ROOM, window // 2)))
