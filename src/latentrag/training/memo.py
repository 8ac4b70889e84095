"""log p_θ(y|x,z) kept while the generator stays as it is: epochs after the first ask it for new passages only.

What was kept is saved with a checkpoint: a run that was interrupted goes on with the same digits.
"""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from latentrag.protocols import TrainableGenerator
from latentrag.types import Latent, LatentLists, Targets

_KEY_BYTES = 16


class ScoreMemo:
    """Scores of (x, y, z) by one generator whose weights do not change."""

    def __init__(self) -> None:
        self._scores: dict[bytes, bytes] = {}

    def __len__(self) -> int:
        return len(self._scores)

    @torch.no_grad()
    def log_p_theta(
        self,
        generator: TrainableGenerator,
        x: Sequence[str],
        y: Sequence[str],
        latents: LatentLists,
        targets: Targets,
    ) -> Tensor:
        """(B, K, T) as the generator gives it, without gradient; it is asked for what it was not asked before."""
        keys = [[_key(x[b], y[b], z) for z in of_one] for b, of_one in enumerate(latents)]
        wanted = {key: (b, k) for b, row in enumerate(keys) for k, key in enumerate(row) if key not in self._scores}
        lengths = targets.mask.sum(dim=1).tolist()
        if wanted:
            questions = torch.tensor([b for b, _ in wanted.values()], device=targets.ids.device)
            prepared = generator.prepare(
                [x[b] for b, _ in wanted.values()], [[latents[b][k]] for b, k in wanted.values()]
            )
            asked = Targets(targets.ids[questions], targets.mask[questions])
            found = generator.log_p_theta(prepared, asked)[:, 0].float().cpu().numpy()  # (n, T)
            for row, (key, (b, _)) in zip(found, wanted.items(), strict=True):
                self._scores[key] = row[: lengths[b]].tobytes()
        scores = np.zeros((len(x), len(keys[0]), targets.ids.shape[1]), np.float32)
        for b, of_question in enumerate(keys):
            for k, key in enumerate(of_question):
                scores[b, k, : lengths[b]] = np.frombuffer(self._scores[key], np.float32)
        return torch.from_numpy(scores).to(targets.ids.device)

    def tensors(self) -> dict[str, Tensor]:
        """All of it, for a checkpoint."""
        keys = np.frombuffer(b"".join(self._scores), np.uint8).reshape(-1, _KEY_BYTES)
        values = np.frombuffer(b"".join(self._scores.values()), np.float32)
        lengths = np.array([len(value) // 4 for value in self._scores.values()], np.int32)
        return {name: torch.tensor(each) for name, each in (("keys", keys), ("lengths", lengths), ("values", values))}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """What ``tensors`` gave."""
        ends = tensors["lengths"].long().cumsum(dim=0).tolist()
        keys, values = tensors["keys"].numpy(), tensors["values"].numpy()
        starts = [0, *ends][:-1]
        self._scores = {
            key.tobytes(): values[start:end].tobytes() for key, start, end in zip(keys, starts, ends, strict=True)
        }


def _key(x: str, y: str, z: Latent) -> bytes:
    digest = hashlib.blake2b(digest_size=_KEY_BYTES)
    for text in (x, y, *(part for passage in z for part in (passage.id, passage.title, passage.text))):
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.digest()
