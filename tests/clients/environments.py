"""Other projects' clients and frameworks, each installed from its registry into a folder of its own under build/."""

import hashlib
import json
import shutil
import subprocess
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "clients"
_STAMP = "installed.json"


@dataclass(frozen=True)
class Environment:
    """Packages of PyPI, or of npm, with their versions.

    Attributes:
        beside_ours: whether they are installed over the environment that runs the tests, as an extra of ours is, with
            the pins of constraints.txt; else on their own.
    """

    name: str
    registry: str
    packages: tuple[str, ...]
    beside_ours: bool = False

    @property
    def folder(self) -> Path:
        """Where it is, installed or not."""
        return BUILD / self.name

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    def installed(self) -> "Environment":
        """Itself, after making it if it is not there as it should be. Skips the test if there is no npm."""
        if self.registry == "npm" and shutil.which("npm") is None:
            pytest.skip("needs npm")
        content = json.dumps([self.packages, _pins() if self.beside_ours else ""])
        stamp = self.folder / _STAMP
        if not stamp.exists() or stamp.read_text("utf-8") != content:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            if self.registry == "npm":
                self._npm()
            else:
                self._pip()
            stamp.write_text(content, "utf-8")
        return self

    def _npm(self) -> None:
        (self.folder / "package.json").write_text('{"private": true}', "utf-8")
        quietly = ["--silent", "--no-fund", "--no-audit", "--ignore-scripts"]
        _run(["npm", "install", *quietly, *self.packages], self.folder)

    def _pip(self) -> None:
        venv.create(self.folder, with_pip=True)
        pins = []
        if self.beside_ours:
            (site,) = self.folder.glob("lib/python*/site-packages")
            (site / "ours.pth").write_text(sysconfig.get_path("purelib"), "utf-8")
            pins = ["-c", str(ROOT / "constraints.txt")]
        _run([str(self.python), "-m", "pip", "install", "--disable-pip-version-check", "-q", *pins, *self.packages])


def _pins() -> str:
    return hashlib.sha256((ROOT / "constraints.txt").read_bytes()).hexdigest()


def _run(command: list[str], folder: Path = ROOT) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
