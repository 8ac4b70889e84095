"""The stages of a sentence encoder, in sentence-transformers' folders: modules.json lists them in order, each has its
settings in a folder of its own.

They are that library's classes. Which of them a folder may name is decided here. Transformers are read by
``pretrained.build``: safetensors only, with no weight missing. Code that a folder brings along is never run.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from safetensors import SafetensorError
from sentence_transformers.base.modules.transformer import Transformer as TheirTransformer
from sentence_transformers.sentence_transformer import modules as theirs

from latentrag.encoder.identity import MODULES
from latentrag.encoder.tokens import TextTokenizer, load_tokenizer
from latentrag.errors import ModelError
from latentrag.pretrained import (
    build,
    one_line,
    quiet,
    read_config,
    read_json,
    read_object,
    read_weights,
    refuse_pickles,
    write_json,
)

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

ROUTES = "router_config.json"
TYPES = "sentence_transformers.models."
NAMES = sorted(set(theirs.__all__) - {"Module", "InputModule", "CLIPModel"})
TEXT = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
HUB = {"local_files_only": True, "trust_remote_code": False}


class Transformer(TheirTransformer):  # type: ignore[misc]
    """Texts to the vectors of their tokens.

    Attributes:
        text: tokenizes texts; None: only ``preprocess`` can, since the model reads chats or more than texts.
    """

    text: TextTokenizer | None

    def __init__(self, model_name_or_path: str, **options: Any) -> None:
        super().__init__(model_name_or_path, **options)
        lengths = (self.query_length, self.document_length, self.query_expansion)
        if self.modality_config != TEXT or self.processing_kwargs or lengths != (None, None, None):
            self.text = None

    @property
    def takes_type_ids(self) -> bool:
        """Whether the model is given its tokenizer's segment ids. Zeros in place of none are not neutral everywhere:
        GPT-2 adds the vector of token 0."""
        return "token_type_ids" in self.tokenizer.model_input_names

    def save(self, output_path: str, **_: object) -> None:
        """In their layout, with the tokenizer as it was read."""
        folder = Path(output_path)
        self.model.save_pretrained(folder)
        content: dict[str, Any] = {**self.get_config_dict(), "do_lower_case": self.do_lower_case}
        if self.text is None:
            self.processor.save_pretrained(folder)
        else:
            self.text.save(folder)
            content["max_seq_length"] = self.text.max_tokens
        write_json(folder / self.config_file_name, content)

    def _load_config(self, folder: str, backend: str, options: Mapping[str, Any]) -> tuple[PretrainedConfig, bool]:  # noqa: ARG002
        return read_config(Path(folder, options.get("subfolder", ""))), False

    def _load_model(
        self, model_folder: str, task: str, config: PretrainedConfig, *_: object, dtype: torch.dtype, **options: Any
    ) -> PreTrainedModel:
        folder = Path(model_folder, options.get("subfolder", ""))
        if task != "feature-extraction":
            raise ModelError(f"{folder} is a transformer for {task}, needed one for feature-extraction")
        model_class = _model_class(folder, config)
        # BERT's pooler is not used here, and many checkpoints lack its weights.
        unpooled = "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
        more = {"add_pooling_layer": False} if unpooled else {}
        model = build(model_class, config, read_weights(folder), folder=folder, dtype=dtype, **more)
        files = sorted(folder.glob("sentence_*_config.json")) if "subfolder" in options else []  # of modules.json
        settings = next(map(read_object, files), {})
        self.text = load_tokenizer(folder, model, max_seq_length=settings.get("max_seq_length"))
        return model


def _model_class(folder: Path, config: PretrainedConfig) -> type[PreTrainedModel]:
    """The class of a model that encodes texts; of T5's family its encoder."""
    import transformers
    from transformers import MODEL_MAPPING

    known = MODEL_MAPPING.get(type(config), None)
    if known is not None:
        whole = None if config.is_encoder_decoder else known
        known = getattr(transformers, f"{known.__name__.removesuffix('Model')}EncoderModel", whole)
    if known is None:
        raise ModelError(f"{folder} has model_type={config.model_type!r}, needed an encoder such as BERT's kind")
    model_class: type[PreTrainedModel] = known
    return model_class


def load_stages(folder: Path, *, dtype: torch.dtype) -> list[nn.Module]:
    """The stages of a folder with modules.json, in eval mode. Without it, as in sentence-transformers: the transformer,
    and pooling by the mean, or by the last token of a causal language model.

    Args:
        dtype: of transformers; other stages are in float32.
    Raises: ModelError if it is incomplete or damaged, not an encoder, or has a stage that is not supported.
    """
    with quiet():
        if not (folder / MODULES).exists():
            return [stage.eval() for stage in _plain(folder, dtype)]
        return [_stage(kind, folder, path, dtype).eval() for kind, path in _listed(folder)]


def _plain(folder: Path, dtype: torch.dtype) -> Sequence[nn.Module]:
    with _refused(folder, "Transformer"):
        model = Transformer(str(folder), model_kwargs={"dtype": dtype}, processor_kwargs=HUB)
    architecture = (model.config.architectures or [""])[0]
    is_causal = architecture.endswith("ForCausalLM") and getattr(model.config, "is_causal", True)
    return model, theirs.Pooling(model.get_embedding_dimension(), "lasttoken" if is_causal else "mean")


def _listed(folder: Path) -> list[tuple[str, str]]:
    """Each stage's kind, the last part of its type, and its folder's name."""
    listed = read_json(folder / MODULES)
    try:
        rows = [(_kind(stage["type"]), str(stage["path"])) for stage in listed]
    except (KeyError, TypeError) as error:
        raise ModelError(f"{folder / MODULES} is not a list of modules; fetch the file again") from error
    if not rows:
        raise ModelError(f"{folder / MODULES} lists no modules; fetch the file again")
    return rows


def _kind(name: object) -> str:
    return str(name).rpartition(".")[2]


def _stage(kind: str, folder: Path, path: str, dtype: torch.dtype) -> nn.Module:
    stage_class, at = _class(kind, folder / MODULES), folder / path
    options: dict[str, Any] = {**HUB, "model_kwargs": {"dtype": dtype}}
    if kind == "Dense":
        _check_activation(at)
    if stage_class is theirs.Router:
        types = _types_of_routes(at)
        options["module_classes"] = {name: _class(_kind(name), at) for name in types.values()}
        for part in types:
            refuse_pickles(at / part)
    refuse_pickles(at)
    with _refused(at, kind):
        stage: nn.Module = stage_class.load(str(folder), subfolder=path, **options)
    return stage


def _class(kind: str, where: Path) -> Any:
    if kind not in NAMES:
        raise ModelError(f"{where} has a module {kind}, which is not supported; supported are {', '.join(NAMES)}")
    return Transformer if kind == "Transformer" else getattr(theirs, kind)


def _types_of_routes(folder: Path) -> dict[str, str]:
    """The parts of a Router and their types, by the names of their folders."""
    path = folder / ROUTES if (folder / ROUTES).exists() else folder / "config.json"
    types = read_object(path).get("types")
    if not isinstance(types, dict):
        raise ModelError(f"{path} has no types of modules; fetch the file again")
    return types


def _check_activation(folder: Path) -> None:
    """What sentence-transformers does not trust, it replaces."""
    name = read_object(folder / "config.json").get("activation_function", "torch.")
    if not str(name).startswith("torch."):
        raise ModelError(f"{folder} has the activation {name}; supported are those of torch.nn")


@contextmanager
def _refused(folder: Path, kind: str) -> Iterator[None]:
    """What goes wrong in their code as one line."""
    theirs_too = (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, ImportError, SafetensorError)
    try:
        yield
    except ModelError:
        raise
    except theirs_too as error:
        raise ModelError(f"{folder} does not load as a {kind} ({one_line(error)}); fetch its files again") from error


def save_stages(stages: Sequence[nn.Module], folder: Path) -> None:
    """In sentence-transformers' layout: the first stage at the top, and modules.json."""
    listed = []
    for i, stage in enumerate(stages):
        kind, saved = type(stage).__name__, cast("Any", stage)
        path = "" if i == 0 and kind != "Router" else f"{i}_{kind}"
        (folder / path).mkdir(parents=True, exist_ok=True)
        with quiet():
            saved.save(str(folder / path))
        if kind == "Router":
            content = read_object(folder / path / ROUTES)
            types = {part: TYPES + _kind(name) for part, name in content["types"].items()}
            write_json(folder / path / ROUTES, {**content, "types": types})
        listed.append({"idx": i, "name": str(i), "path": path, "type": TYPES + kind})
    write_json(folder / MODULES, listed)
