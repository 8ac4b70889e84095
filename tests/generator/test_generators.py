"""Every kind of generator against one plain, unpadded, uncached forward pass of its model for each (x, z)."""

from pathlib import Path

import pytest
import torch

from latentrag.errors import InputError, ModelError
from latentrag.generator import (
    CausalGenerator,
    InputTemplate,
    PromptTemplate,
    Seq2SeqGenerator,
    causal,
    fused_gold,
    gold,
    load_generator,
)
from latentrag.generator.gold import OutputHead, OwnLogits
from latentrag.types import Latent, Passage, Targets, no_passages, singles
from tests import tiny
from tests.toy import Tolerance

SEQ2SEQ = {"bart": tiny.save_bart, "t5": tiny.save_t5}
CAUSAL = {
    "llama": tiny.save_llama,
    "gemma2": tiny.save_gemma2,
    "gpt2": tiny.save_gpt2,
    "granite": tiny.save_granite,
}
X = ["what is the capital of france ?", "who wrote fidelio"]
PASSAGES = [
    [
        Passage("a", "paris is the capital city of france", "france"),
        Passage("b", "the moon is red", '"moon"'),
        Passage("c", "emma is an emma novel of austen . austen is the author", ""),
    ],
    [
        Passage("d", "beethoven wrote the opera fidelio", "fidelio"),
        Passage("e", "rome is in italy", "rome"),
        Passage("f", "tokyo is in japan . japan is blue . one two three four five", "tokyo"),
    ],
]
Y = ["paris", "beethoven wrote it in rome"]
# float32, two layers of width 16: padding and caching change the order of sums, nothing else. The logits of these
# random models reach some tens, so a few units in the last place are 1e-5.
TOLERANCE: Tolerance = {"rtol": 0, "atol": 1e-4}


def make(kind: str, folder: Path):
    is_causal = kind in CAUSAL
    tiny.save_tokenizer(folder, begin=kind != "t5", end=not is_causal, max_tokens=64)
    ({**SEQ2SEQ, **CAUSAL})[kind](folder, seed=3)
    return load_generator(folder)


def use_own_logits(generator, monkeypatch) -> None:
    """As for a model whose output layer is not understood."""
    monkeypatch.setattr(generator, "_head", OwnLogits(generator.model, generator._head.ends))


@pytest.fixture(params=[*SEQ2SEQ, *CAUSAL])
def generator(request, tmp_path):
    return make(request.param, tmp_path)


@pytest.fixture(params=[1, 640], ids=["each prompt alone", "prompts together"])
def in_parts(request, monkeypatch) -> None:
    """How much a causal model reads in one forward pass."""
    monkeypatch.setattr(causal, "_PART_TOKENS", request.param)


@torch.no_grad()
def slow(generator, question: str, z: Latent, ids: list[int]) -> torch.Tensor:
    """(T,) log p of ids, from the model's own logits, for one (x, z) without batch, padding or cache."""
    text = str(generator.template.render(question, z))
    inputs = torch.tensor([generator.tokenizer(text)["input_ids"]])
    gold = torch.tensor(ids)
    if isinstance(generator, Seq2SeqGenerator):
        decoder = torch.tensor([[*generator.decoder_prefix, *ids[:-1]]])
        logits = generator.model(input_ids=inputs, decoder_input_ids=decoder).logits[0, -len(ids) :]
    else:
        whole = torch.cat([inputs, gold[None, :-1]], dim=1)
        logits = generator.model(input_ids=whole).logits[0, -len(ids) :]
    return tiny.log_probs(generator, logits).gather(1, gold[:, None])[:, 0]


@pytest.mark.parametrize("gradients", [False, True])
def test_gold_tokens_equal_the_models_own_logits(generator, gradients: bool) -> None:
    targets = generator.targets(Y)
    with torch.set_grad_enabled(gradients):
        log_p = generator.log_p_theta(generator.prepare(X, singles(PASSAGES)), targets)
    assert log_p.requires_grad == gradients
    for b in range(2):
        ids = targets.ids[b][targets.mask[b]].tolist()
        for k in range(3):
            expected = slow(generator, X[b], (PASSAGES[b][k],), ids)
            torch.testing.assert_close(log_p[b, k, : len(ids)].detach(), expected, **TOLERANCE)


def test_closed_book(generator) -> None:
    targets = generator.targets(Y)
    with torch.no_grad():
        log_p = generator.log_p_theta(generator.prepare(X, no_passages(len(X))), targets)
    assert log_p.shape[1] == 1
    for b in range(2):
        ids = targets.ids[b][targets.mask[b]].tolist()
        torch.testing.assert_close(log_p[b, 0, : len(ids)], slow(generator, X[b], (), ids), **TOLERANCE)


@pytest.mark.usefixtures("in_parts")
@torch.no_grad()
def test_decoding_steps_equal_gold_scores_while_beams_move(generator) -> None:
    """Beams swap, multiply and questions leave; every step must still be the model's own distribution."""
    prepared = generator.prepare(X, singles(PASSAGES))
    log_p, state = generator.start(prepared)
    prefixes: list[list[list[int]]] = [[[]], [[]]]
    questions = [0, 1]
    moves = [
        (torch.tensor([[0, 0], [1, 1]]), torch.tensor([[6, 7], [8, 9]]), [0, 1]),
        (torch.tensor([[1, 0], [3, 3]]), torch.tensor([[10, 11], [12, 13]]), [0, 1]),
        (torch.tensor([[3, 2, 2]]), torch.tensor([[14, 15, 16]]), [1]),
    ]
    for move in [*moves, None]:
        for row, b in enumerate(questions):
            for k in range(3):
                for m, prefix in enumerate(prefixes[row]):
                    for token in (5, 20):
                        expected = slow(generator, X[b], (PASSAGES[b][k],), [*prefix, token])[-1]
                        torch.testing.assert_close(log_p[row, k, m, token], expected, **TOLERANCE)
        torch.testing.assert_close(log_p.exp().sum(dim=-1), torch.ones(log_p.shape[:-1]), rtol=0, atol=1e-5)
        if move is None:
            break
        parents, tokens, questions_left = move
        flat = [prefix for of_one in prefixes for prefix in of_one]
        prefixes = [
            [[*flat[parent], token] for parent, token in zip(ps, ts, strict=True)]
            for ps, ts in zip(parents.tolist(), tokens.tolist(), strict=True)
        ]
        questions = questions_left
        log_p, state = generator.step(state, parents, tokens)


@pytest.mark.usefixtures("in_parts")
@torch.no_grad()
def test_prepared_rows_and_single_passages(generator) -> None:
    prepared, targets = generator.prepare(X, singles(PASSAGES)), generator.targets(Y)
    whole = generator.log_p_theta(prepared, targets)
    index = torch.tensor([1, 0, 1])
    again = generator.log_p_theta(prepared.rows(index), Targets(targets.ids[index], targets.mask[index]))
    torch.testing.assert_close(again, whole[index], **TOLERANCE)
    each = prepared.each_passage()
    assert (each.num_questions, each.num_passages) == (6, 1)
    repeated = Targets(targets.ids.repeat_interleave(3, dim=0), targets.mask.repeat_interleave(3, dim=0))
    torch.testing.assert_close(generator.log_p_theta(each, repeated)[:, 0], whole.flatten(0, 1), **TOLERANCE)
    # Scoring and decoding leave what was prepared as it was.
    generator.step(generator.start(prepared)[1], torch.tensor([[0], [1]]), torch.tensor([[6], [7]]))
    torch.testing.assert_close(generator.log_p_theta(prepared, targets), whole, **TOLERANCE)


def test_gradients_equal_those_of_the_models_own_loss(generator, monkeypatch) -> None:
    """The chunked, recomputed output layer against plain cross-entropy over all logits."""
    monkeypatch.setattr("latentrag.generator.gold.CHUNK_ELEMENTS", 3 * tiny.VOCABULARY)
    targets = generator.targets(Y[1:])
    generator.log_p_theta(generator.prepare(X[1:], singles([PASSAGES[1][:1]])), targets).sum().backward()
    found = {name: p.grad.clone() for name, p in generator.model.named_parameters() if p.grad is not None}
    generator.model.zero_grad()
    use_own_logits(generator, monkeypatch)
    generator.log_p_theta(generator.prepare(X[1:], singles([PASSAGES[1][:1]])), targets).sum().backward()
    expected = {name: p.grad for name, p in generator.model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-4)


def test_scores_do_not_need_the_whole_vocabulary_at_once(generator, monkeypatch) -> None:
    """The output layer sees the scored positions alone, and a block of the vocabulary at a time."""
    generator._head.ends = generator._head.ends[:1]
    sizes = []
    whole = fused_gold._Layer.logits

    def watched(self, hidden, columns):
        sizes.append(len(hidden) * (columns.stop - columns.start))
        return whole(self, hidden, columns)

    targets = generator.targets(Y)
    num_rows = 3 * int(targets.mask.sum())
    monkeypatch.setattr(fused_gold, "BLOCK_ELEMENTS", 10 * num_rows)
    monkeypatch.setattr(fused_gold._Layer, "logits", watched)
    generator.log_p_theta(generator.prepare(X, singles(PASSAGES)), targets)
    assert max(sizes) <= 10 * num_rows
    assert sum(sizes) == num_rows * tiny.VOCABULARY


@torch.no_grad()
def test_nor_all_positions_without_gradients(generator, monkeypatch) -> None:
    """The output layer, its weights packed, sees the scored positions alone, and a few of them at a time."""
    num_rows = []
    whole = OutputHead._gold_of_chunk

    def watched(self, hidden, ids):
        num_rows.append(len(hidden))
        return whole(self, hidden, ids)

    targets = generator.targets(Y)
    monkeypatch.setattr(gold, "CHUNK_ELEMENTS", 2 * tiny.VOCABULARY)
    monkeypatch.setattr(OutputHead, "_gold_of_chunk", watched)
    generator.log_p_theta(generator.prepare(X, singles(PASSAGES)), targets)
    assert max(num_rows) <= 2
    assert sum(num_rows) == 3 * int(targets.mask.sum())


@torch.no_grad()
def test_fallback_without_a_known_output_layer_gives_the_same(generator, monkeypatch) -> None:
    targets = generator.targets(Y)
    expected = generator.log_p_theta(generator.prepare(X, singles(PASSAGES)), targets)
    use_own_logits(generator, monkeypatch)
    torch.testing.assert_close(
        generator.log_p_theta(generator.prepare(X, singles(PASSAGES)), targets), expected, **TOLERANCE
    )


def test_an_unknown_output_layer_is_noticed(generator, monkeypatch) -> None:
    monkeypatch.setattr(type(generator._head), "after", lambda self, logits: 2 * logits)
    probe = torch.tensor([[5, 6]])
    inputs = {"input_ids": probe}
    if isinstance(generator, Seq2SeqGenerator):
        inputs["decoder_input_ids"] = probe
    assert not generator._head.agrees(**inputs)


def test_text_of_tokens(generator) -> None:
    ids = generator.targets(["the capital of france"]).ids[0].tolist()
    assert generator.text(ids) == "the capital of france"
    assert generator.token_texts(ids) == ["the", " capital", " of", " france", ""]
    assert generator.text([]) == ""


def test_targets_end_with_the_end_token(generator) -> None:
    targets = generator.targets(["paris", "the red moon", ""])
    for ids, mask in zip(targets.ids, targets.mask, strict=True):
        assert ids[mask][-1] == generator.end_id
        assert (ids[mask][:-1] != generator.end_id).all()
    assert targets.mask.sum(dim=1).tolist() == [2, 4, 1]


def test_save_and_load_restore_everything(generator, tmp_path) -> None:
    generator.max_input_tokens = 40
    generator.model.generation_config.num_beams = 3
    generator.model.generation_config.no_repeat_ngram_size = 2
    folder = tmp_path / "saved"
    folder.mkdir()
    generator.save(folder)
    again = load_generator(folder)
    assert again.settings() == generator.settings()
    assert again.decoding_defaults == {"num_beams": 3, "no_repeat_ngram_size": 2}
    with torch.no_grad():
        targets = generator.targets(Y)
        one, two = (g.log_p_theta(g.prepare(X, singles(PASSAGES)), targets) for g in (generator, again))
    torch.testing.assert_close(one, two, rtol=0, atol=0)
    assert not list(folder.glob("*.bin"))


def test_a_long_passage_gives_way_to_the_question(generator) -> None:
    words = "paris is the capital city of france . " * 30
    generator.max_input_tokens = 40
    prepared = generator.prepare(X[:1], singles([[Passage("z", words, "france")]]))
    if isinstance(generator, CausalGenerator):
        ids = prepared.prompts.passages[0] + prepared.prompts.questions[0]
    else:
        from latentrag.generator.prompt import input_ids
        from latentrag.generator.texts import TextEncoder

        rendered = generator.template.render(X[0], (Passage("z", words, "france"),))
        (ids,) = input_ids(TextEncoder(generator.tokenizer), [rendered], limit=40)
    assert 36 <= len(ids) <= 40
    text = generator.tokenizer.decode(ids, skip_special_tokens=True)
    assert "what is the capital of france ?" in text
    assert "france" in text.split("what is")[0]


def test_long_titles_and_other_passages_give_way_to_the_question(generator) -> None:
    """A row of training whose question fits must not end the run at a passage that it happens to retrieve."""
    generator.max_input_tokens = 40
    generator.check_questions(X[:1])
    words = "paris is the capital city of france . " * 8
    title, bare = (Passage("z", words, title) for title in ("the moon " * 40, ""))
    read = [generator.prepare(X[:1], [[(passage,)]]) for passage in (title, bare)]
    targets = generator.targets(Y[:1])
    with torch.no_grad():
        of_title, of_bare = (generator.log_p_theta(each, targets) for each in read)
        torch.testing.assert_close(of_title, of_bare, **TOLERANCE)
        together = generator.prepare_together(X[:1], singles([[bare, title, bare]]))
        assert torch.isfinite(generator.log_p_theta(together, targets)).all()


def test_a_question_that_is_too_long_is_refused(generator) -> None:
    generator.max_input_tokens = 40
    with pytest.raises(InputError, match="the generator reads 40; shorten the question"):
        generator.prepare(["the moon " * 40], singles([PASSAGES[0][:1]]))


def test_a_target_beyond_the_models_positions_is_refused_and_the_longest_before_is_not(generator) -> None:
    limit = generator.max_target_tokens
    if limit is None:
        pytest.skip("relative positions: no limit")
    with pytest.raises(InputError, match=f"writes {limit} at most"):
        generator.targets(["moon " * limit])
    passage = Passage("z", "paris is the capital city of france . " * 30, "france")
    targets = generator.targets(["moon " * (limit - 1)])
    with torch.no_grad():
        prepared = generator.prepare(X[:1], singles([[passage]]))
        assert torch.isfinite(generator.log_p_theta(prepared, targets)).all()
        log_p, state = generator.start(prepared)
        for token in targets.ids[0, :-1]:
            log_p, state = generator.step(state, torch.tensor([[0]]), token.view(1, 1))
        absorbed = generator._head.ends[1:]  # count as the first end token
        assert torch.isfinite(log_p).sum() == log_p.numel() - len(absorbed) * log_p[..., 0].numel()


@pytest.mark.parametrize(
    ("x", "passages"),
    [([], []), ([" "], [PASSAGES[0]]), (X, [PASSAGES[0]]), (X, [PASSAGES[0], PASSAGES[1][:2]]), (X[:1], [[]])],
)
def test_bad_questions_and_passages(x, passages, tmp_path) -> None:
    with pytest.raises(InputError, match="needed"):
        make("bart", tmp_path).prepare(x, singles(passages))


def test_bart_begins_as_it_was_trained_and_t5_with_its_start_token(tmp_path) -> None:
    (tmp_path / "bart").mkdir()
    (tmp_path / "t5").mkdir()
    assert make("bart", tmp_path / "bart").decoder_prefix == (tiny.END, tiny.BEGIN)
    assert make("t5", tmp_path / "t5").decoder_prefix == (tiny.PAD,)


def test_an_end_of_several_tokens_is_refused(tmp_path) -> None:
    make("llama", tmp_path)
    settings = {"template": {"end": " the moon"}}
    with pytest.raises(ModelError, match="3 tokens|2 tokens"):
        load_generator(tmp_path, settings=settings)
    assert tiny.load_causal(tmp_path, settings={"template": {"end": None}}).end_id == tiny.END


def test_a_target_with_the_end_inside_is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="ends every target"):
        make("llama", tmp_path).targets(["the\nmoon"])


@pytest.mark.parametrize(
    "damage", ["truncated", "pickle only", "no config", "broken config", "encoder only", "settings", "no tokenizer"]
)
def test_damaged_folders_are_refused_in_one_line(damage: str, tmp_path) -> None:
    make("bart", tmp_path)
    weights = tmp_path / "model.safetensors"
    config = tmp_path / "config.json"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "pickle only":
        weights.rename(tmp_path / "pytorch_model.bin")
    elif damage == "no config":
        config.unlink()
    elif damage == "broken config":
        config.write_text("{")
    elif damage == "no tokenizer":
        (tmp_path / "tokenizer.json").unlink()
    elif damage == "encoder only":
        config.write_text('{"model_type": "dpr"}')
    else:
        (tmp_path / "latentrag_generator.json").write_text('{"kind": "causal"}')
    with pytest.raises(ModelError) as caught:
        load_generator(tmp_path)
    assert "\n" not in str(caught.value)


def test_braces_in_passages_and_questions_are_text() -> None:
    template = PromptTemplate()
    rendered = str(template.render("is {text} a {title}?", (Passage("z", "a {question}\n\nQuestion: b", "t {text}"),)))
    assert rendered == "t {text}: a {question} Question: b\nQuestion: is {text} a {title}?\nAnswer:"
    assert str(template.render("q", (Passage("z", "text"),))) == "text\nQuestion: q\nAnswer:"


def test_the_seq2seq_input_is_that_of_hugging_faces_rag() -> None:
    rendered = InputTemplate(prefix="p: ").render("Who?", (Passage("z", "some text", '"A Title"'),))
    assert str(rendered) == "p: A Title / some text // Who?"
    assert str(InputTemplate(prefix="p: ").render("Who?", ())) == "p: Who?"


@pytest.mark.parametrize("bad", [{"passage": "no field"}, {"question": "Q:"}, {"untitled": "{text}{text}"}])
def test_templates_need_their_fields(bad: dict[str, str]) -> None:
    with pytest.raises(InputError, match="exactly once"):
        PromptTemplate(**bad)
