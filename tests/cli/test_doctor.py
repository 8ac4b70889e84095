"""doctor: the facts, and every problem with its remedy."""

import platform
import re

import pytest

from latentrag.memory import Memory
from tests.cli.conftest import cli
from tests.encoder.tiny import write_sentence_encoder


def test_a_model_and_a_memory_that_fit(model, memory, home) -> None:
    (home / "models" / "own").mkdir(parents=True)
    (home / "models" / "own" / "file").write_bytes(bytes(1000))
    done = cli("doctor", "-m", model, "-i", memory, "--json")
    assert (done.code, done.stderr) == (0, "")
    facts = done.json
    assert facts["problems"] == []
    assert facts["versions"]["python"] == platform.python_version()
    assert {"latentrag", "torch", "transformers", "faiss-cpu", "pylance"} <= set(facts["versions"])
    assert facts["machine"]["cores"] >= 1
    assert facts["home"] == {"path": str(home), "models_bytes": 1000, "memories_bytes": 0, "wheels_bytes": 0}
    manifest = Memory.open(memory).card
    assert facts["memory"] == {
        "path": str(memory),
        "version": 2,
        "passages": 4,
        "encoder": "encoder",
        "dimension": 16,
        "scale": 20.0,
        "max_tokens": 512,
        "fingerprint": manifest.fingerprint,
        "advice": None,
    }
    assert facts["model"]["encoder"] == {
        "name": "encoder",
        "dimension": 16,
        "scale": 20.0,
        "passage_fingerprint": manifest.fingerprint,
        "device": "cpu",
    }
    generator = facts["model"]["generator"]
    assert (generator["class"], generator["kind"], generator["template"]) == (
        "LlamaForCausalLM",
        "causal",
        "PromptTemplate",
    )
    assert (generator["dtype"], generator["device"]) == ("float32", "cpu")
    packs = platform.machine() in {"x86_64", "AMD64"}
    assert (0 < generator["packed_bytes"] <= 4 * generator["parameters"]) is packs
    assert facts["model"]["passage_cache"] == {"device": "cpu", "max_bytes": 1 << 30}
    assert facts["devices"][0]["name"] == "cpu"
    assert facts["devices"][0]["memory_bytes"] == facts["machine"]["memory_bytes"] > 0
    assert {"float32", "int8"} <= set(facts["devices"][0]["formats"])
    seen = cli("doctor", "-m", model, "-i", memory)
    words = " ".join(seen.stdout.split())
    assert seen.code == 0
    assert f"{generator['parameters']:,} parameters in float32" in words
    assert manifest.fingerprint in words
    assert "no problem found" in words
    assert "keeps passages that it has read in 1.07 GB of RAM" in words
    assert re.search(r"devices cpu: \d+\.\d\d GB of memory, computes in float32, ", words)


def test_nothing_is_set_up(home) -> None:
    done = cli("doctor", "--json")
    assert done.code == 1
    assert (done.json["model"], done.json["memory"]) == (None, None)
    assert len(done.json["problems"]) == 2
    assert all("run `latentrag demo`" in problem for problem in done.json["problems"])
    assert cli("doctor").stdout.count("latentrag demo") == 2
    assert not home.exists()


def test_an_encoder_that_does_not_match(generator, memory, tmp_path) -> None:
    other = write_sentence_encoder(tmp_path / "other", head=["Normalize"], seed=9)
    done = cli("doctor", "--encoder", other, "--generator", generator, "-i", memory, "--json")
    assert done.code == 1
    assert done.json["model"]["encoder"]["name"] == "other"
    (problem,) = done.json["problems"]
    assert "use the query encoder that belongs to encoder" in problem


@pytest.mark.parametrize("broken", ["model", "memory"])
def test_one_broken_part_does_not_hide_the_other(broken, model, memory, tmp_path) -> None:
    none = tmp_path / "none"
    done = cli(
        "doctor", "-m", none if broken == "model" else model, "-i", none if broken == "memory" else memory, "--json"
    )
    assert done.code == 1
    assert len(done.json["problems"]) == 1
    assert done.json[broken] is None
    assert done.json["memory" if broken == "model" else "model"] is not None


def test_an_empty_memory(model, encoder, tmp_path) -> None:
    from latentrag.assemble import load_passage_encoder

    Memory.create(tmp_path / "empty.lance", load_passage_encoder(encoder))
    done = cli("doctor", "-m", model, "-i", tmp_path / "empty.lance", "--json")
    assert done.code == 1
    assert "has no passages" in done.json["problems"][0]
