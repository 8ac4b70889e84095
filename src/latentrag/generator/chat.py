"""The prompt of an instruct model, taken from its own chat template."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, Self

from latentrag.errors import ModelError
from latentrag.generator.prompt import PromptTemplate
from latentrag.generator.texts import TextEncoder
from latentrag.pretrained import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INSTRUCTION = "Answer the question in as few words as the passage allows, in the language of the question."
CLOSED_BOOK_INSTRUCTION = "Answer the question in as few words as possible, in the language of the question."

_ASKED = "Question: {question}"
_USER, _ASSISTANT, _NEXT = "latentrag-question", "latentrag-answer", "latentrag-next"
_DAY = datetime(2024, 7, 26, tzinfo=UTC)
"""What a template takes for today, so that a prompt is the same every day."""


@dataclass(frozen=True, slots=True)
class ChatTemplate(PromptTemplate):
    """One turn of a user, who gives the instruction, the passage and the question, and the beginning of the model's.
    In a conversation the first turn has the instruction and the passage; the others follow as turns of their own.

    The other fields hold what the model's chat template says, its control tokens included.

    Attributes:
        instruction: what the user wants, read with a passage and without; None: ``INSTRUCTION`` and
            ``CLOSED_BOOK_INSTRUCTION``.
    """

    kind: ClassVar[str] = "chat"
    is_whole: ClassVar[bool] = True

    instruction: str | None = None

    def without_examples(self) -> Self:
        """The same: it has none."""
        return self

    def multiline(self) -> Self:
        """The same: y ends with the model's turn, whatever its text."""
        return self

    def told(self, instruction: str, *, asked: str) -> Self:
        """The same turn with another instruction, and with ``asked`` in the place of "Question: {question}"."""
        before, before_alone = _instructions(self.instruction)
        said, said_alone = _instructions(instruction)
        return replace(
            self,
            preamble=self.preamble.removesuffix(before) + said,
            closed_book_preamble=self.closed_book_preamble.removesuffix(before_alone) + said_alone,
            question=self.question.replace(_ASKED, asked, 1),
            instruction=instruction,
            earlier=None if self.earlier is None else self.earlier.replace(_ASKED, asked, 1),
        )

    def instructed(self, instruction: str) -> Self:
        """The same turn with another instruction."""
        return self.told(instruction, asked=_ASKED)

    def exchange(self, question: str, answer: str) -> str:
        """As the chat template has it, or as text in the user's turn if that has no second turn."""
        if self.earlier is None:
            return f"Question: {question.strip()}\nAnswer: {answer.strip()}\n\n"
        return PromptTemplate.exchange(self, question, answer)  # super() has no class in a dataclass with slots

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, instruction: str | None = None) -> Self:
        """As the tokenizer's chat template has it, without a thinking block.

        Raises: ModelError if it has none, or none that shows what is said in it.
        """
        if not tokenizer.chat_template:
            raise ModelError("the generator has no chat template, which an instruction needs; give a prompt template")
        user = {"role": "user", "content": _USER}
        head, cue = _around(_USER, _rendered(tokenizer, [user], add_generation_prompt=True))
        _, answered = _around(_USER, _rendered(tokenizer, [user, {"role": "assistant", "content": _ASSISTANT}]))
        before, after = _around(_ASSISTANT, answered)
        cue = _without_thinking(before if before.startswith(cue) else cue, str(tokenizer.get_chat_template()))
        stripped = cue.rstrip(" ")
        said, said_alone = _instructions(instruction)
        return cls(
            preamble=head + said,
            passage="{title}: {text}\n\n",
            untitled="{text}\n\n",
            question=_ASKED + stripped,
            end=TextEncoder(tokenizer).control_at_start(after),
            closed_book_preamble=head + said_alone,
            lead=cue[len(stripped) :],
            instruction=instruction,
            earlier=_earlier(tokenizer),
        )

    def of_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> Self:
        """The same, of a model that was saved before conversations were read."""
        if self.earlier is not None or not tokenizer.chat_template:
            return self
        return replace(self, earlier=_earlier(tokenizer))


def _earlier(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """An earlier question with its answer, up to what the user says next; None if the template has no second turn."""
    said = [("user", _USER), ("assistant", _ASSISTANT), ("user", _NEXT)]
    try:
        rendered = _rendered(tokenizer, [{"role": role, "content": text} for role, text in said])
        _, after = _around(_USER, rendered)
        reply, rest = _around(_ASSISTANT, after)
        between, _ = _around(_NEXT, rest)
    except ModelError:
        return None
    return f"{_ASKED}{reply}{{answer}}{between}"


def _instructions(instruction: str | None) -> tuple[str, str]:
    """What the user's turn begins with, with a passage and without."""
    texts = (INSTRUCTION, CLOSED_BOOK_INSTRUCTION) if instruction is None else (instruction, instruction)
    first, second = (text.strip() + "\n\n" * bool(text.strip()) for text in texts)
    return first, second


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], **options: object) -> str:
    from jinja2 import TemplateError

    given: dict[str, Any] = {
        "enable_thinking": False,
        "thinking": False,
        "date_string": _DAY.strftime("%d %b %Y"),
        "strftime_now": _DAY.strftime,
        **options,
    }
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **given))
    except (TemplateError, ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"the generator's chat template cannot be used ({one_line(error)}); give a prompt template"
        ) from error


def _around(content: str, rendered: str) -> tuple[str, str]:
    """What stands before and after what is said."""
    if rendered.count(content) != 1:
        raise ModelError(
            f"the generator's chat template shows a message {rendered.count(content)} times, needed once; give a "
            "prompt template"
        )
    before, _, after = rendered.partition(content)
    return before, after


def _without_thinking(cue: str, template: str) -> str:
    """What stands before the answer, with a thinking block that is over, for models that would think first."""
    if cue.rfind("<think>") > cue.rfind("</think>"):
        return f"{cue.rstrip()}\n\n</think>\n\n"
    has_a_switch = "thinking" in template
    thinks = "</think>" in template and "</think>" not in cue and not has_a_switch
    return f"{cue}<think>\n\n</think>\n\n" if thinks else cue
