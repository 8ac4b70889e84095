"""Fast tokenizers as real families have them, made from a few sentences, and their chat templates in small."""

import json
from typing import Any

TEXT = """Paris is the capital of France. It lies on the Seine.
Title: U.S. The capital is Washington, D.C.
Question: What is the capital of France?
Answer: Paris.
Question: Who wrote Fidelio?
Answer:
Beethoven wrote it in Vienna (Austria):

Beethoven. 1805. Answer the question in as few words as possible, in the language of the question.
"""
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Which pieces Qwen's and Llama 3's tokenizers merge within: a colon or full stop may merge with a line break."""

CHATML = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
QWEN3 = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' and loop.last %}\
{{ '<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' }}{% endif %}\
{{ m.content + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}\
{% if enable_thinking is defined and not enable_thinking %}\
{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"""
R1 = """{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '<|User|>' + m.content }}{% else %}\
{{ '<|Assistant|>' + m.content.split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"""
LLAMA3 = """{{ bos_token }}{{ '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' }}\
{{ date_string if date_string is defined else strftime_now('%d %b %Y') }}{{ '<|eot_id|>' }}\
{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content|trim + '<|eot_id|>' }}\
{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""
GEMMA = """{{ bos_token }}{% for m in messages %}{% set role = 'model' if m.role == 'assistant' else m.role %}\
{% if role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}\
{{ '<start_of_turn>' + role + '\n' + m.content|trim + '<end_of_turn>\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""
MISTRAL = """{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}\
{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"""
HARMONY = """{% for m in messages %}{% if m.role == 'user' %}{{ '<|start|>user<|message|>' + m.content + '<|end|>' }}\
{% else %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|return|>' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""

CHATS: dict[str, tuple[str, str, list[str], list[str]]] = {
    "chatml": (CHATML, "qwen", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], []),
    "qwen3": (QWEN3, "qwen", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], ["<think>", "</think>"]),
    "r1": (R1, "qwen", ["<|endoftext|>", "<|User|>", "<|Assistant|>"], ["<think>", "</think>"]),
    "llama3": (LLAMA3, "qwen", ["<|begin|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], []),
    "gemma": (GEMMA, "sentencepiece", ["<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"], []),
    "mistral": (MISTRAL, "sentencepiece", ["</s>", "<s>", "[INST]", "[/INST]"], []),
    "harmony": (HARMONY, "qwen", ["<|return|>", "<|start|>", "<|message|>", "<|channel|>", "<|end|>"], []),
}
"""Name → chat template, kind of tokenizer, special tokens (the first ends a text), other control tokens."""
BEGINS = {"llama3": "<|begin|>", "gemma": "<bos>", "mistral": "<s>"}
TURN_ENDS = {"chatml": "<|im_end|>", "qwen3": "<|im_end|>", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>"}


def made(kind: str, *, special: list[str], begin: str | None = None, more: list[str] | None = None) -> Any:
    """A tokenizer of bytes ("qwen") or of characters with ▁ for spaces ("sentencepiece")."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    if kind == "qwen":
        tokenizer = Tokenizer(models.BPE())
        words = pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token=None, fuse_unk=True))
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"▁?[^▁\n]+|\n|▁"), "isolated")
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    # Every line is repeated, so that whatever may merge does.
    tokenizer.train_from_iterator([TEXT] * 20, trainer)
    if kind != "qwen":
        state = json.loads(tokenizer.to_str())
        vocabulary = state["model"]["vocab"]
        vocabulary |= {f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)}
        tokenizer = Tokenizer.from_str(json.dumps(state))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=special[0], bos_token=begin, pad_token=special[0], model_max_length=512
    )
    fast.add_special_tokens({"additional_special_tokens": special[1:]})
    fast.add_tokens(more or [])
    if begin is not None:
        fast.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=[begin, "$A"], special_tokens=[(begin, fast.convert_tokens_to_ids(begin))]
        )
    return fast


def chat_tokenizer(name: str) -> Any:
    """A tokenizer with one of ``CHATS``."""
    template, kind, special, more = CHATS[name]
    tokenizer = made(kind, special=special, begin=BEGINS.get(name), more=more)
    tokenizer.chat_template = template
    return tokenizer


def model_for(tokenizer: Any, **changes: Any) -> Any:
    """A one-layer Llama with random weights and this tokenizer's vocabulary."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=1024,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        **{"initializer_range": 0.5, **changes},
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()
