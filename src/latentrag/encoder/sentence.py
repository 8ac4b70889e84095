"""Sentence encoders: one model for questions and passages, in the folders of sentence-transformers and through its
stages (see ``stages``). Tokenizing and batching are ours: by tokens, longest first, with packed weights.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentrag.encoder.identity import MODULES, Fingerprint, Saved, architecture_of, check_scale, dtype_name
from latentrag.encoder.sentence_module import SentenceModule, SentenceSettings, Task, passage_text
from latentrag.encoder.tokens import UNLIMITED, TextTokenizer, TokenBatch, encode_batches, encode_rows, frozen
from latentrag.errors import InputError, ModelError
from latentrag.options import EncoderOptions
from latentrag.packed import pack
from latentrag.pretrained import read_object, replacing, write_json
from latentrag.types import Passage, question_texts

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float
    from torch import Tensor

NORMALISED_SCALE = 20.0
"""What sentence-transformers' usual loss multiplies cosines by; without it the prior is almost flat."""

SETTINGS = "config_sentence_transformers.json"
ON_VECTORS = "sentence_embedding"
CHARACTERS = 4
"""Of a token, about: where lengths have to be guessed."""


class SentenceEncoder:
    """q(x) and d(z) by one model, or by the routes of one model.

    A query encoder that is trained moves away from the passage encoder that it began as, and its queries still
    belong to the vectors of that one: ``passage_fingerprint`` is settled when the encoder is made and changed by
    ``pair_with`` alone, and ``fingerprint`` follows the weights.

    Args:
        module: in eval mode unless the caller trains it.
        scale: s in p_η(z|x) ∝ exp(s·d(z)·q(x)); None: 20 if the vectors are normalised, else 1.
        passage_fingerprint: of the passage encoder it is paired with; None: itself, as it is now.
    Raises: ModelError if a prompt leaves no room for a text.
    """

    batch_tokens: int | None = None
    """Tokens in a forward pass, padding included; None: as many as suit the device."""

    def __init__(
        self,
        module: SentenceModule,
        *,
        name: str,
        settings: SentenceSettings,
        scale: float | None = None,
        passage_fingerprint: str | None = None,
    ) -> None:
        pack(module)
        default = NORMALISED_SCALE if module.normalised else 1.0
        self.module, self.name, self.scale = module, name, check_scale(default if scale is None else scale)
        self.dimension = module.dimension
        self._settings = settings
        self._alone = threading.Lock()
        self.max_tokens = self._limit("document")
        tasks: tuple[Task, ...] = ("query", "document")
        for task in tasks:
            tokenizer, prompt = self._input(task).text, settings.prompt(task)
            if tokenizer is not None and tokenizer.num_leading_tokens(prompt) + 2 > tokenizer.max_tokens:
                raise ModelError(
                    f"{name} has a prompt that fills the {tokenizer.max_tokens} tokens it reads: {prompt!r}"
                )
        self._fingerprint = self._fingerprinted()
        self.passage_fingerprint = passage_fingerprint or self.fingerprint

    @property
    def fingerprint(self) -> str:
        """Of its weights as they are now."""
        return self._fingerprint.value

    def encode_queries(self, x: Sequence[str]) -> Float[Tensor, "B D"]:
        """q(x), float32, differentiable unless grad mode is off.

        Raises: InputError for a question that is empty or, with its prompt, longer than the encoder reads.
        """
        return self._encode(question_texts(x), "query")

    def count_tokens(self, title: str, text: str) -> int:
        """How many tokens a passage has before it is cut, its prompt included; where only the first stage can tokenize,
        one more than are read for a passage that fills them."""
        first, passage = self._input("document"), passage_text(title, text)
        if first.text is not None:
            tokenizer: TextTokenizer = first.text
            return tokenizer.num_tokens(self._settings.written(passage, "document"))
        ids = self._preprocessed([passage], "document", self._settings.prompt("document"))["input_ids"]
        num_tokens = int(ids.shape[-1])
        return num_tokens + (num_tokens >= self.max_tokens)

    def encode_passages(self, passages: Sequence[Passage], *, progress: bool = False) -> Float[Tensor, "N D"]:
        """d(z), float32, on the CPU and without gradient; what lies beyond ``max_tokens`` is cut."""
        with frozen(self.module):
            return self.passage_vectors(passages, progress=progress).cpu()

    def passage_vectors(self, passages: Sequence[Passage], *, progress: bool = False) -> Float[Tensor, "N D"]:
        """d(z) as ``encode_passages`` gives it, but on the module's device, in the module's mode (train or eval), and
        differentiable unless grad mode is off."""
        return self._encode([passage_text(z.title, z.text) for z in passages], "document", progress=progress)

    def check_questions(self, x: Sequence[str]) -> None:
        """Raises: InputError as ``encode_queries``."""
        tokenizer = self._input("query").text
        if tokenizer is not None:
            tokenizer.question_rows([self._settings.written(text, "query") for text in question_texts(x)])

    def pair_with(self, passage_fingerprint: str) -> None:
        """From now on its queries belong to the vectors of the passage encoder with this fingerprint."""
        self.passage_fingerprint = passage_fingerprint

    def save(self, folder: str | Path) -> None:
        """sentence-transformers' layout, and latentrag_encoder.json for the scale and the pairing."""
        from latentrag.encoder.stages import save_stages

        settings = self._settings
        saved = Saved("sentence", "both", self.name, self.scale, self.passage_fingerprint, dtype_name(self.module))
        content: dict[str, object] = {
            "prompts": {"query": settings.query_prompt, "document": settings.passage_prompt},
            "default_prompt_name": None,
        }
        if settings.cosine:
            content["similarity_fn_name"] = "cosine"
        if settings.dimension is not None:
            content["truncate_dim"] = settings.dimension
        with replacing(Path(folder)) as scratch:
            save_stages(self.module.stages, scratch)
            write_json(scratch / SETTINGS, content)
            saved.write(scratch)

    def _encode(self, texts: Sequence[str], task: Task, *, progress: bool = False) -> Tensor:
        first, prompt = self._input(task), self._settings.prompt(task)
        if first.text is None:
            return self._encode_by_stages(texts, task, prompt, progress=progress)
        tokenizer = first.text
        written = [self._settings.written(text, task) for text in texts]
        rows = tokenizer.question_rows(written) if task == "query" else tokenizer.rows(written)
        num_prompt_tokens = tokenizer.num_leading_tokens(prompt)

        def forward(batch: TokenBatch) -> Tensor:
            features: dict[str, Any] = {"input_ids": batch.ids, "attention_mask": batch.mask.long()}
            if first.takes_type_ids:
                features["token_type_ids"] = batch.type_ids
            if prompt:
                features["prompt_length"] = num_prompt_tokens
            vectors: Tensor = self.module(features, task)
            return vectors

        return encode_rows(
            rows,
            forward,
            module=first.model,
            dimension=self.dimension,
            batch_tokens=self.batch_tokens,
            progress=progress,
        )

    def _encode_by_stages(self, texts: Sequence[str], task: Task, prompt: str, *, progress: bool) -> Tensor:
        """Texts that only the first stage can tokenize."""
        limit, device = self._limit(task), next(self.module.parameters()).device

        def forward(indices: Sequence[int]) -> Tensor:
            features = self._preprocessed([texts[i] for i in indices], task, prompt)
            if task == "query" and features["input_ids"].dim() > 1 and features["input_ids"].shape[1] >= limit:
                raise InputError(f"a question fills the {limit} tokens that the query encoder reads; shorten it")
            vectors: Tensor = self.module(
                {name: value.to(device) if hasattr(value, "to") else value for name, value in features.items()}, task
            )
            return vectors

        return encode_batches(
            [1 + len(text) // CHARACTERS for text in texts],
            forward,
            device=device,
            dimension=self.dimension,
            batch_tokens=self.batch_tokens,
            progress=progress,
        )

    def _preprocessed(self, texts: Sequence[str], task: Task, prompt: str) -> Any:
        with self._alone:  # a tokenizer of transformers changes its settings at each call
            return self._input(task).preprocess(list(texts), prompt=prompt or None, task=task)

    def _input(self, task: Task) -> Any:
        """The stage that the texts of a task enter by."""
        first: Any = self.module.paths[task][0]
        if not hasattr(first, "text"):
            first.text = None
        return first

    def _limit(self, task: Task) -> int:
        """How many tokens of a text are read."""
        first = self._input(task)
        limit = first.max_seq_length if first.text is None else first.text.max_tokens
        return UNLIMITED if limit is None or limit > UNLIMITED else int(limit)

    def _fingerprinted(self) -> Fingerprint:
        first = self._input("document")
        transformers = [stage for stage in self.module.paths["document"] if hasattr(stage, "takes_type_ids")]
        described = [architecture_of(stage.config) for stage in transformers]
        if first.text is not None:
            definition = first.text.definition
        else:
            backend = getattr(first.tokenizer, "backend_tokenizer", first.tokenizer)
            definition = backend.to_str() if hasattr(backend, "to_str") else repr(first.get_config_dict())
        return Fingerprint(
            self.module,
            described[0] if len(described) == 1 else described,
            definition=definition,
            settings=self._passage_settings(),
        )

    def _passage_settings(self) -> dict[str, object]:
        """What decides over a passage's vector besides weights, architecture and tokenizer."""
        module, settings = self.module, self._settings
        path = module.paths["document"]
        content: dict[str, object] = {
            "kind": "sentence",
            "title": "line",
            "max_tokens": self.max_tokens,
            "prompt": settings.passage_prompt,
            "lower_case": settings.lower_case,
        }
        if [type(stage).__name__ for stage in module.stages[:2]] == ["Transformer", "Pooling"]:
            pooling = path[1].get_config_dict()
            modes = pooling["pooling_mode"]
            content["pooling"] = [modes] if isinstance(modes, str) else list(modes)
            content["include_prompt"] = pooling["include_prompt"]
            content["head"] = [_described(stage) for stage in path[2:]]
        else:
            content["stages"] = [_described(stage) for stage in path]
        # Named only where vectors are not what they were before this could be chosen.
        if module.is_cut:
            content["dimension"] = module.dimension
        if module.normalises:
            content["cosine"] = True
        if _was_given_zeros(path[0]):
            content["type_ids"] = False
        return content


def _described(stage: Any) -> object:
    """A stage after the transformer, in the words of fingerprints."""
    kind, config = type(stage).__name__, dict(stage.get_config_dict())
    if {config.pop("module_input_name", ON_VECTORS), config.pop("module_output_name", ON_VECTORS)} != {ON_VECTORS}:
        return {kind: stage.get_config_dict()}
    if kind == "Dense" and not config.get("use_residual"):
        return config["activation_function"]
    return "normalize" if kind == "Normalize" else {kind: config}


def _was_given_zeros(stage: Any) -> bool:
    """Whether a model used to be given segment ids of zero, and they are not neutral there.

    Models with a table of segments take none for zeros."""
    if not hasattr(stage, "takes_type_ids") or stage.takes_type_ids:
        return False
    takes = "token_type_ids" in inspect.signature(stage.model.forward).parameters
    return takes and not hasattr(stage.config, "type_vocab_size")


def load_sentence_module(
    folder: Path, given: EncoderOptions, *, dtype: torch.dtype
) -> tuple[SentenceModule, SentenceSettings]:
    """A folder with modules.json, or without: see ``load_stages``.

    Args:
        given: prompts and dimension in place of the folder's.
    Raises: ModelError if it is incomplete, not an encoder, or has a stage that is not supported; InputError for a
        dimension that it does not have.
    """
    from latentrag.encoder.stages import load_stages

    stages = load_stages(folder, dtype=dtype)
    lower_case = bool(getattr(stages[0], "do_lower_case", False))
    settings = _read_settings(folder / SETTINGS, given, lower_case=lower_case)
    try:
        module = SentenceModule(stages, dimension=settings.dimension, cosine=settings.cosine)
    except ModelError as error:
        raise ModelError(f"{folder / MODULES}: {error}") from error
    return module.eval(), settings


def _read_settings(path: Path, given: EncoderOptions, *, lower_case: bool) -> SentenceSettings:
    content = read_object(path) if path.exists() else {}
    prompts = content.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(prompt, str) for prompt in prompts.values()):
        raise ModelError(f"{path} has prompts that are not texts by name; fetch the file again")
    default_name = content.get("default_prompt_name")
    if default_name is not None and default_name not in prompts:
        raise ModelError(f"{path} names the prompt {default_name!r}, which is not among its prompts {sorted(prompts)}")
    default: str = "" if default_name is None else prompts[default_name]
    passage_name = next((name for name in ("document", "passage", "corpus") if name in prompts), None)
    similarity, dimension = content.get("similarity_fn_name"), content.get("truncate_dim")
    if similarity not in {None, "cosine", "dot"}:
        raise ModelError(
            f"{path} has similarity_fn_name={similarity!r}; needed cosine or dot: passages are found by inner products"
        )
    if dimension is not None and not isinstance(dimension, int):
        raise ModelError(f"{path} has truncate_dim={dimension!r}; needed a whole number")
    passage_prompt = default if passage_name is None else prompts[passage_name]
    return SentenceSettings(
        query_prompt=prompts.get("query", default) if given.query_prompt is None else given.query_prompt,
        passage_prompt=passage_prompt if given.passage_prompt is None else given.passage_prompt,
        dimension=dimension if given.dimension is None else given.dimension,
        cosine=similarity == "cosine",
        lower_case=lower_case,
    )
