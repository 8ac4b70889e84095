"""Real architectures with random weights, small enough to make in a test and saved to disk as real models are."""

from pathlib import Path
from typing import Any

import torch

from latentrag.generator import CausalGenerator, load_generator
from latentrag.rag import Rag

WORDS = """a an the of in is was who what where when which capital city river moon sun planet king queen france paris
germany berlin rome italy tokyo japan wrote opera fidelio beethoven austen emma novel author question answer title
text it he she they one two three four five red blue green . , : ? ! / //""".split()
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]  # numbered as BART's
BEGIN, PAD, END, UNKNOWN = range(4)
VOCABULARY = len(SPECIAL) + len(WORDS) + 1  # and a line break


def save_tokenizer(folder: Path, *, begin: bool = True, end: bool = True, max_tokens: int = 64) -> Any:
    """A word-level tokenizer that keeps line breaks, with <s> … </s> as asked."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS, "\n"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\n|[^\s\w/]|//|/|\w+"), "isolated"), _without_spaces()]
    )
    tokenizer.decoder = _spaced()
    template = [*(["<s>"] if begin else []), "$A", *(["</s>"] if end else [])]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", BEGIN), ("</s>", END)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=max_tokens,
    )
    fast.save_pretrained(folder)
    return fast


def _without_spaces() -> Any:
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Split(Regex(r"[^\S\n]+"), "removed")


def _spaced() -> Any:
    from tokenizers import decoders

    return decoders.WordPiece(prefix="##", cleanup=False)


def save_bart(folder: Path, *, seed: int = 0, **changes: Any) -> Any:
    """A two-layer BART whose weights are large enough for its distributions to differ."""
    from transformers import BartConfig, BartForConditionalGeneration

    config = BartConfig(
        **{
            "vocab_size": VOCABULARY,
            "d_model": 16,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
            "max_position_embeddings": 64,
            "pad_token_id": PAD,
            "bos_token_id": BEGIN,
            "eos_token_id": END,
            "decoder_start_token_id": END,
            "forced_eos_token_id": None,
            "init_std": 0.6,
            **changes,
        }
    )
    torch.manual_seed(seed)
    return _saved(BartForConditionalGeneration(config), folder)


def save_t5(folder: Path, *, seed: int = 0) -> Any:
    """A two-layer T5: relative positions, scaled output layer, no begin token."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        pad_token_id=PAD,
        eos_token_id=END,
        decoder_start_token_id=PAD,
        initializer_factor=1.0,
    )
    torch.manual_seed(seed)
    return _saved(T5ForConditionalGeneration(config), folder)


def save_llama(folder: Path, *, seed: int = 0) -> Any:
    """A two-layer Llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**_causal(), num_key_value_heads=1)
    torch.manual_seed(seed)
    return _saved(LlamaForCausalLM(config), folder)


def save_gemma2(folder: Path, *, seed: int = 0) -> Any:
    """A two-layer Gemma 2: soft-capped logits, and a window of 8 tokens in every other layer."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        **_causal(),
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=8,
        final_logit_softcapping=3.0,
        layer_types=["sliding_attention", "full_attention"],
    )
    torch.manual_seed(seed)
    return _saved(Gemma2ForCausalLM(config), folder)


def save_gpt2(folder: Path, *, seed: int = 0) -> Any:
    """A two-layer GPT-2: learned positions."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=128,
        bos_token_id=BEGIN,
        eos_token_id=END,
        pad_token_id=PAD,
        initializer_range=0.5,
    )
    torch.manual_seed(seed)
    return _saved(GPT2LMHeadModel(config), folder)


def save_granite(folder: Path, *, seed: int = 0) -> Any:
    """A two-layer Granite, which divides its logits."""
    from transformers import GraniteConfig, GraniteForCausalLM

    config = GraniteConfig(**_causal(), num_key_value_heads=1, logits_scaling=2.5)
    torch.manual_seed(seed)
    return _saved(GraniteForCausalLM(config), folder)


def load_causal(folder: Path, **options: Any) -> CausalGenerator:
    """As ``load_generator``, of a folder that holds a causal one."""
    generator = load_generator(folder, **options)
    assert isinstance(generator, CausalGenerator)
    return generator


def log_probs(generator: Any, logits: torch.Tensor) -> torch.Tensor:
    """The generator's distribution from its model's logits (…, V): all of the tokens that end y count as the first."""
    log_p = torch.log_softmax(logits.float(), dim=-1).clone()
    ends = generator._head.ends
    end = log_p[..., ends].logsumexp(dim=-1)
    log_p[..., ends] = float("-inf")
    log_p[..., ends[0]] = end
    return log_p


def causal_of(rag: Rag) -> CausalGenerator:
    """Its generator, which is a causal one."""
    assert isinstance(rag.generator, CausalGenerator)
    return rag.generator


def _causal() -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 128,
        "bos_token_id": BEGIN,
        "eos_token_id": END,
        "pad_token_id": PAD,
        "initializer_range": 0.5,
    }


def _saved(model: Any, folder: Path) -> Any:
    for parameter in model.parameters():
        if parameter.dim() == 1:  # biases and norms too, or a lost bias would go unnoticed
            with torch.no_grad():
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.eval().save_pretrained(folder)
    return model
