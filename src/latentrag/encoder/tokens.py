"""Texts → token ids → vectors: without a silent cut of a question, in batches of similar length, in the order given.

The tokenizer is taken from tokenizer.json as it stands (or from BERT's vocab.txt). The classes that
transformers would choose by name are not used: they rebuild the normaliser from tokenizer_config.json, and
its DPR classes lower-case the text of a cased model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from latentrag import io
from latentrag.errors import InputError, ModelError
from latentrag.pretrained import one_line, quiet, read_object

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from tokenizers import Encoding, Tokenizer
    from torch import Tensor
    from transformers import PreTrainedModel

SLICE = 1024
"""Texts tokenised in one call: the tokenizer's own records are much larger than the ids that are kept."""

UNLIMITED = 10**9
"""transformers writes 10^30 as model_max_length where a tokenizer sets no limit."""

POSITIONS = ("position_embeddings", "wpe")
"""What tables of absolute positions are called."""

BATCH_TOKENS = 4096
"""Tokens in a batch on an accelerator, padding included."""

PROCESSOR_BATCH_TOKENS = 1024
"""The same on a processor, where what a layer computes should stay in its caches: a fifth faster than 4,096 in
float32, a tenth in bfloat16 (all-MiniLM-L6-v2)."""


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One text. ``type_ids`` is 0 for the first text of a pair and 1 for the second."""

    ids: Int[Tensor, " S"]
    type_ids: Int[Tensor, " S"]

    def __len__(self) -> int:
        return len(self.ids)


class TextTokenizer:
    """A tokenizer with a fixed length limit, special tokens included.

    Args:
        backend: its truncation is set here and never changed again, so that threads may share it.
        max_tokens: how many tokens the model reads.
        num_vectors: how many token ids the model has vectors for; special tokens beyond, such as Gemma's for images,
            are left out where a text has them. None: for all.
        sidecars: tokenizer_config.json and special_tokens_map.json by file name, kept for ``save`` only.
    """

    def __init__(
        self,
        backend: Tokenizer,
        *,
        max_tokens: int,
        sidecars: Mapping[str, Mapping[str, object]],
        num_vectors: int | None = None,
    ) -> None:
        backend.no_padding()
        backend.enable_truncation(max_tokens)
        self._backend = backend
        self._sidecars = sidecars
        self.max_tokens = max_tokens
        self._num_vectors = num_vectors or UNLIMITED

    @property
    def num_ids(self) -> int:
        """One more than the largest token id of the vocabulary, special tokens that were added to it aside."""
        return max(self._backend.get_vocab(with_added_tokens=False).values()) + 1

    @property
    def definition(self) -> str:
        """The tokenizer as canonical JSON, without the length limit and the padding."""
        content: dict[str, Any] = json.loads(self._backend.to_str())
        content["truncation"] = content["padding"] = None
        return json.dumps(content, sort_keys=True)

    def rows(self, texts: Sequence[str | tuple[str, str]]) -> list[TokenRow]:
        """Texts, or pairs of texts, each cut to ``max_tokens`` (of a pair, the longer text is cut first)."""
        readable = [
            _readable(text) if isinstance(text, str) else (_readable(text[0]), _readable(text[1])) for text in texts
        ]
        return [self._row(encoding) for encoding in self._encodings(readable)]

    def question_rows(self, texts: Sequence[str]) -> list[TokenRow]:
        """Questions, whole.

        Raises: InputError for one that is longer than ``max_tokens``.
        """
        rows = []
        num_special = self._backend.num_special_tokens_to_add(is_pair=False)
        for i, encoding in enumerate(self._encodings(texts)):
            num_tokens = num_special + _num_tokens(encoding, num_special)
            if num_tokens > self.max_tokens:
                raise InputError(
                    f"question {i + 1} of {len(texts)} has {num_tokens} tokens but the query encoder reads "
                    f"{self.max_tokens}; shorten it"
                )
            rows.append(self._row(encoding))
        return rows

    def num_tokens(self, *texts: str) -> int:
        """How many tokens a text or a pair of texts has if nothing is cut, special tokens included."""
        encodings = (self._backend.encode(_readable(text), add_special_tokens=False) for text in texts)
        num_special = self._backend.num_special_tokens_to_add(is_pair=len(texts) == 2)
        return num_special + sum(_num_tokens(encoding) for encoding in encodings)

    def num_leading_tokens(self, prompt: str) -> int:
        """Tokens at the start of a text that belong to ``prompt`` or precede it."""
        if not prompt:
            return 0
        encoding = self._backend.encode(prompt)
        return len(encoding.ids) - encoding.special_tokens_mask[-1]

    def save(self, folder: Path) -> None:
        """tokenizer.json and its configuration, as transformers lays them out."""
        (folder / "tokenizer.json").write_text(json.dumps(json.loads(self.definition), ensure_ascii=False), "utf-8")
        for name, content in self._sidecars.items():
            (folder / name).write_text(json.dumps(content, indent=2), "utf-8")

    def _row(self, encoding: Encoding) -> TokenRow:
        ids, type_ids = torch.tensor([encoding.ids, encoding.type_ids], dtype=torch.int32)  # (2, S)
        known = ids < self._num_vectors
        return TokenRow(ids[known], type_ids[known])

    def _encodings(self, texts: Sequence[str | tuple[str, str]]) -> Iterator[Encoding]:
        for start in range(0, len(texts), SLICE):
            yield from self._backend.encode_batch_fast(list(texts[start : start + SLICE]))


def load_tokenizer(folder: Path, module: PreTrainedModel, *, max_seq_length: int | None = None) -> TextTokenizer:
    """The tokenizer that lies in a model's folder.

    ``max_tokens`` is the smallest of ``max_seq_length``, the tokenizer's own limit and the model's positions.

    Raises: ModelError if there is none, it is broken or does not fit the model, or nothing sets a limit.
    """
    sidecars = {
        name: read_object(folder / name)
        for name in ("tokenizer_config.json", "special_tokens_map.json")
        if (folder / name).exists()
    }
    has_json = (folder / "tokenizer.json").exists()
    default = {"tokenizer_class": "PreTrainedTokenizerFast" if has_json else "BertTokenizer"}
    config = sidecars.setdefault("tokenizer_config.json", default)
    config.pop("auto_map", None)  # it would name Python code that is not saved with the model
    limits = (max_seq_length, config.get("model_max_length"), position_limit(module))
    known = [int(limit) for limit in limits if limit is not None and limit < UNLIMITED]
    if not known:
        raise ModelError(
            f"{folder} does not say how many tokens the model reads; set model_max_length in tokenizer_config.json"
        )
    backend = _tokenizer_json(folder) if has_json else _bert_vocabulary(folder)
    num_embeddings = module.get_input_embeddings().num_embeddings
    tokenizer = TextTokenizer(backend, max_tokens=min(known), sidecars=sidecars, num_vectors=num_embeddings)
    if tokenizer.num_ids > num_embeddings:
        raise ModelError(
            f"{folder} has a tokenizer of {tokenizer.num_ids} ids, but the model has {num_embeddings}; "
            "needed the tokenizer the model was trained with"
        )
    return tokenizer


def position_limit(module: nn.Module) -> int | None:
    """How many tokens a model's table of absolute positions has room for; None if it has no such table.

    RoBERTa's family counts positions from padding_idx + 1, so that its 514 rows are good for 512 tokens.
    """
    for name, child in module.named_modules():
        if isinstance(child, nn.Embedding) and name.rpartition(".")[2] in POSITIONS:
            reserved = 0 if child.padding_idx is None else child.padding_idx + 1
            return child.num_embeddings - reserved
    return None


def _tokenizer_json(folder: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    try:
        return Tokenizer.from_str(path.read_text("utf-8"))
    except Exception as error:  # the library raises nothing narrower
        raise ModelError(f"{path} is no tokenizer ({one_line(error)}); fetch the file again") from error


def _bert_vocabulary(folder: Path) -> Tokenizer:
    from transformers import BertTokenizer

    path = folder / "vocab.txt"
    needed = {"[UNK]", "[CLS]", "[SEP]"}
    if not path.exists():
        raise ModelError(f"{folder} has no tokenizer; put the model's tokenizer.json (or BERT's vocab.txt) there")
    if not needed <= set(path.read_text("utf-8").splitlines()):
        raise ModelError(f"{path} is not a vocabulary of BERT's kind; put the model's tokenizer.json beside it")
    with quiet():
        backend: Tokenizer = BertTokenizer.from_pretrained(str(folder), local_files_only=True).backend_tokenizer
    return backend


def _num_tokens(encoding: Encoding, num_special: int = 0) -> int:
    """Of the whole text, without the special tokens that each piece of it has."""
    # A text that was cut carries the rest in pieces, each with its own special tokens.
    return sum(len(piece.ids) - num_special for piece in (encoding, *encoding.overflowing))


def _readable(text: str) -> str:
    """Half a surrogate pair, which JSON can hold and UTF-8 cannot, becomes a question mark."""
    return text.encode(errors="replace").decode()


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Rows padded on the right. mask: True = real token."""

    ids: Int[Tensor, "B S"]
    type_ids: Int[Tensor, "B S"]
    mask: Bool[Tensor, "B S"]


def encode_rows(
    rows: Sequence[TokenRow],
    forward: Callable[[TokenBatch], Float[Tensor, "B D"]],
    *,
    module: PreTrainedModel,
    dimension: int,
    batch_tokens: int | None = None,
    progress: bool = False,
) -> Float[Tensor, "N D"]:
    """(N, D) float32, row i for ``rows[i]``; differentiable wherever ``forward`` is.

    Args:
        module: the transformer inside ``forward``, for its device and padding.
        dimension: D.
        batch_tokens: tokens in a batch, padding included; None: as many as suit the device.
    """
    device, pad_id = module.device, module.config.pad_token_id or 0
    return encode_batches(
        [len(row) for row in rows],
        lambda indices: forward(_padded([rows[i] for i in indices], pad_id, device)),
        device=device,
        dimension=dimension,
        batch_tokens=batch_tokens,
        progress=progress,
    )


def encode_batches(
    lengths: Sequence[int],
    forward: Callable[[Sequence[int]], Float[Tensor, "B D"]],
    *,
    device: torch.device,
    dimension: int,
    batch_tokens: int | None = None,
    progress: bool = False,
) -> Float[Tensor, "N D"]:
    """As ``encode_rows``, of texts that ``forward`` knows by their places and that have these lengths in tokens."""
    if batch_tokens is None:
        batch_tokens = PROCESSOR_BATCH_TOKENS if device.type == "cpu" else BATCH_TOKENS
    parts = [torch.empty((0, dimension), device=device)]
    order: list[int] = []
    with io.progress("encoding passages", len(lengths), wanted=progress) as bar:
        for indices in length_sorted_batches(lengths, batch_tokens):
            parts.append(forward(indices).float())  # (B, D)
            order += indices
            bar.advance(len(indices))
    return torch.cat(parts)[torch.tensor(order, dtype=torch.int64, device=device).argsort()]  # (N, D)


def length_sorted_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Indices of ``lengths`` in batches, longest first, each of at most ``batch_tokens`` with its padding.

    A longer row has a batch to itself. Longest first, so that memory runs out at once or never.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= batch_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def _padded(rows: Sequence[TokenRow], pad_id: int, device: torch.device) -> TokenBatch:
    lengths = torch.tensor([len(row) for row in rows])
    ids = pad_sequence([row.ids for row in rows], batch_first=True, padding_value=pad_id)  # (B, S)
    type_ids = pad_sequence([row.type_ids for row in rows], batch_first=True)  # (B, S)
    mask = torch.arange(ids.shape[1]) < lengths[:, None]  # (B, S)
    return TokenBatch(ids.long().to(device), type_ids.long().to(device), mask.to(device))


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Within: eval mode and no gradient, also for a model that is in the middle of training."""
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        # Not inference_mode: its tensors could not meet a query that needs a gradient.
        with torch.no_grad():
            yield
    finally:
        for child, training in modes:
            child.training = training
