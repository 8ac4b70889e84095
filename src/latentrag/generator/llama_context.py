"""llama.cpp's model, context and vocabulary, as far as a generator needs them.

A context computes rows: tokens that follow what was read before them. What was read, keys and values of one sequence,
is taken out of the context as bytes after each call (``Past``) and put in again before the next: rows of any number,
order and beam then need no bookkeeping in the context, and cost two to three milliseconds for five passages. Each row
has a stream of llama.cpp's cache to itself, so that what is computed for it does not depend on the rows beside it.
"""

from __future__ import annotations

import ctypes
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentrag import io
from latentrag.errors import InputError, ModelError
from latentrag.place import require_unforked

STREAMS = 16
"""Rows computed at a time. Bytes of a ``Past`` are for contexts with as many."""
OUTPUTS = 32
"""Positions of a call whose logits are wanted; llama.cpp holds float32 for each token of the vocabulary."""
_BATCH_TOKENS = 2048
_FIRST_LENGTH = 512
"""Tokens of a stream in the first context; a longer row gets one twice as long, and so on."""

_log_lines: list[str] = []
_error_level = 4


@dataclass(frozen=True, slots=True, eq=False)
class Past:
    """What was read of a sequence of ``length`` tokens. state: (bytes,) uint8."""

    state: Tensor
    length: int


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """Tokens, at least one, that follow what was read. ``outputs``: of how many of the last ones logits are wanted."""

    tokens: Sequence[int]
    past: Past | None = None
    outputs: int = 1


class LlamaContext:
    """A GGUF file, opened.

    Args:
        gpu: whether its layers are computed by an accelerator, if llama.cpp was built for one.
    Raises: ModelError for a file that llama.cpp cannot read, or whose model is no decoder alone.
    """

    def __init__(self, path: Path, *, gpu: bool = False) -> None:
        self.path = path
        self.lock = threading.Lock()
        """Held while the context computes: it does so for one call at a time."""
        self._model: Any = None
        self._context: Any = None
        self._length = 0
        require_unforked(ModelError)
        self._api = api = _library()
        if not path.is_file():
            raise ModelError(f"no file at {path}; give the path of a GGUF file")
        if gpu and not api.llama_supports_gpu_offload():
            warnings.warn(f"llama.cpp was built for CPUs alone, so {path.name} is computed there", stacklevel=2)
            gpu = False
        params = api.llama_model_default_params()
        params.n_gpu_layers = -1 if gpu else 0
        params.use_extra_bufts = False  # repacked weights make a row depend on its neighbours
        params.check_tensors = True
        _log_lines.clear()
        self._model = api.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise ModelError(f"{path} cannot be used ({_last_error()}); fetch it again, or choose another model")
        if api.llama_model_has_encoder(self._model) or not api.llama_model_has_decoder(self._model):
            raise ModelError(f"{path} is no causal language model; choose one whose architecture is a decoder alone")
        self.vocabulary = Vocabulary(api, self._model)
        self.window: int = api.llama_model_n_ctx_train(self._model)

    @cached_property
    def key(self) -> str:
        """A name that changes with whatever changes the bytes of a ``Past``: the file, llama.cpp, its options."""
        digest = io.sha256_of_file(self.path)
        return f"{digest} {self._api.__version__} {self._api.llama_print_system_info().decode()} f16 {STREAMS}"

    def facts(self) -> dict[str, object]:
        """Its architecture, how many parameters it has, and its number format."""
        content = ctypes.create_string_buffer(256)
        self._api.llama_model_desc(self._model, content, len(content))
        architecture, _, *rest = content.value.decode("utf-8", "replace").split()
        number_format = " ".join(rest).removeprefix("(guessed) ")
        parameters = self._api.llama_model_n_params(self._model)
        return {"class": architecture, "parameters": parameters, "dtype": number_format}

    def __del__(self) -> None:
        if self._context:
            self._api.llama_free(self._context)
        if self._model:
            self._api.llama_model_free(self._model)

    def read(
        self, rows: Sequence[Row], of_logits: Callable[[int, Tensor], None], *, keep: bool = True
    ) -> list[Past | None]:
        """Compute rows.

        Args:
            of_logits: gets the number of a row and its logits (outputs, V) float32, which are lost when it returns.
            keep: return what was read of each row, its past included.
        """
        require_unforked(ModelError)
        kept: list[Past | None] = [None] * len(rows)
        with self.lock:
            self._make_room(max(_length(row) for row in rows))
            start = 0
            for stop in range(1, len(rows) + 1):
                part = rows[start : stop + 1]
                if stop == len(rows) or not _fits(part):
                    for number, past in enumerate(self._part(rows[start:stop], start, of_logits, keep=keep), start):
                        kept[number] = past
                    start = stop
        return kept

    def _part(
        self, rows: Sequence[Row], first: int, of_logits: Callable[[int, Tensor], None], *, keep: bool
    ) -> list[Past | None]:
        api, context = self._api, self._context
        api.llama_memory_clear(api.llama_get_memory(context), False)
        for stream, row in enumerate(rows):
            if row.past is not None:
                state = row.past.state
                if not api.llama_state_seq_set_data(context, _pointer(state), len(state), stream):
                    raise ModelError("what was read of a passage cannot be put back; clear the folder that keeps it")
        places = self._decode(rows)
        for number, (row, of_row) in enumerate(zip(rows, places, strict=True), first):
            if row.outputs:
                of_logits(number, self._logits(of_row))
        return [self._past(stream, _length(row)) if keep else None for stream, row in enumerate(rows)]

    def _decode(self, rows: Sequence[Row]) -> list[list[int]]:
        """Returns: for each row the places in the batch whose logits are wanted."""
        api = self._api
        count = sum(len(row.tokens) for row in rows)
        batch = api.llama_batch_init(count, 0, 1)
        places: list[list[int]] = []
        place = 0
        try:
            for stream, row in enumerate(rows):
                first = _length(row) - len(row.tokens)
                wanted = len(row.tokens) - row.outputs
                places.append(list(range(place + wanted, place + len(row.tokens))))
                for number, token in enumerate(row.tokens):
                    batch.token[place] = token
                    batch.pos[place] = first + number
                    batch.n_seq_id[place] = 1
                    batch.seq_id[place][0] = stream
                    batch.logits[place] = number >= wanted
                    place += 1
            batch.n_tokens = count
            failed = api.llama_decode(self._context, batch)
        finally:
            api.llama_batch_free(batch)
        if failed:
            raise ModelError(f"{self.path.name}: llama.cpp does not compute {count} tokens ({_last_error()})")
        return places

    def _logits(self, places: Sequence[int]) -> Tensor:
        """(places, V) float32: a view where they lie side by side, as they do."""
        first = self._api.llama_get_logits_ith(self._context, places[0])
        width = self.vocabulary.size
        content = (ctypes.c_float * (len(places) * width)).from_address(ctypes.addressof(first.contents))
        return torch.frombuffer(content, dtype=torch.float32).view(len(places), width)

    def _past(self, stream: int, length: int) -> Past:
        size = self._api.llama_state_seq_get_size(self._context, stream)
        state = torch.empty(size, dtype=torch.uint8)
        self._api.llama_state_seq_get_data(self._context, _pointer(state), size, stream)
        return Past(state, length)

    def _make_room(self, length: int) -> None:
        """A context whose streams hold rows of this length."""
        if self._context is not None and length <= self._length:
            return
        self._length = max(self._length, _FIRST_LENGTH)
        while self._length < length:
            self._length *= 2
        if self._context is not None:
            self._api.llama_free(self._context)
        params = self._api.llama_context_default_params()
        params.n_ctx = self._length * STREAMS
        params.n_seq_max = STREAMS
        params.n_batch = max(_BATCH_TOKENS, self._length)
        params.n_outputs_max = OUTPUTS
        params.n_threads = params.n_threads_batch = torch.get_num_threads()
        params.kv_unified = False
        params.swa_full = True
        params.no_perf = True
        self._context = self._api.llama_init_from_model(self._model, params)
        if not self._context:
            raise ModelError(f"{self.path.name}: no context of {STREAMS} × {self._length} tokens ({_last_error()})")


def _length(row: Row) -> int:
    return len(row.tokens) + (0 if row.past is None else row.past.length)


def _fits(rows: Sequence[Row]) -> bool:
    """Whether rows are computed in one call. A row alone always is."""
    tokens, outputs = sum(len(row.tokens) for row in rows), sum(row.outputs for row in rows)
    return len(rows) <= STREAMS and tokens <= _BATCH_TOKENS and outputs <= OUTPUTS


def _pointer(state: Tensor) -> Any:
    return ctypes.cast(state.data_ptr(), ctypes.POINTER(ctypes.c_uint8))


class Vocabulary:
    """Texts as tokens of a GGUF file, and tokens as text."""

    def __init__(self, api: Any, model: Any) -> None:
        self._api = api
        self._model = model
        self._vocab = api.llama_model_get_vocab(model)
        self.size: int = api.llama_vocab_n_tokens(self._vocab)

    @cached_property
    def chat_template(self) -> str | None:
        template = self._api.llama_model_chat_template(self._model, None)
        return None if template is None else bytes(template).decode("utf-8", "replace")

    @cached_property
    def end_ids(self) -> list[int]:
        """All tokens that end an answer."""
        return [number for number in range(self.size) if self._api.llama_vocab_is_eog(self._vocab, number)]

    @cached_property
    def controls(self) -> dict[str, int]:
        """Control tokens by their names."""
        numbers = [number for number in range(self.size) if self._api.llama_vocab_is_control(self._vocab, number)]
        return {self.piece(number, special=True).decode("utf-8", "replace"): number for number in numbers}

    @property
    def begin(self) -> list[int]:
        """What stands before every text, if anything does."""
        begins = self._api.llama_vocab_get_add_bos(self._vocab)
        return [self._api.llama_vocab_bos(self._vocab)] if begins else []

    @property
    def eos(self) -> int | None:
        token: int = self._api.llama_vocab_eos(self._vocab)
        return None if token < 0 else token

    def ids(self, text: str) -> list[int]:
        """Tokens of a text, in which names of control tokens are text."""
        content = text.encode("utf-8", "replace")
        room = len(content) + 8
        tokens = (ctypes.c_int32 * room)()
        count = self._api.llama_tokenize(self._vocab, content, len(content), tokens, room, False, False)
        if count < 0:
            raise InputError(f"a text of {len(text):,} characters cannot be made into tokens; shorten it")
        return list(tokens[:count])

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes that a token stands for."""
        room = 64
        while True:
            content = ctypes.create_string_buffer(room)
            size = self._api.llama_token_to_piece(self._vocab, token, content, room, 0, special)
            if size >= 0:
                return content.raw[:size]
            room = -size


def _library() -> Any:
    """llama_cpp's functions, silent."""
    try:
        import llama_cpp
    except ImportError as error:
        raise ModelError(
            f"a GGUF file needs llama-cpp-python ({error}); install latentrag[llama-cpp], or give a folder in "
            "transformers' layout"
        ) from error
    if not _log_callback:
        callback = llama_cpp.llama_log_callback(_listen)
        _log_callback.append(callback)  # llama.cpp calls it as long as the process lives
        llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
    return llama_cpp


_log_callback: list[Any] = []


def _listen(level: int, text: bytes, _: object) -> None:
    if level == _error_level:
        _log_lines.append(text.decode("utf-8", "replace").strip())
        del _log_lines[:-20]


def _last_error() -> str:
    return _log_lines[0] if _log_lines else "llama.cpp does not say why"
