"""Keys and values of passages that a causal model has read, kept for the next question.

The prompt has the passage first, and every passage stands alone in its prompt: what the model computes for it does
not depend on the question, so keeping it changes no digit of any result.
"""

import hashlib
import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

Layers = list[Tensor]
"""For each layer (2, H, L, D): keys and values of the L tokens read."""


class PassageCache:
    """The most recently used passages in RAM, and if a folder is named all of them on disk. Several threads may use it.

    Args:
        max_bytes: of keys and values in RAM.
        folder: for files that outlive the process, one for each passage, unlimited in number.
        model: names the model that has read them, weights included; entries of another are never found.
    """

    def __init__(self, max_bytes: int, *, folder: str | os.PathLike[str] | None = None, model: str = "") -> None:
        self.max_bytes = max_bytes
        self.folder = None if folder is None else Path(folder)
        self.num_hits = 0
        self.num_misses = 0
        self.num_bytes = 0
        self._model = model
        self._entries: OrderedDict[bytes, Layers] = OrderedDict()
        self._lock = threading.Lock()
        self._is_writable = True
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, ids: Sequence[int]) -> Layers | None:
        """What was read of these tokens, or None."""
        key = self._key(ids)
        with self._lock:
            found = self._entries.get(key)
            if found is not None:
                self._entries.move_to_end(key)
        if found is None:
            found = self._from_disk(key)
            if found is not None:
                self._keep(key, found)
        with self._lock:
            self.num_hits += found is not None
            self.num_misses += found is None
        return found

    def put(self, ids: Sequence[int], layers: Layers) -> None:
        """Keep what was read of these tokens. A folder that cannot be written is warned of, and left alone then."""
        key = self._key(ids)
        self._keep(key, layers)
        if self.folder is not None and self._is_writable:
            self._to_disk(key, layers)

    def forget(self) -> None:
        """Drop what is in RAM: the model that has read it is no more."""
        with self._lock:
            self._entries.clear()
            self.num_bytes = 0

    def _keep(self, key: bytes, layers: Layers) -> None:
        size = _num_bytes(layers)
        with self._lock:
            if key in self._entries or size > self.max_bytes:
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

    def _path(self, key: bytes) -> Path:
        assert self.folder is not None
        name = key.hex()
        return self.folder / name[:2] / f"{name}.safetensors"

    def _from_disk(self, key: bytes) -> Layers | None:
        if self.folder is None:
            return None
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self._path(key)
        try:
            stored = load_file(path)
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError):
            return None  # damaged: it is read again and written anew
        return [stored[str(number)] for number in range(len(stored))]

    def _to_disk(self, key: bytes, layers: Layers) -> None:
        from safetensors.torch import save_file

        path = self._path(key)
        scratch = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(exist_ok=True)
            save_file({str(number): layer.contiguous() for number, layer in enumerate(layers)}, scratch)
            scratch.replace(path)
        except OSError as error:
            with suppress(OSError):
                scratch.unlink(missing_ok=True)
            self._is_writable = False
            warnings.warn(
                f"{self.folder} cannot be written ({error.strerror or error}), so nothing more is kept there; make "
                "room, or name another folder",
                stacklevel=2,
            )


def weights_key(weights: Mapping[str, Tensor]) -> str:
    """A name for a model that changes with any of its weights or their dtype."""
    digest = hashlib.blake2b(digest_size=20)
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _num_bytes(layers: Layers) -> int:
    return sum(layer.numel() * layer.element_size() for layer in layers)
