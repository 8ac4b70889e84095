"""The prompts that ask for pairs, and a generator with another prompt."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from latentrag.errors import DataError, InputError
from latentrag.generator import PromptTemplate, load_generator
from latentrag.generator.chat import ChatTemplate
from latentrag.questions import Prompt, Writer
from latentrag.types import Passage, singles
from tests import tiny

PASSAGES = [Passage("a", "paris is the capital", title="france"), Passage("b", "rome is a city")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    tiny.save_tokenizer(folder)
    tiny.save_llama(folder)
    return folder


def test_another_prompt_is_that_of_a_generator_loaded_with_it(folder):
    template = PromptTemplate(preamble="emma is a novel\n", question="{question}?", end=None)
    generator = tiny.load_causal(folder)
    before = generator.log_p_theta(generator.prepare(["who"], singles([PASSAGES])), generator.targets(["rome"]))
    other: Any = generator.with_template(template)
    fields = {"preamble": template.preamble, "question": "{question}?", "end": None}
    loaded: Any = load_generator(folder, settings={"template": fields})
    for each in (other, loaded):
        assert each.targets(["rome"]).ids.tolist() == other.targets(["rome"]).ids.tolist()
    log_p, expected = (
        each.log_p_theta(each.prepare(["who"], singles([PASSAGES])), each.targets(["rome"])) for each in (other, loaded)
    )
    assert (log_p - expected).abs().max() < 1e-5
    after = generator.log_p_theta(generator.prepare(["who"], singles([PASSAGES])), generator.targets(["rome"]))
    assert (after - before).abs().max() < 1e-5
    assert (log_p - before[..., : log_p.shape[2]]).abs().max() > 1e-3


def test_a_base_model_gets_worked_examples(folder):
    prompt = Prompt.read()
    generator = tiny.load_causal(folder, settings={"template": {"end": None}})
    writer = Writer(
        generator, replace(prompt, template={**prompt.template, "preamble": "the moon is red\n", "end": None})
    )
    shown = str(writer._writes.template.render(writer.request, (PASSAGES[0],)))
    assert shown.startswith("the moon is red\n")
    assert shown.endswith("france: paris is the capital\nQuestion and answer:")
    texts = writer.written(PASSAGES)
    assert len(texts) == 2
    assert len(writer.answered(["who", "where"], PASSAGES)) == 2
    assert writer.answered([], []) == []
    assert [writer.written([each])[0] for each in PASSAGES] == texts


def test_a_chat_model_gets_an_instruction():
    template = ChatTemplate(
        preamble="<user>Answer briefly.\n\n",
        closed_book_preamble="<user>Answer briefly.\n\n",
        question="Question: {question}<end><model>",
        instruction="Answer briefly.",
    )
    prompt = Prompt.read()
    told = template.told(prompt.instruction, asked="{question}")
    shown = str(told.render(prompt.chat_request, (PASSAGES[0],)))
    assert shown == f"<user>{prompt.instruction}\n\nfrance: paris is the capital\n{prompt.chat_request}<end><model>"
    assert told.told("Answer briefly.", asked="Question: {question}").preamble == template.preamble


def test_the_examples_would_stay():
    """The worked examples are pairs of the kind that is wanted."""
    from latentrag.questions.keeping import fault_of, parsed

    lines = Prompt.read().template["preamble"].splitlines()
    for passage, written in zip(lines[::2], lines[1::2], strict=True):
        pair = parsed(written.removeprefix("Question and answer:"))
        assert pair is not None
        assert fault_of(pair, passage.partition(": ")[2]) is None


def test_prompts_that_cannot_be_used(tmp_path, folder):
    file = tmp_path / "prompt.json"
    usual: dict[str, Any] = {"request": "a", "chat_request": "b", "instruction": "c"}
    usual["template"] = {"question": "{question}:"}
    with pytest.raises(DataError, match="cannot be read"):
        Prompt.read(file)
    for content, message in (
        ("{", "not valid JSON"),
        ("[]", "needed a JSON object with the names"),
        (json.dumps({**usual, "more": 1}), "needed a JSON object with the names"),
        (json.dumps({**usual, "request": ""}), "texts that are not empty"),
        (json.dumps({**usual, "template": "x"}), "needed an object as template"),
    ):
        file.write_text(content, "utf-8")
        with pytest.raises(DataError, match=message):
            Prompt.read(file)
    generator = tiny.load_causal(folder)
    for template, message in (({"colour": 1}, "cannot be used"), ({"question": "no field"}, "exactly once")):
        with pytest.raises(InputError, match=message):
            Writer(generator, Prompt(**{**usual, "template": template}))


def test_an_encoder_decoder_is_refused(tmp_path):
    tiny.save_tokenizer(tmp_path)
    tiny.save_bart(tmp_path)
    with pytest.raises(InputError, match="name a causal one"):
        Writer(load_generator(tmp_path), Prompt.read())
