"""GGUF files as p_θ(y|x,z), computed by llama.cpp. Experimental: its library changes from release to release.

The prompt is that of a causal language model. What is read of a passage is kept as bytes (``Past``); every row computes
alone in its stream, so a question's answer does not depend on the questions beside it. There are no gradients.
"""

from __future__ import annotations

import os
import shutil
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass
from functools import partial
from itertools import accumulate, islice
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from latentrag import io
from latentrag.errors import InputError, ModelError
from latentrag.generator.base import SETTINGS_FILE, made_template
from latentrag.generator.caches import rows_of_parents
from latentrag.generator.chat import ChatTemplate
from latentrag.generator.llama_context import OUTPUTS, STREAMS, LlamaContext, Past, Row, Vocabulary
from latentrag.generator.passages import SLICE_TOKENS, PassageCache
from latentrag.generator.prepared import PreparedPrompts, Prompts
from latentrag.generator.prompt import PromptTemplate, PromptTokens
from latentrag.generator.texts import TextEncoder, unmarked
from latentrag.generator.tokens import Detokenizer, check_lengths, padded, pairs
from latentrag.options import PASSAGE_FOLDER_BYTES
from latentrag.protocols import Capabilities, Step
from latentrag.types import Asked, LatentLists, Question, Targets

if TYPE_CHECKING:
    from latentrag.place import Place

MODEL_FILE = "model.gguf"
_INPUT_LIMIT = 2048
_TARGET_POSITIONS = 256


_Read = list[tuple[Past, Tensor]]
"""Of each prompt what was read of it, and the log-probabilities (V,) of what follows."""


@dataclass(frozen=True, slots=True)
class _State:
    """What was read of B·K·M rows."""

    pasts: list[Past]
    num_passages: int
    num_beams: int


class LlamaCppGenerator:
    """A GGUF file as generator: it answers and scores, and is not trained.

    Args:
        path: of the file.
        template: the prompt, or its settings; default: the file's chat template, if it has one.
        max_input_tokens: longer prompts lose words of the passage; default: what the model reads, at most 2,048.
        gpu: whether an accelerator computes its layers; with a warning a CPU does if llama.cpp was not built for one.
    Raises: ModelError for a file that llama.cpp cannot use.
    """

    kind = "llama-cpp"
    capabilities = Capabilities(differentiable=False, keeps_prefixes=True, steps_together=True)
    device = torch.device("cpu")
    decoding_defaults: Mapping[str, object] = {}

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        template: PromptTemplate | Mapping[str, Any] | None = None,
        max_input_tokens: int | None = None,
        gpu: bool = False,
    ) -> None:
        self.path = Path(path)
        self._context = LlamaContext(self.path, gpu=gpu)
        self._tokenizer = tokenizer = _Tokenizer(self._context.vocabulary)
        made: Any = template
        if isinstance(template, Mapping):
            made = made_template(PromptTemplate.kind, template, tokenizer)
        elif template is None:
            made = ChatTemplate.of(tokenizer) if tokenizer.chat_template else PromptTemplate()
        window = self._context.window
        self.max_input_tokens = max_input_tokens or max(
            1, min(_INPUT_LIMIT, window - min(_TARGET_POSITIONS, window // 2))
        )
        self.max_target_tokens = window - self.max_input_tokens + 1
        self.passage_cache: PassageCache | None = None
        self._set_template(made)

    def _set_template(self, template: PromptTemplate) -> None:
        self.template = template
        self._prompts = PromptTokens(_Encoder(self._tokenizer), template)
        self._ends = self._all_ends()
        self.end_ids = (self._ends[0],)
        (cue,) = self._prompts.encoder.ids([template.cue], special=False)
        self._detokenizer = Detokenizer(self._tokenizer, cue=cue)

    def with_template(self, template: PromptTemplate) -> Self:
        """The same file under another prompt. Threads must not compute with both at once.

        Raises: ModelError if the template's end is not one token of this file.
        """
        other = copy(self)
        other._set_template(template)  # noqa: SLF001  one of ours
        return other

    @classmethod
    def load(cls, folder: Path, settings: Mapping[str, Any], place: Place) -> Self:
        """A generator from a folder that ``save`` wrote. Raises: as the constructor."""
        return cls.open(folder / MODEL_FILE, place, **settings)

    @classmethod
    def open(cls, path: str | os.PathLike[str], place: Place, **settings: Any) -> Self:
        """A generator from a GGUF file.

        Args:
            settings: as ``settings()`` gave them, by name.
        Raises: as the constructor; InputError for a number format, which the file has.
        """
        if place.number_format != "auto":
            raise InputError(f"{path} has a number format of its own; leave --dtype {place.number_format} out")
        if "adapter" in settings:
            raise InputError(f"{path} takes no adapter; give --generator the folder that the adapter was trained on")
        return cls(path, gpu=not place.is_cpu, **settings)

    def settings(self) -> dict[str, object]:
        """What ``load`` needs besides the file, as JSON values."""
        template = {**asdict(self.template), "kind": self.template.kind}
        return {"kind": self.kind, "template": template, "max_input_tokens": self.max_input_tokens}

    def facts(self) -> dict[str, object]:
        """What the model is, as JSON values, for a report."""
        return {**self._context.facts(), "packed_bytes": 0}

    def save(self, folder: Path) -> None:
        """The file and the settings, so that ``load_generator(folder)`` opens the generator again."""
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.path, folder / MODEL_FILE)
        io.write_json(folder / SETTINGS_FILE, self.settings())

    def keep_passages(
        self,
        max_bytes: int,
        *,
        on_device: bool = False,  # noqa: ARG002  what llama.cpp gives out is in RAM
        folder: str | os.PathLike[str] | None = None,
        max_folder_bytes: int = PASSAGE_FOLDER_BYTES,
    ) -> None:
        """Keep what is read of passages, always in RAM; arguments and errors as ``CausalGenerator``'s."""
        if folder is None:
            self.passage_cache = PassageCache(max_bytes) if max_bytes else None
            return
        try:
            self.passage_cache = PassageCache(
                max_bytes, folder=folder, max_folder_bytes=max_folder_bytes, model=self._context.key
            )
        except OSError as error:
            raise InputError(f"{folder}: cannot be a folder ({error.strerror}); name another") from error

    def prepare(self, x: Sequence[Asked], latents: LatentLists) -> PreparedPrompts[_Read]:
        rows, num_latents = pairs(x, latents)
        first, questions = self._prompts.parts(rows, limit=self.max_input_tokens, keep=True)
        index = torch.arange(len(rows))
        return PreparedPrompts(Prompts(first, questions), index, len(rows) // num_latents, num_latents)

    def fitting(self, question: Question) -> Question:
        """The question with as many of its last turns as leave passages half of the prompt."""
        return self._prompts.fitting(question, limit=self.max_input_tokens)

    def targets(self, y: Sequence[str]) -> Targets:
        rows = [[*ids, self.end_ids[0]] for ids in self._prompts.targets(y)]
        ends = set(self._ends)
        if any(not ends.isdisjoint(row[:-1]) for row in rows):
            raise InputError("a target contains a token that ends every target of this generator; write it in one line")
        check_lengths(rows, self.max_target_tokens)
        return Targets(*padded(rows, pad=self.end_ids[0]))

    @torch.no_grad()
    def log_p_theta(self, prepared: PreparedPrompts[_Read], targets: Targets) -> Tensor:
        """(B, K, T) of the gold tokens."""
        num_passages = prepared.num_passages
        ids = targets.ids.repeat_interleave(num_passages, dim=0)
        lengths = targets.mask.sum(dim=1).repeat_interleave(num_passages).tolist()
        log_p = torch.zeros(ids.shape)
        read = self._read(prepared.prompts)
        pasts: list[Past] = []
        for row, number in enumerate(prepared.index.tolist()):
            past, first = read[number]
            pasts.append(past)
            log_p[row, 0] = first[ids[row, 0]]
        for start in range(0, ids.shape[1] - 1, OUTPUTS):
            left = [row for row, length in enumerate(lengths) if length - 1 > start]
            stops = [min(start + OUTPUTS, lengths[row] - 1) for row in left]
            rows = [
                Row(ids[row, start:stop].tolist(), pasts[row], stop - start)
                for row, stop in zip(left, stops, strict=True)
            ]

            def gold(number: int, logits: Tensor, left: list[int] = left, start: int = start) -> None:
                row, stop = left[number], start + len(logits)
                chosen, logits = ids[row, start + 1 : stop + 1], self._ended(logits)
                log_p[row, start + 1 : stop + 1] = logits.gather(1, chosen[:, None])[:, 0] - logits.logsumexp(dim=1)

            keep = any(lengths[row] - 1 > stop for row, stop in zip(left, stops, strict=True))
            for row, past in zip(left, self._context.read(rows, gold, keep=keep), strict=True):
                if past is not None:
                    pasts[row] = past
        return log_p.view(prepared.num_questions, num_passages, -1)

    @torch.no_grad()
    def start(self, prepared: PreparedPrompts[_Read]) -> tuple[Tensor, _State]:
        read = self._read(prepared.prompts)
        rows = [read[number] for number in prepared.index.tolist()]
        log_p = torch.stack([first for _, first in rows])
        state = _State([past for past, _ in rows], prepared.num_passages, 1)
        return log_p.view(prepared.num_questions, prepared.num_passages, 1, -1), state

    def step(self, state: _State, parents: Tensor, tokens: Tensor) -> tuple[Tensor, _State]:
        ((log_p, following),) = self.step_together([Step(state, parents, tokens)])
        return log_p, following

    @torch.no_grad()
    def step_together(self, steps: Sequence[Step]) -> list[tuple[Tensor, _State]]:
        """Rows of all states in one call."""
        rows: list[Row] = []
        grids = []
        for step in steps:
            state, num_passages = step.state, step.state.num_passages
            chosen = rows_of_parents(step.parents, num_passages, state.num_beams).tolist()
            of_rows = step.tokens[:, None, :].expand(-1, num_passages, -1).reshape(-1).tolist()
            rows += [Row([token], state.pasts[row]) for row, token in zip(chosen, of_rows, strict=True)]
            grids.append((len(step.parents), num_passages, step.parents.shape[1]))
        log_p = torch.empty(len(rows), self._context.vocabulary.size)
        pasts = iter(self._context.read(rows, self._log_p_into(log_p)))
        sizes = [prod(grid) for grid in grids]
        return [
            (
                of_state.view(*grid, -1),
                _State([past for past in islice(pasts, len(of_state)) if past is not None], grid[1], grid[2]),
            )
            for grid, of_state in zip(grids, log_p.split(sizes), strict=True)
        ]

    def text(self, ids: Sequence[int]) -> str:
        """The text of target tokens."""
        return self._detokenizer.text(ids)

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """A piece of text for each token."""
        return self._detokenizer.pieces(ids)

    def read_slice(self, prepared: PreparedPrompts[_Read]) -> bool:
        """Some passages, or some questions after them."""
        prompts = prepared.prompts
        if prompts.read is None:
            prompts.read_on(partial(self._slices, prompts))
        return prompts.read is None

    def _read(self, prompts: Prompts[_Read]) -> _Read:
        while prompts.read is None:
            prompts.read_on(partial(self._slices, prompts))
        return prompts.read

    def _slices(self, prompts: Prompts[_Read]) -> Iterator[None]:
        """Reads the prompts, a slice at a time."""
        passages = yield from self._passages(prompts)
        log_p = torch.empty(len(prompts.questions), self._context.vocabulary.size)
        rows = [
            Row(question, passages.get(tuple(passage)))
            for passage, question in zip(prompts.passages, prompts.questions, strict=True)
        ]
        pasts: list[Past] = []
        for start in range(0, len(rows), STREAMS):
            read = self._context.read(rows[start : start + STREAMS], self._log_p_into(log_p[start:]))
            pasts += [past for past in read if past is not None]
            if len(pasts) < len(rows):
                yield
        prompts.read = list(zip(pasts, log_p, strict=True))

    def _passages(self, prompts: Prompts[_Read]) -> Generator[None, None, dict[tuple[int, ...], Past]]:
        """What is read of each passage, by its tokens; what is not kept is read now, in slices."""
        cache = self.passage_cache if prompts.recurring else None
        known: dict[tuple[int, ...], Past] = {}
        for ids in {tuple(ids) for ids in prompts.passages if ids}:
            kept = None if cache is None else cache.get(ids)
            if kept is not None:
                known[ids] = Past(kept[0], len(ids))
        unread = sorted({tuple(ids) for ids in prompts.passages if ids} - known.keys())
        while unread:
            number = 1 + sum(total < SLICE_TOKENS for total in accumulate(map(len, unread[:-1])))
            part, unread = unread[:number], unread[number:]
            pasts = self._context.read([Row(ids, outputs=0) for ids in part], lambda _number, _logits: None)
            for ids, past in zip(part, pasts, strict=True):
                if past is None:
                    continue
                known[ids] = past
                if cache is not None:
                    cache.put(ids, [past.state])
            yield
        return known

    def _all_ends(self) -> list[int]:
        """The tokens that end y: the template's end first, then the file's, and those that hold the template's. They
        count as one, the first, whose probability is the sum of theirs."""
        vocabulary = self._context.vocabulary
        if self.template.end is None:
            if vocabulary.eos is None:
                raise ModelError(f"{self.path} has no end-of-sequence token; name an end in the template")
            return [*dict.fromkeys([vocabulary.eos, *vocabulary.end_ids])]
        ids = self._prompts.end()
        if len(ids) != 1:
            raise ModelError(
                f"the prompt template's end {self.template.end!r} is {len(ids)} tokens of this generator, needed one; "
                "choose another end, or null for the end-of-sequence token"
            )
        with_end = self._prompts.encoder.tokens_with(self.template.end)
        return [*dict.fromkeys([ids[0], *vocabulary.end_ids, *with_end])]

    def _ended(self, logits: Tensor) -> Tensor:
        """The logits (…, V) with one end token in place of all, changed in place."""
        end = logits[..., self._ends].logsumexp(dim=-1)
        logits[..., self._ends] = float("-inf")
        logits[..., self._ends[0]] = end
        return logits

    def _log_p_into(self, log_p: Tensor) -> Callable[[int, Tensor], None]:
        def fill(number: int, logits: Tensor) -> None:
            torch.log_softmax(self._ended(logits[-1]), dim=-1, out=log_p[number])

        return fill


def open_gguf(path: str | os.PathLike[str], place: Place, **settings: Any) -> LlamaCppGenerator:
    """A generator from a GGUF file, by its address. Raises: as ``LlamaCppGenerator.open``."""
    return LlamaCppGenerator.open(Path(path).expanduser(), place, **settings)


@dataclass(frozen=True, slots=True)
class _Control:
    """A control token."""

    content: str
    special: bool = True


class _Tokenizer:
    """As much of a tokenizer of transformers as templates and ``Detokenizer`` ask for."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.chat_template = vocabulary.chat_template
        self.eos_token_id = vocabulary.eos
        self.vocab_size = vocabulary.size
        self.added_tokens_decoder = {number: _Control(name) for name, number in vocabulary.controls.items()}

    def get_chat_template(self) -> str:
        return self.chat_template or ""

    def apply_chat_template(self, messages: Sequence[Mapping[str, str]], **options: object) -> str:
        """The messages as the chat template shows them. The vocabulary adds what stands before every text itself."""
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.globals["raise_exception"] = _refuse
        template = environment.from_string(self.get_chat_template())
        return template.render(messages=messages, bos_token="", eos_token=self._name(self.eos_token_id), **options)

    def decode(self, ids: Sequence[int], **_: bool) -> str:
        """The text of tokens, without that of control tokens."""
        return b"".join(map(self.vocabulary.piece, ids)).decode("utf-8", "replace")

    def _name(self, token: int | None) -> str:
        return "" if token is None else self.vocabulary.piece(token, special=True).decode("utf-8", "replace")


def _refuse(message: str) -> None:
    raise ValueError(message)


class _Encoder(TextEncoder):
    """Token ids of texts by llama.cpp, which tells text from control tokens itself."""

    def __init__(self, tokenizer: _Tokenizer) -> None:
        self.vocabulary = tokenizer.vocabulary
        super().__init__(tokenizer)

    def ids(self, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
        return [self.ids_and_places(text, special=special)[0] for text in texts]

    def ids_and_places(self, text: str, *, special: bool = True) -> tuple[list[int], list[tuple[int, int]]]:
        vocabulary = self.vocabulary
        ids = list(vocabulary.begin) if special else []
        places = [(0, 0)] * len(ids)
        end = 0
        for match in [*self._name.finditer(text), None]:
            start = len(text) if match is None else match.start()
            for token, place in self._text(text[end:start]):
                ids.append(token)
                places.append((end + place[0], end + place[1]))
            if match is not None:
                ids.append(vocabulary.controls[match[0]])
                places.append(match.span())
                end = match.end()
        return ids, places

    def _text(self, text: str) -> Iterator[tuple[int, tuple[int, int]]]:
        """Tokens of a text between control tokens, and where in it each starts and ends."""
        plain = unmarked(text)
        starts = [0, *accumulate(len(character.encode("utf-8", "replace")) for character in plain)]
        end = 0
        for token in self.vocabulary.ids(plain) if plain else ():
            start, end = end, end + len(self.vocabulary.piece(token))
            yield token, (bisect_left(starts, start), bisect_left(starts, min(end, starts[-1])))

    def tokens_with(self, text: str) -> list[int]:
        wanted, vocabulary = text.encode(), self.vocabulary
        return [number for number in range(vocabulary.size) if wanted in vocabulary.piece(number)]
