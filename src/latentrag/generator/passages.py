"""What a causal model reads of passages: keys and values that do not depend on the question, read once and kept for the
next one.

The prompt has the passage first, and every passage stands alone in its prompt, so that keeping what the model computes
for it changes no digit of any result.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import nullcontext, suppress
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from latentrag import io
from latentrag.generator.caches import in_a_row
from latentrag.generator.gold import OutputHead
from latentrag.generator.probe import ERRORS
from latentrag.generator.tokens import padded
from latentrag.generator.tuning import MARK, without_lora
from latentrag.options import PASSAGE_FOLDER_BYTES

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

_READ_TOKENS = 4096
"""Tokens of passages read in one forward pass on an accelerator, padding included."""
_ROW_TOKENS = 640
"""Tokens of passages in one pass on a processor, in one row without padding: more are hardly quicker."""
SLICE_TOKENS = 192
"""Tokens of passages after which a slice ends, where each is read alone."""

_HEX = "[0-9a-f]"
_FILES = f"{_HEX * 2}/{_HEX * 40}.safetensors*"
"""Kept passages on disk, unfinished ones too. What else lies in their folder is neither counted nor deleted."""

_NAMES_ONLY = {"_name_or_path", "architectures", "transformers_version"}
"""What a configuration says that changes no number."""

Layers = list[Tensor]
"""For each layer (2, H, L, D): keys and values of the L tokens read."""


class PassageCache:
    """The passages used last: in memory, and if a folder is named on disk too. Several threads may use it.

    Args:
        max_bytes: of keys and values in memory.
        device: whose memory that is; None: RAM.
        folder: for files that outlive the process, one for each passage. Several processes may share it.
        max_folder_bytes: the files used longest ago are deleted before the folder gets larger than this.
        model: names the model that has read them, weights included; entries of another are never found.
    """

    def __init__(
        self,
        max_bytes: int,
        *,
        device: torch.device | None = None,
        folder: str | os.PathLike[str] | None = None,
        max_folder_bytes: int = PASSAGE_FOLDER_BYTES,
        model: str = "",
    ) -> None:
        self.max_bytes = max_bytes
        self.device = device or torch.device("cpu")
        self.num_hits = 0
        self.num_misses = 0
        self.num_bytes = 0
        self._model = model
        self._entries: OrderedDict[bytes, Layers] = OrderedDict()
        self._lock = threading.Lock()
        self._files = None if folder is None else _Files(Path(folder), max_folder_bytes)

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, ids: Sequence[int]) -> Layers | None:
        """What was read of these tokens, or None."""
        key = self._key(ids)
        with self._lock:
            layers = self._entries.get(key)
            if layers is not None:
                self._entries.move_to_end(key)
        if layers is None and self._files is not None:
            layers = self._files.read(key)
            if layers is not None:
                self._keep(key, layers)
        with self._lock:
            self.num_hits += layers is not None
            self.num_misses += layers is None
        return layers

    def put(self, ids: Sequence[int], layers: Layers) -> None:
        """Keep what was read of these tokens. If the folder cannot be written, one warning says so, and nothing more is
        written there."""
        key = self._key(ids)
        self._keep(key, layers)
        if self._files is not None:
            self._files.write(key, layers)

    def forget(self) -> None:
        """Drop what is in memory: the model that has read it is no more."""
        with self._lock:
            self._entries.clear()
            self.num_bytes = 0

    def _keep(self, key: bytes, layers: Layers) -> None:
        size = _num_bytes(layers)
        if size > self.max_bytes:
            return
        layers = [layer.to(self.device) for layer in layers]
        with self._lock:
            if key in self._entries:
                return
            while self.num_bytes + size > self.max_bytes:
                _, oldest = self._entries.popitem(last=False)
                self.num_bytes -= _num_bytes(oldest)
            self._entries[key] = layers
            self.num_bytes += size

    def _key(self, ids: Sequence[int]) -> bytes:
        digest = hashlib.blake2b(self._model.encode(), digest_size=20)
        digest.update(b"".join(number.to_bytes(4, "little") for number in ids))
        return digest.digest()


class _Files:
    """Passages on disk, a file each. A file's time is when it was used last.

    The folder is looked through at the first write, and again after a twentieth of what it may hold was written. Then
    it is brought below nineteen twentieths, so that one process never exceeds the bound; n processes by (n − 1)/20 of
    it at most.

    Files are forced to the disk before they get their names: after a power failure a name with zeros behind it could
    pass for keys and values, and would change answers without a word. It takes a hundredth of reading the passage.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self._unchecked_bytes: int | None = None  # written since the folder was looked through; None: it was not
        self._is_writable = True
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)

    def read(self, key: bytes) -> Layers | None:
        """None for what is not there, or damaged: it is read by the model again, and written anew."""
        path = self._path(key)
        try:
            stored = load_file(path)
        except (SafetensorError, OSError):
            return None
        with suppress(OSError):
            os.utime(path)
        return [stored[str(number)] for number in range(len(stored))]

    def write(self, key: bytes, layers: Layers) -> None:
        size = _num_bytes(layers)
        if not self._is_writable or size > self.max_bytes:
            return
        path = self._path(key)
        try:
            self._make_room(size)
            path.parent.mkdir(exist_ok=True)
            with io.replacing_file(path, shared=True) as scratch:
                save_file({str(number): layer.clone() for number, layer in enumerate(layers)}, scratch)
        except (OSError, SafetensorError) as error:
            self._is_writable = False
            reason = getattr(error, "strerror", None) or error
            warnings.warn(
                f"{self.folder} cannot be written ({reason}), so nothing more is kept there; make "
                "room, or name another folder",
                stacklevel=2,
            )

    def _make_room(self, size: int) -> None:
        with self._lock:
            step = self.max_bytes // 20
            if self._unchecked_bytes is not None and self._unchecked_bytes + size <= step:
                self._unchecked_bytes += size
                return
            self._unchecked_bytes = size
            files = sorted(self._sizes())
            total = sum(of_file for _, of_file, _ in files)
            for _, of_file, path in files:
                if total + max(size, step) <= self.max_bytes:
                    return
                path.unlink(missing_ok=True)
                total -= of_file

    def _sizes(self) -> list[tuple[float, int, Path]]:
        """When each file was used last, its bytes, and where it is."""
        files = []
        for path in self.folder.glob(_FILES):
            with suppress(OSError):  # another process has deleted it
                state = path.stat()
                files.append((state.st_mtime, state.st_size, path))
        return files

    def _path(self, key: bytes) -> Path:
        name = key.hex()
        return self.folder / name[:2] / f"{name}.safetensors"


def model_key(weights: Mapping[str, Tensor], config: Mapping[str, object]) -> str:
    """A name for a model that changes with any of its weights, their dtype, and what its configuration says of how they
    are used."""
    said = {name: value for name, value in config.items() if name not in _NAMES_ONLY}
    digest = hashlib.blake2b(json.dumps(said, sort_keys=True, default=str).encode(), digest_size=20)
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _in_one_piece(layers: Layers) -> Layers:
    """A copy of each, next to each other in memory: what is kept for long in many small pieces, between others that are
    soon free again, would leave holes there."""
    whole = torch.cat([layer.flatten() for layer in layers])
    parts = whole.split([layer.numel() for layer in layers])
    return [part.view(layer.shape) for part, layer in zip(parts, layers, strict=True)]


def _num_bytes(layers: Layers) -> int:
    return sum(layer.numel() * layer.element_size() for layer in layers)


class PassageReader:
    """Reads passages, each alone in its context.

    Args:
        without_adapter: the model's adapter leaves passages alone (scope "question").

    On a processor several passages may stand in one row of one pass (``in_a_row``), each seeing itself alone: what is
    kept of one is the same, bit for bit, as if nothing was read beside it. The first such pass is checked for that.

    ``cache`` keeps what was read, until a weight that reads it changes in place (an optimiser's step). One with a
    folder is for weights that do not change.

    Attributes:
        in_a_row: whether that may be tried, because the model's attention is ours (``shared_context``).
    """

    def __init__(self, model: PreTrainedModel, head: OutputHead, *, pad_id: int, without_adapter: bool) -> None:
        self._model = model
        self._head = head
        self._pad_id = pad_id
        self._without_adapter = without_adapter
        self.cache: PassageCache | None = None
        self.in_a_row = False
        self._is_checked = False
        self._weights = self._state_of_weights()

    def past(self, rows: Sequence[Sequence[int]], *, recurring: bool) -> tuple[Cache, Tensor]:
        """The cache of these passages, left-padded, and its mask (R, P). Passages that are not kept are read."""
        slices = self.reading(rows, recurring=recurring)
        while True:
            try:
                next(slices)
            except StopIteration as end:
                found: tuple[Cache, Tensor] = end.value
                return found

    @torch.no_grad()
    def reading(self, rows: Sequence[Sequence[int]], *, recurring: bool) -> Generator[None, None, tuple[Cache, Tensor]]:
        """``past``, in slices of some passages."""
        from transformers import DynamicCache

        if self.cache is not None and (now := self._state_of_weights()) != self._weights:
            self.cache.forget()
            self._weights = now
        known = yield from self._layers_of({tuple(row) for row in rows}, self.cache if recurring else None)
        cache, width = DynamicCache(), max(map(len, rows))
        mask = torch.arange(width) >= width - torch.tensor([len(row) for row in rows])[:, None]
        if width == 0:
            return cache, mask.to(self._model.device)
        for number, layer in enumerate(known[max(map(tuple, rows), key=len)]):
            whole = layer.new_zeros(2, len(rows), layer.shape[1], width, layer.shape[3])
            for r, row in enumerate(rows):
                if row:
                    whole[:, r, :, width - len(row) :] = known[tuple(row)][number]
            cache.update(*whole, number)
        return cache, mask.to(self._model.device)

    def _state_of_weights(self) -> int:
        """Changes with every change in place of a weight that reads passages."""
        named = self._model.named_parameters()
        return sum(
            weight._version  # noqa: SLF001
            for name, weight in named
            if not (self._without_adapter and MARK in name)
        )

    def _layers_of(
        self, rows: Collection[tuple[int, ...]], cache: PassageCache | None
    ) -> Generator[None, None, dict[tuple[int, ...], Layers]]:
        layers_of: dict[tuple[int, ...], Layers] = {}
        unread: list[tuple[int, ...]] = []
        for row in sorted(filter(None, rows), key=lambda row: (-len(row), row)):
            kept = cache.get(row) if cache is not None else None
            if kept is None:
                unread.append(row)
            else:
                layers_of[row] = [layer.to(self._model.device) for layer in kept]
        num_tokens = 0
        while unread:
            size = self._num_at_once(unread)
            batch, unread = unread[:size], unread[size:]
            fresh = self._read(batch)
            layers_of.update(fresh)
            if cache is not None:
                for row, layers in fresh.items():
                    cache.put(row, layers)
            num_tokens += sum(map(len, batch))
            if num_tokens >= SLICE_TOKENS:
                num_tokens = 0
                yield
        return layers_of

    def _num_at_once(self, rows: Sequence[tuple[int, ...]]) -> int:
        """How many of these rows, longest first, are read in the next pass; 1 or more."""
        if self._model.device.type != "cpu":
            return max(1, _READ_TOKENS // len(rows[0]))
        if not self.in_a_row or len(rows[0]) >= self._seen_at_most():
            return 1
        return max(1, sum(total <= _ROW_TOKENS for total in accumulate(map(len, rows))))

    def _seen_at_most(self) -> float:
        """Tokens from which on some layers see the last ones only."""
        config = self._model.config.get_text_config(decoder=True)
        windows = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
        return min((window for window in windows if window), default=math.inf)

    def _read(self, batch: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], Layers]:
        if self._model.device.type != "cpu" or len(batch) == 1:
            return self._read_apart(batch)
        try:
            found = self._read_in_a_row(batch)
        except ERRORS:  # a model that cannot do with positions that begin anew
            found = {}
        if not self._is_checked:
            self._is_checked = True
            alone = self._read_apart(batch[-1:])[batch[-1]]
            self.in_a_row = batch[-1] in found and all(map(torch.equal, alone, found[batch[-1]]))
        if self.in_a_row:
            return found
        return {row: self._read_apart([row])[row] for row in batch}

    def _read_apart(self, batch: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], Layers]:
        """Each in a row of its own."""
        from transformers import DynamicCache

        ids, mask = padded(batch, pad=self._pad_id)
        cache = self._run(ids, mask, DynamicCache())
        layers = [torch.stack([layer.keys, layer.values]) for layer in cache.layers]
        return {row: _in_one_piece([layer[:, r, :, : len(row)] for layer in layers]) for r, row in enumerate(batch)}

    def _read_in_a_row(self, batch: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], Layers]:
        ids = torch.tensor([[token for row in batch for token in row]])
        lengths = [len(row) for row in batch]
        positions = torch.cat([torch.arange(length) for length in lengths])[None]
        cache = self._run(ids, torch.ones_like(ids), in_a_row(lengths), position_ids=positions)
        parts = [torch.stack([layer.keys[0], layer.values[0]]).split(lengths, dim=2) for layer in cache.layers]
        return {row: _in_one_piece([of_layer[r] for of_layer in parts]) for r, row in enumerate(batch)}

    def _run(self, ids: Tensor, mask: Tensor, cache: Cache, **positions: Tensor) -> Cache:
        """The cache after a pass."""
        with without_lora(self._model) if self._without_adapter else nullcontext():
            # The output layer sees one position; padding comes last, where no token attends to it.
            _, output = self._head.run(
                input_ids=ids.to(self._model.device),
                attention_mask=mask.long().to(self._model.device),
                past_key_values=cache,
                use_cache=True,
                **positions,
            )
        read: Cache = output.past_key_values
        return read
