"""Extractive readers: p_θ(y|x,z) is the probability of the spans of z that read y.

    p_θ(y|x,z) = (1 − ε) Σ_{s in z that reads y} e^{f(s)} / Σ_{s in z} e^{f(s)} + ε q(y),   f(s) = start_i + end_j

over the spans (i, j) of up to ``max_span_tokens`` tokens in title or text of z. f is the sum of two logits, as in
BERT's and DPR's readers (ORQA and REALM score the two hidden states together). A span reads y if their tokens say the
same (``span_rows``). q is uniform over all texts, one byte after the other with an end: with ε = e^−14 no text is
impossible. Where y stands in no span, it has no gradient: such an example teaches nothing, as in ORQA. For z = () there
is q alone.

**Over what the softmax goes** (``normalise``). With "passage" over the spans of each passage alone, as in REALM:

    p(y|x) = Σ_z p_η(z|x) p_θ(y|x,z)

With "passages" over the spans of all K passages together (shared normalisation, as in ORQA), where the prior's logit
s(z) adds to the score of every span of z. This is the same formula with another prior. With N_z = Σ_{s in z} e^{f(s)},

    p(y|x) ∝ Σ_z Σ_{s in z that reads y} e^{s(z) + f(s)} = Σ_z e^{s(z)} N_z p_θ(y|x,z)

so that p_η(z|x) ∝ e^{s(z) + log N_z}: the reader has a part of the prior's logit, log N_z, like any other expert.
Taking a passage away takes its spans out of the softmax, which is what renormalising that prior does. With "classifier"
that part is a linear layer on the first hidden state: how DPR's reader chooses its passage.

Differs: DPR's reader forgets the retriever's score, and takes the best span of the best passage; here both count, and
spans that read the same are added up across places and passages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from latentrag import io
from latentrag.errors import InputError, ModelError
from latentrag.generator.base import SETTINGS_FILE, mapped_class
from latentrag.generator.int8 import to_int8
from latentrag.generator.span_rows import SpanRow, SpanRows
from latentrag.generator.span_scores import (
    NOWHERE,
    Pairs,
    PreparedSpans,
    ReadSpans,
    SpanChoices,
    Texts,
    choices_of,
    log_q,
    span_log_probs,
    with_unread,
)
from latentrag.generator.tokens import padded, pairs
from latentrag.generator.tuning import Lora, recompute_activations
from latentrag.marginal.prior import accurate
from latentrag.pretrained import build, config_of, load_tokenizer, quiet, read_object, read_weights
from latentrag.protocols import Capabilities
from latentrag.types import Targets

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from latentrag.place import Place
    from latentrag.types import Asked, LatentLists

Normalise = Literal["passages", "passage", "classifier"]

_SETTINGS = ("normalise", "max_span_tokens", "max_input_tokens", "like_dpr")
_INPUT_LIMIT = 512
_PART_TOKENS = 16_384
"""Tokens, padding included, of one forward pass without gradients."""


class SpanGenerator:
    """An extractive reader. y is one token, the text of a span.

    Args:
        model: of transformers, with a layer ``qa_outputs``, and with a layer ``qa_classifier`` for "classifier".
        tokenizer: its tokenizer, a fast one that reads pairs.
        normalise: over which spans the softmax goes: those of all "passages", of each "passage", or of each with the
            passages chosen by the "classifier".
        max_span_tokens: the longest span.
        max_input_tokens: of question and passage; the end of a longer passage is not read. None: what the model reads,
            at most 512.
        like_dpr: rows are laid out as DPR's reader has them.
        int8: linear layers compute in eight bits; it cannot be trained or saved then.
    Raises: InputError for settings that cannot be; ModelError for a model that has no such layer.
    """

    kind = "spans"
    lora: Lora | None = None
    template = None
    """Its input is a pair of texts, no prompt."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        normalise: Normalise = "passages",
        max_span_tokens: int = 10,
        max_input_tokens: int | None = None,
        like_dpr: bool = False,
        int8: bool = False,
    ) -> None:
        self.model: Any = model
        self.tokenizer = tokenizer
        self.normalise = normalise
        self.max_span_tokens = max_span_tokens
        most = _most_tokens(model, tokenizer)
        self.max_input_tokens = min(_INPUT_LIMIT, most) if max_input_tokens is None else max_input_tokens
        self.like_dpr, self.int8 = like_dpr, int8
        self._check(most)
        self._rows = SpanRows(tokenizer, limit=self.max_input_tokens, like_dpr=like_dpr)
        self._texts = Texts()
        if int8:
            to_int8(model)

    def _check(self, most_tokens: int) -> None:
        if self.normalise not in get_args(Normalise):
            raise InputError(f"normalise={self.normalise!r} is unknown; needed one of {', '.join(get_args(Normalise))}")
        for name in ("max_span_tokens", "max_input_tokens"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise InputError(f"{name}={value!r}; needed a number of tokens, 1 or more")
        if self.max_input_tokens > most_tokens:
            raise InputError(f"max_input_tokens={self.max_input_tokens}; this model reads at most {most_tokens}")
        if type(self.like_dpr) is not bool:
            raise InputError(f"like_dpr={self.like_dpr!r}; needed true or false")
        if not hasattr(self.model, "qa_outputs") or self.model.config.is_encoder_decoder:
            raise ModelError(f"{type(self.model).__name__} is no encoder that reads spans; name one like BERT")
        if self.normalise == "classifier" and not hasattr(self.model, "qa_classifier"):
            raise InputError("normalise='classifier' needs a reader with a qa_classifier, as DPR's; use 'passages'")

    # From folders and back

    @classmethod
    def load(cls, folder: Path, settings: Mapping[str, Any], place: Place) -> Self:
        """A reader from the folder of any encoder like BERT, of a model for question answering, or of DPR's reader.

        An encoder without an output layer for spans gets an untrained one.

        Args:
            settings: the constructor's, by name.
        Raises: ModelError if the model or its settings cannot be used.
        """
        from transformers import MODEL_FOR_QUESTION_ANSWERING_MAPPING

        _check_names(settings)
        content, weights = read_object(folder / "config.json"), read_weights(folder)
        given = dict(settings)
        if content.get("model_type") == "dpr":
            content, weights = _of_dpr(content, weights)
            given = {"normalise": "classifier", "like_dpr": True, **given}
        config = config_of(content, folder / "config.json")
        config.num_labels = 2
        model_class = mapped_class(config, MODEL_FOR_QUESTION_ANSWERING_MAPPING, needed="an extractive reader")
        dtype = place.dtype(content.get("dtype", content.get("torch_dtype")))
        weights = _with_head(weights, config.hidden_size, getattr(config, "initializer_range", 0.02))
        model: Any = build(model_class, config, weights, folder=folder, dtype=dtype)
        if "qa_classifier.weight" in weights:
            model.qa_classifier = nn.Linear(config.hidden_size, 1).to(dtype)
            model.qa_classifier.load_state_dict({name: weights[f"qa_classifier.{name}"] for name in ("weight", "bias")})
        tokenizer = load_tokenizer(folder, what="generator")
        try:
            return cls(model.to(place.device), tokenizer, **given, int8=place.is_int8)
        except InputError as error:
            raise ModelError(f"the generator's settings cannot be used: {error}") from error

    def settings(self) -> dict[str, object]:
        """What ``load`` needs besides the model's own files, as JSON values."""
        return {name: getattr(self, name) for name in ("kind", *_SETTINGS)}

    def facts(self) -> dict[str, object]:
        """What the model is, as JSON values, for a report."""
        return {
            "class": type(self.model).__name__,
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "dtype": "int8" if self.int8 else str(self.model.dtype).removeprefix("torch."),
            "packed_bytes": 0,
        }

    def check_save(self) -> None:
        """As ``ChecksSaving``: weights in int8 are not those of the model any more."""
        if self.int8:
            raise InputError("a generator in int8 cannot be saved; load it in another dtype and save that")

    def save(self, folder: Path) -> None:
        """Weights as safetensors, tokenizer and settings, so that ``load_generator(folder)`` restores the reader.

        Raises: InputError as ``check_save``.
        """
        self.check_save()
        with quiet():
            self.model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
        io.write_json(folder / SETTINGS_FILE, self.settings())

    def merged(self) -> Self:
        """Itself, as it has no adapter."""
        return self

    def for_training(self, *, lora: Lora | None, whole: bool = False, recompute: bool = False, **_: object) -> Self:
        """Itself, ready to be trained.

        Args:
            lora: None: readers are small, and trained whole.
            whole: its weights are trained and become float32.
            recompute: keep fewer activations, compute them again in the backward pass.
        Raises: InputError for an adapter, or for a reader in int8.
        """
        if lora is not None:
            raise InputError("a reader of spans is trained whole; leave --lora out")
        if self.int8:
            raise InputError("a generator in int8 cannot be trained; use dtype auto or float32")
        if whole:
            self.model.float()
        if recompute:
            recompute_activations(self.model)
        return self

    # Scores

    @property
    def capabilities(self) -> Capabilities:
        """It lists every y, and has a part of the prior unless each passage is normalised alone."""
        return Capabilities(decodes=False, enumerates=True, weighs_passages=self.normalise != "passage")

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self.model.device
        return device

    end_ids: tuple[int, ...] = ()
    max_target_tokens: int | None = None
    decoding_defaults: Mapping[str, object] = {}

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """θ."""
        named: Iterator[tuple[str, nn.Parameter]] = self.model.named_parameters()
        return named

    def check_questions(self, x: Sequence[str]) -> None:
        """Raises: InputError for a question that leaves no room for a passage."""
        for question in x:
            self._rows.check_question(question)

    def prepare(self, x: Sequence[Asked], latents: LatentLists) -> PreparedSpans:
        of_all, num_latents = pairs(x, latents)
        rows = [self._rows.row(question.text, z) for question, z in of_all]
        number = iter(range(len(rows)))
        place = [next(number) if any(row.spans(self.max_span_tokens)) else None for row in rows]
        found = Pairs(rows, place, self.max_span_tokens)
        index = torch.arange(len(rows), device=self.device)
        return PreparedSpans(found, index, len(rows) // num_latents, num_latents)

    def targets(self, y: Sequence[str]) -> Targets:
        ids = torch.tensor([[self._texts.number(text)] for text in y], device=self.device)
        return Targets(ids, torch.ones_like(ids, dtype=torch.bool))

    def text(self, ids: Sequence[int]) -> str:
        return "".join(self.token_texts(ids))

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        return [self._texts.text(number) for number in ids]

    def log_weights(self, prepared: PreparedSpans) -> Tensor:
        """(B, K) the reader's part of the prior's logit; 0 for a z without a passage."""
        read, place = self._read(prepared.pairs), self._places(prepared)
        weights = torch.where(place >= 0, read.weights[place.clamp(min=0)], 0.0)
        return weights.view(prepared.num_questions, prepared.num_passages)

    def log_p_theta(self, prepared: PreparedSpans, targets: Targets) -> Tensor:
        """(B, K, 1) of the texts."""
        num_passages, found = prepared.num_passages, prepared.pairs
        keys = [self._rows.key(text) for text in self.token_texts(targets.ids[:, 0].tolist())]
        read = self._read(found)
        where = [found.spans(row).get(keys[n // num_passages], []) for n, row in enumerate(prepared.index.tolist())]
        width = max(1, *map(len, where))
        spans = torch.tensor([[*of_row, *[0] * (width - len(of_row))] for of_row in where], device=self.device)
        is_span = torch.tensor([[n < len(of_row) for n in range(width)] for of_row in where], device=self.device)
        place = self._places(prepared)
        log_p = read.log_p[place.clamp(min=0)].gather(1, spans).masked_fill(~is_span, NOWHERE)  # (B·K, width)
        unread = log_p.new_tensor([log_q(key) for key in keys]).repeat_interleave(num_passages)
        mixed = with_unread(log_p.logsumexp(dim=1), unread, has_passage=place >= 0)
        return mixed.view(prepared.num_questions, num_passages, 1)

    @torch.no_grad()
    def every_y(self, prepared: PreparedSpans) -> list[SpanChoices]:
        """For each question all that its spans say."""
        read = self._read(prepared.pairs)
        return [choices_of(prepared, b, read, self._texts, device=self.device) for b in range(prepared.num_questions)]

    def _places(self, prepared: PreparedSpans) -> Tensor:
        """(B·K,) the row of each pair in what was read; −1: it has none."""
        places = [-1 if place is None else place for place in prepared.pairs.place]
        return torch.tensor(places, device=self.device)[prepared.index]

    def _read(self, found: Pairs) -> ReadSpans:
        """Computed on first use, rows of like length together."""
        if found.read is None:
            rows = [row for row, place in zip(found.rows, found.place, strict=True) if place is not None]
            found.read = self._computed(rows)
        return found.read

    def _computed(self, rows: Sequence[SpanRow]) -> ReadSpans:
        if not rows:
            nothing = torch.full((1, 1), NOWHERE, device=self.device)
            return ReadSpans(nothing, nothing[:, 0])
        order = sorted(range(len(rows)), key=lambda n: len(rows[n].ids))
        size = len(rows)
        if not torch.is_grad_enabled():
            size = max(1, _PART_TOKENS // len(rows[order[-1]].ids))
        width = len(rows[order[-1]].ids) * self.max_span_tokens
        log_p, weights = [], []
        for first in range(0, len(order), size):
            of_part, weight = self._forward([rows[n] for n in order[first : first + size]])
            log_p.append(functional.pad(of_part, (0, width - of_part.shape[1]), value=float("-inf")))
            weights.append(weight)
        back = torch.tensor(order, device=self.device).argsort()
        return ReadSpans(torch.cat(log_p)[back], torch.cat(weights)[back])

    def _forward(self, rows: Sequence[SpanRow]) -> tuple[Tensor, Tensor]:
        """(R, S·L) log p of every span, and (R,) the part of the prior."""
        ids, mask = padded([row.ids for row in rows], pad=self.tokenizer.pad_token_id or 0)
        types, _ = padded([row.types for row in rows], pad=0)
        part, _ = padded([row.part for row in rows], pad=0)
        begins, _ = padded([row.begins for row in rows], pad=0)
        ends, _ = padded([row.ends for row in rows], pad=0)
        inputs = {"input_ids": ids.to(self.device), "attention_mask": mask.long().to(self.device)}
        if getattr(self.model.config, "type_vocab_size", 0) > 1:
            inputs["token_type_ids"] = types.to(self.device)
        hidden = self.model.base_model(**inputs)[0]  # (R, S, H)
        start, end = accurate(self.model.qa_outputs(hidden)).unbind(dim=2)
        of_tokens = (part.to(self.device), begins.to(self.device).bool(), ends.to(self.device).bool())
        log_p, log_mass = span_log_probs(start, end, *of_tokens, longest=self.max_span_tokens)
        if self.normalise == "classifier":
            log_mass = accurate(self.model.qa_classifier(hidden[:, 0]))[:, 0]
        return log_p.flatten(1), log_mass


def _check_names(settings: Mapping[str, object]) -> None:
    if "template" in settings:
        raise ModelError("a reader of spans has no prompt; leave instruction and template out")
    unknown = next((name for name in settings if name not in _SETTINGS), None)
    if unknown is not None:
        raise ModelError(f"a reader of spans has no setting {unknown!r}; needed one of {', '.join(_SETTINGS)}")


def _most_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens the model reads; of one whose positions have no limit, how many its tokenizer says."""
    most = int(tokenizer.model_max_length)
    return min(most, getattr(model.config, "max_position_embeddings", None) or most)


def _with_head(weights: Mapping[str, Tensor], size: int, spread: float) -> dict[str, Tensor]:
    """The weights, with an untrained layer for spans where they have none: always the same one."""
    if any(name.startswith("qa_outputs.") for name in weights):
        return dict(weights)
    random = torch.Generator().manual_seed(0)
    head = {"qa_outputs.weight": spread * torch.randn(2, size, generator=random), "qa_outputs.bias": torch.zeros(2)}
    return {**weights, **head}


def _of_dpr(
    content: Mapping[str, object], weights: Mapping[str, Tensor]
) -> tuple[dict[str, object], dict[str, Tensor]]:
    """DPR's reader as a BERT for question answering. Raises: ModelError for one of DPR's encoders."""
    prefix = "span_predictor."
    if not any(name.startswith(prefix) for name in weights):
        raise ModelError("this is one of DPR's encoders; needed its reader, as facebook/dpr-reader-single-nq-base")
    own = {name.removeprefix(prefix): each for name, each in weights.items()}
    named = {name.replace("encoder.bert_model.", "bert.", 1): each for name, each in own.items()}
    kept = {name: value for name, value in content.items() if name not in {"architectures", "projection_dim"}}
    return {**kept, "model_type": "bert"}, named
