"""The house itself: what importing it costs, what it shows, what it ships, what it never does."""

import re
import subprocess
import sys
import tomllib
from importlib import resources
from pathlib import Path

import jaxtyping
import pytest
import torch

import latentrag
from latentrag.marginal import log_prior

ROOT = Path(__file__).parent.parent

LIBRARIES_OF = {
    "latentrag.encoder.stages": {"transformers"},
    "latentrag.memory.exchange": {"pyarrow"},
    "latentrag.memory.sources": {"pyarrow"},
    "latentrag.memory.indexes.flat": {"faiss"},
    "latentrag.memory.indexes.ivf_rabitq": {"faiss"},
}
"""Modules that are imported only when a row of a table or a command asks for them, and the heavy library that each is
about."""

FRAMEWORKS = {f"latentrag.integrations.{name}" for name in ("haystack", "langchain", "llama_index")}
"""Modules that import a framework, which need not be installed."""

IMPORT_EVERYTHING = f"""
import importlib, pkgutil, latentrag
for module in pkgutil.walk_packages(latentrag.__path__, "latentrag."):
    if not module.name.endswith("__main__") and module.name not in {set(LIBRARIES_OF) | FRAMEWORKS}:
        importlib.import_module(module.name)
"""


def loaded_by(code: str) -> set[str]:
    """The modules that a fresh Python has loaded after running the code."""
    code = f"{code}\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        "import latentrag",
        "import latentrag.addresses, latentrag.place, latentrag.protocols, latentrag.registry, latentrag.types",
    ],
)
def test_importing_the_package_loads_nothing_heavy(code):
    heavy = {"torch", "transformers", "lance", "faiss", "pyarrow", "numpy", "pydantic", "rich", "typer"}
    assert loaded_by(code) & heavy == set()


def test_no_module_loads_transformers_faiss_or_lance_before_it_needs_them():
    heavy = {"transformers", "lance", "faiss", "pyarrow"}
    assert loaded_by(IMPORT_EVERYTHING) & heavy == set()
    for module, libraries in LIBRARIES_OF.items():
        assert loaded_by(f"import {module}") & heavy == libraries


def test_public_names():
    assert latentrag.__all__ == [
        "Answer",
        "Classification",
        "DecodingOptions",
        "LatentRagError",
        "Memory",
        "ModelSpec",
        "Passage",
        "Rag",
        "Score",
        "load",
        "save",
    ]
    for name in latentrag.__all__:
        assert getattr(latentrag, name).__name__ == name
    assert set(latentrag.__all__) <= set(dir(latentrag))
    with pytest.raises(AttributeError, match="nothing_like_it"):
        latentrag.nothing_like_it  # noqa: B018


def test_the_package_says_that_it_is_typed():
    assert resources.files("latentrag").joinpath("py.typed").is_file()


def test_licence():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert text.split()[:4] == ["Apache", "License", "Version", "2.0,"]
    assert "END OF TERMS AND CONDITIONS" in text


def test_every_dependency_is_pinned_within_its_range():
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *project["optional-dependencies"]["demo"],
        *project["optional-dependencies"]["dev"],
    ]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    for requirement in map(Requirement, wanted):
        if requirement.name != "pip":  # comes with Python, and a pin would downgrade it
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def test_no_source_can_run_code_from_a_file():
    forbidden = re.compile(
        r"import pickle|torch\.load\(|allow_pickle\s*=\s*True|trust_remote_code\s*=\s*True|weights_only\s*=\s*False"
    )
    files = list((ROOT / "src").rglob("*.py"))
    assert files
    assert [file for file in files if forbidden.search(file.read_text(encoding="utf-8"))] == []


def test_shapes_are_checked_while_tests_run():
    with pytest.raises(jaxtyping.TypeCheckError):
        log_prior(torch.zeros(2, 3, 4))
