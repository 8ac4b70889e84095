"""Other projects' clients, installed from their registries, do what docs/clients shows. `make test-clients`."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import httpx
import pytest

from latentrag.assemble import live_memory
from latentrag.serving.app import create_app
from latentrag.serving.options import ServeOptions
from latentrag.serving.run import bound
from tests.clients.conftest import Place, same, server
from tests.clients.quick_starts import (
    DOCS,
    LLM,
    MEMORY,
    MODEL,
    OPENAI,
    QUESTION,
    QUICK_STARTS,
    URL,
    QuickStart,
    annotations,
    answer,
    shares,
)
from tests.serving.conftest import serving

pytestmark = pytest.mark.clients

PATIENCE_S = 600
QUIET = {
    "HAYSTACK_TELEMETRY_ENABLED": "False",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "NO_PROXY": "127.0.0.1",
    "OMP_NUM_THREADS": "1",
}
"""Keeps clients from asking servers other than ours."""


def run(command: list[object], folder: Path, **environment: str) -> str:
    """What a program prints. No error, no warning either."""
    variables = {**os.environ, **QUIET, **environment}
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        capture_output=True,
        text=True,
        env=variables,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def own(start: QuickStart, url: str, place: Place) -> dict[str, str]:
    """A user's own values for those of the examples: a URL, or folders in the command that an MCP client starts."""
    if "mcp" not in start.file:
        return {URL: url}
    folders = {MODEL: place.model, MEMORY: place.memory}
    return {f"{mark}{name}{mark}": f"{mark}{folder}{mark}" for name, folder in folders.items() for mark in "'\""}


def printed_by(start: QuickStart, url: str, place: Place, programs: Path) -> list[str]:
    start.environment.installed()
    path = start.copy(own(start, url, place))
    interpreter = start.environment.python if path.suffix == ".py" else "node"
    return run([interpreter, path], path.parent, PATH=f"{programs}{os.pathsep}{os.environ['PATH']}").splitlines()


@pytest.mark.parametrize("start", QUICK_STARTS, ids=lambda start: start.file)
def test_a_quick_start(start, place, url, reply, programs) -> None:
    printed, expected = printed_by(start, url, place, programs), start.lines(reply)
    assert same(printed, expected), "\n".join(["printed:", *printed, "expected:", *expected])


def test_llm_as_its_users_type_it(url, reply, tmp_path) -> None:
    """Streamed, plain, and from its log."""
    LLM.installed()
    for name in ("extra-openai-models.yaml", "with_llm.sh"):
        (tmp_path / name).write_text((DOCS / name).read_text("utf-8").replace(URL, url), "utf-8")
    (tmp_path / "own").mkdir()
    path = f"{LLM.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    printed = run(["sh", "-eu", "with_llm.sh"], tmp_path, PATH=path, LLM_USER_PATH=str(tmp_path / "own"))
    (text,) = answer(reply)
    log = printed.removeprefix(f"{text}\n{text}\n")
    (logged,) = json.loads(log)
    assert logged["response"] == text
    counts = (reply["usage"]["prompt_tokens"], reply["usage"]["completion_tokens"])
    assert (logged["input_tokens"], logged["output_tokens"]) == counts
    assert list(annotations(logged["response_json"])) == list(annotations(reply))
    assert same(list(shares(logged["response_json"])), list(shares(reply)))


def test_llama_index_without_its_temperature(place, url, programs) -> None:
    """Its own default draws an answer at random, which is an answer all the same."""
    (start,) = [each for each in QUICK_STARTS if each.file == "with_llama_index.py"]
    line = next(line for line in start.text.splitlines() if "temperature" in line)
    text = start.text.replace(line, "")
    assert text != start.text
    start.environment.installed()
    path = start.environment.folder / "drawn.py"
    path.write_text(text.replace(URL, url), "utf-8")
    printed = run([start.environment.python, path], path.parent).splitlines()
    numbers = [float(line.split()[2]) for line in printed if line.startswith("share ")]
    assert len(numbers) == 6
    assert [sum(numbers[:3]), sum(numbers[3:])] == pytest.approx([1, 1], abs=1e-5)


# nginx in front


@contextmanager
def nginx(folder: Path, server: str, *options: str) -> Iterator[str]:
    """nginx with the configuration of docs/clients in front of a server; the URL at which it listens."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
    if program is None:
        pytest.skip("needs nginx")
    with bound("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    written = (DOCS / "nginx.conf").read_text("utf-8")
    assert "listen 8080;" in written
    written = written.replace(URL, server).replace("listen 8080;", f"listen 127.0.0.1:{port};")
    paths = "".join(
        f"{name}_temp_path {folder / name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    configuration = f"daemon off; pid {folder / 'pid'}; error_log stderr; events {{}}\n"
    (folder / "nginx.conf").write_text(f"{configuration}http {{ access_log off; {paths} {written} }}", "utf-8")
    command = [program, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            until_it_listens(port, process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGTERM)


def until_it_listens(port: int, process: subprocess.Popen[str]) -> None:
    for _ in range(PATIENCE_S * 10):
        assert process.poll() is None, process.stderr and process.stderr.read()
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError


def test_a_quick_start_through_nginx(place, reply, tmp_path) -> None:
    (start,) = [each for each in QUICK_STARTS if each.environment is OPENAI]
    OPENAI.installed()
    with server(place, "--quiet", "--root-path", "/rag") as url, nginx(tmp_path, url) as front:
        path = start.copy({URL: f"{front}/rag"})
        printed = run([OPENAI.python, path], path.parent).splitlines()
        with httpx.Client(base_url=front, verify=False, timeout=PATIENCE_S) as client:  # noqa: S501
            page = client.get("/rag/")
            assert page.status_code == 200
            assets = re.findall(r'(?:src|href)="([^"#:]+)"', page.text)
            assert assets
            for asset in assets:
                assert client.get(f"/rag/{asset}").status_code == 200, asset
    assert same(printed, start.lines(reply))


def test_nginx_passes_a_stream_on_while_it_comes(gated, place, tmp_path) -> None:
    """Its sources are there before the first token is decoded, and so is what follows them."""
    options = ServeOptions(keep_alive_s=0.1)
    app = create_app(gated, live_memory(place.memory), name=MODEL, options=options)
    asked = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "stream": True}
    with (
        gated.generator.closed(),
        serving(app) as served,
        nginx(tmp_path, served.url) as front,
        httpx.stream("POST", f"{front}/rag/v1/chat/completions", json=asked, timeout=PATIENCE_S) as streamed,
    ):
        lines = streamed.iter_lines()
        first = json.loads(next(lines).removeprefix("data: "))
        assert len(first["latentrag"]["sources"]) == 3
        assert list(islice(filter(None, lines), 3)) == [": keep-alive"] * 3
        gated.generator.gate.set()
        assert [line for line in lines if line][-1] == "data: [DONE]"
