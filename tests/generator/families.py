"""Families of generators, each a tiny random checkpoint of transformers' own class, and how far its log-probabilities
are from those of the plain model. `python -m tests.generator.families` writes docs/generators.md."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from latentrag.generator import CausalGenerator, Seq2SeqGenerator
from latentrag.generator.passages import PassageCache
from latentrag.generator.prompt import input_ids
from latentrag.place import Place
from latentrag.pretrained import config_of, read_object, read_weights
from latentrag.types import Passage, singles
from tests import tiny
from tests.generator.test_generators import PASSAGES, X, Y

DOCUMENT = Path(__file__).parents[2] / "docs" / "generators.md"
LIMIT = 48
"""Tokens of a prompt at most, so that the longest passage is cut."""

_SPECIAL = {"bos_token_id": tiny.BEGIN, "eos_token_id": tiny.END, "pad_token_id": tiny.PAD}
_CAUSAL = {
    **_SPECIAL,
    "vocab_size": tiny.VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 96,
}
_GROUPED = {**_CAUSAL, "num_key_value_heads": 1}
_HEADS = {**_GROUPED, "head_dim": 8}
_WINDOW = {"sliding_window": 8}
_GPT = {**_SPECIAL, "vocab_size": tiny.VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 96}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_SSM = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
_STATES = {**_SPECIAL, "vocab_size": tiny.VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 8}
_LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_ENCODER_DECODER = {
    **_SPECIAL,
    "vocab_size": tiny.VOCABULARY,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 64,
    "decoder_start_token_id": tiny.END,
    "forced_eos_token_id": None,
}
_T5 = {
    **_SPECIAL,
    "vocab_size": tiny.VOCABULARY,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 2,
    "num_heads": 2,
    "decoder_start_token_id": tiny.PAD,
}
_T5GEMMA = {name: {**_HEADS, **_WINDOW} for name in ("encoder", "decoder")}

CAUSAL: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("LlamaForCausalLM", _GROUPED),
    "Mistral": ("MistralForCausalLM", {**_GROUPED, **_WINDOW}),
    "Ministral": ("MinistralForCausalLM", {**_HEADS, **_WINDOW}),
    "Mixtral": ("MixtralForCausalLM", {**_GROUPED, "num_local_experts": 4}),
    "Qwen2": ("Qwen2ForCausalLM", _GROUPED),
    "Qwen3": ("Qwen3ForCausalLM", _HEADS),
    "Qwen3 MoE": ("Qwen3MoeForCausalLM", {**_HEADS, **_EXPERTS}),
    "Gemma": ("GemmaForCausalLM", _HEADS),
    "Gemma 2": ("Gemma2ForCausalLM", {**_HEADS, **_WINDOW}),
    "Gemma 3": ("Gemma3ForCausalLM", {**_HEADS, **_WINDOW, "layer_types": ["sliding_attention", "full_attention"]}),
    "Phi 2": ("PhiForCausalLM", _CAUSAL),
    "Phi 3": ("Phi3ForCausalLM", {**_GROUPED, **_WINDOW}),
    "SmolLM 3": ("SmolLM3ForCausalLM", _GROUPED),
    "GPT-2": ("GPT2LMHeadModel", _GPT),
    "GPT-Neo": (
        "GPTNeoForCausalLM",
        {**_SPECIAL, "vocab_size": tiny.VOCABULARY, "hidden_size": 16, "num_layers": 2, "num_heads": 2}
        | {"attention_types": [[["global", "local"], 1]], "window_size": 8, "max_position_embeddings": 96},
    ),
    "GPT-J": ("GPTJForCausalLM", {**_GPT, "rotary_dim": 4}),
    "GPT-NeoX, Pythia": ("GPTNeoXForCausalLM", _CAUSAL),
    "OPT": (
        "OPTForCausalLM",
        {name: value for name, value in _CAUSAL.items() if name != "intermediate_size"}
        | {"ffn_dim": 32, "word_embed_proj_dim": 16},
    ),
    "Granite": ("GraniteForCausalLM", {**_GROUPED, "logits_scaling": 2.5}),
    "OLMo": ("OlmoForCausalLM", _GROUPED),
    "OLMo 2": ("Olmo2ForCausalLM", _GROUPED),
    "OLMo 3": ("Olmo3ForCausalLM", {**_GROUPED, **_WINDOW}),
    "Falcon": ("FalconForCausalLM", {**_CAUSAL, "multi_query": True}),
    "Falcon with ALiBi": ("FalconForCausalLM", {**_CAUSAL, "alibi": True}),
    "BLOOM": (
        "BloomForCausalLM",
        {**_SPECIAL, "vocab_size": tiny.VOCABULARY, "hidden_size": 16, "n_layer": 2, "n_head": 2},
    ),
    "Cohere 2": ("Cohere2ForCausalLM", {**_GROUPED, **_WINDOW}),
    "GLM 4": ("Glm4ForCausalLM", _HEADS),
    "EXAONE 4": ("Exaone4ForCausalLM", {**_GROUPED, **_WINDOW}),
    "StableLM": ("StableLmForCausalLM", _GROUPED),
    "BERT as decoder": ("BertLMHeadModel", {**_CAUSAL, "is_decoder": True}),
    "RoBERTa as decoder": ("RobertaForCausalLM", {**_CAUSAL, "is_decoder": True}),
    "Mamba": ("MambaForCausalLM", _STATES),
    "Mamba 2": ("Mamba2ForCausalLM", {**_STATES, "num_heads": 4, "head_dim": 8, "n_groups": 1, "chunk_size": 8}),
    "Falcon Mamba": ("FalconMambaForCausalLM", _STATES),
    "LFM 2": ("Lfm2ForCausalLM", {**_GROUPED, "layer_types": ["conv", "full_attention"]}),
    "Qwen3-Next": (
        "Qwen3NextForCausalLM",
        {**_HEADS, **_LINEAR, **_EXPERTS, "shared_expert_intermediate_size": 16},
    ),
    "Qwen3.5": ("Qwen3_5ForCausalLM", {**_HEADS, **_LINEAR}),
    "Bamba": ("BambaForCausalLM", {**_GROUPED, **_SSM, "attn_layer_indices": [1]}),
    "Falcon H1": ("FalconH1ForCausalLM", {**_GROUPED, **_SSM, "mamba_d_ssm": 32}),
    "Granite 4 hybrid": (
        "GraniteMoeHybridForCausalLM",
        {**_GROUPED, **_SSM, "layer_types": ["mamba", "attention"], "num_local_experts": 0}
        | {"shared_intermediate_size": 16},
    ),
    "Nemotron H": (
        "NemotronHForCausalLM",
        {**_HEADS, "mamba_num_heads": 4, "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 1, "chunk_size": 8},
    ),
    "RWKV": (
        "RwkvForCausalLM",
        {name: value for name, value in _STATES.items() if name not in ("state_size", "pad_token_id")}
        | {"attention_hidden_size": 16},
    ),
}
SEQ2SEQ: dict[str, tuple[str, dict[str, Any]]] = {
    "BART": ("BartForConditionalGeneration", _ENCODER_DECODER),
    "mBART": ("MBartForConditionalGeneration", _ENCODER_DECODER),
    "mBART-50": ("MBartForConditionalGeneration", {**_ENCODER_DECODER, "forced_bos_token_id": 7}),
    "M2M-100, NLLB": ("M2M100ForConditionalGeneration", {**_ENCODER_DECODER, "forced_bos_token_id": 7}),
    "T5": ("T5ForConditionalGeneration", _T5),
    "FLAN-T5, T5 1.1": (
        "T5ForConditionalGeneration",
        {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "mT5": ("MT5ForConditionalGeneration", _T5),
    "LongT5": ("LongT5ForConditionalGeneration", _T5),
    "T5Gemma": ("T5GemmaForConditionalGeneration", {**_SPECIAL, **_T5GEMMA, "vocab_size": tiny.VOCABULARY}),
    "Pegasus": ("PegasusForConditionalGeneration", _ENCODER_DECODER),
    "Marian": ("MarianMTModel", _ENCODER_DECODER),
    "Blenderbot": ("BlenderbotForConditionalGeneration", _ENCODER_DECODER),
}
REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "Switch": ("SwitchTransformersForConditionalGeneration", {**_T5, "num_experts": 4}),
    "NLLB-MoE": ("NllbMoeForConditionalGeneration", {**_ENCODER_DECODER, "num_experts": 4, "decoder_sparse_step": 2}),
    "ProphetNet": (
        "ProphetNetForConditionalGeneration",
        {**_SPECIAL, "vocab_size": tiny.VOCABULARY, "hidden_size": 16, "decoder_start_token_id": tiny.BEGIN}
        | {f"{half}_ffn_dim": 32 for half in ("encoder", "decoder")}
        | {f"num_{half}_layers": 2 for half in ("encoder", "decoder")}
        | {f"num_{half}_attention_heads": 2 for half in ("encoder", "decoder")},
    ),
    "FSMT": (
        "FSMTForConditionalGeneration",
        {name: value for name, value in _ENCODER_DECODER.items() if name != "vocab_size"}
        | {"langs": ["en", "de"], "src_vocab_size": tiny.VOCABULARY, "tgt_vocab_size": tiny.VOCABULARY},
    ),
}
FAMILIES = {**CAUSAL, **SEQ2SEQ}


@dataclass(frozen=True, slots=True)
class Measured:
    """Largest differences to the plain model's log-probabilities, nats.

    Attributes:
        scored: of gold tokens, with and without passages kept from before, of prompts and answers at their limits too.
        decoded: of steps whose beams move and multiply.
    """

    keeps_passages: bool
    shares_beams: bool
    scored: float
    decoded: float


def generator_of(name: str, folder: Path) -> Any:
    """A generator around a saved checkpoint of the family. Raises: ModelError."""
    import transformers

    class_name, settings = {**FAMILIES, **REFUSED}[name]
    model_class = getattr(transformers, class_name)
    torch.manual_seed(3)
    model = model_class(model_class.config_class(**settings))
    model.generation_config.forced_bos_token_id = settings.get("forced_bos_token_id")
    for parameter in model.parameters():  # large enough for distributions to differ, norms and biases too
        with torch.no_grad():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif parameter.std() < 0.1:
                parameter.normal_(0, 0.4)
    model.save_pretrained(folder)
    is_causal = name in CAUSAL
    tokenizer = tiny.save_tokenizer(folder, begin="T5" not in name, end=not is_causal, max_tokens=64)
    kind: Any = CausalGenerator if is_causal else Seq2SeqGenerator
    return kind.of_weights(
        config_of(read_object(folder / "config.json"), folder / "config.json"),
        read_weights(folder),
        tokenizer,
        {"max_input_tokens": LIMIT},
        folder=folder,
        place=Place(number_format="float32"),
        dtype=torch.float32,
    )


@torch.no_grad()
def measure(generator: Any) -> Measured:
    """All differences of one generator."""
    long = Passage("z", "paris is the capital city of france . " * 20, "france")
    most = generator.max_target_tokens or 40
    scored = 0.0
    for passages, y in ((PASSAGES, Y), ([[long]], ["moon " * (most - 1)])):
        questions = X[: len(passages)]
        for cached in (False, True, True):
            if isinstance(generator, CausalGenerator) and not cached:
                generator.passage_cache = None
            elif isinstance(generator, CausalGenerator) and generator.passage_cache is None:
                generator.passage_cache = PassageCache(1 << 20)
            scored = max(scored, _scored(generator, questions, passages, y))
    shares = bool(generator._shares_context)
    return Measured(generator.capabilities.keeps_prefixes, shares, scored, _decoded(generator))


def _scored(generator: Any, questions: list[str], passages: list[list[Passage]], y: list[str]) -> float:
    prepared, targets = generator.prepare(questions, singles(passages)), generator.targets(y)
    found = generator.log_p_theta(prepared, targets)
    differences = []
    for (b, k), prompt in _prompts(generator, questions, passages):
        ids = targets.ids[b][targets.mask[b]].tolist()
        expected = _plain(generator, prompt, ids)[range(len(ids)), ids]
        differences.append((found[b, k, : len(ids)] - expected).abs().max())
    return float(torch.stack(differences).max())


def _decoded(generator: Any) -> float:
    log_p, state = generator.start(generator.prepare(X, singles(PASSAGES)))
    prompts, questions = _prompts(generator, X, PASSAGES), [0, 1]
    prefixes: list[list[list[int]]] = [[[]], [[]]]
    moves: list[Any] = [
        ([[0, 0], [1, 1]], [[6, 7], [8, 9]], [0, 1]),
        ([[1, 0], [3, 3]], [[10, 11], [12, 13]], [0, 1]),
        ([[3, 2, 2]], [[14, 15, 16]], [1]),
    ]
    largest = 0.0
    for move in [*moves, None]:
        for row, b in enumerate(questions):
            for m, prefix in enumerate(prefixes[row]):
                for (of_b, k), prompt in prompts:
                    if of_b == b:
                        expected = _plain(generator, prompt, [*prefix, 0])[-1]
                        finite = torch.isfinite(expected)
                        largest = max(largest, float((log_p[row, k, m] - expected)[finite].abs().max()))
        if move is None:
            return largest
        parents, tokens, questions = move
        flat: list[list[int]] = [prefix for of_one in prefixes for prefix in of_one]
        prefixes = [[[*flat[p], t] for p, t in zip(*both, strict=True)] for both in zip(parents, tokens, strict=True)]
        log_p, state = generator.step(state, torch.tensor(parents), torch.tensor(tokens))
    return largest


def _prompts(generator: Any, questions: list[str], passages: list[list[Passage]]) -> list[tuple[tuple[int, int], Any]]:
    """Question and passage, and the tokens of their prompt."""
    places = [(b, k) for b, row in enumerate(passages) for k in range(len(row))]
    if isinstance(generator, CausalGenerator):
        rows = generator.prepare(questions, singles(passages)).whole_rows()
    else:
        rendered = [generator.template.render(questions[b], (passages[b][k],)) for b, k in places]
        rows = input_ids(generator._encoder, rendered, limit=LIMIT)
    return list(zip(places, rows, strict=True))


def _plain(generator: Any, prompt: list[int], ids: list[int]) -> torch.Tensor:
    """(T, V): what the plain model says in one pass where it predicts each of these tokens."""
    if isinstance(generator, CausalGenerator):
        logits = generator.model(input_ids=torch.tensor([[*prompt, *ids[:-1]]]), use_cache=False).logits
    else:
        decoder = torch.tensor([[*generator.decoder_prefix, *ids[:-1]]])
        logits = generator.model(input_ids=torch.tensor([prompt]), decoder_input_ids=decoder, use_cache=False).logits
    return tiny.log_probs(generator, logits[0, -len(ids) :])


def row_of(name: str, measured: Measured | None, words: str = "") -> str:
    """A family's row of the table."""
    class_name = {**FAMILIES, **REFUSED}[name][0]
    if measured is None:
        return f"| {name} | `{class_name}` | refused | | | |"
    passages = "kept" if measured.keeps_passages else "whole prompt" if name in CAUSAL else "with the question"
    beams = "share" if measured.shares_beams else "copy"
    return f"| {name} | `{class_name}` | {passages} | {beams} | {measured.scored:.0e} | {measured.decoded:.0e} |"


def rows() -> Iterator[str]:
    """The table's rows, of families as they are now."""
    for name in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            yield row_of(name, measure(generator_of(name, Path(folder))))
    for name in REFUSED:
        yield row_of(name, None)


_INTRODUCTION = """# Generators that were tried

`python -m tests.generator.families` made this table, and the tests keep it: tiny random checkpoints of transformers'
own classes, loaded from their files, against plain, unpadded, uncached passes of the same models in float32. Scored:
gold tokens, with passages read anew and kept from before, with prompts and answers at their limits. Decoded: steps
whose beams move and multiply. Both are the largest difference of a log-probability, in nats; 1e-4 is allowed.

Passages are *kept* where their keys and values do not depend on the question; models without such a prefix read the
*whole prompt* at every step, which is as right and slower. Beams *share* what was read, or have a *copy* each. Any
other model is checked when it is loaded, on two tiny prompts: where its steps are not what it says in one pass, it
reads whole prompts, and where that does not help it is refused in one line.

Encoders like BERT generate as readers that point at spans: [extractive readers](extractive-readers.md).

| family | class | passages | beams | scored | decoded |
|---|---|---|---|---|---|
"""


if __name__ == "__main__":
    DOCUMENT.write_text(_INTRODUCTION + "".join(f"{row}\n" for row in rows()), "utf-8")
