"""r(x, z): cross-encoders, which read question and passage together, by sentence-transformers or onnxruntime."""

from __future__ import annotations

import hashlib
import shutil
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from latentrag import io
from latentrag.errors import InputError, ModelError
from latentrag.pretrained import one_line, quiet, resolve
from latentrag.types import Passage

BATCH_SIZE = 32
MAX_TOKENS = 512
ROOM = 64
"""Tokens of them that a question leaves to the passage at least, where the reranker cuts passages alone."""
KEPT = 100_000
"""Logits that are kept for questions that come again: in training, in a fit, in a conversation."""
ONNX = ("model.onnx", "onnx/model.onnx", "onnx/model_quantized.onnx", "onnx/model_qint8_avx512_vnni.onnx")
WEIGHTS = "model.safetensors"

Pair = tuple[str, str]
Scorer = Callable[[Sequence[Pair]], np.ndarray]
"""Questions with texts of passages → raw logits (n,) float32."""


class CrossEncoderReranker:
    """Raw logits of a cross-encoder that gives one, for a passage's title and text after the question."""

    def __init__(
        self,
        folder: Path,
        scorer: Scorer,
        *,
        name: str,
        check_questions: Callable[[Sequence[str]], None] = lambda _: None,
    ) -> None:
        """
        Args:
            folder: its files, which ``save`` copies: it does not learn.
            check_questions: raises InputError for a question that is too long.
        """
        self.name, self._check_questions = name, check_questions
        self._folder, self._scorer = folder, scorer
        self._kept: OrderedDict[Pair, float] = OrderedDict()

    def scores(self, x: Sequence[str], passages: Sequence[Sequence[Passage]]) -> list[np.ndarray]:
        """As ``Reranker``. Raises: as ``check_questions``; ModelError for logits that are not finite."""
        self.check_questions(x)
        pairs = [
            [(question, f"{z.title}\n{z.text}" if z.title else z.text) for z in of_one]
            for question, of_one in zip(x, passages, strict=True)
        ]
        missing = list(dict.fromkeys(pair for of_one in pairs for pair in of_one if pair not in self._kept))
        logits = self._scorer(missing) if missing else np.zeros(0, np.float32)
        check_finite(self.name, [logits])
        found = dict(zip(missing, logits.tolist(), strict=True))
        known = {pair: found[pair] if pair in found else self._kept[pair] for of_one in pairs for pair in of_one}
        self._kept.update(found)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return [np.array([known[pair] for pair in of_one], np.float32) for of_one in pairs]

    def check_questions(self, x: Sequence[str]) -> None:
        """Raises: InputError for a question that leaves no room for a passage. One of torch cuts such a question."""
        self._check_questions(x)

    @cached_property
    def fingerprint(self) -> str:
        """What identifies its files by content: a copy has the same."""
        files = sorted(path for path in self._folder.rglob("*") if path.is_file())
        named = [(path.relative_to(self._folder), path) for path in files]
        kept = [(name, path) for name, path in named if not any(part.startswith(".") for part in name.parts)]
        digests = "".join(f"{name.as_posix()} {io.sha256_of_file(path)}\n" for name, path in kept)
        return hashlib.sha256(digests.encode()).hexdigest()[:16]

    def save(self, folder: Path) -> None:
        """Its files as they are."""
        shutil.copytree(self._folder, folder, ignore=shutil.ignore_patterns(".*"))


def check_finite(name: str, logits: Sequence[np.ndarray]) -> None:
    """Raises: ModelError if one of a reranker's logits is no finite number."""
    num_bad = sum(int((~np.isfinite(each)).sum()) for each in logits)
    if num_bad:
        raise ModelError(
            f"the reranker {name} gives no finite number for {num_bad} of {sum(map(len, logits))} pairs of question "
            "and passage; check its weights, or name another one (--reranker)"
        )


def load_reranker(source: str | PathLike[str], *, device: str) -> CrossEncoderReranker:
    """A cross-encoder from a folder or hub id: one of torch, or an ONNX file with tokenizer.json beside it.

    Raises: ModelError for what is none, cannot be opened, or gives more than one number.
    """
    folder = resolve(str(source))
    files = [name for name in ONNX if (folder / name).is_file()]
    if (folder / WEIGHTS).is_file():
        return CrossEncoderReranker(folder, _by_torch(folder, device), name=Path(source).name)
    if files:
        scorer, check = _by_onnx(folder, folder / files[0])
        return CrossEncoderReranker(folder, scorer, name=Path(source).name, check_questions=check)
    raise ModelError(f"{folder} holds neither {WEIGHTS} nor {ONNX[0]}; name the folder of a cross-encoder")


def _by_torch(folder: Path, device: str) -> Scorer:
    from sentence_transformers import CrossEncoder
    from torch.nn import Identity

    try:
        with quiet():
            model: Any = CrossEncoder(str(folder), device=device, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"{folder} cannot be opened as a reranker ({one_line(error)}); name a cross-encoder"
        ) from error
    if model.num_labels != 1:
        raise ModelError(f"{folder} gives {model.num_labels} numbers for a passage; a reranker gives one")

    def scores(pairs: Sequence[Pair]) -> np.ndarray:
        found: np.ndarray = model.predict(
            list(pairs), batch_size=BATCH_SIZE, activation_fn=Identity(), show_progress_bar=False, convert_to_numpy=True
        )
        return found.astype(np.float32)

    return scores


def _by_onnx(folder: Path, file: Path) -> tuple[Scorer, Callable[[Sequence[str]], None]]:
    """It cuts passages alone, so that a question must leave room: with a check of questions."""
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise ModelError(f"{file} needs onnxruntime; install latentrag[onnx]") from error
    from tokenizers import Tokenizer
    from torch import get_num_threads

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = get_num_threads()
    try:
        tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        counting: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        session: Any = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelError(
            f"{folder} cannot be opened as a reranker ({one_line(error)}); name a cross-encoder"
        ) from error
    tokenizer.enable_truncation(MAX_TOKENS, strategy="only_second")
    tokenizer.enable_padding()
    counting.no_truncation()
    counting.no_padding()
    wanted = {each.name for each in session.get_inputs()}

    def check(x: Sequence[str]) -> None:
        num_tokens = max((len(row.ids) for row in counting.encode_batch([(text, "") for text in x])), default=0)
        if num_tokens > MAX_TOKENS - ROOM:
            raise InputError(
                f"the question is too long for the reranker: {num_tokens} tokens, {MAX_TOKENS - ROOM} at most leave "
                "room for a passage; shorten it"
            )

    def scores(pairs: Sequence[Pair]) -> np.ndarray:
        order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
        found = np.empty(len(pairs), np.float32)
        for start in range(0, len(order), BATCH_SIZE):
            at = order[start : start + BATCH_SIZE]
            rows = tokenizer.encode_batch([pairs[i] for i in at])
            inputs = {
                "input_ids": np.array([row.ids for row in rows], np.int64),
                "attention_mask": np.array([row.attention_mask for row in rows], np.int64),
                "token_type_ids": np.array([row.type_ids for row in rows], np.int64),
            }
            (logits, *_) = session.run(None, {name: each for name, each in inputs.items() if name in wanted})
            if logits.size != len(at):
                raise ModelError(f"{folder} gives {logits.size // len(at)} numbers for a passage; a reranker gives one")
            found[at] = logits.reshape(-1)
        return found

    return scores, check
