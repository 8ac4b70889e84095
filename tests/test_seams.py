"""The seams, each with a second case: latent values of several kinds, logits in parts, questions of several turns,
several end tokens, a third retriever in the table and in saved models, parts that other packages add."""

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from latentrag.assemble import load, save, with_parts
from latentrag.corpus.readers import Formats, Reader
from latentrag.decoding import marginal_beam, run
from latentrag.encoder import load_query_encoder
from latentrag.errors import ModelError
from latentrag.evaluation.run import evaluate
from latentrag.generator import PromptTemplate, load_generator
from latentrag.options import DecodingOptions
from latentrag.protocols import Memory, SavablePart
from latentrag.rag import Rag
from latentrag.retriever import RETRIEVERS, BM25Retriever, DenseRetriever
from latentrag.training.data import Example
from latentrag.training.health import measure
from latentrag.training.options import TrainingOptions
from latentrag.training.step import losses
from latentrag.types import Asked, Document, Latent, Passage, Question, Retrieved, SearchResult, Turn, Variant
from tests import tiny
from tests.toy import ToyGenerator, passages

A, B, C, D = passages(4)
LATENTS: Mapping[str, list[Latent]] = {
    "one": [(A,), (A, B), (), (C,)],
    "two": [(), (D,)],
    "three": [(B, C), (D,), (A,)],
}
"""The values of z of each question: none, single passages and sets, and not the same number of them."""
WORDS = {"one": [0.3, -0.2, 0.9, 0.1], "two": [0.5, 0.4], "three": [-0.7, 0.2, 1.0]}
BIAS = {"one": [0.0, 0.4, -0.3, 0.2], "two": [0.1, -0.1], "three": [0.6, 0.0, 0.0]}
WEIGHT = 1.7
VARIANTS: list[Variant] = ["sequence", "token"]
SEVERAL_TURNS = Question((Turn("user", "hello"), Turn("assistant", "good day"), Turn("user", "one")))


class FourPassages:
    """A memory of the passages above, as ``protocols.Memory``."""

    version = 7

    def __len__(self) -> int:
        return 4

    def search(self, q: np.ndarray, k: int) -> SearchResult:
        raise NotImplementedError

    def passages(self) -> Iterator[Passage]:
        return iter([A, B, C, D])

    def get(self, ids: Sequence[str]) -> list[Passage]:
        return [next(z for z in (A, B, C, D) if z.id == wanted) for wanted in ids]

    def check(self, query_encoder: object) -> None:
        pass

    def snapshot(self) -> Memory:
        return self


class ToyRetriever:
    """Logits in two parts, w·words + bias, over the values of z in the table above; learns w."""

    kind = "toy"

    def __init__(self, memory: Memory, *, weight: float = WEIGHT) -> None:
        self.memory = memory
        self.weight = nn.Parameter(torch.tensor(weight))

    def retrieve(self, x: Sequence[Asked], k: int) -> Retrieved:
        texts = [Question.of(question).text for question in x]
        number = max(len(LATENTS[text][:k]) for text in texts)

        def table(values: Mapping[str, list[float]]) -> Tensor:
            rows = [values[text][:k] for text in texts]
            return torch.tensor([[*row, *[99.0] * (number - len(row))] for row in rows])  # as large as masks must hide

        latents = [[*LATENTS[text][:k], *[()] * (number - len(LATENTS[text][:k]))] for text in texts]
        mask = torch.tensor([[place < len(LATENTS[text][:k]) for place in range(number)] for text in texts])
        return Retrieved(latents, {"words": self.weight * table(WORDS), "bias": table(BIAS)}, 7, mask)

    def retrieve_in_hindsight(self, x: Sequence[Asked], y: Sequence[str], k: int, num_hindsight: int) -> Retrieved:
        return self.retrieve(x, k)

    def over(self, memory: Memory) -> "ToyRetriever":
        return ToyRetriever(memory, weight=self.weight.item())

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield "weight", self.weight

    def settings(self) -> dict[str, float]:
        return {"weight": self.weight.item()}

    def parts(self) -> Mapping[str, SavablePart]:
        return {}


def toy(parts: object, memory: Memory, places: object, **settings: float) -> ToyRetriever:
    """A row of the table of retrievers."""
    return ToyRetriever(memory, **settings)


def prior_by_hand(x: str) -> list[float]:
    """p_η(z|x) in float64."""
    logits = [WEIGHT * word + bias for word, bias in zip(WORDS[x], BIAS[x], strict=True)]
    total = math.fsum(map(math.exp, logits))
    return [math.exp(logit) / total for logit in logits]


def by_hand(generator: ToyGenerator, x: str, ids: Sequence[int], variant: Variant) -> tuple[float, list[float]]:
    """log p(y|x) and the share of each value of z, by enumeration in float64."""
    prior = prior_by_hand(x)
    names = [f"{x}|{'+'.join(passage.id for passage in z)}" for z in LATENTS[x]]
    of_tokens = [[generator.log_p(name, ids[:t])[ids[t]].double().item() for t in range(len(ids))] for name in names]
    if variant == "sequence":
        joint = [p * math.exp(math.fsum(row)) for p, row in zip(prior, of_tokens, strict=True)]
        total = math.fsum(joint)
        return math.log(total), [value / total for value in joint]
    log_p, shares = 0.0, [0.0] * len(prior)
    for t in range(len(ids)):
        joint = [p * math.exp(row[t]) for p, row in zip(prior, of_tokens, strict=True)]
        total = math.fsum(joint)
        log_p += math.log(total)
        shares = [share + value / total / len(ids) for share, value in zip(shares, joint, strict=True)]
    return log_p, shares


def of_passage(x: str, shares: Sequence[float], passage: Passage) -> float:
    """The share of all values of z that hold the passage."""
    return math.fsum(share for z, share in zip(LATENTS[x], shares, strict=True) if passage in z)


@pytest.fixture
def rag() -> Any:
    generator: Any = ToyGenerator(4, seed=3)
    return Rag(ToyRetriever(FourPassages()), generator, k=4)


# Latent values and logits in parts


@pytest.mark.parametrize("variant", VARIANTS)
def test_questions_with_different_numbers_of_sets_passages_and_nothing_are_scored(rag, variant) -> None:
    x, y = ["one", "two", "three"], ["ab", "c", ""]
    for question, target, score in zip(x, y, rag.score_batch(x, y, variant=variant), strict=True):
        ids = [*(ord(letter) - 96 for letter in target), 0]
        log_p, shares = by_hand(rag.generator, question, ids, variant)
        assert score.log_likelihood == pytest.approx(log_p, abs=1e-5)
        prior = prior_by_hand(question)
        for source in score.sources:
            assert source.prior == pytest.approx(of_passage(question, prior, source.passage), abs=1e-6)
            assert source.posterior == pytest.approx(of_passage(question, shares, source.passage), abs=1e-5)
        assert {source.passage for source in score.sources} == {passage for z in LATENTS[question] for passage in z}
    evidence = rag.model.evidence(x, y, k=4)
    assert evidence.posterior(variant).sum(dim=1).tolist() == pytest.approx([1.0] * 3, abs=1e-6)
    assert evidence.posterior(variant)[1, 2:].tolist() == [0.0, 0.0]  # what fills the list up has no share
    without = score.without_passage
    assert all(math.isfinite(value) for value in without)


@pytest.mark.parametrize("variant", VARIANTS)
def test_they_are_answered_with_exact_probabilities(rag, variant) -> None:
    answers = rag.answer_batch(["one", "two", "three"], variant=variant, num_beams=8, num_best=3, max_tokens=4)
    alone = [rag.answer(x, variant=variant, num_beams=8, num_best=3, max_tokens=4) for x in LATENTS]
    for answer, again in zip(answers, alone, strict=True):
        assert answer.text == again.text  # whatever stands beside it
        assert answer.log_prob == pytest.approx(again.log_prob, abs=1e-6)
        ids = [*(ord(token.text) - 96 for token in answer.tokens)]
        if answer.hypotheses[0].finished:
            ids.append(0)
        log_p, shares = by_hand(rag.generator, answer.question, ids, variant)
        assert answer.log_prob == pytest.approx(log_p, abs=1e-5)
        for source in answer.sources:
            assert source.posterior == pytest.approx(of_passage(answer.question, shares, source.passage), abs=1e-5)


@pytest.mark.parametrize("decoding", ["thorough", "fast"])
def test_they_are_answered_by_the_papers_decoders(rag, decoding) -> None:
    for answer in rag.answer_batch(["one", "two", "three"], decoding=decoding, num_beams=8, max_tokens=3):
        assert math.isfinite(answer.log_prob)
        assert all(0 <= source.posterior <= 1 + 1e-6 for source in answer.sources)


@pytest.mark.parametrize("variant", VARIANTS)
def test_they_are_classified_and_sampled(rag, variant) -> None:
    found = rag.classify("two", ["a", "bc", "b"], variant=variant)
    truth = {label: by_hand(rag.generator, "two", ids, variant)[0] for label, ids in _LABELS.items()}
    for label in found.labels:
        assert label.log_likelihood == pytest.approx(truth[label.text], abs=1e-5)
    assert found.best == max(truth, key=truth.__getitem__)
    sampled = rag.answer_batch(["one", "two"], variant=variant, sample=True, seed=1, num_beams=2, max_tokens=4)
    assert all(math.isfinite(answer.log_prob) for answer in sampled)


_LABELS = {"a": [1, 0], "bc": [2, 3, 0], "b": [2, 0]}


def test_a_passage_can_be_left_out(rag) -> None:
    left = rag.answer("one", without=[A.id], max_tokens=3)
    assert {source.passage for source in left.sources} == {C}  # (A, B) holds it too
    assert 0 < left.sources[0].prior < 1  # beside (), which stays


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_their_health_is_measured(rag, variant, batch_size) -> None:
    x, y = list(LATENTS), ["ab", "c", "a"]
    health = measure(rag.model, x, y, k=4, variant=variant, batch_size=batch_size)
    truth = [
        by_hand(rag.generator, a, [*(ord(letter) - 96 for letter in b), 0], variant)[0]
        for a, b in zip(x, y, strict=True)
    ]
    assert health.nll == pytest.approx(-math.fsum(truth) / 3, abs=1e-5)
    entropy = [-math.fsum(p * math.log(p) for p in prior_by_hand(a)) for a in x]
    assert health.prior_entropy == pytest.approx(math.fsum(entropy) / 3, abs=1e-5)
    assert all(math.isfinite(value) for value in (health.kl, health.gap, health.overlap, health.gap_error))
    # "one" gets the passages of "two", "two" those of "three", "three" those of "one", each under its own prior.
    one, two, three = map(prior_by_hand, x)
    shared = [one[2], two[1], min(three[2], three[0])]
    assert health.overlap == pytest.approx(math.fsum(shared) / 3, abs=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_training_step_has_the_gradient_of_the_enumerated_marginal(rag, variant) -> None:
    retriever: Any = rag.retriever
    options = TrainingOptions(k=4, variant=variant, freeze="generator")
    x, y = ["one", "two"], ["ab", "c"]
    result = losses(retriever, rag.generator, x, y, options=options, generator_learns=False)
    result.loss.sum().backward()
    # d(−log p)/d logit = prior − posterior, and d logit/dw = words; RAG-Token has it once for each token.
    expected = 0.0
    for question, ids in (("one", [1, 2, 0]), ("two", [3, 0])):
        shares = by_hand(rag.generator, question, ids, variant)[1]
        times = 1 if variant == "sequence" else len(ids)
        pulls = zip(prior_by_hand(question), shares, WORDS[question], strict=True)
        expected += times * math.fsum((prior - share) * word for prior, share, word in pulls)
    assert retriever.weight.grad.item() == pytest.approx(expected, abs=1e-5)
    before = by_hand(rag.generator, "one", [1, 2, 0], variant)[0] + by_hand(rag.generator, "two", [3, 0], variant)[0]
    assert result.nll.sum().item() == pytest.approx(-before, abs=1e-5)
    torch.optim.SGD([retriever.weight], lr=0.1).step()
    after = losses(retriever, rag.generator, x, y, options=options, generator_learns=False)
    assert after.loss.sum() < result.loss.sum()


def test_they_are_evaluated(rag) -> None:
    examples = [
        Example(str(n), x, (answer,)) for n, (x, answer) in enumerate(zip(LATENTS, ["ab", "c", "a"], strict=True))
    ]
    report = evaluate(rag, examples, k=4, options=DecodingOptions(num_beams=2, max_tokens=3), recall_at=[1, 2])
    assert len(report.rows) == 3
    for row, x, ids in zip(report.rows, LATENTS, ([1, 2, 0], [3, 0], [1, 0]), strict=True):
        assert row["log_likelihood"] == pytest.approx(by_hand(rag.generator, x, ids, "sequence")[0], abs=1e-5)
        assert math.isfinite(row["log_prob"])


# A third retriever, in the table and in saved models


@pytest.fixture
def toy_row(monkeypatch) -> Iterator[None]:
    RETRIEVERS.add("toy", toy)
    yield
    RETRIEVERS.remove("toy")


def test_a_third_retriever_is_loaded_saved_and_loaded_again(toy_row, pair, filled, tmp_path) -> None:
    rag = load(pair, memory=filled, retriever="toy", k=4)
    retriever: Any = rag.retriever
    with torch.no_grad():
        retriever.weight.fill_(0.25)  # as training would
    save(rag, tmp_path / "saved")
    content = json.loads((tmp_path / "saved" / "latentrag.json").read_text())
    assert content["prior"] == {"variant": "sequence", "k": 4, "retriever": "toy", "settings": {"weight": 0.25}}
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["README.md", "generator", "latentrag.json"]
    again = load(tmp_path / "saved", memory=filled)
    assert again.answer("one", max_tokens=3) == rag.answer("one", max_tokens=3)


def test_another_package_adds_a_retriever(pair, filled, monkeypatch) -> None:
    _entry_point(monkeypatch, "toy", "tests.test_seams:toy", "latentrag.retrievers")
    assert "toy" in list(RETRIEVERS)
    assert isinstance(load(pair, memory=filled, retriever="toy").retriever, ToyRetriever)


def _read_shouted(stream: Any, name: str, ledger: Any) -> Iterator[Document]:
    yield Document(name, stream.read().decode().upper())


SHOUTED = Reader(_read_shouted, suffixes=(".loud",))


def test_another_package_adds_a_reader(monkeypatch, tmp_path) -> None:
    from latentrag.corpus import read

    (tmp_path / "a.loud").write_text("hello")
    assert Formats().of("a.loud") is None
    _entry_point(monkeypatch, "loud", "tests.test_seams:SHOUTED", "latentrag.readers")
    assert Formats().of("a.loud") == "loud"
    assert [document.text for document in read(tmp_path / "a.loud")] == ["HELLO"]


def _entry_point(monkeypatch: pytest.MonkeyPatch, name: str, value: str, group: str) -> None:
    entry = metadata.EntryPoint(name, value, group)
    monkeypatch.setattr(metadata, "entry_points", lambda *, group: [entry] if group == entry.group else [])


# A third prompt template


class Shouted(PromptTemplate):
    """Questions in capitals."""

    kind = "shouted"

    def ask(self, question: str) -> str:
        return super().ask(question.upper())


def test_another_template_is_saved_with_its_model(pair, filled, tmp_path, monkeypatch) -> None:
    _entry_point(monkeypatch, "shouted", "tests.test_seams:Shouted", "latentrag.templates")
    rag = load(pair, memory=filled, k=2)
    generator = load_generator(pair[1], settings={"template": {"kind": "shouted", "preamble": "one two ."}})
    save(with_parts(rag, rag.retriever, generator), tmp_path / "saved")
    content = json.loads((tmp_path / "saved" / "latentrag.json").read_text())
    assert (content["template"]["kind"], content["template"]["preamble"]) == ("shouted", "one two .")
    again: Any = load(tmp_path / "saved", memory=filled).generator
    assert again.template == Shouted(preamble="one two .")
    assert again.template.render("who ?", ()).after.endswith("WHO ?\nAnswer:")
    content["template"]["kind"] = "whispered"
    (tmp_path / "saved" / "latentrag.json").write_text(json.dumps(content))
    with pytest.raises(
        ModelError, match="prompt template 'whispered' is unknown; needed one of input, prompt, chat, shouted"
    ):
        load(tmp_path / "saved", memory=filled)


# Questions of several turns


def test_a_question_of_several_turns_is_accepted_wherever_a_text_is(rag) -> None:
    assert SEVERAL_TURNS.text == "one"
    answers = [rag.answer(SEVERAL_TURNS, max_tokens=3), rag.answer_batch([SEVERAL_TURNS, "two"], max_tokens=3)[0]]
    results = [*answers, rag.score(SEVERAL_TURNS, "ab"), rag.classify(SEVERAL_TURNS, ["a", "b"])]
    plain = rag.answer("one", max_tokens=3)
    expected = [plain, plain, rag.score("one", "ab"), rag.classify("one", ["a", "b"])]
    for result, alone in zip(results, expected, strict=True):
        assert replace(result, conversation=None) == alone
        # Neither this retriever nor this generator reads turns, and the answer says so.
        assert result.conversation.num_dropped == result.conversation.best.num_dropped == 2
        (reading,) = result.conversation.readings
        assert (reading.kind, reading.text) == ("last", "one")
        assert reading.prior == pytest.approx(1)
        assert reading.posterior == pytest.approx(1)
    assert rag.log_likelihood(SEVERAL_TURNS, "ab") == rag.log_likelihood("one", "ab")
    assert rag.posterior(SEVERAL_TURNS, "ab") == rag.posterior("one", "ab")


@pytest.mark.parametrize("kind", ["dense", "bm25"])
def test_retrievers_take_a_question_of_several_turns(kind, pair, filled) -> None:
    from latentrag.memory import Memory as Opened

    opened = Opened.open(filled)
    retriever: Any
    retriever = BM25Retriever(opened) if kind == "bm25" else DenseRetriever(load_query_encoder(pair[0]), opened)
    several = Question((Turn("user", "what is rome ?"), Turn("user", "what is hamlet ?")))
    found, expected = retriever.retrieve([several], 2), retriever.retrieve(["what is hamlet ?"], 2)
    assert found.latents == expected.latents
    assert torch.equal(found.logits, expected.logits)
    hindsight = [retriever.retrieve_in_hindsight([x], ["play"], 1, 2).latents for x in (several, "what is hamlet ?")]
    assert hindsight[0] == hindsight[1]


@pytest.mark.parametrize("kind", ["llama", "bart"])
def test_generators_take_a_question_of_several_turns_and_sets(kind, tmp_path: Path) -> None:
    causal = kind == "llama"
    tiny.save_tokenizer(tmp_path, begin=not causal, end=not causal)
    (tiny.save_llama if causal else tiny.save_bart)(tmp_path)
    generator = load_generator(tmp_path)
    several = Question((Turn("user", "what is rome ?"), Turn("user", "who wrote emma ?")))
    latents: list[list[Latent]] = [[(), (A,), (A, B)]]
    targets = generator.targets(["austen"])
    x: list[Asked] = [several, "who wrote emma ?", several.since(0)]
    with torch.no_grad():
        log_p = [generator.log_p_theta(generator.prepare([each], latents), targets) for each in x]
    assert log_p[0].isfinite().all()
    assert not torch.allclose(log_p[0], log_p[1], atol=1e-4)
    assert torch.equal(log_p[1], log_p[2])
    assert not torch.allclose(log_p[0][0, 1], log_p[0][0, 2], atol=1e-4)  # a set is read, not its first passage


# Several end tokens


class TwoEnds(ToyGenerator):
    end_ids = (0, 3)


def every_y(max_tokens: int) -> Iterator[tuple[int, ...]]:
    """All that end within max_tokens with either end, and all that are cut there."""
    for length in range(max_tokens):
        for body in itertools.product((1, 2), repeat=length):
            yield from ((*body, end) for end in (0, 3))
    yield from itertools.product((1, 2), repeat=max_tokens)


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_answer_may_end_with_either_end_token(variant) -> None:
    generator: Any = TwoEnds(4, seed=5)
    rag = Rag(ToyRetriever(FourPassages()), generator, k=4)
    read = rag.model.read(["one"], k=4)
    options = DecodingOptions(num_beams=100, num_best=100, max_tokens=3)
    found = marginal_beam(generator, read.prepared, read.log_p_eta, variant=variant, options=options)[0]
    assert {hypothesis.ids for hypothesis in found} == set(every_y(3))
    for hypothesis in found:
        assert hypothesis.log_prob == pytest.approx(by_hand(generator, "one", hypothesis.ids, variant)[0], abs=1e-5)
        assert hypothesis.finished == (hypothesis.ids[-1] in (0, 3))
    assert math.fsum(math.exp(hypothesis.log_prob) for hypothesis in found) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_neither_end_token_is_shown_and_both_are_sampled_and_scored(variant) -> None:
    generator: Any = TwoEnds(4, seed=5)
    rag = Rag(ToyRetriever(FourPassages()), generator, k=4, variant=variant)
    last = set()
    for seed in range(12):
        answer = rag.answer("one", sample=True, seed=seed, num_beams=1, max_tokens=6)
        assert "c" not in answer.text  # the letter of token 3
        assert math.isfinite(answer.log_prob)
        assert math.isfinite(answer.closed_book_log_prob)
        read = rag.model.read(["one"], k=4)
        options = rag.options(sample=True, seed=seed, num_beams=1, max_tokens=6)
        (drawn,) = run(rag.search(read, variant=variant, decoding="exact", options=options))[0]
        last.add(drawn.ids[-1])
    assert {0, 3} <= last
    assert rag.log_likelihood("one", "a") == pytest.approx(by_hand(generator, "one", [1, 0], variant)[0], abs=1e-5)
