"""`latentrag.integrations` beside the real frameworks, installed from PyPI with the pins of constraints.txt."""

import os
import subprocess

import pytest

from tests.clients.environments import ROOT, Environment
from tests.clients.quick_starts import INTEGRATIONS

pytestmark = pytest.mark.clients


def checked(environment: Environment, *arguments: str) -> str:
    """What a module of Python says in the framework's environment. It finds nothing wrong."""
    variables = {
        **os.environ,
        "HAYSTACK_TELEMETRY_ENABLED": "False",
        "MYPYPATH": str(ROOT / "src"),
        "PYTHONPATH": str(ROOT / "src"),
    }
    command = [str(environment.installed().python), "-m", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", INTEGRATIONS)
def test_its_tests_pass_with_the_real_framework(name) -> None:
    said = checked(INTEGRATIONS[name], "pytest", "-q", "--no-header", f"tests/integrations/test_{name}.py")
    assert "passed" in said
    assert "skipped" not in said


@pytest.mark.parametrize("name", INTEGRATIONS)
def test_its_types_are_the_frameworks(name) -> None:
    environment = INTEGRATIONS[name]
    strictly = ["--disallow-subclassing-any", "--disallow-untyped-decorators"]
    cache = ["--cache-dir", str(environment.folder / "mypy")]
    checked(environment, "mypy", *strictly, *cache, f"src/latentrag/integrations/{name}.py")
