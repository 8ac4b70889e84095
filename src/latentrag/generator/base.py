"""What generators around a transformers model share: how they come from folders and go back, and log p_θ of gold tokens
through the output layer's gold column alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, Generic, ParamSpec, Protocol, Self, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from latentrag import io
from latentrag.errors import InputError, ModelError
from latentrag.generator.chat import ChatTemplate
from latentrag.generator.gold import OutputHead
from latentrag.generator.int8 import to_int8
from latentrag.generator.probe import ERRORS
from latentrag.generator.prompt import TEMPLATES, Template
from latentrag.generator.shared_context import copy_context, share_context
from latentrag.generator.texts import TextEncoder
from latentrag.generator.tokens import Detokenizer
from latentrag.generator.tuning import (
    Lora,
    add_lora,
    from_settings,
    has_lora,
    load_adapter,
    merge_lora,
    merge_peft,
    recompute_activations,
    split_weights,
)
from latentrag.packed import pack, packed_bytes
from latentrag.place import Place
from latentrag.pretrained import build, config_of, load_tokenizer, one_line, quiet, read_object, read_weights
from latentrag.types import Targets

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

SETTINGS_FILE = "latentrag_generator.json"
ADAPTER_FILE = "lora.safetensors"

_DECODING_NAMES: Mapping[str, str] = {
    "num_beams": "num_beams",
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "no_repeat_ngram_size": "no_repeat_ngram_size",
    "length_penalty": "length_penalty",
    "early_stopping": "early_stopping",
}
"""transformers' name → that of ``DecodingOptions``."""
_NAMES_WITH_START: Mapping[str, str] = {"max_length": "max_tokens", "min_length": "min_tokens"}
"""The same for numbers that count the decoder's start token too."""


_OF_THE_MODEL = ("eos_token_id", "forced_bos_token_id")
"""Generation settings that say how the model was trained. Older checkpoints have them in config.json alone."""


class PreparedRows(Protocol):
    """As much of ``protocols.Prepared`` as scoring needs."""

    @property
    def num_questions(self) -> int: ...

    @property
    def num_passages(self) -> int: ...


P = TypeVar("P", bound=PreparedRows)
T = TypeVar("T", bound=Template)
A = ParamSpec("A")
R = TypeVar("R")
S = TypeVar("S", bound="TransformersGenerator[Any, Any]")


def exclusive(method: Callable[Concatenate[S, A], R]) -> Callable[Concatenate[S, A], R]:
    """A method that computes with the model: threads wait for each other, for models are changed while they compute
    (the output layer is left out, an adapter is)."""

    @wraps(method)
    def waiting(self: S, /, *args: A.args, **named: A.kwargs) -> R:
        with self._head.lock:
            return method(self, *args, **named)

    return waiting


class TransformersGenerator(ABC, Generic[P, T]):
    """A model of transformers with its tokenizer and template. Subclasses say in ``_hidden`` how the inputs of the
    output layer come about."""

    kind: ClassVar[str]
    """Its name in the table of kinds."""
    template_kind: ClassVar[str]
    """Of templates in the table, where settings name none."""
    template: T
    max_input_tokens: int
    end_id: int
    _encoder: TextEncoder
    _shares_context: bool
    _detokenizer: Detokenizer

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model
        self.tokenizer = tokenizer

    def _set_up(self, *, lora: Lora | None, seed: int, int8: bool) -> None:
        """Give the model what it computes with."""
        model = self.model
        self.lora = lora
        if lora is not None and not has_lora(model):
            add_lora(model, lora, seed=seed)
        self.int8 = int8
        if int8:
            to_int8(model)
        pack(model)
        probe = torch.tensor([[self.end_id, self.end_id]], device=self.device)
        decoder = {"decoder_input_ids": probe} if model.config.is_encoder_decoder else {}
        try:
            with quiet():
                self._head = OutputHead.of(model, self._ends(), input_ids=probe, **decoder)
        except ERRORS as error:
            raise self._unfit(error) from error

    def _check_vocabulary(self, prompt: str) -> None:
        """Raises: ModelError if the tokenizer has tokens for which the model has none, but for control tokens that no
        prompt holds."""
        size = self.model.get_input_embeddings().weight.shape[0]
        largest = max([self.tokenizer.vocab_size - 1, *self._encoder.ids([prompt])[0]])
        if largest >= size:
            raise ModelError(
                f"the generator's tokenizer has a token {largest}, its model's embedding {size} tokens, from 0 on; they"
                " do not belong together: fetch the tokenizer of this model"
            )

    def _padding(self) -> int:
        """The token that pads rows; nobody attends to it."""
        pad: int | None = self.tokenizer.pad_token_id
        in_model = pad is not None and pad < self.model.get_input_embeddings().weight.shape[0]
        return pad if pad is not None and in_model else self.end_id

    def _choose_way(self) -> None:
        """Take the first way of computing steps whose numbers are those of plain passes.

        Raises: ModelError if none has them.
        """
        reason: Exception | None = None
        with quiet():
            for _ in self._ways():
                try:
                    if self._agrees():
                        return
                    reason = None
                except ERRORS as error:
                    reason = error
        raise self._unfit(reason) from reason

    def _unfit(self, reason: Exception | None) -> ModelError:
        words = "its steps are not what it says in one pass" if reason is None else one_line(reason)
        return ModelError(f"{type(self.model).__name__} cannot be a generator here ({words}); name another model")

    def _ways(self) -> Iterator[None]:
        """Prepares the ways of computing steps, quickest first."""
        self._shares_context = share_context(self.model)
        if self._shares_context:
            yield
        self._shares_context = False
        copy_context(self.model)
        yield

    @property
    def _eps(self) -> float:
        """The relative rounding of what the model computes."""
        eps: float = torch.finfo(self.model.dtype).eps
        return max(eps, 1 / 127) if self.int8 else eps

    @abstractmethod
    def _agrees(self) -> bool:
        """Whether steps on two tiny prompts are those of plain passes."""

    def _ends(self) -> list[int]:
        """All tokens that end y: ``end_id`` first, then the model's own."""
        own = self.model.generation_config.eos_token_id
        listed = own if isinstance(own, list) else [own]
        ends = [self.end_id, *listed, self.tokenizer.eos_token_id]
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        return [end for end in dict.fromkeys(ends) if end is not None and end < vocabulary]

    # From folders and back

    @classmethod
    def load(cls, folder: Path, settings: Mapping[str, Any], place: Place) -> Self:
        """A generator from a folder in transformers' layout.

        Args:
            settings: as ``settings()`` gave them, by name; what is not there gets the kind's own default.
        Raises: ModelError if the model or its settings cannot be used.
        """
        content = read_object(folder / "config.json")
        generator = cls.of_weights(
            config_of(content, folder / "config.json"),
            read_weights(folder),
            load_tokenizer(folder, what="generator"),
            settings,
            folder=folder,
            place=place,
            dtype=place.dtype(content.get("dtype", content.get("torch_dtype"))),
            older={name: content[name] for name in _OF_THE_MODEL if name in content},
        )
        if generator.lora is not None:
            load_adapter(generator.model, _adapter_weights(folder))
        return generator

    @classmethod
    def of_weights(
        cls,
        config: PretrainedConfig,
        weights: Mapping[str, Tensor],
        tokenizer: PreTrainedTokenizerBase,
        settings: Mapping[str, Any],
        *,
        folder: Path,
        place: Place,
        dtype: torch.dtype,
        older: Mapping[str, object] | None = None,
    ) -> Self:
        """A generator from the parts of a folder.

        Args:
            folder: where they came from; its generation_config.json is read.
            older: JSON values that hold the generation settings where there is no generation_config.json.
        Raises: ModelError if the parts or settings cannot be used.
        """
        model = build(cls.model_class(config), config, weights, folder=folder, dtype=dtype)
        model.generation_config = _generation_config(folder, older or {})
        given = dict(settings)
        adapter = given.pop("adapter", None)
        if adapter is not None:
            model = merge_peft(model, adapter)
        if given.get("template"):
            given["template"] = made_template(cls.template_kind, given["template"], tokenizer)
        if given.get("lora") is not None:
            given["lora"] = from_settings(given["lora"])
        try:
            return cls(model.to(place.device), tokenizer, **given, int8=place.is_int8)  # type: ignore[call-arg]
        except (TypeError, InputError) as error:
            raise _unusable(error) from error

    @classmethod
    @abstractmethod
    def model_class(cls, config: PretrainedConfig) -> type[PreTrainedModel]:
        """transformers' class for this configuration. Raises: ModelError if it is not for this kind."""

    @abstractmethod
    def _arguments(self) -> dict[str, object]:
        """What the constructor got besides model, tokenizer and adapter; JSON values, but for the template."""

    def settings(self) -> dict[str, object]:
        """What ``load`` needs besides the model's own files, as JSON values."""
        template: Any = self.template
        return {
            "kind": self.kind,
            **self._arguments(),
            "template": {
                **asdict(template),
                **({} if template.kind == self.template_kind else {"kind": template.kind}),
            },
            **({} if self.lora is None else {"lora": asdict(self.lora)}),
        }

    def facts(self) -> dict[str, object]:
        """What the model is, as JSON values, for a report."""
        return {
            "class": type(self.model).__name__,
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "dtype": "int8" if self.int8 else str(self.model.dtype).removeprefix("torch."),
            "packed_bytes": packed_bytes(self.model),
        }

    def check_save(self) -> None:
        """As ``ChecksSaving``: weights in int8 are not those of the model any more."""
        if self.int8:
            raise InputError("a generator in int8 cannot be saved; load it in another dtype and save that")

    def save(self, folder: Path) -> None:
        """Weights as safetensors, tokenizer and settings, so that ``load_generator(folder)`` restores the generator.

        An adapter stays beside the weights that it was trained on, which other tools then read as they were.

        Raises: InputError as ``check_save``.
        """
        self.check_save()
        weights, adapter = split_weights(self.model.state_dict())
        with quiet():
            self.model.save_pretrained(folder, state_dict=weights)
            self.tokenizer.save_pretrained(folder)
        if adapter:
            save_file({name: tensor.contiguous() for name, tensor in adapter.items()}, folder / ADAPTER_FILE)
        io.write_json(folder / SETTINGS_FILE, self.settings())

    def for_training(
        self,
        *,
        lora: Lora | None,
        whole: bool = False,
        recompute: bool = False,
        seed: int = 0,
        keep_preamble: bool = False,
        multiline: bool = False,
    ) -> Self:
        """A generator around the same model that can be trained.

        Args:
            lora: the adapter to train, or the one that the model has; None: all weights, or none of them.
            whole: its weights are trained and become float32.
            recompute: keep fewer activations, compute them again in the backward pass.
            seed: of a new adapter's first weights.
            keep_preamble: keep the prompt's worked examples, which training takes the place of otherwise.
            multiline: the end-of-sequence token ends y, so that y may hold the text that ends it otherwise.
        Raises: InputError for a generator in int8, or for another adapter than the model has already.
        """
        if self.int8:
            raise InputError("a generator in int8 cannot be trained; use dtype auto, float32 or bfloat16")
        if lora is not None and self.lora not in {None, lora}:
            raise InputError(f"the generator has an adapter ({self.lora}) already; train that, or a model without one")
        model = self.model.float() if whole else self.model
        if recompute:
            recompute_activations(model)
        template = self.template if keep_preamble else self.template.without_examples()
        if multiline:
            template = template.multiline()
        arguments = {**self._arguments(), "template": template}
        return type(self)(model, self.tokenizer, **arguments, lora=lora or self.lora, seed=seed)  # type: ignore[call-arg]

    def with_template(self, template: T) -> Self:
        """A generator around the same model under another prompt. Threads must not compute with both at once.

        Raises: ModelError or InputError if the template's end is not one token of this tokenizer.
        """
        arguments = {**self._arguments(), "template": template}
        return type(self)(self.model, self.tokenizer, **arguments, lora=self.lora, int8=self.int8)  # type: ignore[call-arg]

    def merged(self) -> Self:
        """A generator around the same model, its adapter a part of the weights.

        Raises: InputError for a generator in int8.
        """
        if self.int8:
            raise InputError("a generator in int8 has no weights to merge an adapter into; load it in another dtype")
        merge_lora(self.model)
        return type(self)(self.model, self.tokenizer, **self._arguments())

    # As the protocols have them

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self.model.device
        return device

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The token that ends y. It stands for all of the model's end tokens: its probability is the sum of theirs."""
        return (self.end_id,)

    @property
    def decoding_defaults(self) -> Mapping[str, object]:
        """What the model's ``generation_config`` sets.

        Only values that the file really sets: transformers' own defaults (20 tokens, length penalty 1, …) are not the
        model's wish. ``max_length`` and ``min_length`` count the decoder's start token there and not here; for causal
        models they count the prompt and mean nothing here.
        """
        saved = self.model.generation_config.to_diff_dict()
        defaults = {ours: saved[theirs] for theirs, ours in _DECODING_NAMES.items() if saved.get(theirs) is not None}
        if self.model.config.is_encoder_decoder:
            for theirs, ours in _NAMES_WITH_START.items():
                if saved.get(theirs) is not None:
                    defaults.setdefault(ours, max(1, saved[theirs] - 1))
        return defaults

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """θ; with an adapter only its weights need a gradient."""
        named: Iterator[tuple[str, torch.nn.Parameter]] = self.model.named_parameters()
        return named

    @exclusive
    def log_p_theta(self, prepared: P, targets: Targets) -> Tensor:
        """(B, K, T) of the gold tokens."""
        log_p, _ = self._scored(prepared, targets)
        return log_p

    @exclusive
    def log_p_theta_and_mean(
        self, prepared: P, targets: Targets, weigh: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """``log_p_theta``, and the mean over the vocabulary of the marginal's log-probabilities, (B, T)."""
        log_p, hidden = self._scored(prepared, targets)
        return log_p, self._head.mean_log_probs(hidden, weigh(log_p), targets.mask)

    def _scored(self, prepared: P, targets: Targets) -> tuple[Tensor, Tensor]:
        """log p of the gold tokens (B, K, T), and the inputs of the output layer (B·K, T, H)."""
        num_passages = prepared.num_passages
        ids = targets.ids.repeat_interleave(num_passages, dim=0)  # (B·K, T)
        mask = targets.mask.repeat_interleave(num_passages, dim=0)
        hidden = self._hidden(prepared, Targets(ids, mask))
        log_p = self._head.gold_log_probs(hidden, ids, mask)
        return log_p.view(prepared.num_questions, num_passages, -1), hidden

    @abstractmethod
    def _hidden(self, prepared: P, of_rows: Targets) -> Tensor:
        """(B·K, T, H): what the output layer reads where it predicts the tokens of each row (B·K, T)."""

    def text(self, ids: Sequence[int]) -> str:
        """The text of target tokens."""
        return self._detokenizer.text(ids)

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """A piece of text for each token."""
        return self._detokenizer.pieces(ids)


def mapped_class(
    config: PretrainedConfig, mapping: Mapping[type[PretrainedConfig], type[PreTrainedModel]], *, needed: str
) -> type[PreTrainedModel]:
    """transformers' class for a configuration, from one of its mappings. Raises: ModelError if there is none."""
    if type(config) not in mapping:
        raise ModelError(f"model_type={config.model_type!r} does not generate text as {needed}; name another generator")
    return mapping[type(config)]


def _generation_config(folder: Path, older: Mapping[str, object]) -> GenerationConfig:
    from transformers import GenerationConfig

    try:
        with quiet():
            if (folder / "generation_config.json").is_file():
                return GenerationConfig.from_pretrained(folder, local_files_only=True)
            known = GenerationConfig().to_dict()
            return GenerationConfig.from_dict({key: older[key] for key in known if key in older})
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{folder}: its generation settings cannot be read ({one_line(error)})") from error


def made_template(usual: str, values: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Template:
    """The template that settings describe, of the usual kind where they name none. Raises: ModelError."""
    fields = dict(values)
    kind = fields.pop("kind", usual)
    if kind == ChatTemplate.kind and fields.keys() <= {"instruction"}:
        return ChatTemplate.of(tokenizer, **fields)
    try:
        made = TEMPLATES[kind](**fields)
        return made.of_tokenizer(tokenizer) if isinstance(made, ChatTemplate) else made
    except (TypeError, InputError) as error:
        raise _unusable(error) from error


def _unusable(error: Exception) -> ModelError:
    return ModelError(f"the generator's settings cannot be used: {error}")


def _adapter_weights(folder: Path) -> Mapping[str, Tensor]:
    try:
        return load_file(folder / ADAPTER_FILE)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder / ADAPTER_FILE} cannot be read ({one_line(error)}); save the model again") from error
