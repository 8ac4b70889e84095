"""Passages kept on disk: the folder stays below its bound, and several processes may share it."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from latentrag.generator import CausalGenerator, Lora, passages
from latentrag.generator.passages import Layers, PassageCache, PassageReader
from latentrag.types import singles
from tests import tiny
from tests.generator.test_generators import PASSAGES, X, Y

ENTRY_BYTES = 2 * 1 * 250 * 4 * 4 + 100
"""A file: its tensor, and a header of less than 100 bytes."""


def layers(number: int) -> Layers:
    return [torch.full((2, 1, 250, 4), float(number))]


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def cache_of(folder: Path, max_bytes: int, *, ram: int = 0) -> PassageCache:
    return PassageCache(ram, folder=folder, max_folder_bytes=max_bytes, model="m")


def is_kept(folder: Path, number: int) -> bool:
    read = cache_of(folder, 1 << 30).get([number])
    assert read is None or torch.equal(read[0], layers(number)[0])
    return read is not None


def test_the_folder_never_gets_larger_than_its_bound(tmp_path: Path) -> None:
    bound = 10 * ENTRY_BYTES
    cache = cache_of(tmp_path, bound)
    for number in range(40):
        cache.put([number], layers(number))
        assert size(tmp_path) <= bound
    kept = [is_kept(tmp_path, number) for number in range(40)]
    assert sum(kept) >= 8
    assert kept == sorted(kept)  # the last ones
    assert kept[39]


def test_what_was_used_last_stays(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 1 << 30)
    written: set[Path] = set()
    for number in range(8):
        cache.put([number], layers(number))
        (new,) = set(tmp_path.rglob("*.safetensors")) - written
        os.utime(new, (number, number))
        written.add(new)
    assert cache.get([0]) is not None
    cache_of(tmp_path, 7 * ENTRY_BYTES).put([8], layers(8))
    assert [is_kept(tmp_path, number) for number in (0, 7, 8)] == [True, True, True]
    assert [is_kept(tmp_path, number) for number in (1, 2)] == [False, False]


def test_what_is_larger_than_the_folder_may_be_is_not_written(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, ENTRY_BYTES // 2, ram=1 << 20)
    cache.put([1], layers(1))
    assert size(tmp_path) == 0
    assert cache.get([1]) is not None


def test_a_folder_from_before_is_brought_below_the_bound(tmp_path: Path) -> None:
    before = cache_of(tmp_path, 1 << 30)
    for number in range(20):
        before.put([number], layers(number))
    cache_of(tmp_path, 5 * ENTRY_BYTES).put([20], layers(20))
    assert size(tmp_path) <= 5 * ENTRY_BYTES
    assert is_kept(tmp_path, 20)


def test_files_of_others_are_neither_counted_nor_deleted(tmp_path: Path) -> None:
    album = tmp_path / "2019"
    album.mkdir()
    for name in ("wedding.jpg", f"{'ab' * 20}.safetensors", "ab.safetensors"):
        (album / name).write_bytes(bytes(ENTRY_BYTES))
    cache = cache_of(tmp_path, 5 * ENTRY_BYTES)
    for number in range(20):
        cache.put([number], layers(number))
    assert len(list(album.iterdir())) == 3
    assert sum(is_kept(tmp_path, number) for number in range(20)) >= 3


def test_what_was_read_with_another_configuration_is_not_found(tmp_path: Path) -> None:
    """The same weights, used otherwise: after a change of rope_theta log p is that of the new configuration."""
    folder = tmp_path / "model"
    tiny.save_tokenizer(folder, end=False)
    tiny.save_llama(folder)
    found = {}
    for theta in (10_000.0, 100.0):
        config = json.loads((folder / "config.json").read_text())
        config["rope_parameters"]["rope_theta"] = theta
        (folder / "config.json").write_text(json.dumps(config))
        for kept in (None, tmp_path / "kept"):
            generator = tiny.load_causal(folder)
            generator.keep_passages(1 << 20, folder=kept)
            with torch.no_grad():
                log_p = generator.log_p_theta(generator.prepare(X, singles(PASSAGES)), generator.targets(Y))
            found[theta, kept is None] = log_p
    for theta in (10_000.0, 100.0):
        assert torch.equal(found[theta, True], found[theta, False])
    assert not torch.allclose(found[10_000.0, True], found[100.0, True], atol=0.1)


def test_what_a_scaled_adapter_has_read_is_not_found_with_another_scale(tmp_path: Path) -> None:
    """What scales an adapter is no weight of it."""
    tiny.save_tokenizer(tmp_path / "model", end=False)
    tiny.save_llama(tmp_path / "model")
    plain = tiny.load_causal(tmp_path / "model")
    keys = set()
    for alpha in (4, 8):
        lora = Lora(rank=2, alpha=alpha, scope="all")
        generator = CausalGenerator(plain.model, plain.tokenizer, lora=lora)
        generator.keep_passages(0, folder=tmp_path / "kept")
        assert generator.passage_cache is not None
        keys.add(generator.passage_cache._key([1, 2]))
    assert len(keys) == 2


ROWS = [(3, 4, 5, 6, 7, 3), (4, 4, 6, 5), (8, 3, 5), (9, 5), (6,)]
"""Passages, longest first."""
IN_A_ROW = {"llama": tiny.save_llama, "gpt2": tiny.save_gpt2, "granite": tiny.save_granite, "gemma2": tiny.save_gemma2}


def reader_of(folder: Path, kind: str, dtype: torch.dtype = torch.float32) -> PassageReader:
    tiny.save_tokenizer(folder, end=False)
    IN_A_ROW[kind](folder, seed=1)
    generator = tiny.load_causal(folder)
    generator.model.to(dtype)
    return generator._passages


def read(reader: PassageReader, rows: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], Layers]:
    """What is read of rows, by the reader's own choice of passes."""
    reading = reader._layers_of(rows, None)
    while True:
        try:
            next(reading)
        except StopIteration as end:
            found: dict[tuple[int, ...], Layers] = end.value
            return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", IN_A_ROW)
def test_passages_in_a_row_have_the_numbers_of_passages_alone(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    reader = reader_of(tmp_path, kind, dtype)
    with torch.no_grad():
        alone = {row: reader._read_apart([row])[row] for row in ROWS}
        tried = reader.in_a_row  # not where attention is the model's own, as it is with a soft cap
        found = read(reader, ROWS)
        beside = reader._read_in_a_row(ROWS) if tried else alone
    assert tried == (kind != "gemma2")
    assert found.keys() == beside.keys() == alone.keys()
    for row in ROWS:
        assert all(map(torch.equal, found[row], alone[row]))
        for ours, theirs in zip(beside[row], alone[row], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5 if dtype == torch.float32 else 2e-2, atol=1e-5)


def test_a_row_holds_as_many_passages_as_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = reader_of(tmp_path, "llama")
    monkeypatch.setattr(passages, "_ROW_TOKENS", 10)
    passes: list[list[int]] = []
    in_a_row = reader._read_in_a_row

    def counted(batch: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], Layers]:
        passes.append([len(row) for row in batch])
        return in_a_row(batch)

    monkeypatch.setattr(reader, "_read_in_a_row", counted)
    monkeypatch.setattr(reader, "_is_checked", True)
    with torch.no_grad():
        assert read(reader, ROWS).keys() == set(ROWS)
    assert passes == [[6, 4], [3, 2, 1]]


def test_passages_that_do_not_fit_into_a_window_are_read_alone(tmp_path: Path) -> None:
    reader = reader_of(tmp_path, "llama")
    reader._model.config.sliding_window = 8
    assert reader._num_at_once([tuple(range(8)), (3, 4)]) == 1
    assert reader._num_at_once([tuple(range(7)), (3, 4)]) == 2


@pytest.mark.parametrize("fails", [False, True])
def test_where_a_row_changes_digits_every_passage_is_read_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """As products of another processor might, which depend on the number of rows; or the model cannot do it at all."""
    reader = reader_of(tmp_path, "llama")
    in_a_row, tries = reader._read_in_a_row, []

    def otherwise(batch: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], Layers]:
        tries.append(len(batch))
        if fails:
            raise ValueError
        return {row: [layer * (1 + 1e-7) for layer in layers] for row, layers in in_a_row(batch).items()}

    monkeypatch.setattr(reader, "_read_in_a_row", otherwise)
    with torch.no_grad():
        alone = {row: reader._read_apart([row])[row] for row in ROWS}
        for _ in range(2):
            found = read(reader, ROWS)
            assert all(torch.equal(*both) for row in ROWS for both in zip(found[row], alone[row], strict=True))
    assert tries == [5]  # once
    assert not reader.in_a_row


WRITER = """
import sys, torch
from latentrag.generator.passages import PassageCache
folder, first, bound = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
cache = PassageCache(0, folder=folder, max_folder_bytes=bound, model="m")
for step in range(60):
    number = (first + step) % 50
    read = cache.get([number])
    assert read is None or (read[0] == number).all(), number
    if read is None:
        cache.put([number], [torch.full((2, 1, 250, 4), float(number))])
"""


def test_processes_share_a_folder(tmp_path: Path) -> None:
    """Each deletes what others have written, and no longer finds what it has seen; a warning would be an error."""
    bound = 20 * ENTRY_BYTES
    command = [sys.executable, "-W", "error", "-c", WRITER, str(tmp_path)]

    def write(first: int) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([*command, str(first), str(bound)], capture_output=True, text=True, check=False)

    with ThreadPoolExecutor(3) as pool:
        for process in pool.map(write, (0, 17, 31)):
            assert process.returncode == 0, process.stderr[-2000:]
    assert size(tmp_path) <= bound + 3 * ENTRY_BYTES  # what the others write while one looks
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".new"]
