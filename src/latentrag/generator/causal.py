"""Causal language models as p_θ(y|x,z): the prompt holds z, then x; y is what follows."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from latentrag.errors import InputError, ModelError
from latentrag.generator.base import TransformersGenerator, exclusive, mapped_class
from latentrag.generator.caches import (
    are_all,
    beam_cache,
    beside,
    joined,
    rows_of_parents,
    rows_of_questions,
    select_contexts,
    selected,
    token_positions,
)
from latentrag.generator.chat import ChatTemplate
from latentrag.generator.passages import PassageCache, PassageReader, model_key
from latentrag.generator.prepared import PreparedPrompts, Prompts
from latentrag.generator.probe import agrees, probe_ids
from latentrag.generator.prompt import EMPTY, PromptTemplate, PromptTokens
from latentrag.generator.texts import TextEncoder
from latentrag.generator.tokens import Detokenizer, check_lengths, padded, pairs
from latentrag.generator.tuning import Lora, fixed, split_weights, without_lora
from latentrag.generator.whole_prompts import WholeState, last_of, read_whole
from latentrag.options import PASSAGE_FOLDER_BYTES
from latentrag.protocols import Capabilities, Step
from latentrag.types import Asked, Latent, LatentLists, Passage, Question, Targets

if TYPE_CHECKING:
    from transformers import Cache, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_TARGET_POSITIONS = 256
"""Positions kept free for y where the model's window is the only limit."""
_PART_TOKENS = 640
"""Tokens of questions that a processor reads in one forward pass, padding included."""
_INPUT_LIMIT = 2048
"""Prompt tokens at most, unless told otherwise: enough for long passages, small enough for a small machine."""


@dataclass(frozen=True, slots=True)
class _ReadPrompts:
    """What the model makes of the prompts: its cache, left-padded, and the last position before the output layer."""

    cache: Cache
    mask: Tensor  # (R, S) bool, which positions of the cache hold a token
    hidden: Tensor  # (R, 1, H)


@dataclass(slots=True)
class _State:
    """Caches of B·K·M rows, and which of their positions hold a token."""

    cache: Cache
    mask: Tensor  # (B·K·M, S + tokens so far)
    num_questions: int
    num_passages: int
    num_beams: int

    @property
    def grid(self) -> tuple[int, int, int]:
        """B, K, M."""
        return self.num_questions, self.num_passages, self.num_beams


class CausalGenerator(TransformersGenerator[PreparedPrompts[_ReadPrompts], PromptTemplate]):
    """A causal language model of transformers as generator.

    Args:
        model: any transformers causal language model.
        tokenizer: its tokenizer (a fast one).
        template: the prompt, passage first; default: the model's chat template, if it has one.
        max_input_tokens: longer prompts lose words of the passage; default: what the model reads, at most 2,048.
        lora: the model's adapter, to train instead of its own weights; added if the model has none yet.
        seed: of an added adapter's first weights.
        int8: its linear layers, an adapter's aside, compute in eight bits; it cannot be trained or saved then.
    Raises: ModelError if the template's end is not one token of this tokenizer.
    """

    kind = "causal"
    template_kind = "prompt"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        template: PromptTemplate | None = None,
        max_input_tokens: int | None = None,
        lora: Lora | None = None,
        seed: int = 0,
        int8: bool = False,
    ) -> None:
        super().__init__(model, tokenizer)
        self.template = template or (ChatTemplate.of(tokenizer) if tokenizer.chat_template else PromptTemplate())
        self.max_input_tokens = max_input_tokens or _input_limit(model)
        self._encoder = TextEncoder(tokenizer)
        self._prompts = PromptTokens(self._encoder, self.template)
        self.end_id = self._end_token()
        self._check_vocabulary(str(self.template.render("a", (Passage("", "a", "a"),))))
        self._pad_id = self._padding()
        (cue,) = self._encoder.ids([self.template.cue], special=False)
        self._detokenizer = Detokenizer(tokenizer, cue=cue)
        self._set_up(lora=lora, seed=seed, int8=int8)
        self._passages = PassageReader(model, self._head, pad_id=self._pad_id, without_adapter=self._spares_passages)
        self._reads_whole = False
        self._choose_way()
        self._passages.in_a_row = self._shares_context
        if self._reads_whole and self._spares_passages:
            raise InputError(
                f"LoRA of scope 'question' needs passages that are read apart, {type(model).__name__} reads whole "
                "prompts; use 'all'"
            )

    @classmethod
    def model_class(cls, config: PretrainedConfig) -> type[PreTrainedModel]:
        from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

        return mapped_class(config, MODEL_FOR_CAUSAL_LM_MAPPING, needed="a causal language model")

    @property
    def capabilities(self) -> Capabilities:
        """Passages are kept by models whose state is rows of keys and values; states are computed together where
        attention is ours."""
        return Capabilities(keeps_prefixes=not self._reads_whole, steps_together=self._shares_context)

    def _ways(self) -> Iterator[None]:
        yield from super()._ways()
        self._reads_whole = True
        yield

    def _agrees(self) -> bool:
        """With prompts of different lengths, made of parts of different lengths."""
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        ids = probe_ids(13, vocabulary, {self._pad_id, self.tokenizer.pad_token_id, *self._head.ends})
        first, second = [ids[:3], ids[5:6]], [ids[3:5], ids[6:9]]
        tokens = torch.tensor([ids[9:11], ids[11:]], device=self.device)
        parts = Prompts[_ReadPrompts](first, second, recurring=False)
        prepared = PreparedPrompts(parts, torch.arange(2, device=self.device), 2, 1)
        with torch.no_grad(), without_lora(self.model):
            logits = []
            for prompt, of_one in zip(prepared.whole_rows(), tokens.tolist(), strict=True):
                rows = torch.tensor([[*prompt, token] for token in of_one], device=self.device)
                logits.append(self.model(input_ids=rows, use_cache=False).logits[:, -2:])
            plain = self._head.with_one_end(torch.log_softmax(torch.stack(logits).float(), dim=-1))
            return agrees(self, prepared, tokens, plain, eps=self._eps)

    def _arguments(self) -> dict[str, object]:
        return {"template": self.template, "max_input_tokens": self.max_input_tokens}

    @property
    def _spares_passages(self) -> bool:
        """Whether the adapter works on questions and answers alone."""
        return self.lora is not None and self.lora.scope == "question"

    def keep_passages(
        self,
        max_bytes: int,
        *,
        on_device: bool = False,
        folder: str | os.PathLike[str] | None = None,
        max_folder_bytes: int = PASSAGE_FOLDER_BYTES,
    ) -> None:
        """Keep what is read of passages for the next question. The weights that read them must not change then.

        Args:
            max_bytes: of memory. With 0 and no folder nothing is kept.
            on_device: in the memory of the generator's device, not in RAM.
            folder: keeps them on disk too, for later runs of the same weights.
            max_folder_bytes: how large the folder may become; what was used longest ago is deleted.
        Raises: InputError for a folder that nothing can be kept in.
        """
        if self._reads_whole:
            return
        device = self.device if on_device else None
        if folder is None:
            self.passage_cache = PassageCache(max_bytes, device=device) if max_bytes else None
            return
        if self.int8:
            raise InputError("what is read in eight bits is not kept on disk; choose another --dtype, or no folder")
        weights = self.model.state_dict()
        config = self.model.config.to_dict()
        if self._spares_passages:
            weights, _ = split_weights(weights)
        elif self.lora is not None:
            config["lora"] = asdict(self.lora)  # what scales the adapter is no weight
        try:
            self.passage_cache = PassageCache(
                max_bytes,
                device=device,
                folder=folder,
                max_folder_bytes=max_folder_bytes,
                model=model_key(weights, config),
            )
        except OSError as error:
            raise InputError(f"{folder}: cannot be a folder ({error.strerror}); name another") from error

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

    def prepare(self, x: Sequence[Asked], latents: LatentLists) -> PreparedPrompts[_ReadPrompts]:
        rows, num_latents = pairs(x, latents)
        return self._prepared(rows, num_latents)

    def prepare_together(self, x: Sequence[Asked], latents: LatentLists) -> PreparedPrompts[_ReadPrompts]:
        """Worst passage first, so that the best stands next to the question."""
        rows, _ = pairs(x, [[tuple(passage for z in of_question[::-1] for passage in z)] for of_question in latents])
        return self._prepared(rows, 1, recurring=False)

    def _prepared(
        self, rows: Sequence[tuple[Question, Latent]], num_latents: int, *, recurring: bool = True
    ) -> PreparedPrompts[_ReadPrompts]:
        first, questions = self._prompts.parts(rows, limit=self.max_input_tokens, keep=recurring)
        index = torch.arange(len(rows), device=self.device)
        return PreparedPrompts(Prompts(first, questions, recurring), index, len(rows) // num_latents, num_latents)

    def check_questions(self, x: Sequence[Asked]) -> None:
        """Raises: InputError for a question whose prompt is too long, with an empty passage or none."""
        rows = [(Question.of(each), z) for each in x for z in EMPTY]
        self._prompts.parts(rows, limit=self.max_input_tokens, keep=False)

    def fitting(self, question: Question) -> Question:
        """The question with as many of its last turns as leave passages half of the prompt."""
        return self._prompts.fitting(question, limit=self.max_input_tokens)

    def targets(self, y: Sequence[str]) -> Targets:
        rows = [[*ids, self.end_id] for ids in self._prompts.targets(y)]
        ends = set(self._head.ends)
        if any(not ends.isdisjoint(row[:-1]) for row in rows):
            raise InputError(
                f"a target contains {self.template.end!r}, which ends every target of this generator; "
                "write it in one line"
            )
        check_lengths(rows, self.max_target_tokens)
        ids, mask = padded(rows, pad=self._pad_id)
        return Targets(ids.to(self.device), mask.to(self.device))

    def _hidden(self, prepared: PreparedPrompts[_ReadPrompts], of_rows: Targets) -> Tensor:
        learns = torch.is_grad_enabled() and self._learns()
        if self._reads_whole:
            with nullcontext() if learns else torch.no_grad():
                return self._of_whole(prepared, of_rows.ids, of_rows.mask)
        # What was read of the prompts serves every target, but only where there is no gradient.
        several = prepared.prompts.read is not None or len(of_rows.ids) > len(prepared.prompts.questions)
        return (self._from_read if several and not learns else self._at_once)(prepared, of_rows.ids, of_rows.mask)

    def _learns(self) -> bool:
        return any(parameter.requires_grad for parameter in self.model.parameters())

    def _at_once(self, prepared: PreparedPrompts[_ReadPrompts], ids: Tensor, mask: Tensor) -> Tensor:
        """(B·K, T, H) in one forward pass: of the whole prompts, or after passages that teach nothing."""
        rows = prepared.index.tolist()
        passages = [prepared.prompts.passages[row] for row in rows]
        questions = [prepared.prompts.questions[row] for row in rows]
        past = None
        learns = torch.is_grad_enabled() and self._learns()
        if learns and not self._spares_passages:
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
        return _from_last(hidden, questions, ids.shape[1])

    def _of_whole(self, prepared: PreparedPrompts[_ReadPrompts], ids: Tensor, mask: Tensor) -> Tensor:
        """(B·K, T, H) from one pass over prompts and targets."""
        prompts = prepared.whole_rows()
        lengths = mask.sum(dim=1).tolist()
        rows = [[*row, *y[: n - 1]] for row, y, n in zip(prompts, ids.tolist(), lengths, strict=True)]
        return _from_last(read_whole(self._head, rows, self.device), prompts, ids.shape[1])

    def _from_read(self, prepared: PreparedPrompts[_ReadPrompts], ids: Tensor, mask: Tensor) -> Tensor:
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

    def _block(
        self, past: tuple[Cache, Tensor] | None, blocks: Sequence[Sequence[int]]
    ) -> tuple[Tensor, Cache, Tensor]:
        """A forward pass of right-padded rows after their past.

        Returns: the inputs of the output layer (R, Q, H), the cache, and which of its positions hold a token.
        """
        ids, mask = padded(blocks, pad=self._pad_id)
        ids, mask = ids.to(self.device), mask.to(self.device)
        inputs: dict[str, object] = {"use_cache": False}
        if past is not None:
            cache, before = past
            mask = torch.cat([before, mask], dim=1)
            inputs = {"past_key_values": cache, "use_cache": True}
        positions = token_positions(mask)[:, -ids.shape[1] :]
        hidden, output = self._head.run(input_ids=ids, attention_mask=mask.long(), position_ids=positions, **inputs)
        return hidden, output.past_key_values, mask

    @exclusive
    @torch.no_grad()
    def start(self, prepared: PreparedPrompts[_ReadPrompts]) -> tuple[Tensor, _State | WholeState]:
        if self._reads_whole:
            whole = WholeState(prepared.whole_rows(), prepared.num_questions, prepared.num_passages, 1)
            return self._next_of_whole(whole), whole
        read, index = self._read(prepared.prompts), prepared.index
        cache = beam_cache(read.cache, index) if self._shares_context else selected(read.cache, index)
        state = _State(cache, read.mask[index], prepared.num_questions, prepared.num_passages, 1)
        return self._grid(state, read.hidden[index, 0]), state

    @exclusive
    @torch.no_grad()
    def step(self, state: _State | WholeState, parents: Tensor, tokens: Tensor) -> tuple[Tensor, _State | WholeState]:
        if isinstance(state, WholeState):
            state.follow(parents, tokens)
            return self._next_of_whole(state), state
        fed = self._follow(state, parents, tokens)
        return self._grid(state, self._stepped(state.cache, fed, state.mask)), state

    @exclusive
    @torch.no_grad()
    def step_together(self, steps: Sequence[Step]) -> list[tuple[Tensor, object]]:
        """``step`` of several states: their rows side by side, each with its own past."""
        if len(steps) == 1:
            return [self.step(step.state, step.parents, step.tokens) for step in steps]
        states: list[_State] = [step.state for step in steps]
        fed = [self._follow(step.state, step.parents, step.tokens) for step in steps]
        width = max(state.mask.shape[1] for state in states)
        masks = [functional.pad(state.mask, (width - state.mask.shape[1], 0), value=False) for state in states]
        rows = [len(mask) for mask in masks]
        cache = beside([state.cache for state in states], rows)
        log_p = self._head.next_token_log_probs(self._stepped(cache, torch.cat(fed), torch.cat(masks)))
        return [(of_one.view(*state.grid, -1), state) for of_one, state in zip(log_p.split(rows), states, strict=True)]

    def _follow(self, state: _State, parents: Tensor, tokens: Tensor) -> Tensor:
        """Bring a state's rows to those that go on. Returns: the token that each is fed, (B'·K·M', 1)."""
        rows = rows_of_parents(parents, state.num_passages, state.num_beams)
        if not are_all(rows, len(state.mask)):
            state.cache.batch_select_indices(rows)
        questions = parents[:, 0] // state.num_beams
        if self._shares_context and not are_all(questions, state.num_questions):
            select_contexts(state.cache, rows_of_questions(questions, state.num_passages))
        state.num_questions, state.num_beams = parents.shape
        state.mask = torch.cat([state.mask[rows], state.mask.new_ones(len(rows), 1)], dim=1)
        return tokens[:, None, :].expand(-1, state.num_passages, -1).reshape(-1, 1)

    def _stepped(self, cache: Cache, fed: Tensor, mask: Tensor) -> Tensor:
        """(R, H) before the output layer, at one more token of every row."""
        hidden, _ = self._head.run(
            input_ids=fed,
            attention_mask=mask.long(),
            position_ids=token_positions(mask)[:, -1:],
            past_key_values=cache,
            use_cache=True,
        )
        return hidden[:, -1]

    def _next_of_whole(self, state: WholeState) -> Tensor:
        return self._grid(state, last_of(read_whole(self._head, state.rows, self.device), state.rows))

    def _grid(self, state: _State | WholeState, hidden: Tensor) -> Tensor:
        """(B, K, M, V) log-probabilities of the next token. hidden: (B·K·M, H)."""
        return self._head.next_token_log_probs(hidden).view(*state.grid, -1)

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

    @exclusive
    @torch.no_grad()
    def read_slice(self, prepared: PreparedPrompts[_ReadPrompts]) -> bool:
        """Some passages, or a part of the questions after them."""
        prompts = prepared.prompts
        if prompts.read is None and not self._reads_whole:
            prompts.read_on(partial(self._slices, prompts))
            return prompts.read is None
        return False

    @torch.no_grad()
    def _read(self, prompts: Prompts[_ReadPrompts]) -> _ReadPrompts:
        while prompts.read is None:
            prompts.read_on(partial(self._slices, prompts))
        return prompts.read

    def _slices(self, prompts: Prompts[_ReadPrompts]) -> Iterator[None]:
        """Reads the prompts, a slice at a time."""
        parts = list(self._parts(prompts.questions))
        results = []
        for rows in parts:
            passages, questions = ([of_all[row] for row in rows] for of_all in (prompts.passages, prompts.questions))
            past = yield from self._passages.reading(passages, recurring=prompts.recurring)
            results.append(self._read_part(past, questions))
            if len(results) < len(parts):
                yield
        order = torch.tensor([row for rows in parts for row in rows], device=self.device).argsort()
        last = torch.cat([hidden for hidden, _, _ in results])[order]
        cache, mask = joined([(cache, mask) for _, cache, mask in results], parts)
        prompts.read = _ReadPrompts(cache, mask, last)

    def _read_part(
        self, past: tuple[Cache, Tensor], questions: Sequence[Sequence[int]]
    ) -> tuple[Tensor, Cache, Tensor]:
        """What comes out at the last positions (R', 1, H), the cache, and which of its positions hold a token."""
        hidden, cache, mask = self._block(past, questions)
        last = torch.tensor([len(question) - 1 for question in questions], device=hidden.device)
        return hidden[torch.arange(len(questions), device=hidden.device), last][:, None], cache, mask

    def _end_token(self) -> int:
        if self.template.end is None:
            end: int | None = self.tokenizer.eos_token_id
            if end is None:
                raise ModelError("the generator's tokenizer has no end-of-sequence token; name an end in the template")
            return end
        ids = self._prompts.end()
        if len(ids) != 1:
            raise ModelError(
                f"the prompt template's end {self.template.end!r} is {len(ids)} tokens of this generator, needed one; "
                "choose another end, or null for the end-of-sequence token"
            )
        return ids[0]

    def _ends(self) -> list[int]:
        """Also those that hold the template's end, such as a full stop with a line break."""
        with_end = [] if self.template.end is None else self._encoder.tokens_with(self.template.end)
        return [*dict.fromkeys([*super()._ends(), *with_end])]


def _from_last(hidden: Tensor, prompts: Sequence[Sequence[int]], num: int) -> Tensor:
    """(R, T, H) of (R, S, H): from the last token of each row's prompt on."""
    last = torch.tensor([len(prompt) - 1 for prompt in prompts], device=hidden.device)
    places = (last[:, None] + torch.arange(num, device=hidden.device)).clamp(max=hidden.shape[1] - 1)
    return hidden.gather(1, places[:, :, None].expand(-1, -1, hidden.shape[2]))


def _window(model: PreTrainedModel) -> int | None:
    """Positions for prompt and target together."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(module.num_embeddings - module.padding_idx - 1)  # RoBERTa's, whose first position comes after it
    window: int | None = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return window


def _input_limit(model: PreTrainedModel) -> int:
    window = _window(model)
    if window is None:
        return _INPUT_LIMIT
    return max(1, min(_INPUT_LIMIT, window - min(_TARGET_POSITIONS, window // 2)))
