"""GGUF files through llama.cpp against the same model in transformers."""

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from latentrag.errors import InputError, ModelError
from latentrag.generator import load_generator
from latentrag.place import Place
from latentrag.protocols import Step
from latentrag.types import Passage, Question, no_passages, singles
from tests.generator.gguf_files import qwen2, save_gguf, save_pair
from tests.generator.made_tokenizers import chat_tokenizer

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed; make .venv/installed-llama-cpp")

PASSAGES = [
    Passage("a", "Paris is the capital of France. It lies on the Seine.", "Paris"),
    Passage("b", "Beethoven wrote Fidelio in Vienna.", "Fidelio"),
    Passage("c", "Washington is the capital of the U.S.", ""),
]
X = ["What is the capital of France?", "Who wrote Fidelio?"]
Y = ["Paris.", "Beethoven wrote it in Vienna (Austria)"]


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Path, Path]:
    return save_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def plain(pair):
    return load_generator(pair[0])


@pytest.fixture(scope="module")
def gguf(pair):
    return opened(pair[1])


def opened(path: Path):
    from latentrag.generator.llama_cpp import LlamaCppGenerator

    return LlamaCppGenerator.open(path, Place())


def grid(num_questions: int = 2):
    return singles([PASSAGES] * num_questions)


def walked(generator, x, latents, beams: int = 2, steps: int = 4):
    """Log-probabilities of some steps, on which beams change places and a question leaves."""
    log_p, state = generator.start(generator.prepare(x, latents))
    seen = [log_p]
    parents = torch.zeros(len(x), beams, dtype=torch.long) + torch.arange(len(x))[:, None]
    for number in range(steps):
        best = log_p.mean(dim=1)[:, 0].topk(beams).indices
        log_p, state = generator.step(state, parents, (best + number) % 200 + 20)
        seen.append(log_p)
        parents = (torch.arange(len(log_p))[:, None] * beams + torch.arange(beams)).flip(1)
    return seen


def test_prompts_and_targets_are_the_same_tokens(plain, gguf) -> None:
    for latents in (grid(), no_passages(2)):
        theirs, ours = plain.prepare(X, latents), gguf.prepare(X, latents)
        assert ours.prompts.passages == theirs.prompts.passages
        assert ours.prompts.questions == theirs.prompts.questions
    theirs, ours = plain.targets(Y), gguf.targets(Y)
    assert ours.mask.equal(theirs.mask)
    assert ours.ids[ours.mask].equal(theirs.ids[theirs.mask])
    assert gguf.end_ids == plain.end_ids
    for ids in gguf.targets(Y).ids.tolist():
        assert (gguf.text(ids), gguf.token_texts(ids)) == (plain.text(ids), plain.token_texts(ids))


def test_names_of_control_tokens_in_texts_are_text(plain, gguf) -> None:
    told = [(Passage("x", "It says <|im_end|> and \U000f0000 here.", "<|im_start|>"),)]
    x = ["Who says <|im_end|>?"]
    theirs, ours = plain.prepare(x, [told]), gguf.prepare(x, [told])
    assert ours.prompts.passages == theirs.prompts.passages
    assert ours.prompts.questions == theirs.prompts.questions


def test_a_passage_that_is_too_long_loses_its_last_words(pair) -> None:
    from latentrag.generator.llama_cpp import LlamaCppGenerator

    long = [[(Passage("x", " ".join(["Paris", "lies", "on", "the", "Seine."] * 60), "Paris"),)]]
    theirs: Any = load_generator(pair[0], settings={"max_input_tokens": 120}).prepare(X[:1], long)
    ours = LlamaCppGenerator(pair[1], max_input_tokens=120).prepare(X[:1], long)
    assert ours.prompts.passages == theirs.prompts.passages


def test_scores_and_steps_are_those_of_transformers(plain, gguf) -> None:
    differences = []
    for latents in (grid(), no_passages(2)):
        for y in (Y, [Y[1], "."], ["Paris " * 50, "It"]):
            theirs = plain.log_p_theta(plain.prepare(X, latents), plain.targets(y))
            ours = gguf.log_p_theta(gguf.prepare(X, latents), gguf.targets(y))
            differences.append((ours - theirs)[plain.targets(y).mask[:, None].expand(theirs.shape)].abs().flatten())
        for theirs, ours in zip(walked(plain, X, latents), walked(gguf, X, latents), strict=True):
            assert ours.exp().sum(dim=-1).sub(1).abs().max() < 1e-4
            likely = theirs > -12
            differences.append((ours - theirs)[likely].abs().flatten())
    both = torch.cat(differences)
    assert both.mean() <= 0.005
    assert both.max() <= 0.04


def test_a_question_alone_is_a_question_among_twenty(gguf) -> None:
    x = [X[0], *(f"Who wrote {'it ' * number}?" for number in range(19))]
    alone, among = walked(gguf, x[:1], grid(1)), walked(gguf, x, grid(20))
    for one, several in zip(alone, among, strict=True):
        assert one[0].equal(several[0])
    scored = gguf.log_p_theta(gguf.prepare(x, grid(20)), gguf.targets([Y[1]] * 20))
    assert scored[0].equal(gguf.log_p_theta(gguf.prepare(x[:1], grid(1)), gguf.targets(Y[1:]))[0])


def test_states_are_computed_together_as_apart_and_passages_read_in_slices(gguf) -> None:
    one, other = gguf.prepare(X[:1], grid(1)), gguf.prepare(X[1:2], no_passages(1))
    slices = 1
    while gguf.read_slice(one):
        slices += 1
    assert slices >= 2
    assert not gguf.read_slice(one)
    stay, fed = torch.zeros(1, 2, dtype=torch.long), torch.tensor([[5, 6]])
    both = gguf.step_together([Step(gguf.start(each)[1], stay, fed) for each in (one, other)])
    for (together, _), fresh in zip(both, (gguf.prepare(X[:1], grid(1)), other), strict=True):
        assert together.equal(gguf.step(gguf.start(fresh)[1], stay, fed)[0])


def test_what_is_kept_of_passages_is_what_is_read_anew(pair, tmp_path) -> None:
    fresh = walked(opened(pair[1]), X, grid())
    kept = opened(pair[1])
    kept.keep_passages(1 << 30, folder=tmp_path / "passages")
    for number in range(2):
        for one, other in zip(fresh, walked(kept, X, grid()), strict=True):
            assert one.equal(other)
        assert kept.passage_cache.num_hits == 3 * number
    again = opened(pair[1])
    again.keep_passages(0, folder=tmp_path / "passages")
    for one, other in zip(fresh, walked(again, X, grid()), strict=True):
        assert one.equal(other)
    assert (again.passage_cache.num_hits, again.passage_cache.num_misses) == (3, 0)


def test_other_weights_do_not_find_what_is_kept(pair, tmp_path) -> None:
    tokenizer = chat_tokenizer("chatml")
    changed = qwen2(tokenizer, rope_parameters={"rope_theta": 5e5, "rope_type": "default"})
    other = save_gguf(tmp_path / "other.gguf", changed, tokenizer)
    for path, num_hits in ((pair[1], 0), (other, 0), (pair[1], 3)):
        generator = opened(path)
        generator.keep_passages(0, folder=tmp_path / "passages")
        generator.start(generator.prepare(X[:1], grid(1)))
        assert generator.passage_cache.num_hits == num_hits


def test_asking_and_scoring_agree(gguf) -> None:
    prepared = gguf.prepare(X[:1], grid(1))
    log_p, state = gguf.start(prepared)
    ids, seen = [], []
    for _ in range(5):
        token = int(log_p[0, 0, 0].argmax())
        ids.append(token)
        seen.append(log_p[0, :, 0, token])
        log_p, state = gguf.step(state, torch.zeros(1, 1, dtype=torch.long), torch.tensor([[token]]))
    from latentrag.types import Targets

    targets = Targets(torch.tensor([ids]), torch.ones(1, 5, dtype=torch.bool))
    assert torch.allclose(gguf.log_p_theta(prepared, targets)[0], torch.stack(seen, dim=1), atol=0.002)


def test_two_threads_get_what_one_gets(gguf) -> None:
    expected = walked(gguf, X, grid())
    results: list[list[torch.Tensor]] = []
    threads = [threading.Thread(target=lambda: results.append(walked(gguf, X, grid()))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(one.equal(other) for result in results for one, other in zip(expected, result, strict=True))


def test_a_question_of_turns_and_rows_are_read(gguf) -> None:
    prepared = gguf.prepare([Question.of(X[0]), X[1]], grid())
    whole, _ = gguf.start(prepared)
    swapped, _ = gguf.start(prepared.rows(torch.tensor([1, 0])))
    assert swapped.equal(whole.flip(0))
    each, _ = gguf.start(prepared.each_passage())
    assert each.flatten(0, 1).equal(whole.flatten(0, 1))


def test_it_is_saved_and_loaded_again(gguf, tmp_path) -> None:
    gguf.save(tmp_path / "saved")
    again = load_generator(tmp_path / "saved", place=Place())
    assert again.settings() == gguf.settings()
    assert walked(again, X, grid())[-1].equal(walked(gguf, X, grid())[-1])


@pytest.mark.parametrize("kept", [0, 40, 4000, 200_000])
def test_a_damaged_file_is_refused_in_one_line(pair, tmp_path, kept) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(pair[1].read_bytes()[:kept])
    with pytest.raises(ModelError, match=r"cut\.gguf cannot be used \(.+\); fetch it again") as caught:
        opened(path)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_used_is_refused_in_one_line(pair, tmp_path) -> None:
    tokenizer = chat_tokenizer("chatml")
    strange = save_gguf(tmp_path / "strange.gguf", qwen2(tokenizer), tokenizer, architecture="strange")
    with pytest.raises(ModelError, match=r"strange.*fetch it again, or choose another model"):
        opened(strange)
    with pytest.raises(ModelError, match="no file at"):
        opened(tmp_path / "none.gguf")
    from latentrag.generator.llama_cpp import LlamaCppGenerator

    with pytest.raises(InputError, match="number format of its own"):
        LlamaCppGenerator.open(pair[1], Place(number_format="float32"))
    with pytest.warns(UserWarning, match=r"built for CPUs alone, so model\.gguf is computed there"):
        LlamaCppGenerator.open(pair[1], Place("cuda"))


def test_nothing_is_written_on_standard_error(pair) -> None:
    code = (
        "import sys; from latentrag.generator.llama_cpp import LlamaCppGenerator as G\n"
        "g = G(sys.argv[1]); from latentrag.types import no_passages\n"
        "g.start(g.prepare(['Who?'], no_passages(1)))"
    )
    done = subprocess.run([sys.executable, "-c", code, pair[1]], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")
