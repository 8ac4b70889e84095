"""Every command in many surroundings: it is done, or costs one line.

Streams are in test_streams.py, full disks in test_full_disk.py; tests/test_fork.py says what the library does in forks.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.cli.conftest import QUESTION, Ran
from tests.cli.test_calibrate import half_right
from tests.cli.test_importing import vectors_of_others
from tests.cli.test_locales import PLAIN, latin  # noqa: F401  a fixture

pytestmark = pytest.mark.environment
ROOT = Path(__file__).parent.parent.parent
UID = 12345
LIMIT_BYTES = 3 << 30
ROWS = [
    {"question": QUESTION, "answer": ["Beethoven"]},
    {"question": "Who wrote the novel Emma?", "answer": ["Austen"]},
]


@dataclass(frozen=True)
class Around:
    """How a process is started there."""

    start: tuple[str, ...] = ()
    python: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()
    without: tuple[str, ...] = ()
    method: tuple[str, ...] = ()
    """How the process of the commands is started from one that has loaded the model; none: there is no such one."""
    refused: str = ""
    """What some command's one line says; empty: all are done."""


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name}")
    return found


def allowed(*command: str) -> tuple[str, ...]:
    """What starts a process, if this machine lets it."""
    done = subprocess.run([*command, tool("true")], check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"not allowed here: {done.stderr.strip()}")
    return command


def read_only(place: Path, *, scratch: bool) -> tuple[str, ...]:
    """Everything is read-only but, with ``scratch``, a TMPDIR in RAM."""
    mounts = "mount --make-rprivate / && mount --rbind / / && "
    mounts += "awk '{print $2}' /proc/self/mounts | while read -r each; do mount -o remount,bind,ro \"$each\"; done; "
    mounts += f"mount -t tmpfs none '{place}' && " if scratch else ""
    return allowed(tool("unshare"), "-m", tool("sh"), "-c", f'({mounts} true) 2>/dev/null; cd /; exec "$@"', "sh")


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group that may take so much memory."""
    name = f"latentrag-test-{os.getpid()}"
    for parent, file in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        folder = Path(parent, name)
        try:
            folder.mkdir()
            (folder / file).write_text(str(LIMIT_BYTES))
        except OSError as error:
            if folder.exists():
                folder.rmdir()
            why = error
            continue
        yield folder
        folder.rmdir()
        return
    pytest.skip(f"control groups cannot be made here ({why})")


AROUND: dict[str, Callable[[pytest.FixtureRequest, Path], Around]] = {
    "as here": lambda *_: Around(),
    "C": lambda *_: Around(variables=tuple(PLAIN.items())),
    "C.UTF-8": lambda *_: Around(variables=tuple({**PLAIN, "LC_ALL": "C.UTF-8"}.items())),
    "ISO-8859-1": lambda request, _: Around(variables=tuple(request.getfixturevalue("latin").items())),
    "-O": lambda *_: Around(python=("-O",)),
    "-W error": lambda *_: Around(python=("-W", "error")),
    "20 columns": lambda *_: Around(variables=(("COLUMNS", "20"),)),
    "no home": lambda *_: Around(
        start=allowed(
            *(tool("setpriv"), f"--reuid={UID}", f"--regid={UID}", "--clear-groups"),
            *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
        ),
        without=("HOME", "LATENTRAG_HOME"),
        refused="no home folder is known for ~/.cache; set LATENTRAG_HOME to a folder",
    ),
    "64 files": lambda *_: Around(start=allowed(tool("prlimit"), "--nofile=64")),
    "read-only root": lambda _, place: Around(start=read_only(place, scratch=False), refused="TMPDIR"),
    "read-only root with a TMPDIR": lambda _, place: Around(
        start=read_only(place, scratch=True), variables=(("TMPDIR", str(place)),), refused="cannot be written"
    ),
    "spawn": lambda *_: Around(method=("spawn",)),
    "fork": lambda *_: Around(method=("fork",), refused="load it after the fork, or spawn"),
    "control group": lambda request, _: Around(
        start=(
            *(tool("sh"), "-c", 'echo $$ > "$0"/cgroup.procs && exec "$@"'),
            str(request.getfixturevalue("group")),
        )
    ),
}


def commands(place: Path, model: Path, encoder: Path) -> dict[str, list[object]]:
    """In this order, over a memory in ``place``, which they change."""
    own, rows = place / "own.lance", place / "rows.jsonl"
    of_model = ("-m", model, "-i", own)
    return {
        "doctor": ["doctor", *of_model],
        "ask": ["ask", QUESTION, *of_model],
        "classify": ["classify", QUESTION, "Beethoven", "Austen", *of_model],
        "score": ["score", place / "pairs.jsonl", *of_model],
        "eval": ["eval", rows, *of_model, "--out", place / "run.jsonl"],
        "compare": ["compare", place / "run.jsonl", place / "run.jsonl"],
        "make-questions": [
            *("make-questions", own, "-m", model, "--out", place / "made.jsonl", "-n", "1"),
            *("--prompt", place / "prompt.json"),
        ],
        "train": ["train", rows, *of_model, "--out", place / "trained", "-k", "2", "--steps", "1"],
        "calibrate": [
            *("calibrate", place / "questions.jsonl", *of_model, "-k", "2", "--beams", "1", "--max-tokens", "2"),
            *("--out", place / "sure"),
        ],
        "fit-prior": ["fit-prior", place / "questions.jsonl", *of_model, "--scored", "4", "--out", place / "fitted"],
        "export": ["export", model, place / "exported"],
        "reproduce": ["reproduce", "list", "--results", place],
        "preview": ["index", "preview", place / "notes"],
        "import": [
            *("index", "import", place / "imported.lance", place / "notes.jsonl", "--encoder", encoder),
            *("--passage-prompt", "title "),
        ],
        "reencode": [
            *("index", "reencode", place / "reencoded.lance", "--encoder", encoder, "--passage-prompt", "title "),
        ],
        "log": ["index", "log", own],
        "add": ["index", "add", own, place / "한국 é.txt", "--encoder", encoder],
        "sync": ["index", "sync", own, place / "notes", "--encoder", encoder, "--name", "other"],
        "diff": ["index", "diff", own, "2", "newest"],
        "delete": ["index", "delete", own, "한국 é.txt"],
        "forget": ["index", "forget", own, "rome.txt"],
        "tag": ["index", "tag", own, "good"],
        "use": ["index", "use", own, "newest"],
        "compact": ["index", "compact", own],
        "build": ["index", "build", own, "--index", "ivf-rabitq"],
        "push": ["index", "push", own, place / "pushed"],
        "pull": ["index", "pull", place / "pushed", place / "pulled.lance"],
        "prune": ["index", "prune", own, "--keep", "1"],
        "verify": ["index", "verify", own],
        "repair": ["index", "repair", own],
    }


@pytest.mark.parametrize("name", AROUND)
def test_every_command(request, tmp_path, capsys, model, encoder, memory, files, name) -> None:
    # Outside of pytest's own folder, which each session of pytest closes to all other users.
    outside = Path(tempfile.mkdtemp(prefix="latentrag-"))
    request.addfinalizer(partial(shutil.rmtree, outside))
    outside.chmod(0o755)
    place, scratch = outside / "place", tmp_path / "scratch"
    scratch.mkdir()
    around = AROUND[name](request, scratch)
    for name_of_copy in ("own", "reencoded"):
        shutil.copytree(memory, place / f"{name_of_copy}.lance")
    shutil.copytree(files, place / "notes")
    (place / "한국 é.txt").write_text("The moon is blue.")
    half_right(place / "questions.jsonl", model, memory, num_beams=1, max_tokens=2)
    vectors_of_others(encoder, place)
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    prompt = {"request": "a", "template": {}, "chat_request": "b", "instruction": "c"}  # the usual one is too long
    (place / "prompt.json").write_text(json.dumps(prompt))
    (place / "pairs.jsonl").write_text(json.dumps({"x": QUESTION, "y": "Beethoven"}))
    if "setpriv" in "".join(around.start[:1]):
        for each in (place, *place.rglob("*")):
            os.chown(each, UID, UID)
    named = commands(place, model, encoder)
    variables = {key: value for key, value in os.environ.items() if key not in around.without}
    done = subprocess.run(
        [*around.start, sys.executable, *around.python, "-m", "tests.cli.several_run", *around.method],
        input=json.dumps([list(map(str, each)) for each in named.values()]).encode(),
        env=variables
        | {"PYTHONPATH": f"{ROOT}:{variables.get('PYTHONPATH', '')}", "OMP_NUM_THREADS": "2"}
        | dict(around.variables),
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    ran = dict(zip(named, (Ran(**each) for each in json.loads(done.stdout)), strict=True))
    refused = {command: each.error() for command, each in ran.items() if each.code and command != "doctor"}
    if ran["doctor"].code:  # 1: its report says what it found
        assert ran["doctor"].code == 2 or ran["doctor"].stdout.startswith("versions")
        refused["doctor"] = " ".join((ran["doctor"].stdout or ran["doctor"].error()).split())
    with capsys.disabled():
        lines = [f"{name}: {len(ran) - len(refused)} done", *(f"  {key}: {line}" for key, line in refused.items())]
        sys.stdout.write("\n".join(["", *lines, ""]))
    if around.refused:
        assert any(around.refused in line for line in refused.values())
    else:
        assert refused == {}


def test_a_build_keeps_to_its_control_group(group) -> None:
    code = "from latentrag.memory.indexes.building import physical_bytes; print(physical_bytes())"
    start = [tool("sh"), "-c", 'echo $$ > "$0"/cgroup.procs && exec "$@"', group, sys.executable, "-c", code]
    assert int(subprocess.run(start, check=True, capture_output=True).stdout) == LIMIT_BYTES
