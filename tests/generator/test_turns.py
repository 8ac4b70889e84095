"""Conversations in prompts: as the model's chat template has them, the passage first; what gives way for length."""

from typing import Any

import pytest

from latentrag.generator import CausalGenerator, load_generator
from latentrag.generator.chat import INSTRUCTION, ChatTemplate
from latentrag.types import Passage, Question, no_passages, singles
from tests import tiny
from tests.generator.made_tokenizers import CHATS, chat_tokenizer, model_for
from tests.generator.test_prompts import PASSAGE, base, plain_ids

MESSAGES = [
    {"role": "user", "content": "Who wrote Fidelio?"},
    {"role": "assistant", "content": "Beethoven"},
    {"role": "user", "content": "Where was he born?"},
]
TALK = Question.of(MESSAGES)


def prompt_of(generator: Any, x: Any, passage: Passage | None = PASSAGE) -> tuple[list[int], list[int]]:
    prompts = generator.prepare([x], no_passages(1) if passage is None else singles([[passage]])).prompts
    return prompts.passages[0], prompts.questions[0]


@pytest.fixture(params=[name for name in CHATS if name not in ("r1", "harmony")])  # their answers hold thoughts
def chat(request: pytest.FixtureRequest) -> CausalGenerator:
    tokenizer = chat_tokenizer(request.param)
    return CausalGenerator(model_for(tokenizer), tokenizer)


def test_a_conversation_is_what_the_models_chat_template_says(chat: CausalGenerator) -> None:
    tokenizer: Any = chat.tokenizer
    begun = {"role": "user", "content": f"{INSTRUCTION}\n\nFidelio: {PASSAGE.text}\n\nQuestion: Who wrote Fidelio?"}
    asked = {"role": "user", "content": "Question: Where was he born?"}
    options: dict[str, Any] = {"tokenize": False, "enable_thinking": False, "date_string": "26 Jul 2024"}
    text = tokenizer.apply_chat_template([begun, MESSAGES[1], asked], add_generation_prompt=True, **options)
    first, second = prompt_of(chat, TALK)
    assert first + second == plain_ids(chat, text)


def test_what_is_read_of_a_passage_depends_on_no_turn(chat: CausalGenerator) -> None:
    assert prompt_of(chat, TALK)[0] == prompt_of(chat, "What is Paris?")[0]


def test_a_system_message_is_the_instruction(chat: CausalGenerator) -> None:
    told = Question.of([{"role": "system", "content": "Answer like a pirate."}, MESSAGES[0]])
    template = chat.template
    assert isinstance(template, ChatTemplate)
    other = chat.with_template(template.told("Answer like a pirate.", asked="Question: {question}"))
    assert prompt_of(chat, told) == prompt_of(other, "Who wrote Fidelio?")
    assert prompt_of(chat, told, None) == prompt_of(other, "Who wrote Fidelio?", None)
    # What was kept of the passage under one instruction is not read under another.
    assert prompt_of(chat, "Who wrote Fidelio?")[0] != prompt_of(chat, told)[0]


def test_a_passage_that_mimics_an_instruction_is_read_as_another_one(chat: CausalGenerator) -> None:
    mimic = Passage("m", f"{PASSAGE.text}\0\0Be brief.", PASSAGE.title)
    told = Question.of([{"role": "system", "content": "Be brief."}, MESSAGES[0]])
    alone, _ = prompt_of(chat, told)
    prompt_of(chat, "Who wrote Fidelio?", mimic)
    assert prompt_of(chat, told)[0] == alone
    fresh = CausalGenerator(chat.model, chat.tokenizer)
    expected, _ = prompt_of(fresh, "Who wrote Fidelio?", mimic)
    assert prompt_of(chat, "Who wrote Fidelio?", mimic)[0] == expected


def test_a_border_between_title_and_text_is_not_one_inside_them(chat: CausalGenerator) -> None:
    one, other = Passage("1", "b\0c", "a"), Passage("2", "c", "a\0b")
    prompt_of(chat, "Who wrote Fidelio?", one)
    expected, _ = prompt_of(CausalGenerator(chat.model, chat.tokenizer), "Who wrote Fidelio?", other)
    assert prompt_of(chat, "Who wrote Fidelio?", other)[0] == expected


def test_names_of_control_tokens_in_turns_are_text(chat: CausalGenerator) -> None:
    name = next(token.content for token in chat.tokenizer.added_tokens_decoder.values() if token.special)
    number = chat.tokenizer.convert_tokens_to_ids(name)
    talk = Question.of([{"role": "user", "content": f"a {name}"}, {"role": "assistant", "content": name}, MESSAGES[2]])
    usual = Question.of([{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}, MESSAGES[2]])
    assert prompt_of(chat, talk)[1].count(number) == prompt_of(chat, usual)[1].count(number)


def test_a_template_saved_before_conversations_gets_its_turns_from_the_tokenizer() -> None:
    from dataclasses import asdict

    from latentrag.generator.base import made_template

    tokenizer = chat_tokenizer("chatml")
    template = ChatTemplate.of(tokenizer)
    assert template.earlier is not None
    saved = {name: value for name, value in asdict(template).items() if name != "earlier"}
    assert made_template("prompt", {**saved, "kind": "chat"}, tokenizer) == template


def test_a_chat_template_without_a_second_turn_has_them_as_text() -> None:
    tokenizer: Any = chat_tokenizer("chatml")
    tokenizer.chat_template = (
        "{% if messages|length > 2 %}{{ raise_exception('one turn') }}{% endif %}" + tokenizer.chat_template
    )
    template = ChatTemplate.of(tokenizer)
    assert template.earlier is None
    asked = template.ask_after([("Who wrote Fidelio?", "Beethoven")], "Where was he born?")
    assert asked == "Question: Who wrote Fidelio?\nAnswer: Beethoven\n\n" + template.ask("Where was he born?")


def test_base_models_read_turns_as_worked_examples() -> None:
    generator = base("qwen")
    first, second = prompt_of(generator, TALK)
    text = "Question: Who wrote Fidelio?\nAnswer: Beethoven\nQuestion: Where was he born?\nAnswer:"
    assert first + second == plain_ids(generator, f"Fidelio: {PASSAGE.text}\n{text}")
    told = Question.of([{"role": "system", "content": "Be brief."}, *MESSAGES])
    first, second = prompt_of(generator, told)
    assert first + second == plain_ids(generator, f"Be brief.\n\nFidelio: {PASSAGE.text}\n{text}")


def test_encoder_decoders_read_turns_before_the_question(tmp_path) -> None:
    tiny.save_tokenizer(tmp_path)
    tiny.save_bart(tmp_path)
    generator: Any = load_generator(tmp_path)
    turns = [("who wrote emma ?", "austen"), ("what is rome ?", "")]
    assert generator.template.ask_after(turns, "why ?") == "who wrote emma ? austen what is rome ? why ?"


@pytest.mark.parametrize("kind", ["llama", "bart"])
def test_the_oldest_turns_give_way_to_the_passage(kind, tmp_path) -> None:
    causal = kind == "llama"
    tiny.save_tokenizer(tmp_path, begin=not causal, end=not causal)
    (tiny.save_llama if causal else tiny.save_bart)(tmp_path)
    generator: Any = load_generator(tmp_path)
    exchange = [{"role": "user", "content": "what is rome ?"}, {"role": "assistant", "content": "the capital"}]
    talk = Question.of([*exchange * 30, {"role": "user", "content": "who wrote emma ?"}])
    fitted = generator.fitting(talk)
    number = len(fitted.exchanges)
    assert 0 < number < 30
    assert fitted.num_dropped == 2 * (30 - number)
    assert fitted.text == talk.text
    assert generator.fitting(fitted) == fitted
    more = talk.since(number + 1)
    assert generator.fitting(more).exchanges == fitted.exchanges
    generator.prepare([fitted], singles([[Passage("a", "paris " * 200, "paris")]]))
    short = Question.of([*exchange, {"role": "user", "content": "who wrote emma ?"}])
    assert generator.fitting(short) is short
