"""DPR's two encoders (Karpukhin et al. 2020), the retriever of Lewis et al. 2020, §2.2.

Both are BERT; the vector is the last hidden state of [CLS], through a projection where the model has one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from latentrag.encoder.identity import Fingerprint, Role, Saved, architecture_of, check_scale, dtype_name
from latentrag.encoder.tokens import (
    TextTokenizer,
    TokenBatch,
    TokenRow,
    encode_rows,
    frozen,
    load_tokenizer,
)
from latentrag.errors import ModelError
from latentrag.packed import pack
from latentrag.pretrained import build, quiet, replacing
from latentrag.types import question_texts

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float
    from torch import Tensor
    from transformers import DPRConfig, DPRContextEncoder, DPRQuestionEncoder, PretrainedConfig, PreTrainedModel

    from latentrag.types import Passage

SCALE = 1.0


class _DprEncoder:
    """What both have: a module with its tokenizer, name and scale."""

    role: Role
    passage_fingerprint: str | None = None
    batch_tokens: int | None = None
    """Tokens in a forward pass, padding included; None: as many as suit the device."""

    def __init__(
        self,
        module: PreTrainedModel,
        tokenizer: TextTokenizer,
        *,
        name: str,
        scale: float = SCALE,
    ) -> None:
        pack(module)
        self.module, self.name, self.scale = module, name, check_scale(scale)
        self.dimension = int(module.config.projection_dim or module.config.hidden_size)
        self.max_tokens = tokenizer.max_tokens
        self._tokenizer = tokenizer

    def save(self, folder: str | Path) -> None:
        """transformers' layout, and latentrag_encoder.json for the scale and the pairing."""
        dtype = dtype_name(self.module)
        saved = Saved("dpr", self.role, self.name, self.scale, self.passage_fingerprint, dtype)
        with replacing(Path(folder)) as scratch, quiet():
            self.module.save_pretrained(scratch)
            self._tokenizer.save(scratch)
            saved.write(scratch)

    def count_tokens(self, title: str, text: str) -> int:
        """How many tokens a passage has before it is cut, or a question."""
        return self._tokenizer.num_tokens(title, text) if title else self._tokenizer.num_tokens(text)

    def _encode(self, rows: Sequence[TokenRow], *, progress: bool = False) -> Tensor:
        return encode_rows(
            rows,
            self._forward,
            module=self.module,
            dimension=self.dimension,
            batch_tokens=self.batch_tokens,
            progress=progress,
        )

    def _forward(self, batch: TokenBatch) -> Tensor:
        # Without segment ids all are 0, as in DPR's own code, which made its published vectors.
        output = self.module(input_ids=batch.ids, attention_mask=batch.mask.long())
        vectors: Tensor = output.pooler_output  # (B, D)
        return vectors


class DprQueryEncoder(_DprEncoder):
    """q(x) by DPR's question encoder.

    Args:
        module: in eval mode unless the caller trains it.
        scale: s in p_η(z|x) ∝ exp(s·d(z)·q(x)).
        passage_fingerprint: of the passage encoder it was trained with; None where nothing says.
    """

    role = "query"

    def __init__(
        self,
        module: DPRQuestionEncoder,
        tokenizer: TextTokenizer,
        *,
        name: str,
        scale: float = SCALE,
        passage_fingerprint: str | None = None,
    ) -> None:
        super().__init__(module, tokenizer, name=name, scale=scale)
        self.passage_fingerprint = passage_fingerprint

    def encode_queries(self, x: Sequence[str]) -> Float[Tensor, "B D"]:
        """q(x), float32, differentiable unless grad mode is off.

        Raises: InputError for a question that is empty or longer than ``max_tokens``.
        """
        return self._encode(self._tokenizer.question_rows(question_texts(x)))

    def check_questions(self, x: Sequence[str]) -> None:
        """Raises: InputError as ``encode_queries``."""
        self._tokenizer.question_rows(question_texts(x))

    def pair_with(self, passage_fingerprint: str) -> None:
        """From now on its queries belong to the vectors of the passage encoder with this fingerprint."""
        self.passage_fingerprint = passage_fingerprint


class DprPassageEncoder(_DprEncoder):
    """d(z) by DPR's context encoder, from the pair (title, text); from the text alone where there is no title.

    Title and text are both segment 0, as in DPR's own code. The vectors that its authors published were made so; the
    data set wiki_dpr has those (nq), and others by the authors of RAG (multiset).

    Differs: transformers' tokenizers give the text segment 1, so that ``model(**tokenizer(title, text))`` is another
    vector.

    Args: as those of ``DprQueryEncoder``.
    """

    role = "passage"

    def __init__(
        self,
        module: DPRContextEncoder,
        tokenizer: TextTokenizer,
        *,
        name: str,
        scale: float = SCALE,
    ) -> None:
        super().__init__(module, tokenizer, name=name, scale=scale)
        settings = {"kind": "dpr", "title": "pair", "segments": "zero", "max_tokens": tokenizer.max_tokens}
        self._fingerprint = Fingerprint(
            module, architecture_of(module.config), definition=tokenizer.definition, settings=settings
        )

    @property
    def fingerprint(self) -> str:
        """Of its weights as they are now."""
        return self._fingerprint.value

    def encode_passages(self, passages: Sequence[Passage], *, progress: bool = False) -> Float[Tensor, "N D"]:
        """d(z), float32, on the CPU and without gradient; what lies beyond ``max_tokens`` is cut."""
        with frozen(self.module):
            return self.passage_vectors(passages, progress=progress).cpu()

    def passage_vectors(self, passages: Sequence[Passage], *, progress: bool = False) -> Float[Tensor, "N D"]:
        """d(z) as ``encode_passages`` gives it, but on the module's device, in the module's mode (train or eval), and
        differentiable unless grad mode is off."""
        rows = self._tokenizer.rows([(z.title, z.text) if z.title else z.text for z in passages])
        return self._encode(rows, progress=progress)


def load_module(
    folder: Path, config: PretrainedConfig, weights: Mapping[str, Tensor], *, role: Role, dtype: torch.dtype
) -> tuple[PreTrainedModel, TextTokenizer]:
    """The encoder of a role, and its tokenizer. Raises: ModelError if the folder does not hold it whole."""
    import transformers

    config, weights = _one_encoder(folder, config, weights, role=role)
    module = build(getattr(transformers, _NAMES[role][2]), config, weights, folder=folder, dtype=dtype)
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
