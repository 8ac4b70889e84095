"""Families of encoders, each as tiny random weights of the real classes in the folders' real layout: which modules, in
which order, how pooled, with which prompts, which tokenizer.

    python -m tests.encoder.families    the table of docs/encoders.md
"""

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from latentrag.encoder import load_passage_encoder, load_query_encoder
from latentrag.types import Passage
from tests.encoder.tiny import SPREAD, sizes, vocabulary, write_dense, write_dpr, write_json, write_tokenizer

QUESTIONS = ["who wrote hamlet ?", "paris", "what is the capital of france , england , italy ?"]
PASSAGES = [
    Passage("1", "paris is the capital of france .", "paris"),
    Passage("2", "a play", "hamlet"),
    Passage("3", "the river in london is the thames ."),
]
TEXTS = ["paris\nparis is the capital of france .", "hamlet\na play", "the river in london is the thames ."]
LIMIT = 40
BYTES = 200
"""Tokens that the models read whose tokens are bytes."""

QUERY_AND_PASSAGE = {"query": "query: ", "document": "passage: "}
INSTRUCTION = {"query": "title : where is the page of this query , ", "document": ""}
SMALL = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "hidden_size": 16}
TOLERANCE = 1e-5
"""float32 sums in another order: some 1e-7 on values near 1."""


@dataclass(frozen=True)
class Family:
    """One row of the table.

    Attributes:
        name: as people call it, with a model of it.
        write: makes the folder.
        layout: its modules, in words.
        prompts: of the folder.
    """

    name: str
    write: Callable[[Path], object]
    layout: str
    prompts: Mapping[str, str] = field(default_factory=dict)


def transformer(class_name: str, config: str, tokenizer: Any = "wordpiece", **settings: Any) -> Callable[[Path], None]:
    """Writes a transformer of these classes and a tokenizer."""

    def write(folder: Path) -> None:
        import transformers

        torch.manual_seed(0)
        size = TOKENIZERS[tokenizer](folder)
        made = getattr(transformers, config)(**{"vocab_size": size, "pad_token_id": 0, **settings})
        model = getattr(transformers, class_name)(made).eval()
        with torch.no_grad():
            for parameter in model.parameters():  # a lost bias or norm would go unnoticed otherwise
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(folder)

    return write


def wordpiece(folder: Path) -> int:
    write_tokenizer(folder, model_max_length=LIMIT, pad_token="[PAD]")
    return len(vocabulary())


def _save(folder: Path, backend: Any, tokenizer_class: str, **config: Any) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    content = {"tokenizer_class": tokenizer_class, "model_max_length": LIMIT, **config}
    write_json(folder / "tokenizer_config.json", content)
    return int(backend.get_vocab_size(with_added_tokens=True))


def unigram(folder: Path, *, begin: bool) -> int:
    """Sentencepiece's kind: </s> at the end, and for XLM-R <s> at the beginning."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    special = ["<pad>", "<s>", "</s>", "<unk>"]
    words = [f"▁{word}" for word in vocabulary() if word.isalpha()] + [chr(code) for code in range(33, 127)] + ["▁"]
    pieces = [(piece, 0.0) for piece in special] + [(word, -1.0 - len(word) / 100) for word in dict.fromkeys(words)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=3))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens(special)
    template = [*(["<s>"] if begin else []), "$A", "</s>"]
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", 1), ("</s>", 2)])
    return _save(folder, backend, "PreTrainedTokenizerFast", pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def byte_pairs(folder: Path, *, end: bool = True, side: str = "left") -> int:
    """GPT-2's kind: bytes; Qwen's ends each text with a token and pads on the left."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    letters = pre_tokenizers.ByteLevel.alphabet()
    backend = Tokenizer(models.BPE({"<|endoftext|>": 0} | {each: i for i, each in enumerate(sorted(letters), 1)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>"])
    if end:
        backend.post_processor = processors.TemplateProcessing(
            single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
        )
    token = "<|endoftext|>"
    config = {"pad_token": token, "eos_token": token, "padding_side": side, "model_max_length": BYTES}
    return _save(folder, backend, "PreTrainedTokenizerFast", **config)


TOKENIZERS: Mapping[str, Callable[[Path], int]] = {
    "wordpiece": wordpiece,
    "t5": lambda folder: unigram(folder, begin=False),
    "xlm-r": lambda folder: unigram(folder, begin=True),
    "qwen": byte_pairs,
    "gpt2": lambda folder: byte_pairs(folder, end=False, side="right"),
}

BERT = {**sizes(), "max_position_embeddings": LIMIT}
XLMR = {**SMALL, "max_position_embeddings": LIMIT + 2, "initializer_range": SPREAD, "pad_token_id": 0}


def stages(
    write: Callable[[Path], object],
    pooling: str,
    head: Sequence[str | tuple[str, int]] = (),
    *,
    prompts: Mapping[str, str] | None = None,
    include_prompt: bool = True,
    limit: int = LIMIT,
    **config: object,
) -> Callable[[Path], None]:
    """Writes sentence-transformers' layout around a transformer. ``head`` of "Normalize", "LayerNorm", "Dropout",
    ("Dense", out) and ("Tanh", out)."""

    def write_all(folder: Path) -> None:
        write(folder)
        size = 16
        write_json(folder / "sentence_bert_config.json", {"max_seq_length": limit, "do_lower_case": False})
        content = {"word_embedding_dimension": size, "include_prompt": include_prompt, f"pooling_mode_{pooling}": True}
        write_json(folder / "1_Pooling" / "config.json", content)
        listed = [("Transformer", ""), ("Pooling", "1_Pooling")]
        for i, each in enumerate(head, start=2):
            kind, out = each if isinstance(each, tuple) else (each, size)
            name = "Dense" if kind in {"Dense", "Tanh"} else kind
            size = write_stage(folder / f"{i}_{name}", kind, size, out)
            listed.append((name, f"{i}_{name}"))
        write_modules(folder, listed)
        write_json(folder / "config_sentence_transformers.json", {"prompts": dict(prompts or {}), **config})

    return write_all


def write_modules(folder: Path, listed: Sequence[tuple[str, str]]) -> None:
    rows = enumerate(listed)
    types = "sentence_transformers.models."
    write_json(
        folder / "modules.json",
        [{"idx": i, "name": str(i), "path": path, "type": types + kind} for i, (kind, path) in rows],
    )


def write_stage(folder: Path, kind: str, size: int, out: int) -> int:
    """Writes a stage that comes after the pooling. Returns: the dimension after it."""
    torch.manual_seed(len(str(folder)))
    if kind == "LayerNorm":
        write_json(folder / "config.json", {"dimension": size})
        weights = {"norm.weight": 1 + torch.randn(size) / 4, "norm.bias": torch.randn(size)}
        save_file(weights, folder / "model.safetensors")
    elif kind == "Dropout":
        write_json(folder / "config.json", {"dropout": 0.5})
    elif kind in {"Dense", "Tanh"}:
        bias = kind == "Tanh"
        activation = "torch.nn.modules.activation.Tanh" if bias else "torch.nn.modules.linear.Identity"
        write_dense(folder, in_features=size, out_features=out, bias=bias, activation=activation)
    else:
        write_json(folder / "config.json", {})
    return out


def write_static(folder: Path, *, top: bool = True) -> None:
    """Vectors of tokens, averaged, and no transformer; ``top``: with modules.json."""
    from tokenizers import Tokenizer

    at = folder / "0_StaticEmbedding" if top else folder
    write_tokenizer(at)
    torch.manual_seed(3)
    backend = Tokenizer.from_file(str(at / "tokenizer.json"))
    save_file({"embedding.weight": torch.randn(backend.get_vocab_size(), 16)}, at / "model.safetensors")
    if top:
        write_modules(folder, [("StaticEmbedding", "0_StaticEmbedding"), ("Normalize", "1_Normalize")])
        write_json(folder / "1_Normalize" / "config.json", {})


def write_router(folder: Path) -> None:
    """Questions by static vectors, passages by a transformer."""
    at = folder / "0_Router"
    write_static(at / "query_0_StaticEmbedding", top=False)
    transformer("BertModel", "BertConfig", **BERT)(at / "document_0_Transformer")
    write_json(at / "document_0_Transformer" / "sentence_bert_config.json", {"max_seq_length": LIMIT})
    write_json(at / "document_1_Pooling" / "config.json", {"embedding_dimension": 16, "pooling_mode": "mean"})
    types = "sentence_transformers.models."
    parts = {"query": ["query_0_StaticEmbedding"], "document": ["document_0_Transformer", "document_1_Pooling"]}
    names = [name for route in parts.values() for name in route]
    content = {
        "types": {name: types + name.rpartition("_")[2] for name in names},
        "structure": parts,
        "parameters": {"default_route": "document", "allow_empty_key": True},
    }
    write_json(at / "router_config.json", content)
    write_modules(folder, [("Router", "0_Router"), ("Normalize", "1_Normalize")])
    write_json(folder / "1_Normalize" / "config.json", {})


def write_asymmetric(folder: Path) -> None:
    """One transformer, and a Dense layer for each side."""
    stages(transformer("BertModel", "BertConfig", **BERT), "mean_tokens")(folder)
    at = folder / "2_Router"
    for name, seed in (("query_0_Dense", 1), ("document_0_Dense", 2)):
        torch.manual_seed(seed)
        write_dense(at / name, in_features=16)
    content = {
        "types": dict.fromkeys(("query_0_Dense", "document_0_Dense"), "sentence_transformers.models.Dense"),
        "structure": {"query": ["query_0_Dense"], "document": ["document_0_Dense"]},
        "parameters": {"default_route": None, "allow_empty_key": False},
    }
    write_json(at / "router_config.json", content)
    write_modules(folder, [("Transformer", ""), ("Pooling", "1_Pooling"), ("Router", "2_Router")])


def _family(
    name: str,
    write: Callable[[Path], None],
    layout: str,
    pooling: str,
    head: Sequence[str | tuple[str, int]] = (),
    prompts: Mapping[str, str] | None = None,
    **config: Any,
) -> Family:
    words = [f"{each[0]} {each[1]}" if isinstance(each, tuple) else each for each in head]
    made = stages(write, pooling, head, prompts=prompts, **config)
    named = pooling.removesuffix("_tokens").removesuffix("_token")
    return Family(name, made, " → ".join([layout, named, *words]), prompts or {})


bert = transformer("BertModel", "BertConfig", **BERT)
GEMMA = {**SMALL, "num_key_value_heads": 1, "head_dim": 8, "initializer_range": SPREAD, "sliding_window": 16}
QWEN = {**SMALL, "num_key_value_heads": 1, "head_dim": 8, "initializer_range": SPREAD}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
ROTARY = {**SMALL, "max_position_embeddings": LIMIT, "initializer_range": SPREAD}
MODERN = {**ROTARY, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
XLM_R_BERT = {**BERT, "vocab_size": 400}

FAMILIES = [
    _family("E5 (e5-base-v2)", bert, "BertModel", "mean_tokens", ["Normalize"], QUERY_AND_PASSAGE),
    _family("BGE (bge-base-en-v1.5)", bert, "BertModel", "cls_token", ["Normalize"], INSTRUCTION),
    _family("GTE (gte-base)", bert, "BertModel", "mean_tokens", ["Normalize"]),
    _family(
        "GTE (gte-modernbert-base)",
        transformer("ModernBertModel", "ModernBertConfig", **MODERN),
        "ModernBertModel",
        "cls_token",
    ),
    _family(
        "Nomic (nomic-embed-text-v1.5)",
        transformer("NomicBertModel", "NomicBertConfig", **ROTARY),
        "NomicBertModel",
        "mean_tokens",
        ["LayerNorm", "Normalize"],
        {"query": "search_query: ", "document": "search_document: "},
    ),
    _family(
        "Qwen3-Embedding (0.6B)",
        transformer("Qwen3Model", "Qwen3Config", "qwen", **QWEN),
        "Qwen3Model",
        "lasttoken",
        ["Normalize"],
        INSTRUCTION,
        limit=BYTES,
    ),
    _family(
        "EmbeddingGemma (300m)",
        transformer("Gemma3TextModel", "Gemma3TextConfig", "t5", **GEMMA, use_bidirectional_attention=True),
        "Gemma3TextModel",
        "mean_tokens",
        [("Dense", 24), ("Dense", 16), "Normalize"],
        {"query": "task: search result | query: ", "document": "title: none | text: "},
    ),
    _family("arctic (arctic-embed-m)", bert, "BertModel", "cls_token", ["Normalize"], INSTRUCTION),
    _family(
        "arctic (arctic-embed-l-v2.0)",
        transformer("XLMRobertaModel", "XLMRobertaConfig", "xlm-r", **XLMR),
        "XLMRobertaModel",
        "cls_token",
        ["Normalize"],
        {"query": "query: "},
    ),
    _family(
        "mpnet (all-mpnet-base-v2)",
        transformer("MPNetModel", "MPNetConfig", **{**BERT, "max_position_embeddings": LIMIT + 2}),
        "MPNetModel",
        "mean_tokens",
        ["Normalize"],
    ),
    _family("MiniLM (all-MiniLM-L6-v2)", bert, "BertModel", "mean_tokens", ["Normalize"]),
    _family(
        "multilingual MiniLM (paraphrase-multilingual-MiniLM-L12-v2)",
        transformer("BertModel", "BertConfig", "xlm-r", **{k: v for k, v in BERT.items() if k != "vocab_size"}),
        "BertModel, XLM-R's tokenizer",
        "mean_tokens",
    ),
    _family(
        "multilingual E5 (multilingual-e5-base)",
        transformer("XLMRobertaModel", "XLMRobertaConfig", "xlm-r", **XLMR),
        "XLMRobertaModel",
        "mean_tokens",
        ["Normalize"],
        QUERY_AND_PASSAGE,
    ),
    _family("LaBSE", bert, "BertModel", "cls_token", [("Tanh", 16), "Normalize"]),
    _family(
        "DistilBERT (multi-qa-distilbert-dot-v1)",
        transformer(
            "DistilBertModel",
            "DistilBertConfig",
            dim=16,
            n_layers=2,
            n_heads=2,
            hidden_dim=24,
            max_position_embeddings=LIMIT,
        ),
        "DistilBertModel",
        "cls_token",
        similarity_fn_name="dot",
    ),
    _family(
        "sentence-T5 (sentence-t5-base)",
        transformer("T5EncoderModel", "T5Config", "t5", **T5),
        "T5EncoderModel",
        "mean_tokens",
        [("Dense", 12), "Normalize"],
    ),
    _family(
        "INSTRUCTOR (instructor-base)",
        transformer("T5Model", "T5Config", "t5", **T5),
        "T5EncoderModel of a T5Model",
        "mean_tokens",
        [("Dense", 12), "Normalize"],
        QUERY_AND_PASSAGE,
        include_prompt=False,
    ),
    _family(
        "SGPT (SGPT-125M-weightedmean)",
        transformer(
            "GPTNeoModel",
            "GPTNeoConfig",
            "gpt2",
            hidden_size=16,
            num_layers=2,
            num_heads=2,
            intermediate_size=24,
            max_position_embeddings=BYTES,
            attention_types=[[["global", "local"], 1]],
            window_size=16,
        ),
        "GPTNeoModel",
        "weightedmean_tokens",
        limit=BYTES,
    ),
    _family(
        "GPT-2",
        transformer("GPT2Model", "GPT2Config", "gpt2", n_embd=16, n_layer=2, n_head=2, n_positions=BYTES),
        "GPT2Model",
        "lasttoken",
        ["Dropout"],
        limit=BYTES,
        similarity_fn_name="cosine",
    ),
    Family("static vectors (static-retrieval-mrl-en-v1)", write_static, "StaticEmbedding → Normalize"),
    Family(
        "inference-free (questions by static vectors)",
        write_router,
        "Router: StaticEmbedding; BertModel → mean; → Normalize",
    ),
    Family("asymmetric (a Dense layer for each side)", write_asymmetric, "BertModel → mean → Router: Tanh 5; Tanh 5"),
]


def ours(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """(3, D) of the questions and of the passages."""
    with torch.no_grad():
        passages = load_passage_encoder(folder).encode_passages(PASSAGES)
        return load_query_encoder(folder).encode_queries(QUESTIONS), passages


def theirs(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The same by sentence-transformers, text by text, as long as its similarity makes them."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    settings = folder / "config_sentence_transformers.json"
    cosine = settings.exists() and "cosine" in settings.read_text()
    options: Any = {"convert_to_tensor": True, "normalize_embeddings": cosine, "show_progress_bar": False}
    queries = torch.cat([model.encode_query([x], **options) for x in QUESTIONS])
    return queries, torch.cat([model.encode_document([z], **options) for z in TEXTS])


def differences(folder: Path) -> tuple[float, float]:
    """The largest difference of a number, of the questions and of the passages."""
    pairs = zip(ours(folder), theirs(folder), strict=True)
    first, second = ((a - b).abs().max().item() for a, b in pairs)
    return first, second


def dpr_differences(folder: Path) -> tuple[float, float]:
    """Against transformers' classes, with segment ids of zero: that library has no DPR."""

    return _dpr_difference(folder / "q", "DPRQuestionEncoder"), _dpr_difference(folder / "d", "DPRContextEncoder")


def _dpr_difference(folder: Path, class_name: str) -> float:
    import transformers
    from transformers import PreTrainedTokenizerFast

    write_dpr(folder, class_name)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    model = getattr(transformers, class_name).from_pretrained(folder).eval()
    asks = class_name == "DPRQuestionEncoder"
    texts: list[Any] = [(x,) for x in QUESTIONS] if asks else [(z.title, z.text) for z in PASSAGES[:2]]
    with torch.no_grad():
        expected = torch.cat([model(torch.tensor([tokenizer(*each).input_ids])).pooler_output for each in texts])
        if asks:
            vectors = load_query_encoder(folder).encode_queries(QUESTIONS)
        else:
            vectors = load_passage_encoder(folder).encode_passages(PASSAGES[:2])
    return (vectors - expected).abs().max().item()


def table() -> str:
    lines = ["| family | modules | prompts | questions | passages |", "|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as scratch:
        for i, family in enumerate(FAMILIES):
            folder = Path(scratch, str(i))
            family.write(folder)
            lines.append(row(family, *differences(folder)))
        dpr = Family("DPR", lambda _: None, "DPRQuestionEncoder; DPRContextEncoder, one segment")
        lines.append(row(dpr, *dpr_differences(Path(scratch, "dpr"))))
    return "\n".join(lines)


def row(family: Family, of_questions: float, of_passages: float) -> str:
    names = [name for name, text in family.prompts.items() if text]
    return f"{title(family)} {', '.join(names) or 'none'} | {of_questions:.0e} | {of_passages:.0e} |"


def title(family: Family) -> str:
    """A row's first cells."""
    return f"| {family.name} | {family.layout} |"


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
