"""DPR's two encoders (Karpukhin et al. 2020), the retriever of Lewis et al. 2020, §2.2.

Both are BERT; the vector is the last hidden state of [CLS], through a projection where the model has one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from latentrag.encoder.batching import TokenBatch, encode_rows, frozen
from latentrag.encoder.fingerprint import Fingerprint
from latentrag.encoder.saved import Role, Saved, check_scale, dtype_name
from latentrag.encoder.tokens import TextTokenizer, check_questions, load_tokenizer
from latentrag.errors import ModelError
from latentrag.packed import pack
from latentrag.pretrained import build, quiet, replacing

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float
    from torch import Tensor, nn
    from transformers import DPRConfig, DPRContextEncoder, DPRQuestionEncoder, PretrainedConfig

    from latentrag.types import Passage

SCALE = 1.0


class DprQueryEncoder:
    """q(x) by DPR's question encoder.

    Args:
        module: in eval mode unless the caller trains it.
        scale: s in p_η(z|x) ∝ exp(s·d(z)·q(x)).
        passage_fingerprint: of the passage encoder it was trained with; None where nothing says.
        batch_tokens: tokens in a forward pass, padding included; None: as many as suit the device.
    """

    def __init__(
        self,
        module: DPRQuestionEncoder,
        tokenizer: TextTokenizer,
        *,
        name: str,
        scale: float = SCALE,
        passage_fingerprint: str | None = None,
        batch_tokens: int | None = None,
    ) -> None:
        pack(module)
        self.module = module
        self.name = name
        self.batch_tokens = batch_tokens
        self._tokenizer = tokenizer
        self._scale = check_scale(scale)
        self._passage_fingerprint = passage_fingerprint

    @property
    def dimension(self) -> int:
        return int(self.module.question_encoder.embeddings_size)

    @property
    def scale(self) -> float:
        return self._scale

    @property
    def passage_fingerprint(self) -> str | None:
        return self._passage_fingerprint

    @property
    def max_tokens(self) -> int:
        """The longest question it reads, special tokens included."""
        return self._tokenizer.max_tokens

    def parameters(self) -> Iterator[nn.Parameter]:
        parameters: Iterator[nn.Parameter] = self.module.parameters()
        return parameters

    def encode_queries(self, x: Sequence[str]) -> Float[Tensor, "B D"]:
        """q(x), float32, differentiable unless grad mode is off.

        Raises: InputError for a question that is empty or longer than ``max_tokens``.
        """
        check_questions(x)
        return encode_rows(
            self._tokenizer.question_rows(x),
            self._forward,
            module=self.module,
            dimension=self.dimension,
            batch_tokens=self.batch_tokens,
        )

    def pair_with(self, passage_fingerprint: str) -> None:
        """From now on its queries belong to the vectors of the passage encoder with this fingerprint."""
        self._passage_fingerprint = passage_fingerprint

    def save(self, folder: str | Path) -> None:
        """transformers' layout, and latentrag_encoder.json for the scale and the pairing."""
        saved = Saved(
            kind="dpr",
            role="query",
            name=self.name,
            scale=self.scale,
            passage_fingerprint=self.passage_fingerprint,
            dtype=dtype_name(self.module),
        )
        _save(self.module, self._tokenizer, saved=saved, folder=Path(folder))

    def _forward(self, batch: TokenBatch) -> Tensor:
        return _cls_vectors(self.module, batch)


class DprPassageEncoder:
    """d(z) by DPR's context encoder, from the pair (title, text); from the text alone where there is no title.

    Args: as those of ``DprQueryEncoder``.
    """

    def __init__(
        self,
        module: DPRContextEncoder,
        tokenizer: TextTokenizer,
        *,
        name: str,
        scale: float = SCALE,
        batch_tokens: int | None = None,
    ) -> None:
        pack(module)
        self.module = module
        self.batch_tokens = batch_tokens
        self._name = name
        self._tokenizer = tokenizer
        self._scale = check_scale(scale)
        settings = {"kind": "dpr", "title": "pair", "max_tokens": tokenizer.max_tokens}
        self._fingerprint = Fingerprint(module, module.config, tokenizer=tokenizer, settings=settings)

    @property
    def name(self) -> str:
        return self._name

    @property
    def fingerprint(self) -> str:
        return self._fingerprint.value

    @property
    def dimension(self) -> int:
        return int(self.module.ctx_encoder.embeddings_size)

    @property
    def max_tokens(self) -> int:
        """How much of a passage it reads, title and special tokens included."""
        return self._tokenizer.max_tokens

    @property
    def scale(self) -> float:
        return self._scale

    def parameters(self) -> Iterator[nn.Parameter]:
        parameters: Iterator[nn.Parameter] = self.module.parameters()
        return parameters

    def encode_passages(self, passages: Sequence[Passage], *, progress: bool = False) -> Float[Tensor, "N D"]:
        """d(z), float32, on the CPU and without gradient; what lies beyond ``max_tokens`` is cut."""
        with frozen(self.module):
            return self.passage_vectors(passages, progress=progress).cpu()

    def passage_vectors(self, passages: Sequence[Passage], *, progress: bool = False) -> Float[Tensor, "N D"]:
        """d(z) as ``encode_passages`` gives it, but on the module's device, in the module's mode (train or eval), and
        differentiable unless grad mode is off."""
        return encode_rows(
            self._tokenizer.rows([(z.title, z.text) if z.title else z.text for z in passages]),
            self._forward,
            module=self.module,
            dimension=self.dimension,
            batch_tokens=self.batch_tokens,
            progress=progress,
        )

    def save(self, folder: str | Path) -> None:
        """transformers' layout, and latentrag_encoder.json for the scale."""
        saved = Saved(
            kind="dpr",
            role="passage",
            name=self.name,
            scale=self.scale,
            passage_fingerprint=None,
            dtype=dtype_name(self.module),
        )
        _save(self.module, self._tokenizer, saved=saved, folder=Path(folder))

    def _forward(self, batch: TokenBatch) -> Tensor:
        return _cls_vectors(self.module, batch)


def _cls_vectors(module: DPRQuestionEncoder | DPRContextEncoder, batch: TokenBatch) -> Tensor:
    output = module(input_ids=batch.ids, attention_mask=batch.mask.long(), token_type_ids=batch.type_ids)
    vectors: Tensor = output.pooler_output  # (B, D)
    return vectors


def _save(
    module: DPRQuestionEncoder | DPRContextEncoder, tokenizer: TextTokenizer, *, saved: Saved, folder: Path
) -> None:
    with replacing(folder) as scratch, quiet():
        module.save_pretrained(scratch)
        tokenizer.save(scratch)
        saved.write(scratch)


def load_query_module(
    folder: Path, config: PretrainedConfig, weights: Mapping[str, Tensor], *, dtype: torch.dtype
) -> tuple[DPRQuestionEncoder, TextTokenizer]:
    """Raises: ModelError if the folder holds no whole question encoder."""
    from transformers import DPRQuestionEncoder

    config, weights = _one_encoder(folder, config, weights, role="query")
    module = build(DPRQuestionEncoder, config, weights, folder=folder, dtype=dtype)
    return module, load_tokenizer(folder, module)


def load_passage_module(
    folder: Path, config: PretrainedConfig, weights: Mapping[str, Tensor], *, dtype: torch.dtype
) -> tuple[DPRContextEncoder, TextTokenizer]:
    """Raises: ModelError if the folder holds no whole context encoder."""
    from transformers import DPRContextEncoder

    config, weights = _one_encoder(folder, config, weights, role="passage")
    module = build(DPRContextEncoder, config, weights, folder=folder, dtype=dtype)
    return module, load_tokenizer(folder, module)


# The two encoders' prefixes in DPR's own checkpoints and in transformers', and transformers' class.
_NAMES: Mapping[Role, tuple[str, str, str]] = {
    "query": ("question_model.", "question_encoder.", "DPRQuestionEncoder"),
    "passage": ("ctx_model.", "ctx_encoder.", "DPRContextEncoder"),
}


def has_original_names(weights: Mapping[str, Tensor]) -> bool:
    """Whether these are the weights of a checkpoint by DPR's own code: plain BERT under the encoder's name."""
    return any(key.startswith(original) for original, _, _ in _NAMES.values() for key in weights)


def _one_encoder(
    folder: Path, config: PretrainedConfig, weights: Mapping[str, Tensor], *, role: Role
) -> tuple[DPRConfig, Mapping[str, Tensor]]:
    """The weights of one encoder under transformers' names, and the configuration that goes with them."""
    original, prefix, class_name = _NAMES[role]
    if has_original_names(weights):
        weights = _renamed(weights, original, prefix)
        config = _dpr_config(config, weights, prefix)
        if not weights:
            raise ModelError(f"{folder} has no weights {original}*; needed a DPR checkpoint with its {role} encoder")
    architectures = config.architectures or [class_name]
    if class_name not in architectures:
        raise ModelError(f"{folder} holds a {architectures[0]}, needed a {class_name} for the {role} encoder")
    if not config.projection_dim and f"{prefix}encode_proj.weight" in weights:
        raise ModelError(f"{folder} has a projection in its weights but projection_dim=0 in config.json; set it there")
    return config, weights


def _renamed(weights: Mapping[str, Tensor], original: str, prefix: str) -> dict[str, Tensor]:
    renamed = {}
    for key, tensor in weights.items():
        if key.startswith(original):
            name = key.removeprefix(original)
            renamed[prefix + (name if name.startswith("encode_proj.") else f"bert_model.{name}")] = tensor
    return renamed


def _dpr_config(config: PretrainedConfig, weights: Mapping[str, Tensor], prefix: str) -> DPRConfig:
    """BERT's configuration as DPR's; DPR's own code keeps the size of the projection elsewhere."""
    from transformers import DPRConfig

    content = config.to_dict() | {"model_type": DPRConfig.model_type, "architectures": None}
    projection = weights.get(f"{prefix}encode_proj.weight")
    content["projection_dim"] = 0 if projection is None else projection.shape[0]
    with quiet():
        return DPRConfig.from_dict(content)
