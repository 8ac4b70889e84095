"""Several threads may use one generator: each gets what it would get alone."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from latentrag.generator import CausalGenerator, load_generator, prompt
from latentrag.generator.passages import PassageCache
from latentrag.generator.texts import TextEncoder
from latentrag.generator.tuning import Lora
from latentrag.types import Passage, Question, singles
from tests import tiny

X = ["what is the capital", "which moon is red", "who wrote it in rome", "who is she"]
PASSAGES = [Passage("a", "paris is the capital"), Passage("b", "the red moon is a moon of mars and of rome")]
Y = ["paris", "the red moon", "beethoven wrote it", "emma"]


def generator_of(kind: str, folder):
    tiny.save_tokenizer(folder, end=kind == "bart", max_tokens=64)
    (tiny.save_bart if kind == "bart" else tiny.save_llama)(folder, seed=3)
    if kind != "adapted":
        return load_generator(folder)
    plain = tiny.load_causal(folder)
    made = CausalGenerator(plain.model, plain.tokenizer, lora=Lora(rank=2, scope="question"))
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.3)
    made.passage_cache = PassageCache(1 << 14)  # too small for all: passages are read again and again
    return made


@torch.no_grad()
def log_probabilities_of(generator, number: int):
    prepared = generator.prepare([X[number]], singles([PASSAGES]))
    log_p, state = generator.start(prepared)
    steps = [log_p]
    for _ in range(3):
        log_p, state = generator.step(state, torch.tensor([[0, 0]]), torch.tensor([[3, 4]]))
        steps.append(log_p)
    return [*steps, generator.log_p_theta(prepared, generator.targets([Y[number]]))]


@pytest.mark.parametrize("kind", ["bart", "llama", "adapted"])
def test_threads_get_what_they_would_get_alone(kind, tmp_path) -> None:
    generator = generator_of(kind, tmp_path)
    expected = [log_probabilities_of(generator, number) for number in range(len(X))]
    with ThreadPoolExecutor(4) as pool:
        in_threads = pool.map(lambda place: log_probabilities_of(generator, place % len(X)), range(24))
        for number, tensors in enumerate(in_threads):
            for one, two in zip(tensors, expected[number % len(X)], strict=True):
                torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


def test_threads_share_the_tokens_of_passages(monkeypatch, tmp_path) -> None:
    """Room for the tokens of one passage: what a thread has found to be kept may be gone when it is used."""
    monkeypatch.setattr(prompt, "KEPT_PASSAGES", 1)
    tokenizer = tiny.save_tokenizer(tmp_path, end=False, max_tokens=64)
    prompts = prompt.PromptTokens(TextEncoder(tokenizer), prompt.PromptTemplate())
    words = ["paris", "rome", "moon", "emma"]
    rows = [(Question.of(X[0]), (Passage(word, f"{word} is the capital"),)) for word in words]
    expected = {word: prompts.parts([row], limit=64, keep=False)[0][0] for word, row in zip(words, rows, strict=True)}

    def tokenise(number: int) -> bool:
        chosen = [(number + step) % len(words) for step in range(2)]
        firsts, _ = prompts.parts([rows[place] for place in chosen], limit=64, keep=True)
        return firsts == [expected[words[place]] for place in chosen]

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(tokenise, range(2000)))
