"""`latentrag new-generator`: an untrained generator on disk that the other commands can use."""

import shutil

from latentrag.generator import load_generator
from tests.cli.conftest import cli


def test_it_makes_a_generator_that_answers(encoder, memory, tmp_path) -> None:
    out = tmp_path / "made" / "generator"
    done = cli("new-generator", out, "--encoder", encoder, "--layers", 2, "--seed", 5)
    assert done.code == 0
    assert done.stdout == f"{out}: 0.0 million parameters, 2 decoder layers, from {encoder}\n"
    assert load_generator(out).model.config.decoder.num_hidden_layers == 2
    parts = ["--encoder", encoder, "--generator", out, "-i", memory, "-k", 3, "--beams", 3, "--max-tokens", 4]
    asked = cli("ask", "who is the queen", *parts, "--json")
    assert asked.code == 0, asked.stderr
    answer = asked.json
    assert len(answer["sources"]) == 3
    assert answer["log_prob"] < 0


def test_json(encoder, tmp_path) -> None:
    done = cli("new-generator", tmp_path / "g", "--encoder", encoder, "--layers", 1, "--json")
    record = done.json
    num_parameters = load_generator(tmp_path / "g").model.num_parameters()
    assert record == {
        "generator": str(tmp_path / "g"),
        "encoder": str(encoder),
        "layers": 1,
        "seed": 0,
        "parameters": num_parameters,
    }


def test_a_models_query_encoder_and_the_demos(model, home, tmp_path) -> None:
    error = cli("new-generator", tmp_path / "g", "--encoder", "demo").error()
    assert "run `latentrag demo`" in error
    shutil.copytree(model, home / "models" / "demo")
    for number, source in enumerate([model, "demo"]):
        assert cli("new-generator", tmp_path / str(number), "--encoder", source, "--layers", 2).code == 0


def test_mistakes_cost_one_line(encoder, generator, tmp_path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine").touch()
    assert "exists already" in cli("new-generator", tmp_path / "used", "--encoder", encoder).error()
    out = tmp_path / "out"
    assert "cannot be copied from the 2 layers" in cli("new-generator", out, "--encoder", encoder).error()
    assert "needed 'bert'" in cli("new-generator", out, "--encoder", generator).error()
    assert "no model at" in cli("new-generator", out, "--encoder", tmp_path / "none").error()
    assert not out.exists()
