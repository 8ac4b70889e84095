"""What truncating the sum over passages does to the retriever's gradient, with and without hindsight candidates.

The loss is −log Σ_z p_η(z|x) p_θ(y|x,z) over all Z passages of the memory. Its gradient with respect to q(x) is

    −s Σ_z (p(z|x,y) − p_η(z|x)) d(z)

The prior is a softmax over all of them, which costs one matrix product. p_θ is asked of the passages found with x, of
those found with x and y, and of a random sample of the others, which stands for all of them: what the sample weighs
is reported. Training has the same gradient over a set of candidates, with the prior made to sum to one over it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from running import run
from torch import Tensor

from latentrag import assemble
from latentrag.addresses import model_place
from latentrag.encoder import load_query_encoder
from latentrag.generator import CausalGenerator
from latentrag.retriever import DenseRetriever
from latentrag.training.data import read_examples
from latentrag.types import singles

SETS = {
    "top 5 of x": (5, 0),
    "top 10 of x": (10, 0),
    "top 50 of x": (50, 0),
    "5 of x, 5 of x and y": (5, 5),
    "8 of x, 2 of x and y": (8, 2),
    "5 of x, 20 of x and y": (5, 20),
}


def gradient(log_prior: Tensor, log_p: Tensor, d: Tensor, weight: Tensor | None = None) -> Tensor:
    """Σ_z (p(z|x,y) − p(z|x)) d(z), (D,). log_prior, log_p, weight: (n,), d: (n, D); weight: of a sampled passage."""
    joint = log_prior + log_p + (0 if weight is None else weight.log())
    own = log_prior + (0 if weight is None else weight.log())
    return (joint.softmax(0) - own.softmax(0)) @ d


class Bias:
    def __init__(self, data: Path, *, num_clues: int, wide: int, sample: int, cache: Path | None) -> None:
        self.memory = assemble.open_memory("demo")
        self.rows = read_examples(data / "jeopardy-vital.train.jsonl.gz", prefix_field="category").rows[:num_clues]
        self.wide, self.sample = wide, sample
        bare = assemble.load("demo", memory=self.memory, retriever="bm25").generator
        assert isinstance(bare, CausalGenerator)
        self.generator: Any = assemble.generator_for_training(
            bare,
            lora=None,
            frozen=True,
            passage_cache_bytes=4 << 30,
            passage_cache_folder=cache,
        )
        encoder = load_query_encoder(Path(model_place("demo"), "query_encoder"))
        self.retriever = DenseRetriever(encoder, self.memory)
        everything = self.memory.search(np.zeros((1, encoder.dimension), np.float32), len(self.memory))
        self.passages = everything.passages[0]
        self.d = torch.from_numpy(np.asarray(everything.vectors[0], np.float32)).double()
        self.place = {passage.id: i for i, passage in enumerate(self.passages)}

    @torch.no_grad()
    def of_clue(self, x: str, y: str, draw: np.random.Generator) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Gradients with respect to q over each set of candidates and over all, and what the sets cover."""
        encoder = self.retriever.query_encoder
        q = encoder.encode_queries([x])[0].double()
        both = encoder.encode_queries([f"{x} {y}"])[0].double()
        log_prior = (encoder.scale * self.d @ q).log_softmax(0)
        of_x = log_prior.argsort(descending=True).tolist()
        of_both = (self.d @ both).argsort(descending=True).tolist()
        known = list(dict.fromkeys(of_x[: self.wide] + of_both[: self.wide]))
        others = sorted(set(range(len(self.passages))) - set(known))
        sampled = draw.choice(others, size=min(self.sample, len(others)), replace=False).tolist()
        asked = known + sampled
        log_p = torch.cat([self._log_p(x, y, asked[i : i + 64]) for i in range(0, len(asked), 64)])
        weight = torch.ones(len(asked), dtype=torch.float64)
        weight[len(known) :] = len(others) / len(sampled)
        found = {"all": gradient(log_prior[asked], log_p, self.d[asked], weight)}
        posterior = (log_prior[asked] + log_p + weight.log()).softmax(0)
        covered = {"sampled": float(posterior[len(known) :].sum())}
        at = {index: i for i, index in enumerate(asked)}
        for name, (k, more) in SETS.items():
            chosen = of_x[:k]
            chosen += [index for index in of_both if index not in chosen][:more]
            places = [at[index] for index in chosen]
            found[name] = gradient(log_prior[chosen].log_softmax(0), log_p[places], self.d[chosen])
            covered[name] = float(posterior[places].sum())
        return found, covered

    def _log_p(self, x: str, y: str, indices: list[int]) -> Tensor:
        prepared = self.generator.prepare([x], singles([[self.passages[i] for i in indices]]))
        targets = self.generator.targets([y])
        log_p: Tensor = self.generator.log_p_theta(prepared, targets)
        return log_p.masked_fill(~targets.mask[:, None], 0.0).sum(dim=2)[0].double()

    def table(self) -> str:
        draw = np.random.default_rng(0)
        gradients: dict[str, list[Tensor]] = {}
        covers: dict[str, list[float]] = {}
        for number, row in enumerate(self.rows, start=1):
            found, covered = self.of_clue(row.x, row.answers[0], draw)
            for name, value in found.items():
                gradients.setdefault(name, []).append(value)
            for name, share in covered.items():
                covers.setdefault(name, []).append(share)
            print(f"clue {number} of {len(self.rows)}", file=sys.stderr)
        whole = gradients["all"]
        sampled = 100 * float(np.mean(covers["sampled"]))
        lines = [
            f"{len(self.rows)} clues; the sampled passages have {sampled:.1f} % of the posterior.",
            "",
            "| candidates | posterior they hold | cosine, clue by clue | cosine of the sums | length of the sum |",
            "|---|---|---|---|---|",
        ]
        for name in SETS:
            each = [float(torch.cosine_similarity(a, b, dim=0)) for a, b in zip(gradients[name], whole, strict=True)]
            total, exact = torch.stack(gradients[name]).sum(0), torch.stack(whole).sum(0)
            cosine = float(torch.cosine_similarity(total, exact, dim=0))
            ratio = float(total.norm() / exact.norm())
            share = 100 * float(np.mean(covers[name]))
            lines.append(f"| {name} | {share:.0f} % | {np.mean(each):.2f} | {cosine:.2f} | {ratio:.2f} × |")
        return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the clues")
    parser.add_argument("--clues", type=int, default=64)
    parser.add_argument("--wide", type=int, default=150, help="passages asked of each search")
    parser.add_argument("--sample", type=int, default=100, help="of the other passages")
    parser.add_argument("--cache", type=Path, help="folder for passages as the generator has read them")
    given = parser.parse_args()
    if not (given.data / "jeopardy-vital.train.jsonl.gz").is_file():
        print(f"error: {given.data} has no jeopardy-vital.train.jsonl.gz; name its folder with --data", file=sys.stderr)
        return 2
    bias = Bias(given.data, num_clues=given.clues, wide=given.wide, sample=given.sample, cache=given.cache)
    print(bias.table())
    return 0


if __name__ == "__main__":
    run(main)
