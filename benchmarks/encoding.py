"""Encoding of passages beside sentence-transformers: time, peak memory, and how far the vectors are apart.

    python -m benchmarks.encoding [--model demo] [--memory demo] [--limit 1000] [--runs 5] [--json FILE]

Both sides encode the same texts with the same weights: passages of a memory, as our encoder writes them (title, line
break, text), spread evenly over it. ``theirs`` is ``SentenceTransformer.encode`` with its own settings (batches of 32,
sorted by length), ``ours`` is ``encode_passages``; each in float32 and in bfloat16. Every measurement is a process of
its own with one thread; the ways take turns.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.turns import in_turns, measured, parser, report

WAYS = ["theirs float32", "ours float32", "theirs bfloat16", "ours bfloat16"]
RATIOS = [
    ("theirs float32", "ours float32"),
    ("theirs bfloat16", "ours bfloat16"),
    ("theirs float32", "ours bfloat16"),
]


@dataclass(frozen=True, slots=True)
class Config:
    """limit: passages. batch_tokens: of ours; 0: as the encoder has it. vectors: the folder for each way's."""

    model: str = "demo"
    memory: str = "demo"
    limit: int = 1000
    batch_tokens: int = 0
    vectors: str = ""


def passages(config: Config) -> list[Any]:
    """As many as asked for, evenly spread over the memory."""
    from latentrag.assemble import open_memory

    memory = open_memory(config.memory)
    step = max(1, len(memory) // config.limit)
    return list(islice(memory.passages(), 0, None, step))[: config.limit]


def theirs(config: Config, dtype: str) -> Callable[[list[Any]], Any]:
    import torch
    from sentence_transformers import SentenceTransformer

    from latentrag.encoder.sentence_module import passage_text

    model = SentenceTransformer(folder(config.model), device="cpu", model_kwargs={"dtype": getattr(torch, dtype)})
    return lambda batch: model.encode(
        [passage_text(z.title, z.text) for z in batch], convert_to_numpy=False, convert_to_tensor=True
    )


def ours(config: Config, dtype: str) -> Callable[[list[Any]], Any]:
    from latentrag.encoder import load_passage_encoder
    from latentrag.place import Places

    place = Places.of("cpu", number_format=dtype).generator
    encoder: Any = load_passage_encoder(folder(config.model), place=place)
    encoder.batch_tokens = config.batch_tokens or None
    return encoder.encode_passages


def folder(model: str) -> str:
    """Where the passage encoder of a model lies, in sentence-transformers' layout."""
    from latentrag.addresses import model_place

    place = Path(model_place(model))
    own = (place / name for name in ("passage_encoder", "query_encoder"))
    return str(next((each for each in own if each.is_dir()), place))


def measure(way: str, config: Config) -> dict[str, Any]:
    """In a process of its own."""
    import numpy as np

    side, dtype = way.split()
    every = passages(config)
    encode = (theirs if side == "theirs" else ours)(config, dtype)
    vectors: list[Any] = []
    found = measured(lambda: vectors.append(encode(every)), lambda: encode(every[:4]))
    np.save(_file(config, way), vectors[0].float().cpu().numpy())
    return {**found, "found": []}


def _file(config: Config, way: str) -> Path:
    return Path(config.vectors) / f"{way.replace(' ', '-')}.npy"


def cosines(config: Config, ways: list[str]) -> Iterator[tuple[str, str, float, float]]:
    """Of each way's vectors with those of the first: the lowest, and the mean."""
    import numpy as np

    rows = {way: np.load(_file(config, way)).astype(np.float64) for way in ways}
    rows = {way: each / np.linalg.norm(each, axis=1, keepdims=True) for way, each in rows.items()}
    for way in ways[1:]:
        found = (rows[way] * rows[ways[0]]).sum(axis=1)
        yield way, ways[0], float(found.min()), float(found.mean())


def main() -> int:
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(sys.argv[2], Config(**json.loads(sys.argv[3])))))
        return 0
    options = parser(__doc__, WAYS)
    options.add_argument("--model", default="demo")
    options.add_argument("--memory", default="demo")
    options.add_argument("--limit", type=int, default=1000)
    options.add_argument("--batch-tokens", type=int, default=0)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as vectors:
        config = Config(given.model, given.memory, given.limit, given.batch_tokens, vectors)
        results = in_turns("benchmarks.encoding", given.ways, given.malloc, given.runs, config)
        apart = list(cosines(config, given.ways))
    lines = ["| vectors | cosine with | lowest | mean |", "|---|---|---|---|"]
    lines += [f"| {way} | {other} | {lowest:.6f} | {mean:.6f} |" for way, other, lowest, mean in apart]
    more: dict[str, Any] = {
        "cosines": [dict(zip(("way", "with", "lowest", "mean"), each, strict=True)) for each in apart]
    }
    if any(way.startswith("theirs") for way in given.ways):
        more["sentence_transformers"] = version("sentence-transformers")
    report(results, RATIOS, config, about=f"{given.limit} passages of {given.memory}", file=given.json, more=more)
    print("\n" + "\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
