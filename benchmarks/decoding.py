"""Decoding beside transformers' RAG and beside the limit: time, peak memory, and whether the answers are the same.

    python -m benchmarks.decoding [--size base|large] [--passages 5] [--runs 5] [--ways NAME …] [--json FILE]

Weights are random, equal on all sides, and so are the contexts; they come from a file. A first call, of two tokens, is
not counted: it reads the file, and packs ours. Every way writes exactly ``--tokens`` tokens, since
the bias of the end token's logit rules it out. Every measurement is a process of its own with one thread; the ways
take turns, under glibc's usual settings and with MALLOC_MMAP_MAX_=0, which spares the system calls for large blocks.
A table goes to stdout.

    their token      RagTokenForGeneration.generate          token       marginal beam, RAG-Token
    their thorough   RagSequenceForGeneration.generate       exact       marginal beam, RAG-Sequence
    their generate   the bare BART's, a beam a passage       thorough    Thorough Decoding
                                                             fast        Fast Decoding
    encode           the encoder alone                       each        a beam a passage, nothing more
    bare loop        encoder, and the decoder's steps of a beam that never moves
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.beside_transformers import BEGIN, END, Tokenizer, loaded_bart, parser, rag_of, saved_bart
from benchmarks.turns import in_turns, measured, report

THEIRS = ["their token", "their thorough", "their generate"]
OURS = ["encode", "bare loop", "token", "exact", "each", "fast", "thorough"]
RATIOS = [
    ("their token", "token"),
    ("their thorough", "exact"),
    ("their thorough", "thorough"),
    ("fast", "each"),
    ("exact", "bare loop"),
]


@dataclass(frozen=True, slots=True)
class Config:
    """Sizes, in the symbols of latentrag.types; L is the contexts' length, M the number of beams."""

    size: str = "base"
    B: int = 4
    K: int = 5
    L: int = 128
    M: int = 4
    tokens: int = 20
    seed: int = 0


def contexts(config: Config) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids and mask (B·K, L), and the retriever's scores (B, K)."""
    random = torch.Generator().manual_seed(config.seed)
    ids = torch.randint(10, 50_000, (config.B * config.K, config.L), generator=random)
    ids[:, 0], ids[:, -1] = BEGIN, END
    return ids, torch.ones_like(ids), 2 * torch.randn(config.B, config.K, generator=random)


# Ways. Each is prepared once and then called; it returns for every question the best sequence of tokens.

Found = list[list[int]]


def writer(config: Config) -> Any:
    """The BART, which never ends."""
    model = loaded_bart(config.size, seed=config.seed)
    model.final_logits_bias[0, END] = -1e9
    return model


def theirs(way: str, config: Config, model: Any) -> Callable[[], Found]:
    ids, mask, scores = contexts(config)
    asked: dict[str, Any] = {
        "num_beams": config.M,
        "num_return_sequences": 1,
        "decoder_start_token_id": BEGIN,
        "length_penalty": 0.0,
        "max_length": config.tokens + 1,
    }
    if way == "their generate":
        asked |= {"input_ids": ids, "attention_mask": mask, "do_sample": False}
        return lambda: [row[1:] for row in model.generate(**asked).tolist()]
    if way == "their thorough":
        asked["do_deduplication"] = True
    rag = rag_of(model, "token" if way == "their token" else "sequence", config.K)
    asked |= {"context_input_ids": ids, "context_attention_mask": mask, "doc_scores": scores, "n_docs": config.K}
    return lambda: [row[1:] for row in rag.generate(**asked).tolist()]


def ours(way: str, config: Config, model: Any) -> Callable[[], Found]:
    from latentrag.decoding import fast, marginal_beam, thorough
    from latentrag.generator.seq2seq import PreparedContexts, Seq2SeqGenerator
    from latentrag.marginal import log_prior
    from latentrag.options import DecodingOptions

    generator = Seq2SeqGenerator(model, Tokenizer(), decoder_prefix=[BEGIN])
    ids, mask, scores = contexts(config)
    log_p_eta = log_prior(scores)
    options = DecodingOptions(num_beams=config.M, num_best=config.M, max_tokens=config.tokens, length_penalty=0.0)

    def prepared() -> PreparedContexts:
        with torch.no_grad():
            states = generator.model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
        return PreparedContexts(states, mask.bool(), config.B, config.K)

    def bare() -> Found:
        rows = torch.arange(config.B)[:, None] * torch.ones(1, config.M, dtype=torch.long)
        stay = torch.arange(config.B * config.M).view(config.B, config.M)
        with torch.no_grad():
            log_p, state = generator.start(prepared())
            for step in range(config.tokens - 1):
                log_p, state = generator.step(state, rows if step == 0 else stay, torch.full_like(stay, 7))
        return [[log_p.shape[0]]]

    def best(found: list[list[Any]]) -> Found:
        return [list(of_one[0].ids) for of_one in found]

    def each() -> Found:
        alone = log_p_eta.new_zeros(config.B * config.K, 1)
        return best(marginal_beam(generator, prepared().each_passage(), alone, variant="sequence", options=options))

    ways: dict[str, Callable[[], Found]] = {
        "encode": lambda: [[len(prepared().states)]],
        "bare loop": bare,
        "token": lambda: best(marginal_beam(generator, prepared(), log_p_eta, variant="token", options=options)),
        "exact": lambda: best(marginal_beam(generator, prepared(), log_p_eta, variant="sequence", options=options)),
        "each": each,
        "fast": lambda: best(fast(generator, prepared(), log_p_eta, options=options)),
        "thorough": lambda: best(thorough(generator, prepared(), log_p_eta, options=options)),
    }
    return ways[way]


def measure(way: str, config: Config) -> dict[str, Any]:
    """In a process of its own."""
    make, model = theirs if way in THEIRS else ours, writer(config)
    with torch.no_grad():
        return measured(make(way, config, model), make(way, replace(config, tokens=2), model))


def main() -> int:
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(sys.argv[2], Config(**json.loads(sys.argv[3])))))
        return 0
    options = parser(__doc__, THEIRS + OURS)
    options.add_argument("--tokens", type=int, default=20)
    given = options.parse_args()
    config = Config(size=given.size, K=given.passages, tokens=given.tokens)
    saved_bart(config.size, seed=config.seed)
    results = in_turns("benchmarks.decoding", given.ways, given.malloc, given.runs, config)
    sizes = f"B {config.B}, K {config.K}, L {config.L}, {config.M} beams, {config.tokens} tokens"
    about = f"BART-{config.size}, float32, {sizes}"
    report(results, RATIOS, config, about=about, file=given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
