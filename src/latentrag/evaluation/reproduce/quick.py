"""Tiny models and data, so that every row can be run in seconds: made here, of real architectures, with random weights.

Their figures mean nothing. That each command works, and gives what its row records, is what a quick run shows.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from latentrag import io
from latentrag.pretrained import quiet

NUM_FACTS = 12
"""Lines of a set of questions."""
YEARS = ("2016-11-26", "2020-11-27", "2026-05-17")
_MARK = "made.json"
_FORMAT = 2

Line = Mapping[str, object]


def make(folder: Path) -> None:
    """Models and data under a folder, unless they are there.

    ``data``: a small file under the name of each data set, with its fields. ``encoder``, ``reader`` (a BERT), and
    ``generator`` (a BART whose tokens are bytes).
    """
    mark = folder / _MARK
    if mark.exists() and json.loads(mark.read_bytes()) == {"format": _FORMAT}:
        return
    for name, lines in _data_sets().items():
        io.write_file(_made(folder / "data") / f"{name}.jsonl.gz", gzip.compress(_encoded(lines), mtime=0))
    with quiet():
        _make_encoder(folder / "encoder")
        _make_generator(folder / "generator")
    io.write_json(mark, {"format": _FORMAT})


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _encoded(lines: Sequence[Line]) -> bytes:
    return "".join(f"{json.dumps(line)}\n" for line in lines).encode()


# Data: rivers and cities that do not exist

_BEGINNINGS = ("Ar", "Bel", "Cor", "Dun", "El", "Fa", "Gon", "Hal", "Ist", "Jor")
_ENDS = ("mar", "tis", "von", "ria", "lund", "sek")
_PLACES = [beginning + end for beginning in _BEGINNINGS for end in _ENDS]


def _capital(n: int) -> str:
    return f"{_PLACES[n]}burg"


def _text(n: int) -> str:
    return f"{_PLACES[n]} is a land. Its capital is {_capital(n)}. The river {_PLACES[n - 1]} runs through it."


def _passages() -> list[Line]:
    return [{"id": f"{n}#0", "title": _PLACES[n], "text": _text(n)} for n in range(len(_PLACES))]


def _questions(**more: Callable[[int], object]) -> list[Line]:
    return [
        {
            "id": f"q{n}",
            "question": f"What is the capital of {_PLACES[n]}?",
            "answer": [_capital(n)],
            **{name: value(n) for name, value in more.items()},
        }
        for n in range(NUM_FACTS)
    ]


def _claims(labels: Sequence[str], **more: Callable[[int], object]) -> list[Line]:
    def claim(n: int) -> Line:
        label = labels[n % len(labels)]
        said = _capital(n) if label == "SUPPORTS" else _capital(n - 1)
        fields = {name: value(n) for name, value in more.items()}
        return {"id": f"c{n}", "claim": f"{said} is the capital of {_PLACES[n]}.", "label": label, **fields}

    return [claim(n) for n in range(NUM_FACTS)]


def _ten(n: int) -> list[Line]:
    return [{"title": _PLACES[m], "text": _text(m)} for m in (n, n - 1, n - 2)]


def _factbook(year: str) -> list[Line]:
    heads = {year: number for number, year in enumerate(YEARS)}
    return [
        {
            "id": f"{year}:{n}",
            "title": _PLACES[n],
            "section": "Government",
            "text": f"Head of state of {_PLACES[n]}: {_PLACES[n - heads[year] - 1]}us.",
        }
        for n in range(NUM_FACTS)
    ]


def _leaders() -> list[Line]:
    return [
        {
            "id": f"{n}-state",
            "country": _PLACES[n],
            "role": "head of state",
            "question": f"Who is the head of state of {_PLACES[n]}?",
            "answer": {year: [f"{_PLACES[n - number - 1]}us"] for number, year in enumerate(YEARS)},
        }
        for n in range(NUM_FACTS)
    ]


def _data_sets() -> dict[str, list[Line]]:
    three = ("SUPPORTS", "REFUTES", "NOT ENOUGH INFO")
    titles = {"titles": lambda n: [_PLACES[n]]}
    tales = {"kind": lambda _: "explicit", "passage_ids": lambda n: [f"{n}#0"], "title": lambda n: _PLACES[n]}
    clues = {"category": lambda _: "CAPITALS", "title": lambda n: _PLACES[n]}
    plain = ("webquestions.train", "webquestions.dev", "nq-open.train", "nq-open.dev", "triviaqa.train", "triviaqa.dev")
    with_context = ("hotpotqa", "2wikimultihopqa", "musique")
    return {
        **{name: _questions() for name in plain},
        "curatedtrec.train": [
            {"id": f"t{n}", "question": f"Name the capital of {_PLACES[n]}.", "answer_regex": f"{_PLACES[n]}(burg)?"}
            for n in range(NUM_FACTS)
        ],
        "jeopardy-vital.train": _questions(**clues),
        "jeopardy-vital.dev": _questions(**clues),
        "fever.dev": _claims(three, **titles),
        "foolmetwice.dev": _claims(three[:2], **titles),
        "scifact.train": _claims((*three[:2], "NOT_ENOUGH_INFO"), evidence_docs=lambda n: [f"{n}#0"]),
        "scifact.corpus": _passages(),
        "strategyqa.dev": [{**row, "answer": [("yes", "no")[n % 2]]} for n, row in enumerate(_questions(**titles))],
        "msmarco-qa.dev": _questions(passages=_ten, well_formed=lambda n: [f"The capital is {_capital(n)}."]),
        "fairytaleqa.train": _questions(**tales),
        "fairytaleqa.dev": _questions(**tales),
        "fairytaleqa.corpus": _passages(),
        "wiki-en-2018.corpus": _passages(),
        **{f"{name}.with-context.dev": _questions(passages=_ten, **titles) for name in with_context},
        **{f"factbook.{year}.corpus": _factbook(year) for year in YEARS},
        "factbook.leaders": _leaders(),
    }


# Models


def _make_encoder(folder: Path) -> None:
    """A BERT of two layers that reads letters, with mean pooling, in the layout of sentence-transformers."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules.transformer import Transformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    characters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    words = list(dict.fromkeys([*special, *characters, *(f"##{each}" for each in characters)]))
    numbers, unknown = {word: number for number, word in enumerate(words)}, special[1]
    backend = Tokenizer(models.WordPiece(numbers, unk_token=unknown))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", special.index("[CLS]")), ("[SEP]", special.index("[SEP]"))],
    )
    names = {f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=256, **names)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=256,
        initializer_range=0.3,
    )
    plain = folder.with_name("reader")
    BertModel(config).save_pretrained(plain)
    tokenizer.save_pretrained(plain)
    SentenceTransformer(modules=[Transformer(str(plain)), Pooling(16), Normalize()]).save(str(folder))


def _make_generator(folder: Path) -> None:
    """A BART of two layers whose tokens are bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import BartConfig, BartForConditionalGeneration, PreTrainedTokenizerFast

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    vocabulary = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    numbers: dict[str, int] = {token: number for number, token in enumerate(vocabulary)}
    backend = Tokenizer(models.BPE(vocab=numbers, merges=[], unk_token=special[3]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", numbers["<s>"]), ("</s>", numbers["</s>"])]
    )
    names: dict[str, Any] = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=512, **names)
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=len(vocabulary),
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=512,
        bos_token_id=numbers["<s>"],
        pad_token_id=numbers["<pad>"],
        eos_token_id=numbers["</s>"],
        decoder_start_token_id=numbers["</s>"],
        forced_eos_token_id=None,
        init_std=0.3,
    )
    BartForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
