"""A generator made from an encoder: what is copied, what is random; it scores and decodes as its model does."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from new_seq2seq import new_seq2seq, save_new

from latentrag.errors import InputError, ModelError
from latentrag.generator import Seq2SeqGenerator, load_generator
from latentrag.generator.gold import OutputHead
from latentrag.types import Passage, no_passages, singles
from tests.encoder.tiny import write_dpr, write_sentence_encoder
from tests.toy import Tolerance

PAD, BEGIN, END = 0, 2, 3
X = ["who wrote hamlet ?", "where is the seine"]
PASSAGES = [
    [Passage("a", "london is the capital", "thames"), Passage("b", "the play was born", "hamlet")],
    [Passage("c", "paris", "a river"), Passage("d", "the seine is in paris . the river of france", "")],
]
Y = ["london", "in paris , france"]
# float32, a few layers of width 16: padding and caching change the order of sums, nothing else.
TOLERANCE: Tolerance = {"rtol": 0, "atol": 1e-4}


@pytest.fixture
def encoder(tmp_path) -> Path:
    return write_sentence_encoder(tmp_path / "encoder", head=["Normalize"])


@pytest.fixture
def generator(encoder, tmp_path) -> Seq2SeqGenerator:
    """As it comes back from disk."""
    save_new(new_seq2seq(encoder, num_layers=2, seed=1), tmp_path / "generator")
    loaded = load_generator(tmp_path / "generator")
    assert isinstance(loaded, Seq2SeqGenerator)
    return loaded


@torch.no_grad()
def slow(generator: Seq2SeqGenerator, b: int, k: int | None, ids: list[int]) -> torch.Tensor:
    """(T,) log p of ids from the model's own logits, one (x, z) without batch, padding or cache."""
    rendered = generator.template.render(X[b], () if k is None else (PASSAGES[b][k],))
    inputs = torch.tensor([generator.tokenizer(str(rendered))["input_ids"]])
    decoder = torch.tensor([[BEGIN, *ids[:-1]]])
    log_p = generator.model(input_ids=inputs, decoder_input_ids=decoder).logits[0].log_softmax(dim=1)
    return log_p.gather(1, torch.tensor(ids)[:, None])[:, 0]


def test_the_weights_begin_as_the_encoders(encoder, tmp_path) -> None:
    from safetensors.torch import load_file

    given = load_file(encoder / "model.safetensors")
    model = new_seq2seq(encoder, num_layers=2).model
    own, copied = model.encoder.state_dict(), model.decoder.bert.state_dict()
    for name, weight in given.items():
        if not name.startswith("pooler"):
            assert torch.equal(own[name], weight), name
            assert torch.equal(copied[name], weight), name
    assert model.get_output_embeddings().weight is model.decoder.bert.embeddings.word_embeddings.weight
    assert not model.training


def test_layers_are_taken_from_the_first_to_the_last(tmp_path) -> None:
    from transformers import BertConfig, BertModel

    from tests.encoder.tiny import sizes

    folder = write_sentence_encoder(tmp_path / "deep")
    deep = BertModel(BertConfig(**{**sizes(), "num_hidden_layers": 6}))
    deep.save_pretrained(folder)
    decoder = new_seq2seq(folder, num_layers=3).model.decoder.bert.encoder.layer
    for new, old in enumerate([0, 2, 5]):
        weights = decoder[new].state_dict()
        for name, weight in deep.encoder.layer[old].state_dict().items():
            assert torch.equal(weights[name], weight), (new, name)
    first = new_seq2seq(folder, num_layers=1).model.decoder.bert.encoder.layer[0].state_dict()
    assert torch.equal(first["output.dense.weight"], deep.encoder.layer[0].output.dense.weight)


def test_the_seed_decides_over_the_random_weights_and_nothing_else(encoder) -> None:
    before = torch.random.get_rng_state()
    one, same, other = (new_seq2seq(encoder, num_layers=2, seed=seed).model.state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    differing = {name for name in one if not torch.equal(one[name], other[name])}
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert differing
    assert all("crossattention" in name or "transform" in name or "pooler" in name for name in differing)


def test_what_comes_back_from_disk(encoder, tmp_path, generator) -> None:
    made = new_seq2seq(encoder, num_layers=2, seed=1)
    assert generator.settings() == made.settings()
    restored = generator.model.state_dict()
    for name, weight in made.model.state_dict().items():
        assert torch.equal(restored[name], weight), name
    # Tied again, so that training moves both.
    assert (
        generator.model.get_output_embeddings().weight is generator.model.decoder.bert.embeddings.word_embeddings.weight
    )
    folder = tmp_path / "generator"
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "generation_config.json",
        "latentrag_generator.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    generation = json.loads((folder / "generation_config.json").read_text())
    names = ("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id")
    assert [generation[name] for name in names] == [BEGIN, BEGIN, END, PAD]
    assert generator.decoding_defaults == {}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_y_begins_after_cls_and_ends_with_one_sep(generator) -> None:
    targets = generator.targets(["london", "in paris , france", ""])
    vocabulary = generator.tokenizer.get_vocab()
    rows = [ids[mask].tolist() for ids, mask in zip(targets.ids, targets.mask, strict=True)]
    assert rows == [
        [vocabulary["london"], END],
        [*(vocabulary[word] for word in ("in", "paris", ",", "france")), END],
        [END],
    ]
    assert generator.decoder_prefix == (BEGIN,)
    assert generator.end_id == END


@pytest.mark.parametrize("gradients", [False, True])
def test_gold_tokens_equal_the_models_own_logits(generator, gradients) -> None:
    assert isinstance(generator._head, OutputHead)  # the output layer is known: no (B, K, T, V)
    targets = generator.targets(Y)
    with torch.set_grad_enabled(gradients):
        log_p = generator.log_p_theta(generator.prepare(X, singles(PASSAGES)), targets).detach()
        closed = generator.log_p_theta(generator.prepare(X, no_passages(len(X))), targets).detach()
    for b in range(2):
        ids = targets.ids[b][targets.mask[b]].tolist()
        for k in range(2):
            torch.testing.assert_close(log_p[b, k, : len(ids)], slow(generator, b, k, ids), **TOLERANCE)
        torch.testing.assert_close(closed[b, 0, : len(ids)], slow(generator, b, None, ids), **TOLERANCE)
    assert (log_p[:, 0] - log_p[:, 1]).abs().max() > 0.01  # the decoder looks at the passage


@torch.no_grad()
def test_decoding_steps_equal_gold_scores_while_beams_move(generator) -> None:
    log_p, state = generator.start(generator.prepare(X, singles(PASSAGES)))
    prefixes: list[list[list[int]]] = [[[]], [[]]]
    questions = [0, 1]
    moves = [
        ([[0, 0], [1, 1]], [[6, 7], [8, 9]], [0, 1]),
        ([[1, 0], [3, 3]], [[10, 11], [12, 13]], [0, 1]),
        ([[3, 2, 2]], [[14, 15, 16]], [1]),
    ]
    for number in range(len(moves) + 1):
        for row, b in enumerate(questions):
            for k in range(2):
                for m, prefix in enumerate(prefixes[row]):
                    for token in (END, 20):
                        expected = slow(generator, b, k, [*prefix, token])[-1]
                        torch.testing.assert_close(log_p[row, k, m, token], expected, **TOLERANCE)
        if number == len(moves):
            break
        parents, tokens, questions = moves[number]
        flat = [prefix for of_one in prefixes for prefix in of_one]
        prefixes = [
            [[*flat[parent], token] for parent, token in zip(*of_one, strict=True)]
            for of_one in zip(parents, tokens, strict=True)
        ]
        log_p, state = generator.step(state, torch.tensor(parents), torch.tensor(tokens))


def test_every_weight_learns_but_those_of_the_unused_pooler(generator) -> None:
    generator.log_p_theta(generator.prepare(X, singles(PASSAGES)), generator.targets(Y)).sum().backward()
    idle = {name for name, weight in generator.model.named_parameters() if weight.grad is None}
    assert idle == {"encoder.pooler.dense.weight", "encoder.pooler.dense.bias"}


def test_the_longest_target_is_scored_and_a_longer_one_refused(generator) -> None:
    assert generator.max_target_tokens == 24
    targets = generator.targets(["a " * 23])
    with torch.no_grad():
        assert torch.isfinite(generator.log_p_theta(generator.prepare(X[:1], singles(PASSAGES[:1])), targets)).all()
    with pytest.raises(InputError, match="25 tokens, this generator writes 24 at most"):
        generator.targets(["a " * 24])


@pytest.fixture
def spelling(encoder) -> Seq2SeqGenerator:
    """With hyphen, apostrophe and pieces of words in the vocabulary."""
    renamed = {"paris": "caspian", "london": "sea", "rome": "spider", "hamlet": "man", "seine": "-", "thames": "'"}
    path = encoder / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = {renamed.get(word, word): number for word, number in vocabulary.items()}
    path.write_text(json.dumps(content))
    return new_seq2seq(encoder, num_layers=1)


@pytest.mark.parametrize(
    ("y", "text", "pieces"),
    [
        ("Caspian Sea", "caspian sea", ["caspian", " sea", ""]),
        ("Spider-Man", "spider-man", ["spider", "", "-man", ""]),
        ("O'Man", "o'man", ["o", "", "'man", ""]),
        ("sea, man?", "sea, man?", ["sea", ",", " man", "?", ""]),
        ("xy sea", "xy sea", ["x", "y", " sea", ""]),
        ("", "", [""]),
    ],
)
def test_text(spelling, y, text, pieces) -> None:
    ids = spelling.targets([y]).ids[0].tolist()
    assert spelling.text(ids) == text
    assert spelling.token_texts(ids) == pieces


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(ids=st.lists(st.integers(0, 60), max_size=8))
def test_the_pieces_are_the_text(spelling, ids) -> None:
    assert "".join(spelling.token_texts(ids)) == spelling.tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert len(spelling.token_texts(ids)) == len(ids)


@pytest.mark.parametrize("num_layers", [0, 3])
def test_a_number_of_layers_that_cannot_be_copied(encoder, num_layers) -> None:
    with pytest.raises(
        InputError, match=f"num_layers={num_layers} cannot be copied from the 2 layers .* choose 1 to 2"
    ):
        new_seq2seq(encoder, num_layers=num_layers)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("dpr", "model_type='dpr', needed 'bert'"),
        ("no tokenizer", "has no tokenizer.json"),
        ("broken tokenizer", "is no tokenizer"),
        ("no [SEP]", r"has no \[SEP\]; needed"),
        ("too many tokens", "has 94 tokens, but the encoder has 93"),
        ("no weights", "has no weights"),
        ("modules", "is not a list of modules"),
    ],
)
def test_encoders_that_cannot_be_used_are_refused_in_one_line(encoder, tmp_path, damage, message) -> None:
    tokenizer = encoder / "tokenizer.json"
    if damage == "dpr":
        encoder = write_dpr(tmp_path / "dpr", "DPRQuestionEncoder")
    elif damage == "no tokenizer":
        tokenizer.unlink()
    elif damage == "broken tokenizer":
        tokenizer.write_text("{")
    elif damage == "no [SEP]":
        content = json.loads(tokenizer.read_text().replace("[SEP]", "[END]"))
        tokenizer.write_text(json.dumps(content))
    elif damage == "too many tokens":
        config = json.loads((encoder / "config.json").read_text())
        (encoder / "config.json").write_text(json.dumps({**config, "vocab_size": 93}))
    elif damage == "no weights":
        (encoder / "model.safetensors").unlink()
    else:
        (encoder / "modules.json").write_text("[]")
    with pytest.raises(ModelError, match=message) as caught:
        new_seq2seq(encoder, num_layers=1)
    assert "\n" not in str(caught.value)


def test_weights_in_a_folder_of_their_own(tmp_path) -> None:
    folder = write_sentence_encoder(tmp_path / "encoder", transformer_path="0_Transformer")
    assert new_seq2seq(folder, num_layers=1).end_id == END


def test_a_folder_in_use_is_left_alone(encoder, tmp_path) -> None:
    generator = new_seq2seq(encoder, num_layers=1)
    (tmp_path / "empty").mkdir()
    save_new(generator, tmp_path / "empty")
    again = load_generator(tmp_path / "empty")
    assert isinstance(again, Seq2SeqGenerator)
    assert again.end_id == END
    (tmp_path / "file").write_text("mine")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine").touch()
    for name in ("file", "used", "empty"):
        with pytest.raises(InputError, match="exists already; name a new folder"):
            save_new(generator, tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(InputError, match="cannot be written"):
        save_new(generator, tmp_path / "file" / "below")
