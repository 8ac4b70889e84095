"""Sentence encoders: one model for questions and passages, in the folders of sentence-transformers, which are read and
written without that library.

modules.json lists the stages in order; each stage keeps its settings in a folder of its own. A transformers
encoder without modules.json is mean pooling and nothing else, as that library has it too.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file

from latentrag.encoder.identity import Fingerprint, Saved, check_scale, dtype_name
from latentrag.encoder.sentence_module import (
    ACTIVATIONS,
    POOLERS,
    Dense,
    Normalize,
    Pooling,
    SentenceModule,
    SentenceSettings,
)
from latentrag.encoder.tokens import TextTokenizer, TokenRow, encode_rows, frozen, load_tokenizer
from latentrag.errors import ModelError
from latentrag.packed import pack
from latentrag.pretrained import (
    build,
    quiet,
    read_config,
    read_json,
    read_object,
    read_weights,
    replacing,
    write_json,
)
from latentrag.types import Passage, question_texts

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float
    from torch import Tensor
    from transformers import PreTrainedModel

NORMALISED_SCALE = 20.0
"""What sentence-transformers' usual loss multiplies cosines by; without it the prior is almost flat."""

MODULES = "modules.json"
TYPES = "sentence_transformers.models."

# Older configurations have a flag for each mode.
FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


class SentenceEncoder:
    """q(x) and d(z) by one model.

    A query encoder that is trained moves away from the passage encoder that it began as, and its queries still
    belong to the vectors of that one: ``passage_fingerprint`` is settled when the encoder is made and changed by
    ``pair_with`` alone, and ``fingerprint`` follows the weights.

    Args:
        module: in eval mode unless the caller trains it.
        scale: s in p_η(z|x) ∝ exp(s·d(z)·q(x)); None: 20 if the vectors are normalised, else 1.
        passage_fingerprint: of the passage encoder it is paired with; None: itself, as it is now.
    Raises: ModelError if a prompt leaves no room for a text.
    """

    batch_tokens: int | None = None
    """Tokens in a forward pass, padding included; None: as many as suit the device."""

    def __init__(
        self,
        module: SentenceModule,
        tokenizer: TextTokenizer,
        *,
        name: str,
        settings: SentenceSettings,
        scale: float | None = None,
        passage_fingerprint: str | None = None,
    ) -> None:
        pack(module)
        default = NORMALISED_SCALE if module.normalised else 1.0
        self.module, self.name, self.scale = module, name, check_scale(default if scale is None else scale)
        self.dimension, self.max_tokens = module.dimension, tokenizer.max_tokens
        self._tokenizer, self._settings = tokenizer, settings
        for prompt in (settings.query_prompt, settings.passage_prompt):
            if tokenizer.num_leading_tokens(prompt) + 2 > tokenizer.max_tokens:
                raise ModelError(
                    f"{name} has a prompt that fills the {tokenizer.max_tokens} tokens it reads: {prompt!r}"
                )
        self._fingerprint = Fingerprint(
            module, module.transformer.config, tokenizer=tokenizer, settings=self._passage_settings()
        )
        self.passage_fingerprint = passage_fingerprint or self.fingerprint

    @property
    def fingerprint(self) -> str:
        """Of its weights as they are now."""
        return self._fingerprint.value

    def encode_queries(self, x: Sequence[str]) -> Float[Tensor, "B D"]:
        """q(x), float32, differentiable unless grad mode is off.

        Raises: InputError for a question that is empty or, with its prompt, longer than ``max_tokens``.
        """
        rows = self._tokenizer.question_rows([self._settings.question(text) for text in question_texts(x)])
        return self._encode(rows, prompt=self._settings.query_prompt)

    def encode_passages(self, passages: Sequence[Passage], *, progress: bool = False) -> Float[Tensor, "N D"]:
        """d(z), float32, on the CPU and without gradient; what lies beyond ``max_tokens`` is cut."""
        with frozen(self.module):
            return self.passage_vectors(passages, progress=progress).cpu()

    def passage_vectors(self, passages: Sequence[Passage], *, progress: bool = False) -> Float[Tensor, "N D"]:
        """d(z) as ``encode_passages`` gives it, but on the module's device, in the module's mode (train or eval), and
        differentiable unless grad mode is off."""
        rows = self._tokenizer.rows([self._settings.passage(z) for z in passages])
        return self._encode(rows, prompt=self._settings.passage_prompt, progress=progress)

    def check_questions(self, x: Sequence[str]) -> None:
        """Raises: InputError as ``encode_queries``."""
        self._tokenizer.question_rows([self._settings.question(text) for text in question_texts(x)])

    def pair_with(self, passage_fingerprint: str) -> None:
        """From now on its queries belong to the vectors of the passage encoder with this fingerprint."""
        self.passage_fingerprint = passage_fingerprint

    def save(self, folder: str | Path) -> None:
        """sentence-transformers' layout, and latentrag_encoder.json for the scale and the pairing."""
        module, settings = self.module, self._settings
        dtype = dtype_name(module.transformer)
        saved = Saved("sentence", "both", self.name, self.scale, self.passage_fingerprint, dtype)
        stages = [("Transformer", ""), ("Pooling", "1_Pooling")]
        with replacing(Path(folder)) as scratch, quiet():
            module.transformer.save_pretrained(scratch)
            self._tokenizer.save(scratch)
            text = {"max_seq_length": self.max_tokens, "do_lower_case": settings.lower_case}
            write_json(scratch / "sentence_bert_config.json", text)
            write_json(scratch / "1_Pooling" / "config.json", _pooling_content(module))
            for i, layer in enumerate(module.head, start=len(stages)):
                kind = type(layer).__name__
                stages.append((kind, f"{i}_{kind}"))
                _save_layer(layer, scratch / f"{i}_{kind}")
            prompts = {"query": settings.query_prompt, "document": settings.passage_prompt}
            write_json(scratch / "config_sentence_transformers.json", {"prompts": prompts, "default_prompt_name": None})
            rows = enumerate(stages)
            listed = [{"idx": i, "name": str(i), "path": path, "type": TYPES + kind} for i, (kind, path) in rows]
            write_json(scratch / MODULES, listed)
            saved.write(scratch)

    def _encode(self, rows: Sequence[TokenRow], *, prompt: str, progress: bool = False) -> Tensor:
        num_prompt_tokens = self._tokenizer.num_leading_tokens(prompt)
        return encode_rows(
            rows,
            lambda batch: self.module(batch, num_prompt_tokens),
            module=self.module.transformer,
            dimension=self.dimension,
            batch_tokens=self.batch_tokens,
            progress=progress,
        )

    def _passage_settings(self) -> dict[str, object]:
        return {
            "kind": "sentence",
            "title": "line",
            "max_tokens": self.max_tokens,
            "prompt": self._settings.passage_prompt,
            "lower_case": self._settings.lower_case,
            "pooling": [*self.module.pooling.modes],
            "include_prompt": self.module.pooling.include_prompt,
            "head": [layer.activation_name if isinstance(layer, Dense) else "normalize" for layer in self.module.head],
        }


def load_sentence_module(folder: Path, *, dtype: torch.dtype) -> tuple[SentenceModule, TextTokenizer, SentenceSettings]:
    """A folder with modules.json, or without: then mean pooling, not normalised, no prompts.

    Raises: ModelError if it is incomplete, not an encoder, or has a stage that is not supported here.
    """
    if not (folder / MODULES).exists():
        transformer = _transformer(folder, dtype=dtype)
        module = SentenceModule(transformer, Pooling(), []).eval()
        return module, load_tokenizer(folder, transformer), SentenceSettings()
    stages = _stages(folder)
    if [kind for kind, _ in stages[:2]] != ["Transformer", "Pooling"]:
        found = ", ".join(kind for kind, _ in stages)
        raise ModelError(f"{folder / MODULES} lists {found or 'nothing'}; needed a Transformer, then a Pooling")
    (_, at), (_, pooling_at), *rest = stages
    transformer = _transformer(at, dtype=dtype)
    head = [_head_layer(kind, path, folder) for kind, path in rest]
    pooling = _read_pooling(pooling_at / "config.json")
    _check_sizes(head, pooled=transformer.config.hidden_size * len(pooling.modes), folder=folder)
    module = SentenceModule(transformer, pooling, head).eval()
    text = next((read_object(path) for path in sorted(at.glob("sentence_*_config.json"))), {})
    tokenizer = load_tokenizer(at, transformer, max_seq_length=text.get("max_seq_length"))
    return module, tokenizer, _read_settings(folder, lower_case=bool(text.get("do_lower_case", False)))


def _stages(folder: Path) -> list[tuple[str, Path]]:
    """Each stage's kind, the last part of its type, and its folder."""
    listed = read_json(folder / MODULES)
    try:
        return [(str(stage["type"]).rpartition(".")[2], folder / stage["path"]) for stage in listed]
    except (KeyError, TypeError) as error:
        raise ModelError(f"{folder / MODULES} is not a list of modules; fetch the file again") from error


def _transformer(folder: Path, *, dtype: torch.dtype) -> PreTrainedModel:
    from transformers import MODEL_MAPPING

    config = read_config(folder)
    if config.is_encoder_decoder or type(config) not in MODEL_MAPPING:
        raise ModelError(f"{folder} has model_type={config.model_type!r}, needed an encoder such as BERT's kind")
    model_class = MODEL_MAPPING[type(config)]
    # BERT's pooler is not used here, and many checkpoints lack its weights.
    unpooled = "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
    options = {"add_pooling_layer": False} if unpooled else {}
    return build(model_class, config, read_weights(folder), folder=folder, dtype=dtype, **options)


def _read_pooling(path: Path) -> Pooling:
    content = read_object(path)
    named = content.get("pooling_mode")
    if named is None:
        modes = tuple(mode for flag, mode in FLAGS.items() if content.get(flag)) or ("mean",)
    else:
        modes = (named,) if isinstance(named, str) else tuple(named)
    unknown = [mode for mode in modes if mode not in POOLERS]
    if unknown or not modes:
        raise ModelError(f"{path} asks for pooling by {unknown}; supported are {', '.join(POOLERS)}")
    return Pooling(modes, include_prompt=bool(content.get("include_prompt", True)))


def _pooling_content(module: SentenceModule) -> dict[str, object]:
    flags = {flag: mode in module.pooling.modes for flag, mode in FLAGS.items()}
    return {
        "word_embedding_dimension": module.transformer.config.hidden_size,
        **flags,
        "pooling_mode": [*module.pooling.modes],
        "include_prompt": module.pooling.include_prompt,
    }


def _head_layer(kind: str, path: Path, folder: Path) -> Normalize | Dense:
    if kind not in ("Normalize", "Dense"):
        raise ModelError(
            f"{folder / MODULES} has a module {kind}, which is not supported; supported are Transformer, "
            "Pooling, Dense and Normalize"
        )
    content = read_object(path / "config.json") if kind == "Dense" or (path / "config.json").exists() else {}
    token_wise = content.get("module_input_name", "sentence_embedding") != "sentence_embedding"
    if token_wise or content.get("use_residual"):
        raise ModelError(f"{path} is a {kind} of a kind that is not supported (token-wise or residual)")
    return Normalize() if kind == "Normalize" else _dense(path, content)


def _dense(path: Path, content: dict[str, Any]) -> Dense:
    weights = read_weights(path)
    activation = content.get("activation_function", "torch.nn.modules.activation.Tanh")
    if activation not in ACTIVATIONS:
        raise ModelError(f"{path} has the activation {activation}; supported are {', '.join(ACTIVATIONS)}")
    if "linear.weight" not in weights or weights.keys() - {"linear.weight", "linear.bias"}:
        raise ModelError(f"{path} has weights {sorted(weights)}; needed linear.weight and perhaps linear.bias")
    out_features, in_features = weights["linear.weight"].shape
    layer = Dense(in_features, out_features, bias="linear.bias" in weights, activation=activation)
    layer.load_state_dict(weights)
    return layer


def _check_sizes(head: Sequence[Normalize | Dense], *, pooled: int, folder: Path) -> None:
    size = pooled
    for layer in head:
        if isinstance(layer, Dense):
            if layer.linear.in_features != size:
                raise ModelError(
                    f"{folder} has a Dense layer for vectors of {layer.linear.in_features}, but they have {size} here; "
                    "its files do not belong together"
                )
            size = layer.linear.out_features


def _save_layer(layer: object, path: Path) -> None:
    if not isinstance(layer, Dense):
        write_json(path / "config.json", {})
        return
    content = {
        "in_features": layer.linear.in_features,
        "out_features": layer.linear.out_features,
        "bias": layer.linear.bias is not None,
        "activation_function": layer.activation_name,
    }
    write_json(path / "config.json", content)
    save_file({name: value.cpu() for name, value in layer.state_dict().items()}, path / "model.safetensors")


def _read_settings(folder: Path, *, lower_case: bool) -> SentenceSettings:
    path = folder / "config_sentence_transformers.json"
    content = read_object(path) if path.exists() else {}
    prompts = content.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(prompt, str) for prompt in prompts.values()):
        raise ModelError(f"{path} has prompts that are not texts by name; fetch the file again")
    default_name = content.get("default_prompt_name")
    if default_name is not None and default_name not in prompts:
        raise ModelError(f"{path} names the prompt {default_name!r}, which is not among its prompts {sorted(prompts)}")
    default: str = "" if default_name is None else prompts[default_name]
    passage_name = next((name for name in ("document", "passage") if name in prompts), None)
    return SentenceSettings(
        query_prompt=prompts.get("query", default),
        passage_prompt=default if passage_name is None else prompts[passage_name],
        lower_case=lower_case,
    )
