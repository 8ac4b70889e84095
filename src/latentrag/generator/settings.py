"""A model's saved generation settings, under our names."""

from collections.abc import Mapping
from typing import Any

_NAMES: Mapping[str, str] = {
    "num_beams": "num_beams",
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "no_repeat_ngram_size": "no_repeat_ngram_size",
    "length_penalty": "length_penalty",
    "early_stopping": "early_stopping",
}
_WITH_PROMPT: Mapping[str, str] = {"max_length": "max_tokens", "min_length": "min_tokens"}


def decoding_defaults(model: Any) -> dict[str, Any]:
    """What the model's ``generation_config`` sets, under the names of ``DecodingOptions``.

    Only values that the file really sets: transformers' own defaults (20 tokens, length penalty 1, …) are not the
    model's wish. ``max_length`` and ``min_length`` count the decoder's start token there and not here; for causal
    models they count the prompt and mean nothing here.
    """
    config = getattr(model, "generation_config", None)
    if config is None:
        return {}
    saved = config.to_diff_dict()
    found = {ours: saved[theirs] for theirs, ours in _NAMES.items() if saved.get(theirs) is not None}
    if model.config.is_encoder_decoder:
        for theirs, ours in _WITH_PROMPT.items():
            if saved.get(theirs) is not None:
                found.setdefault(ours, max(1, saved[theirs] - 1))
    return found
