"""Tiny GGUF files: Qwen2 with random weights in float32, and the tokenizer of its twin in transformers."""

from pathlib import Path
from typing import Any

from tests.generator.made_tokenizers import chat_tokenizer


def qwen2(tokenizer: Any, **changes: Any) -> Any:
    """A two-layer Qwen2 whose weights are large enough for its distributions to differ."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 1024,
            "initializer_range": 0.2,
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": None,
            "tie_word_embeddings": True,
            **changes,
        }
    )
    torch.manual_seed(0)
    return Qwen2ForCausalLM(config).eval()


def save_gguf(path: Path, model: Any, tokenizer: Any, *, architecture: str = "qwen2") -> Path:
    """The same model and tokenizer as one file."""
    import json

    from gguf import GGUFWriter, TokenType

    config, weights = model.config, model.state_dict()
    writer = GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    added = tokenizer.added_tokens_decoder
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    kinds = {True: TokenType.CONTROL, False: TokenType.NORMAL}
    writer.add_token_types([kinds[number in added] for number in range(len(tokens))])
    writer.add_token_merges([" ".join(pair) for pair in state["model"]["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_add_bos_token(False)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
    names = {
        "input_layernorm.weight": "attn_norm.weight",
        "self_attn.q_proj.weight": "attn_q.weight",
        "self_attn.q_proj.bias": "attn_q.bias",
        "self_attn.k_proj.weight": "attn_k.weight",
        "self_attn.k_proj.bias": "attn_k.bias",
        "self_attn.v_proj.weight": "attn_v.weight",
        "self_attn.v_proj.bias": "attn_v.bias",
        "self_attn.o_proj.weight": "attn_output.weight",
        "post_attention_layernorm.weight": "ffn_norm.weight",
        "mlp.gate_proj.weight": "ffn_gate.weight",
        "mlp.up_proj.weight": "ffn_up.weight",
        "mlp.down_proj.weight": "ffn_down.weight",
    }
    writer.add_tensor("token_embd.weight", weights["model.embed_tokens.weight"].numpy())
    writer.add_tensor("output_norm.weight", weights["model.norm.weight"].numpy())
    for layer in range(config.num_hidden_layers):
        for theirs, ours in names.items():
            writer.add_tensor(f"blk.{layer}.{ours}", weights[f"model.layers.{layer}.{theirs}"].numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def save_pair(folder: Path, *, chat: str = "chatml") -> tuple[Path, Path]:
    """A folder in transformers' layout, and the same model as a GGUF file."""
    tokenizer = chat_tokenizer(chat)
    model = qwen2(tokenizer)
    model.save_pretrained(folder / "plain")
    tokenizer.save_pretrained(folder / "plain")
    return folder / "plain", save_gguf(folder / "model.gguf", model, tokenizer)
