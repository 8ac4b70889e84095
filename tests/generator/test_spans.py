"""The extractive reader against plain loops over every span, the same weights, one unpadded row at a time."""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from latentrag.assemble import load, save
from latentrag.errors import InputError, ModelError
from latentrag.generator import load_generator
from latentrag.generator.span_rows import SpanRows
from latentrag.generator.spans import SpanGenerator
from latentrag.model import JointModel
from latentrag.place import Place
from latentrag.rag import Rag
from latentrag.types import Asked, Latent, Passage, Retrieved
from tests.encoder import tiny
from tests.toy import ToyRetriever

LONGEST = 3
LOG_UNREAD = -14.0
PASSAGES = [
    Passage("paris", "Paris is the capital of France . the river in Paris is the Seine", title="Paris"),
    Passage("rome", "Rome is the capital of Italy , a city", title="the city of Rome"),
    Passage("none", "who painted the queen ?"),
    Passage("river", "London was born in the river", title="Thames"),
]
SCORES = [0.4, -0.3, 0.9, 0.1]
QUESTION = "what is the capital of France ?"
NORMALISE = ["passages", "passage", "classifier"]


class Fixed(ToyRetriever):
    """The same latent values for every question, the logits from a parameter."""

    def __init__(self, latents: Sequence[Latent], scores: Sequence[float] = SCORES) -> None:
        self.latents, self.scores = list(latents), torch.tensor(scores)

    def retrieve(self, x: Sequence[Asked], k: int) -> Retrieved:
        logits = self.scores[:k].expand(len(x), k)
        return Retrieved([self.latents[:k] for _ in x], {"dense": logits}, version=7)


SINGLES: list[Latent] = [(passage,) for passage in PASSAGES]


def write_encoder(folder: Path, *, cased: bool = False, positions: int = 64) -> Path:
    """A BERT without any head, as encoders are published."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    BertModel(BertConfig(**{**tiny.sizes(cased=cased), "max_position_embeddings": positions})).save_pretrained(folder)
    tiny.write_tokenizer(folder, cased=cased, model_max_length=512)
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_encoder(tmp_path / "bert")


def reader(folder: Path, normalise: str = "passages", **settings: Any) -> SpanGenerator:
    """With an output layer whose probabilities differ, and a classifier."""
    made = load_generator(folder, settings={"kind": "spans", "max_span_tokens": LONGEST, **settings})
    assert isinstance(made, SpanGenerator)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        made.model.qa_outputs.weight.copy_(torch.randn(2, 16, generator=random))
        made.model.qa_outputs.bias.copy_(torch.randn(2, generator=random))
        made.model.qa_classifier = torch.nn.Linear(16, 1)
        made.model.qa_classifier.weight.copy_(torch.randn(1, 16, generator=random))
    made.normalise = normalise  # type: ignore[assignment]
    return made


def log_q(text: str) -> float:
    return -(len(text.encode()) + 1) * math.log(257)


def scores_by_hand(made: SpanGenerator, x: str, z: Latent) -> tuple[list[tuple[str, Tensor]], Tensor]:
    """What every span of z says with its score, one row at a time; and the classifier's logit."""
    tokenizer: Any = made.tokenizer
    ids, types, part = [2, *_ids(tokenizer, x), 3], [], []
    types, part = [0] * len(ids), [0] * len(ids)
    texts = [text for passage in z for text in (passage.title, passage.text) if text]
    for number, text in enumerate(texts, start=1):
        of_text = _ids(tokenizer, text)
        ids += [*of_text, 3]
        part += [*[number] * len(of_text), 0]
        types += [1] * (len(of_text) + 1)
    hidden = made.model.bert(torch.tensor([ids]), token_type_ids=torch.tensor([types]))[0][0]
    logits = made.model.qa_outputs(hidden)
    found = []
    for i in range(len(ids)):
        for j in range(i, min(i + LONGEST, len(ids))):
            if part[i] and all(each == part[i] for each in part[i : j + 1]):
                words = tokenizer.convert_ids_to_tokens(ids[i : j + 1])
                text = "".join(word[2:] if word.startswith("##") else f" {word}" for word in words).strip()
                found.append((text, logits[i, 0] + logits[j, 1]))
    return found, made.model.qa_classifier(hidden[0])[0]


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def by_hand(
    made: SpanGenerator, x: str, latents: Sequence[Latent], scores: Sequence[Tensor], normalise: str
) -> dict[str, Tensor]:
    """p(y|x) of every text that a span says, and of "" for the share of all other texts."""
    of_spans = [scores_by_hand(made, x, z) for z in latents]
    total: dict[str, Tensor] = defaultdict(lambda: torch.zeros(()))
    if normalise == "passages":
        both = [
            (text, (score + of_z).exp())
            for (spans, _), of_z in zip(of_spans, scores, strict=True)
            for text, score in spans
        ]
        everything = sum(value for _, value in both)
        for text, value in both:
            total[text] = total[text] + value / everything
    else:
        logits = [
            of_z + (weight if normalise == "classifier" else 0)
            for (_, weight), of_z in zip(of_spans, scores, strict=True)
        ]
        prior = torch.softmax(torch.stack([torch.as_tensor(each) for each in logits]), dim=0)
        for (spans, _), of_z in zip(of_spans, prior, strict=True):
            everything = sum(score.exp() for _, score in spans)
            for text, score in spans:
                total[text] = total[text] + of_z * score.exp() / everything
    share = math.exp(LOG_UNREAD)
    return {text: (1 - share) * value + share * math.exp(log_q(text)) for text, value in total.items()}


def truth(made: SpanGenerator, normalise: str, latents: Sequence[Latent] = SINGLES) -> Mapping[str, float]:
    with torch.no_grad():
        found = by_hand(made, QUESTION, latents, [torch.tensor(each) for each in SCORES[: len(latents)]], normalise)
    return {text: value.item() for text, value in found.items()}


@pytest.mark.parametrize("normalise", NORMALISE)
def test_every_text_has_the_probability_of_its_spans(folder, normalise) -> None:
    made = reader(folder, normalise)
    rag = Rag(Fixed(SINGLES), made, k=4)
    expected = truth(made, normalise)
    assert math.fsum(expected.values()) == pytest.approx(1.0, abs=1e-5)
    for variant in ("sequence", "token"):
        for text in ("paris", "the capital of", "capital", "who", "seine"):
            score = rag.score(QUESTION, text, variant=variant)
            assert score.log_likelihood == pytest.approx(math.log(expected[text]), abs=1e-5)
            assert math.fsum(source.posterior for source in score.sources) == pytest.approx(1.0, abs=1e-5)
    assert rag.log_likelihood(QUESTION, " PARIS") == pytest.approx(math.log(expected["paris"]), abs=1e-5)


@pytest.mark.parametrize("normalise", NORMALISE)
def test_what_no_span_says_is_not_impossible(folder, normalise) -> None:
    rag = Rag(Fixed(SINGLES), reader(folder, normalise), k=4)
    score = rag.score(QUESTION, "hamlet")
    assert score.log_likelihood == pytest.approx(LOG_UNREAD + log_q("hamlet"), abs=1e-4)
    priors = [source.prior for source in score.sources]
    assert [source.posterior for source in score.sources] == pytest.approx(priors, abs=1e-4)
    assert score.closed_book_log_likelihood == pytest.approx(log_q("hamlet"), abs=1e-4)


@pytest.mark.parametrize("normalise", NORMALISE)
def test_the_answer_is_the_most_probable_of_all_texts(folder, normalise) -> None:
    made = reader(folder, normalise)
    rag = Rag(Fixed(SINGLES), made, k=4)
    expected = sorted(truth(made, normalise).items(), key=lambda pair: -pair[1])
    answer = rag.answer(QUESTION, num_beams=5, num_best=5)
    assert [each.text.lower() for each in answer.hypotheses] == [text for text, _ in expected[:5]]
    for each, (_, value) in zip(answer.hypotheses, expected, strict=False):
        assert each.log_prob == pytest.approx(math.log(value), abs=1e-5)
    assert answer.text == answer.hypotheses[0].text
    assert [token.text for token in answer.tokens] == [answer.text]
    score = rag.score(QUESTION, answer.text)
    assert score.log_likelihood == pytest.approx(answer.log_prob, abs=1e-5)
    assert [s.posterior for s in score.sources] == pytest.approx([s.posterior for s in answer.sources], abs=1e-5)
    assert answer.tokens[0].posterior == pytest.approx([s.posterior for s in answer.sources], abs=1e-6)


def test_an_answer_is_written_as_the_passage_has_it(folder) -> None:
    made = reader(folder)
    every = made.every_y(made.prepare([QUESTION], [SINGLES]))[0]
    texts = {made.text(every.ids(n)) for n in range(len(every.num_tokens))}
    assert {"Paris", "Seine", "the capital of", "the city of"} <= texts
    assert not {"Paris Paris", "Rome Rome"} & texts  # no span goes from the title into the text


@pytest.mark.parametrize("normalise", NORMALISE)
def test_without_a_passage_its_spans_are_gone(folder, normalise) -> None:
    made = reader(folder, normalise)
    rag = Rag(Fixed(SINGLES), made, k=4)
    score = rag.score(QUESTION, "paris")
    three = Rag(Fixed(SINGLES[1:], SCORES[1:]), made, k=3)
    assert score.without_passage[0] == pytest.approx(three.log_likelihood(QUESTION, "paris"), abs=1e-4)
    answer = rag.answer(QUESTION, without=["paris"])
    with torch.no_grad():
        scores = [torch.tensor(each) for each in SCORES[1:]]
        expected = by_hand(made, QUESTION, SINGLES[1:], scores, normalise)
    assert answer.text.lower() == max(expected, key=lambda text: expected[text].item())
    assert {source.passage.id for source in answer.sources} == {"rome", "none", "river"}


@pytest.mark.parametrize("normalise", NORMALISE)
@pytest.mark.parametrize("null", [None, -0.3])
def test_without_a_passage_sets_are_as_if_it_had_never_been_retrieved(folder, normalise, null) -> None:
    rag = Rag(Fixed(SINGLES), reader(folder, normalise), k=4, set_bonus=0.4, null_passage=null)
    score = rag.score(QUESTION, "france")
    for source, found in zip(score.sources, score.without_passage, strict=True):
        read = rag.model.read([QUESTION], k=4, without=[source.passage.id])
        again = read.evidence(rag.generator.targets(["france"])).log_likelihood("sequence").item()
        assert found == pytest.approx(again, abs=1e-4)


@pytest.mark.parametrize("normalise", NORMALISE)
def test_without_a_sentence_its_spans_are_gone(folder, normalise) -> None:
    made = reader(folder, normalise)
    score = Rag(Fixed(SINGLES), made, k=4).score(QUESTION, "paris", sentences=True)
    (place,) = [k for k, source in enumerate(score.sources) if source.sentences]
    passage = score.sources[place].passage
    for sentence in score.sources[place].sentences:
        left = replace(passage, text=passage.text[: sentence.start] + passage.text[sentence.end :])
        others = [(left,) if z == (passage,) else z for z in SINGLES]
        expected = Rag(Fixed(others), made, k=4).log_likelihood(QUESTION, "paris")
        assert sentence.log_prob_without == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("normalise", NORMALISE)
def test_gradients_are_those_of_the_enumerated_probability(folder, normalise) -> None:
    """In float64, of all weights of the reader and of the retriever's scores."""
    made = reader(folder, normalise)
    made.model.double()
    retriever = Fixed(SINGLES)
    retriever.scores = torch.tensor(SCORES, dtype=torch.float64, requires_grad=True)
    weights = [retriever.scores, *(weight for _, weight in made.named_parameters())]
    evidence = JointModel(retriever, made).evidence([QUESTION], ["the capital of"], k=4)
    loss = -evidence.log_likelihood("sequence").sum()
    expected = -by_hand(made, QUESTION, SINGLES, list(retriever.scores), normalise)["the capital of"].log()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-10)
    ours = torch.autograd.grad(loss, weights, allow_unused=True)
    theirs = torch.autograd.grad(expected, weights, allow_unused=True)
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)
    assert ours[0].abs().max() > 1e-3


def test_gradients_are_those_of_finite_differences(folder) -> None:
    made = reader(folder)
    made.model.double()
    weight = made.model.qa_outputs.weight

    def loss() -> Tensor:
        return -JointModel(Fixed(SINGLES), made).evidence([QUESTION], ["seine"], k=4).log_likelihood("sequence").sum()

    (gradient,) = torch.autograd.grad(loss(), [weight])
    for place in ((0, 3), (1, 7)):
        values = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                weight[place] += step
                values.append(loss().item())
                weight[place] -= step
        assert gradient[place].item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5, abs=1e-8)


def test_an_example_whose_answer_stands_nowhere_teaches_nothing(folder) -> None:
    made = reader(folder)
    retriever = Fixed(SINGLES)
    retriever.scores.requires_grad_()
    evidence = JointModel(retriever, made).evidence([QUESTION], ["hamlet"], k=4)
    (-evidence.log_likelihood("sequence")).sum().backward()
    assert retriever.scores.grad is not None
    rounding = 1e-5  # float32, a posterior minus an equal prior; that of an answer that is there is 7
    assert retriever.scores.grad.abs().max() < rounding
    assert all(weight.grad is None or weight.grad.abs().max() < rounding for _, weight in made.named_parameters())


def test_questions_do_not_depend_on_each_other(folder) -> None:
    rag = Rag(Fixed(SINGLES), reader(folder), k=4)
    x = [QUESTION, "who ?", "what river was in the city of London ?"]
    for alone, together in zip(map(rag.answer, x), rag.answer_batch(x), strict=True):
        assert alone.text == together.text
        assert alone.log_prob == pytest.approx(together.log_prob, abs=1e-5)


def test_sets_of_passages_and_none(folder) -> None:
    made = reader(folder, "passage")
    latents: list[Latent] = [(PASSAGES[0], PASSAGES[1]), (), (PASSAGES[3],)]
    rag = Rag(Fixed(latents, SCORES[:3]), made, k=3)
    prior = torch.softmax(torch.tensor(SCORES[:3]), dim=0)
    with torch.no_grad():
        alone = [by_hand(made, QUESTION, [z], [torch.zeros(())], "passage") for z in (latents[0], latents[2])]
    expected = prior[0] * alone[0]["rome"] + prior[1] * math.exp(log_q("rome"))
    expected += prior[2] * math.exp(LOG_UNREAD + log_q("rome"))
    assert rag.log_likelihood(QUESTION, "Rome") == pytest.approx(expected.log().item(), abs=1e-5)
    assert rag.answer(QUESTION).text


def test_samples_are_drawn_from_the_marginal(folder) -> None:
    made = reader(folder)
    rag = Rag(Fixed(SINGLES), made, k=4)
    drawn = rag.answer(QUESTION, sample=True, seed=3, num_beams=2000, num_best=2000).hypotheses
    expected = truth(made, "passages")
    for text, value in sorted(expected.items(), key=lambda pair: -pair[1])[:4]:
        share = sum(each.text.lower() == text for each in drawn) / len(drawn)
        assert share == pytest.approx(value, abs=4 * math.sqrt(value * (1 - value) / len(drawn)) + 1e-3)
    assert rag.answer(QUESTION, sample=True, seed=3) == rag.answer(QUESTION, sample=True, seed=3)


def test_labels_are_told_apart_by_their_spans(folder) -> None:
    made = reader(folder)
    rag = Rag(Fixed(SINGLES), made, k=4)
    found = rag.classify(QUESTION, ["Paris", "Rome", "hamlet"])
    expected = truth(made, "passages")
    for label in found.labels[:2]:
        assert label.log_likelihood == pytest.approx(math.log(expected[label.text.lower()]), abs=1e-5)
    assert found.labels[2].text == "hamlet"


def test_lengths_are_those_of_spans(folder) -> None:
    rag = Rag(Fixed(SINGLES), reader(folder), k=4)
    assert all(len(each.text.split()) == 1 for each in _best(rag, max_tokens=1))
    assert all(len(each.text.split()) == 3 for each in _best(rag, min_tokens=3))
    with pytest.raises(InputError, match="every answer is ruled out by the options"):
        rag.answer(QUESTION, min_tokens=4)


def _best(rag: Rag, **options: Any) -> Sequence[Any]:
    return rag.answer(QUESTION, num_beams=20, num_best=20, **options).hypotheses


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"decoding": "fast"}, "decoding='fast' searches; this generator lists every answer"),
        ({"decoding": "thorough"}, "decoding='thorough' searches"),
        ({"length_penalty": 1.0}, "length_penalty has no effect on a generator that lists whole answers"),
        ({"no_repeat_ngram_size": 2}, "no_repeat_ngram_size has no effect"),
    ],
)
def test_what_a_list_has_no_use_for_is_refused(folder, options, line) -> None:
    with pytest.raises(InputError, match=line):
        Rag(Fixed(SINGLES), reader(folder), k=4).answer(QUESTION, **options)


def test_long_questions_are_refused_and_long_passages_are_cut(folder) -> None:
    made = reader(folder, max_input_tokens=16)
    with pytest.raises(InputError, match=r"the question is 16 tokens .* the reader's limit is 16"):
        made.prepare(["the " * 13], [SINGLES[:1]])
    with pytest.raises(InputError, match="shorten the question"):
        made.check_questions(["the " * 13])
    every = made.every_y(made.prepare([QUESTION], [SINGLES[:1]]))[0]
    texts = {made.text(every.ids(n)) for n in range(len(every.num_tokens))}
    assert "Paris" in texts
    assert "Seine" not in texts


# From folders and back


def test_a_model_with_a_reader_is_saved_and_loaded(pair, filled, folder, tmp_path) -> None:
    made = reader(folder, "classifier")
    made.model.config.architectures = None
    made.save(tmp_path / "reader")
    rag = load((pair[0], tmp_path / "reader"), memory=filled, k=3)
    assert rag.generator.capabilities.enumerates
    answer = rag.answer("which city")
    save(rag, tmp_path / "model")
    settings = json.loads((tmp_path / "model" / "generator" / "latentrag_generator.json").read_text())
    assert settings == {
        "kind": "spans",
        "normalise": "classifier",
        "max_span_tokens": 3,
        "max_input_tokens": 64,
        "like_dpr": False,
    }
    assert load(tmp_path / "model", memory=filled).answer("which city") == answer


@pytest.mark.parametrize("name", ["DistilBert", "Roberta", "MPNet", "Electra", "Albert", "DebertaV2"])
def test_any_encoder_like_bert_is_a_reader(name, tmp_path) -> None:
    import transformers

    torch.manual_seed(0)
    sizes = {**tiny.sizes(), "max_position_embeddings": 70, "pad_token_id": 0, "embedding_size": 16}
    plain = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**sizes)).eval()
    plain.save_pretrained(tmp_path)
    tiny.write_tokenizer(tmp_path, model_max_length=64)
    made = reader(tmp_path)
    rag = Rag(Fixed(SINGLES), made, k=4)
    answer = rag.answer(QUESTION, num_best=2)
    assert answer.hypotheses[0].log_prob > answer.hypotheses[1].log_prob
    assert rag.log_likelihood(QUESTION, answer.text) == pytest.approx(answer.log_prob, abs=1e-4)


def test_in_eight_bits_it_answers_and_is_not_saved(folder, tmp_path) -> None:
    exact = load_generator(folder, settings={"kind": "spans"})
    made = load_generator(folder, settings={"kind": "spans"}, place=Place("cpu", "int8"))
    scores = [Rag(Fixed(SINGLES), each, k=4).log_likelihood(QUESTION, "paris") for each in (exact, made)]
    assert scores[0] != scores[1]
    assert scores[0] == pytest.approx(scores[1], abs=0.3)
    with pytest.raises(InputError, match="int8 cannot be saved"):
        made.save(tmp_path / "saved")


def test_a_model_for_question_answering_is_a_reader_without_being_told(tmp_path) -> None:
    from transformers import BertConfig, BertForQuestionAnswering

    folder = tmp_path / "qa"
    plain = BertForQuestionAnswering(BertConfig(**{**tiny.sizes(), "max_position_embeddings": 64})).eval()
    plain.save_pretrained(folder)
    tiny.write_tokenizer(folder, model_max_length=512)
    made = load_generator(folder)
    assert isinstance(made, SpanGenerator)
    torch.testing.assert_close(made.model.qa_outputs.weight, plain.qa_outputs.weight)


def test_dprs_reader_says_what_transformers_says(tmp_path) -> None:
    from transformers import DPRConfig, DPRReader

    folder = tmp_path / "dpr"
    torch.manual_seed(0)
    plain = DPRReader(DPRConfig(**{**tiny.sizes(), "max_position_embeddings": 64})).eval()
    plain.save_pretrained(folder)
    tiny.write_tokenizer(folder, tokenizer_class="DPRReaderTokenizer", model_max_length=512)
    made: Any = load_generator(folder)
    assert (made.normalise, made.like_dpr, made.kind) == ("classifier", True, "spans")
    passage = PASSAGES[0]
    ids = [2, *_ids(made.tokenizer, QUESTION), 3, *_ids(made.tokenizer, passage.title), 3]
    title_ends = len(ids) - 1
    ids += _ids(made.tokenizer, passage.text)
    with torch.no_grad():
        output = plain(torch.tensor([ids]))
        prepared = made.prepare([QUESTION], [[(passage,)]])
        assert made.log_weights(prepared).item() == pytest.approx(output.relevance_logits.item(), abs=1e-5)
        log_p = made.log_p_theta(prepared, made.targets(["Seine"])).item()
    first = 3 + len(_ids(made.tokenizer, QUESTION)) - 1
    scores = [
        (output.start_logits[0, i] + output.end_logits[0, j]).item()
        for low, high in ((first, title_ends), (title_ends + 1, len(ids)))
        for i in range(low, high)
        for j in range(i, min(i + 10, high))
    ]
    last = len(ids) - 1  # the Seine is the last word
    expected = (output.start_logits[0, last] + output.end_logits[0, last]).item()
    assert log_p == pytest.approx(expected - torch.tensor(scores).logsumexp(dim=0).item(), abs=1e-4)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"normalise": "all"}, "normalise='all' is unknown; needed one of passages, passage, classifier"),
        ({"max_span_tokens": 0}, "max_span_tokens=0; needed a number of tokens"),
        ({"normalise": "classifier"}, "needs a reader with a qa_classifier"),
        ({"max_input_tokens": 0}, "max_input_tokens=0; needed a number of tokens"),
        ({"max_input_tokens": 65}, "max_input_tokens=65; this model reads at most 64"),
        ({"like_dpr": "false"}, "like_dpr='false'; needed true or false"),
        ({"max_span_tokens": "ten"}, "max_span_tokens='ten'; needed a number of tokens"),
        ({"template": {"kind": "chat"}}, "a reader of spans has no prompt; leave instruction and template out"),
        ({"longest": 3}, "a reader of spans has no setting 'longest'; needed one of normalise, max_span_tokens"),
    ],
)
def test_settings_that_cannot_be_are_refused(folder, settings, line) -> None:
    with pytest.raises(ModelError, match=line):
        load_generator(folder, settings={"kind": "spans", **settings})


def test_what_is_no_encoder_is_refused(pair, tmp_path) -> None:
    with pytest.raises(ModelError, match="weights of LlamaForQuestionAnswering"):
        load_generator(pair[1], settings={"kind": "spans"})


def test_the_untrained_layer_is_always_the_same(folder) -> None:
    one, other = (load_generator(folder, settings={"kind": "spans"}) for _ in range(2))
    assert isinstance(one, SpanGenerator)
    assert isinstance(other, SpanGenerator)
    assert torch.equal(one.model.qa_outputs.weight, other.model.qa_outputs.weight)
    assert one.model.qa_outputs.weight.std() > 0


# What tokens say


def test_words_of_byte_pairs_are_the_same_wherever_they_stand(tmp_path) -> None:
    """ " Paris" and "Paris" are different tokens there."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["<s>", "</s>", "<pad>", "<unk>", "Ġ", "Ġin", "(", ")", "P", "a", "r", "i", "s", "Pa", "ris", "ĠP", "ĠPa"]
    names += ["Paris", "ĠParis", "n", "in"]
    merges = [("P", "a"), ("i", "s"), ("r", "is"), ("Pa", "ris"), ("Ġ", "Paris"), ("i", "n"), ("Ġ", "in")]
    vocabulary = {name: n for n, name in enumerate([*dict.fromkeys([*names, "is"])])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 1)],
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", sep_token="</s>", pad_token="<pad>"
    )
    rows = SpanRows(tokenizer, limit=64)
    row = rows.row("Paris", (Passage("a", "Paris (Paris) in Paris"),))
    said = [text for text, _, _ in row.spans(3)]
    assert said.count(rows.key("Paris")) == 3
    assert rows.key(" Paris") == rows.key("Paris") == "Paris"


WHITE_SPACE = Passage("w", "Paris\nParis and\u00a0Paris \n  Paris\u3000and")
KOREAN = Passage("k", "서울은 도시 Paris")


def byte_level() -> Any:
    """A tokenizer like RoBERTa's, with few merges: most characters beyond ASCII are several tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(["Paris and Paris", "Paris", "and", "서"] * 3, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
    )


def byte_reader(*, longest: int) -> SpanGenerator:
    from transformers import RobertaConfig, RobertaForQuestionAnswering

    torch.manual_seed(0)
    tokenizer = byte_level()
    sizes = {**tiny.sizes(), "vocab_size": len(tokenizer), "max_position_embeddings": 130, "initializer_range": 0.5}
    model = RobertaForQuestionAnswering(RobertaConfig(**sizes, pad_token_id=1)).eval()
    return SpanGenerator(model, tokenizer, max_span_tokens=longest, max_input_tokens=120)


def test_any_white_space_of_byte_pairs_is_one_space() -> None:
    rows = SpanRows(byte_level(), limit=64)
    said = [text for text, _, _ in rows.row("who", (WHITE_SPACE,)).spans(6)]
    assert "" not in said
    assert all(text == " ".join(text.split()) for text in said)
    assert (said.count("Paris"), said.count("Paris Paris"), said.count("and Paris")) == (4, 2, 1)
    assert {rows.key(y) for y in ("and Paris", "and\nParis", " and\u00a0Paris\u00a0", "and  Paris\n")} == {"and Paris"}


def test_no_span_has_half_a_character() -> None:
    rows = SpanRows(byte_level(), limit=64)
    row = rows.row("who", (KOREAN,))
    assert len(row.ids) > len("who") + len(KOREAN.text)
    spans = list(row.spans(12))
    assert {row.text(first, last) for _, first, last in spans} == {text for text, _, _ in spans}
    assert {"서", "서울", "서울은", "은 도시", "시 Paris"} <= {text for text, _, _ in spans}
    assert "\ufffd" not in "".join(text for text, _, _ in spans)
    for limit in range(len(row.ids) - 12, len(row.ids)):  # the end of the passage is not read
        cut = SpanRows(byte_level(), limit=limit).row("who", (KOREAN,))
        assert {text for text, _, _ in cut.spans(12)} <= {text for text, _, _ in spans}


@pytest.mark.parametrize("passage", [WHITE_SPACE, KOREAN])
def test_every_text_of_byte_pairs_has_the_probability_of_its_spans(passage) -> None:
    """Against a loop over all spans that the tokenizer itself decodes."""
    made = byte_reader(longest=6)
    tokenizer: Any = made.tokenizer
    before = [0, *_ids(tokenizer, "who?"), 2, 2]
    ids = [*before, *_ids(tokenizer, passage.text), 2]
    with torch.no_grad():
        output = made.model(input_ids=torch.tensor([ids]))
    start, end = output.start_logits[0].tolist(), output.end_logits[0].tolist()

    def said(first: int, last: int) -> str:
        return " ".join(tokenizer.decode(ids[first : last + 1], clean_up_tokenization_spaces=False).split())

    total: dict[str, float] = defaultdict(float)
    for i in range(len(before), len(ids) - 1):
        for j in range(i, min(i + 6, len(ids) - 1)):
            text = said(i, j)
            shorter = [said(each, j) for each in range(i + 1, j + 1)] + [said(i, each) for each in range(i, j)]
            if text and "\ufffd" not in text and text not in shorter:  # else it begins or ends with white space
                total[text] += math.exp(start[i] + end[j])
    mass, share = math.fsum(total.values()), math.exp(LOG_UNREAD)
    rag = Rag(Fixed([(passage,)], [0.0]), made, k=1)
    for text, value in total.items():
        expected = math.log((1 - share) * value / mass + share * math.exp(log_q(text)))
        assert rag.log_likelihood("who?", text) == pytest.approx(expected, abs=1e-5)


def test_characters_of_more_tokens_than_a_span_has_are_read_nowhere() -> None:
    made = byte_reader(longest=1)
    with torch.no_grad():
        prepared = made.prepare(["who?"], [[(Passage("k", "울은도시"),)]])
        log_p = made.log_p_theta(prepared, made.targets(["울"])).item()
    assert made.every_y(prepared)[0].num_tokens.tolist() == []
    assert log_p == pytest.approx(log_q("울"))


def test_names_of_control_tokens_are_text(folder) -> None:
    row = reader(folder)._rows.row(QUESTION, (Passage("a", "the [SEP] of Paris"),))
    assert row.ids.count(3) == 2  # after the question and at the end
    assert "[SEP]" in {row.text(first, last) for _, first, last in row.spans(6)}


def test_unknown_words_are_told_apart(tmp_path) -> None:
    made = reader(write_encoder(tmp_path / "b"))
    row = made._rows.row(QUESTION, (Passage("a", "서울 is the city 부산"),))
    said = {text for text, _, _ in row.spans(1)}
    assert {"서울", "부산"} <= said
    assert made._rows.key("서울") == "서울"
