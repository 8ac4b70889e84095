"""Real architectures with random weights, a few thousand parameters each, on disk as their libraries lay them out."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

TEXT = """
the a of in is was who what where when wrote painted born city river capital king queen book play
paris london rome berlin hamlet france england italy seine thames title page query passage : , . ?
"""
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
POSITIONS = 24

# Large enough that another pooling, prompt or segment moves the vectors far beyond rounding.
SPREAD = 0.3


def vocabulary(*, cased: bool = False) -> list[str]:
    words = TEXT.split()
    letters = [mark + chr(code) for code in range(ord("a"), ord("z") + 1) for mark in ("", "##")]
    capitals = [word.capitalize() for word in words if word.isalpha()] if cased else []
    return list(dict.fromkeys(SPECIAL + words + capitals + letters))


def write_tokenizer(folder: Path, *, cased: bool = False, **config: Any) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = vocabulary(cased=cased)
    backend = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token=SPECIAL[1]))
    backend.normalizer = normalizers.BertNormalizer(lowercase=not cased)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    # As many published tokenizers have them; both must be ignored.
    backend.enable_truncation(8)
    backend.enable_padding(length=8)
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", **config})


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def sizes(*, cased: bool = False) -> dict[str, Any]:
    return {
        "vocab_size": len(vocabulary(cased=cased)),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": POSITIONS,
        "initializer_range": SPREAD,
        "hidden_dropout_prob": 0.2,
    }


def write_dpr(folder: Path, class_name: str, *, projection_dim: int = 0, seed: int = 0, cased: bool = False) -> Path:
    import transformers

    torch.manual_seed(seed)
    config = transformers.DPRConfig(**sizes(cased=cased), projection_dim=projection_dim)
    getattr(transformers, class_name)(config).save_pretrained(folder)
    write_tokenizer(folder, cased=cased, tokenizer_class=f"{class_name}Tokenizer", do_lower_case=not cased)
    return folder


def write_sentence_encoder(
    folder: Path,
    *,
    modes: Sequence[str] = ("mean",),
    include_prompt: bool = True,
    head: Sequence[str] = (),
    prompts: Mapping[str, Any] | None = None,
    max_seq_length: int | None = 20,
    transformer_path: str = "",
    seed: int = 0,
    positions: int = POSITIONS,
) -> Path:
    """``head`` of "Normalize" and "Dense", the latter to 5 dimensions."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    at = folder / transformer_path
    BertModel(BertConfig(**{**sizes(), "max_position_embeddings": positions})).save_pretrained(at)
    write_tokenizer(at, model_max_length=512)
    write_json(at / "sentence_bert_config.json", {"max_seq_length": max_seq_length, "do_lower_case": False})
    flags = {
        "cls": "cls_token",
        "mean": "mean_tokens",
        "max": "max_tokens",
        "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
        "weightedmean": "weightedmean_tokens",
        "lasttoken": "lasttoken",
    }
    pooling: dict[str, object] = {f"pooling_mode_{flag}": mode in modes for mode, flag in flags.items()}
    pooling |= {"word_embedding_dimension": 16, "include_prompt": include_prompt}
    write_json(folder / "1_Pooling" / "config.json", pooling)
    stages = [("Transformer", transformer_path), ("Pooling", "1_Pooling")]
    for i, kind in enumerate(head, start=2):
        stages.append((kind, f"{i}_{kind}"))
        if kind == "Dense":
            write_dense(folder / f"{i}_Dense", in_features=16 * len(modes))
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(stages)
    ]
    write_json(folder / "modules.json", listed)
    if prompts is not None:
        write_json(folder / "config_sentence_transformers.json", prompts)
    return folder


def write_dense(
    folder: Path,
    *,
    in_features: int,
    out_features: int = 5,
    bias: bool = True,
    activation: str = "torch.nn.modules.activation.Tanh",
) -> None:
    content: dict[str, object] = {"in_features": in_features, "out_features": out_features, "bias": bias}
    write_json(folder / "config.json", content | {"activation_function": activation})
    weights = {"linear.weight": torch.randn(out_features, in_features) / 4}
    if bias:
        weights["linear.bias"] = torch.randn(out_features)
    save_file(weights, folder / "model.safetensors")
