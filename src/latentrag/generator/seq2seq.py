"""Encoder–decoders (BART, T5 and their kin) as p_θ(y|x,z) (Lewis et al. 2020, §2.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from latentrag.errors import InputError, ModelError
from latentrag.generator.base import TransformersGenerator, exclusive, mapped_class
from latentrag.generator.caches import are_all, rows_of_parents, rows_of_questions
from latentrag.generator.probe import agrees, probe_ids
from latentrag.generator.prompt import EMPTY, InputTemplate, Rendered, input_ids, lighter, with_turns_that_fit
from latentrag.generator.texts import TextEncoder
from latentrag.generator.tokens import Detokenizer, check_lengths, padded, pairs
from latentrag.generator.tuning import Lora
from latentrag.protocols import Capabilities
from latentrag.types import Asked, Latent, LatentLists, Passage, Question, Targets

if TYPE_CHECKING:
    from transformers import Cache, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_UNBOUNDED_LIMIT = 512
"""Input tokens for models with relative positions, which name no limit of their own."""


@dataclass(frozen=True, slots=True)
class PreparedContexts:
    """Encoded inputs. states: (B·K, S, H), mask: (B·K, S) bool, row b·K + k is question b with passage k."""

    states: Tensor
    mask: Tensor
    num_questions: int
    num_passages: int

    @property
    def num_tokens(self) -> list[int]:
        """Of each row."""
        counts: list[int] = self.mask.sum(dim=1).tolist()
        return counts

    def rows(self, index: Tensor) -> Self:
        rows = rows_of_questions(index, self.num_passages)
        return type(self)(self.states[rows], self.mask[rows], len(index), self.num_passages)

    def each_passage(self) -> Self:
        return type(self)(self.states, self.mask, self.num_questions * self.num_passages, 1)


@dataclass(slots=True)
class _State:
    """Decoder caches of B·K·M rows; the encoder's states and mask of the B·K rows behind them."""

    cache: Cache
    prepared: PreparedContexts
    num_beams: int


class Seq2SeqGenerator(TransformersGenerator[PreparedContexts, InputTemplate]):
    """An encoder–decoder of transformers as generator.

    Args:
        model: any transformers model for conditional generation.
        tokenizer: its tokenizer (a fast one).
        template: how x and z are put together.
        max_input_tokens: longer inputs lose words of the passage; default: what the model reads.
        decoder_prefix: tokens that the decoder is given before y, not scored. Default: the model's start token,
            and the first token that it is forced to write (mBART-50: the language) or the tokenizer's begin token, if
            it puts one before every target (BART: ``</s><s>``). Models trained as Hugging Face's RAG
            (``decoder_input_ids = labels``) have the begin token alone.
        lora: the model's adapter, to train instead of its own weights, of scope "all"; added if the model has none yet.
        seed: of an added adapter's first weights.
        int8: its linear layers, an adapter's aside, compute in eight bits; it cannot be trained or saved then.
    Raises: ModelError if the tokenizer has no end token or the decoder no start; InputError for another scope.
    """

    kind = "seq2seq"
    capabilities = Capabilities()
    template_kind = "input"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        template: InputTemplate | None = None,
        max_input_tokens: int | None = None,
        decoder_prefix: Sequence[int] | None = None,
        lora: Lora | None = None,
        seed: int = 0,
        int8: bool = False,
    ) -> None:
        super().__init__(model, tokenizer)
        self.template = template or InputTemplate(prefix=getattr(model.config, "prefix", None) or "")
        self.max_input_tokens = max_input_tokens or _input_limit(model, tokenizer)
        end = tokenizer.eos_token_id
        if end is None:
            raise ModelError("the generator's tokenizer has no end-of-sequence token; needed one to end y; set it")
        self.end_id: int = end
        self._pad_id = self._padding()
        self.decoder_prefix: tuple[int, ...] = tuple(
            _decoder_prefix(model, tokenizer) if decoder_prefix is None else decoder_prefix
        )
        if lora is not None and lora.scope != "all":
            raise InputError(
                f"LoRA of scope {lora.scope!r} is for causal generators, this is an encoder–decoder; use 'all'"
            )
        self._encoder = TextEncoder(tokenizer)
        self._check_vocabulary(str(self.template.render("a", (Passage("", "a", "a"),))))
        self._detokenizer = Detokenizer(tokenizer)
        self._set_up(lora=lora, seed=seed, int8=int8)
        self._choose_way()

    @classmethod
    def model_class(cls, config: PretrainedConfig) -> type[PreTrainedModel]:
        from transformers import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING

        return mapped_class(config, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, needed="an encoder–decoder")

    def _arguments(self) -> dict[str, object]:
        return {
            "template": self.template,
            "max_input_tokens": self.max_input_tokens,
            "decoder_prefix": list(self.decoder_prefix),
        }

    @property
    def max_target_tokens(self) -> int | None:
        positions: int | None = getattr(self.model.config, "max_position_embeddings", None)
        return None if positions is None else positions - len(self.decoder_prefix) + 1

    @exclusive
    def prepare(self, x: Sequence[Asked], latents: LatentLists) -> PreparedContexts:
        rows, num_passages = pairs(x, latents)
        encoder = self._encoder
        rendered = [self._rendered(question, z) for question, z in rows]
        try:
            inputs = input_ids(encoder, rendered, limit=self.max_input_tokens)
        except InputError:
            inputs = [self._shortened(question, z) for question, z in rows]
        return self._encoded(inputs, len(x), num_passages)

    def _encoded(self, rows: Sequence[Sequence[int]], num_questions: int, num_passages: int) -> PreparedContexts:
        ids, mask = padded(rows, pad=self._pad_id)
        ids, mask = ids.to(self.device), mask.to(self.device)
        states = self.model.get_encoder()(input_ids=ids, attention_mask=mask.long()).last_hidden_state  # (B·K, S, H)
        return PreparedContexts(states, mask, num_questions, num_passages)

    def _agrees(self) -> bool:
        """With inputs of different lengths."""
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        ids = probe_ids(9, vocabulary, {self._pad_id, *self._head.ends})
        inputs, tokens = [ids[:3], ids[3:5]], torch.tensor([ids[5:7], ids[7:9]], device=self.device)
        with torch.no_grad():
            logits = [
                self.model(
                    input_ids=torch.tensor([row, row], device=self.device),
                    decoder_input_ids=torch.cat([self._prefix(2), of_row[:, None]], dim=1),
                    use_cache=False,
                ).logits[:, -2:]
                for row, of_row in zip(inputs, tokens, strict=True)
            ]
            plain = self._head.with_one_end(torch.log_softmax(torch.stack(logits).float(), dim=-1))
            return agrees(self, self._encoded(inputs, 2, 1), tokens, plain, eps=self._eps)

    def _rendered(self, question: Question, z: Latent) -> Rendered:
        quoted, template = self._encoder.quoted, self.template
        text = quoted(question.text)
        if question.exchanges:
            text = template.ask_after([(quoted(asked), quoted(said)) for asked, said in question.exchanges], text)
        if question.instruction:
            template = template.instructed(quoted(question.instruction))
        return template.render(text, self._encoder.quoted_passages(z))

    def fitting(self, question: Question) -> Question:
        """The question with as many of its last turns as leave passages half of the input."""

        def fits(num_exchanges: int) -> bool:
            (ids,) = self._encoder.ids([str(self._rendered(question.since(num_exchanges), ()))])
            return len(ids) <= self.max_input_tokens // 2

        return with_turns_that_fit(question, fits)

    def _shortened(self, question: Question, z: Latent) -> list[int]:
        """The input for x and z, where z's titles may have to give way."""
        try:
            return input_ids(self._encoder, [self._rendered(question, z)], limit=self.max_input_tokens)[0]
        except InputError:
            less = lighter(z)
            if less is None:
                raise
            return self._shortened(question, less)

    def prepare_together(self, x: Sequence[Asked], latents: LatentLists) -> PreparedContexts:
        """B × 1 rows that read all K passages: Fusion-in-Decoder (Izacard & Grave 2021).

        Every passage is encoded with its question, apart from the others; the decoder attends to all K encodings,
        laid side by side. Nothing but their content tells them apart, so their order does not matter.
        """
        apart = self.prepare(x, latents)
        states = apart.states.reshape(len(x), -1, apart.states.shape[2])  # (B, K·S, H)
        return PreparedContexts(states, apart.mask.reshape(len(x), -1), len(x), 1)

    def check_questions(self, x: Sequence[Asked]) -> None:
        """Raises: InputError for a question whose input is too long, with an empty passage or none."""
        inputs = [self._rendered(Question.of(each), z) for each in x for z in EMPTY]
        input_ids(self._encoder, inputs, limit=self.max_input_tokens)

    def targets(self, y: Sequence[str]) -> Targets:
        quoted = [self._encoder.quoted(text) for text in y]
        rows = [[*ids, self.end_id] for ids in self._encoder.ids(quoted, special=False)]
        check_lengths(rows, self.max_target_tokens)
        ids, mask = padded(rows, pad=self._pad_id)
        return Targets(ids.to(self.device), mask.to(self.device))

    def _hidden(self, prepared: PreparedContexts, of_rows: Targets) -> Tensor:
        prefix = self._prefix(len(of_rows.ids))  # (B·K, P)
        decoder_ids = torch.cat([prefix, of_rows.ids[:, :-1]], dim=1)
        hidden, _ = self._head.run(**self._context(prepared, 1), decoder_input_ids=decoder_ids, use_cache=False)
        return hidden[:, prefix.shape[1] - 1 :]

    @exclusive
    @torch.no_grad()
    def start(self, prepared: PreparedContexts) -> tuple[Tensor, _State]:
        from transformers import DynamicCache, EncoderDecoderCache

        state = _State(EncoderDecoderCache(DynamicCache(), DynamicCache()), prepared, 1)
        rows = prepared.num_questions * prepared.num_passages
        return self._advance(state, self._prefix(rows)), state

    @exclusive
    @torch.no_grad()
    def step(self, state: _State, parents: Tensor, tokens: Tensor) -> tuple[Tensor, _State]:
        num_passages, num_beams = state.prepared.num_passages, state.num_beams
        rows = rows_of_parents(parents, num_passages, num_beams)
        if not are_all(rows, len(state.prepared.states) * num_beams):
            state.cache.self_attention_cache.batch_select_indices(rows)
        self._follow(state, parents, rows)
        fed = tokens[:, None, :].expand(-1, num_passages, -1).reshape(-1, 1)  # (B'·K·M', 1)
        return self._advance(state, fed), state

    def _follow(self, state: _State, parents: Tensor, rows: Tensor) -> None:
        """Bring what belongs to (x, z) to the grid of these beams; it does not change while the grid does not."""
        questions = parents[:, 0] // state.num_beams
        same_questions = are_all(questions, state.prepared.num_questions)
        same_grid = same_questions and parents.shape[1] == state.num_beams
        if not (same_questions if self._shares_context else same_grid):
            of_contexts = rows_of_questions(questions, state.prepared.num_passages) if self._shares_context else rows
            state.cache.cross_attention_cache.batch_select_indices(of_contexts)
        if not same_questions:
            state.prepared = state.prepared.rows(questions)
        state.num_beams = parents.shape[1]

    def _advance(self, state: _State, decoder_ids: Tensor) -> Tensor:
        prepared, num_beams = state.prepared, state.num_beams
        hidden, _ = self._head.run(
            **self._context(prepared, 1 if self._shares_context else num_beams),
            decoder_input_ids=decoder_ids,
            past_key_values=state.cache,
            use_cache=True,
        )
        log_p = self._head.next_token_log_probs(hidden[:, -1])
        return log_p.view(prepared.num_questions, prepared.num_passages, num_beams, -1)

    def _context(self, prepared: PreparedContexts, repeats: int) -> dict[str, object]:
        from transformers.modeling_outputs import BaseModelOutput

        states, mask = prepared.states, prepared.mask
        if repeats > 1:
            states = states.repeat_interleave(repeats, dim=0)
            mask = mask.repeat_interleave(repeats, dim=0)
        return {"encoder_outputs": BaseModelOutput(last_hidden_state=states), "attention_mask": mask.long()}

    def _prefix(self, rows: int) -> Tensor:
        return torch.tensor([self.decoder_prefix], device=self.device).expand(rows, -1)  # (R, P)


def _input_limit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    limits = [getattr(model.config, "max_position_embeddings", None), tokenizer.model_max_length]
    # Tokenizers without a limit carry a number that no text reaches.
    known = [limit for limit in limits if limit is not None and limit < 1_000_000]
    return min(known) if known else _UNBOUNDED_LIMIT


def _decoder_prefix(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    start = getattr(model.config, "decoder_start_token_id", None)
    if start is None:
        start = getattr(model.generation_config, "decoder_start_token_id", None)
    begin = tokenizer.bos_token_id
    if start is None:
        start = begin if begin is not None else tokenizer.pad_token_id
    if start is None:
        raise ModelError(
            "the generator names no decoder_start_token_id, begin or padding token; needed one of them; "
            "set it in config.json"
        )
    forced = model.generation_config.forced_bos_token_id  # a language, for mBART-50 and its kin
    if forced is not None:
        return [start, forced] if forced != start else [start]
    adds_begin = begin is not None and tokenizer(text_target="a")["input_ids"][:1] == [begin]
    return [start, begin] if adds_begin and begin != start else [start]
