"""Vectors like those of an encoder, made in blocks, and a memory of them.

What makes real ones hard or easy for an index is copied: a common direction, subjects within subjects, a spectrum that
falls as 1/√rank in a basis that is no axis, and norms that differ between topics and passages. A query is a passage's
direction with a quarter of its energy replaced: near its passage and others of the topic, and not one of them.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from latentrag.memory.table import Table
    from latentrag.types import Passage

SEED = 0
NUM_QUERIES = 200
ROWS_PER_BLOCK = 20_000
NORM = 10.0
PASSAGES_OF_AN_ARTICLE = 5
WORDS = "the of and in a to was is for as on by with from that were which his at it an are this first new"


@dataclass(frozen=True, slots=True)
class Vectors:
    """stored: (size, dimension) fp16, a memory map, or made whenever it is read. queries: (NUM_QUERIES, dimension)
    float32."""

    work: Path
    size: int
    dimension: int
    stored: "np.ndarray | _MadeAgain"
    queries: np.ndarray

    @classmethod
    def make(
        cls, work: Path, size: int, dimension: int, like: Path | None = None, *, made_again: bool = False
    ) -> "Vectors":
        """Those in the folder, or new ones. SystemExit if it has others.

        like: a memory whose vectors are repeated with noise, in place of invented ones; they give the dimension.
        made_again: whenever they are read; the disk has no file of them.
        """
        work.mkdir(parents=True, exist_ok=True)
        if like is not None:
            known = (work / "vectors.json").exists()  # those that are there came of what was learnt then
            dimension = np.load(work / "like.npy", "r").shape[1] if known else _Echo.learn(work, like)
        config: dict[str, object] = {"size": size, "dimension": dimension, "seed": SEED}
        config |= {"like": None if like is None else str(like), **({"made_again": True} if made_again else {})}
        if (work / "vectors.json").exists():
            if json.loads((work / "vectors.json").read_text("utf-8")) != config:
                raise SystemExit(f"{work} holds other vectors; name another folder")
            return cls.read(work)
        again = _MadeAgain(_world(work, size, dimension), size, dimension)
        (work / "vectors.f16").unlink(missing_ok=True)
        if not made_again:
            stored = np.memmap(work / "vectors.f16", np.float16, "w+", shape=(size, dimension))
            for number in range(again.num_blocks):
                start = number * ROWS_PER_BLOCK
                stored[start : start + ROWS_PER_BLOCK] = again.block(number)
            stored.flush()
        rng = np.random.default_rng((SEED, 2))
        np.save(work / "queries.npy", again.world.queries(again if made_again else stored, NUM_QUERIES, rng))
        write_whole(work / "vectors.json", json.dumps(config))  # last: without it all is made again
        return cls.read(work)

    @classmethod
    def read(cls, work: Path) -> "Vectors":
        config = json.loads((work / "vectors.json").read_text("utf-8"))
        size, dimension = config["size"], config["dimension"]
        stored: np.ndarray | _MadeAgain
        if config.get("made_again"):
            stored = _MadeAgain(_world(work, size, dimension), size, dimension)
        else:
            stored = np.memmap(work / "vectors.f16", np.float16, "r", shape=(size, dimension))
        return cls(work, size, dimension, stored, np.load(work / "queries.npy"))

    def blocks(self, first: int = 0) -> Iterator[np.ndarray]:
        """All vectors from one of them on, which begins a block; a file is read, not mapped, so that it does not count
        as resident."""
        if isinstance(self.stored, _MadeAgain):
            yield from map(self.stored.block, range(first // ROWS_PER_BLOCK, self.stored.num_blocks))
            return
        with (self.work / "vectors.f16").open("rb") as file:
            file.seek(first * self.dimension * 2)
            while data := file.read(ROWS_PER_BLOCK * self.dimension * 2):
                yield np.frombuffer(data, np.float16).reshape(-1, self.dimension)

    def more(self, num: int) -> np.ndarray:
        """Vectors of the same world that are not among them: (num, dimension) fp16."""
        return _world(self.work, self.size, self.dimension).passages(num, np.random.default_rng((SEED, 3)))

    def more_queries(self, num: int) -> np.ndarray:
        """Other queries than ``queries``, of the same kind: (num, dimension) float32."""
        world = _world(self.work, self.size, self.dimension)
        return world.queries(self.stored, num, np.random.default_rng((SEED, 5)))


def write_whole(file: Path, text: str) -> None:
    """Whole or not at all, also where this is killed."""
    scratch = file.with_name(f"{file.name}.new")
    scratch.write_text(text, "utf-8")
    scratch.replace(file)


def _world(work: Path, size: int, dimension: int) -> "_World | _Echo":
    return _Echo(np.load(work / "like.npy")) if (work / "like.npy").exists() else _World(size, dimension)


class _MadeAgain:
    """(size, dimension) fp16, each block made from its seed whenever it is read."""

    def __init__(self, world: "_World | _Echo", size: int, dimension: int) -> None:
        self.world, self.shape = world, (size, dimension)
        self.num_blocks = -(-size // ROWS_PER_BLOCK)

    def __len__(self) -> int:
        return self.shape[0]

    def block(self, number: int) -> np.ndarray:
        num = min(ROWS_PER_BLOCK, len(self) - number * ROWS_PER_BLOCK)
        return self.world.passages(num, np.random.default_rng((SEED, 1, number)))

    def __getitem__(self, positions: np.ndarray) -> np.ndarray:
        found = np.empty((len(positions), self.shape[1]), np.float16)
        number_of, within = np.divmod(positions, ROWS_PER_BLOCK)
        for number in np.unique(number_of):
            wanted = number_of == number
            found[wanted] = self.block(int(number))[within[wanted]]
        return found


class _Echo:
    """Real vectors (n, D) repeated, each time with a fifth of its norm as noise."""

    def __init__(self, real: np.ndarray) -> None:
        self._real = real

    @staticmethod
    def learn(work: Path, memory: Path) -> int:
        """Keep the vectors of a memory; their dimension."""
        from latentrag.memory.table import Table

        parts = [vectors for _, vectors in Table.open(memory).vectors()]
        np.save(work / "like.npy", np.concatenate(parts))
        return parts[0].shape[1]

    def _noisy(self, num: int, share: float, rng: np.random.Generator) -> np.ndarray:
        chosen = self._real[rng.integers(len(self._real), size=num)].astype(np.float32)
        other = self._real[rng.integers(len(self._real), size=num)].astype(np.float32)
        noise = rng.permuted(other, axis=1)  # as large as a vector, in no direction
        return chosen + share * noise

    def passages(self, num: int, rng: np.random.Generator) -> np.ndarray:
        return self._noisy(num, 0.2, rng).astype(np.float16)

    def queries(self, stored: "np.ndarray | _MadeAgain", num: int, rng: np.random.Generator) -> np.ndarray:  # noqa: ARG002
        return self._noisy(num, 0.5, rng)


class _World:
    def __init__(self, size: int, dimension: int) -> None:
        rng = np.random.default_rng((SEED, 0))
        self.dimension = dimension
        spectrum = np.arange(1, dimension + 1) ** -0.5
        self._spectrum = (spectrum / np.linalg.norm(spectrum)).astype(np.float32)
        self._turn = np.linalg.qr(rng.standard_normal((dimension, dimension)))[0].astype(np.float32)
        num_subjects = max(2, round(size**0.25))
        num_topics = max(4, round(size**0.6))
        subjects = 0.5 * self._noise(1, rng) + 0.5 * self._noise(num_subjects, rng)
        self._topics = subjects[rng.integers(num_subjects, size=num_topics)] + 0.6 * self._noise(num_topics, rng)
        self._norms = NORM * np.exp(0.05 * rng.standard_normal(num_topics))
        popularity = rng.pareto(1.5, num_topics) + 0.2
        self._popularity = popularity / popularity.sum()

    def _noise(self, num: int, rng: np.random.Generator) -> np.ndarray:
        """(num, D) of norm 1 on average."""
        return rng.standard_normal((num, self.dimension), dtype=np.float32) * self._spectrum

    def passages(self, num: int, rng: np.random.Generator) -> np.ndarray:
        topics = rng.choice(len(self._topics), num, p=self._popularity)
        directions = self._topics[topics] + 0.5 * self._noise(num, rng)
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        norms = self._norms[topics] * np.exp(0.05 * rng.standard_normal(num))
        return ((directions @ self._turn) * norms[:, None]).astype(np.float16)

    def queries(self, stored: "np.ndarray | _MadeAgain", num: int, rng: np.random.Generator) -> np.ndarray:
        near = stored[rng.integers(len(stored), size=num)].astype(np.float32)
        near /= np.linalg.norm(near, axis=1, keepdims=True)
        found: np.ndarray = NORM * (0.75**0.5 * near + 0.5 * self._noise(num, rng) @ self._turn)
        return found.astype(np.float32)


def _passage(number: int, text: str) -> "Passage":
    """As files are cut: several passages of a file, one after the other."""
    from latentrag.types import Passage

    article, place = divmod(number, PASSAGES_OF_AN_ARTICLE)
    start = place * 620 + article % 97  # no two files have their breaks in the same places
    source = f"articles/{article}.txt"
    return Passage(str(number), text, f"title {article}", source, start, start + len(text), origin=source)


def make_table(path: Path, blocks: Iterable[np.ndarray], *, first_id: int = 0, table: "Table | None" = None) -> None:
    """A memory of these vectors, in one commit; passages of 100 words, whose ids count from ``first_id``.

    blocks: (n, D) fp16 each, or one array of rows. table: add to this one.
    """
    from latentrag.memory import EncoderCard
    from latentrag.memory.table import Table

    stream = iter([blocks] if isinstance(blocks, np.ndarray) else blocks)
    first = next(stream)
    if table is None:
        table = Table.create(path, EncoderCard("made", "benchmark", first.shape[1], max_tokens=256, scale=1.0))
    rng = np.random.default_rng((SEED, 4, first_id))

    def batches() -> Iterator[object]:
        number = first_id
        for block in (first, *stream):
            for start in range(0, len(block), 1_000):
                part = block[start : start + 1_000]
                texts = [" ".join(words) for words in rng.choice(WORDS.split(), (len(part), 100)).tolist()]
                passages = [_passage(number + i, text) for i, text in enumerate(texts)]
                number += len(part)
                yield table.record_batch(passages, part)

    table.commit(table.stage(batches()), removed_ids=(), change="added")
