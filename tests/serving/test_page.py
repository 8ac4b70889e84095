"""The page as it is served: whole, of one origin, and under a policy that lets nothing else in."""

import json
import re
import shutil
import subprocess

import pytest

from latentrag.serving.app import create_app
from latentrag.serving.guard import SECURITY_HEADERS, Access
from latentrag.serving.options import MAX_MESSAGES, ServeOptions
from latentrag.serving.page import contents, paths
from tests.serving.conftest import serving

KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
SENDING = """
import { ask } from "./static/api.js";
globalThis.sessionStorage = { getItem: () => null };
globalThis.fetch = async (path, { body }) => new Response(body);
const messages = [];
for (let i = 0; i < %d; i++) {
  const body = { messages: [...messages, { role: "user", content: `q${i}` }], k: 3 };
  console.log(JSON.stringify([body, await ask("v1/answer", { body })]));
  messages.push({ role: "user", content: `q${i}` }, { role: "assistant", content: `a${i}` });
}
"""
REFERENCE = re.compile(r"""(?:src|href)="([^"]+)"|from "([^"]+)"|url\(([^)]+)\)""")


def ending(path: str) -> str:
    return "html" if path == "/" else path.rpartition(".")[2]


@pytest.mark.parametrize("path", sorted(paths()))
def test_each_file_is_served_with_its_type_and_policy(served, path) -> None:
    response = served.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"].split(";")[0] == KINDS[ending(path)]
    policy = dict(each.strip().partition(" ")[::2] for each in response.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"
    for name, value in SECURITY_HEADERS.items():
        assert name == "content-security-policy" or response.headers[name] == value


def test_everything_that_the_page_names_is_there() -> None:
    served_paths = paths() | {"/docs"}
    for path, body, _ in contents():
        text = body.decode()
        for found in REFERENCE.findall(text):
            name = next(filter(None, found))
            assert not name.startswith("/"), name  # a proxy may offer the page in a folder
            target = f"/static/{name[2:]}" if name.startswith("./") else f"/{name}"
            assert target in served_paths, (path, name)
        assert not re.findall(r"(?:ask|stream|upload)\(\s*[`\"']/", text), path
        assert not re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]+", text.replace("http://www.w3.org/2000/svg", "")), (
            path
        )


def test_nothing_is_inline_and_no_text_becomes_code() -> None:
    for path, body, _ in contents():
        text = body.decode()
        if ending(path) == "html":
            assert not re.search(r"<style|<script(?![^>]* src=)|\sstyle=|\son[a-z]+=", text)
        if ending(path) == "js":
            assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text)


def test_the_files_need_no_key_and_count_towards_no_rate(rag, live) -> None:
    options, access = ServeOptions(rate=0.001), Access(keys=("a-key-of-some-length",))
    with serving(create_app(rag, live, name="tiny", options=options, access=access)) as served:
        assert [served.get(path).status_code for path in sorted(paths())] == [200] * len(paths())
        assert served.get("/v1/memory").status_code == 401
        assert served.get("/v1/memory").status_code == 429


def test_no_request_names_a_file(served) -> None:
    for path in ("/static/", "/static/../page.py", "/static/%2e%2e/page.py", "/static/page.py", "/index.html"):
        assert served.get(path).status_code == 404
    assert served.post("/", {}).status_code == 405


def test_the_page_sends_no_more_messages_than_the_server_takes(served, tmp_path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node, which runs the page's code")
    (tmp_path / "static").mkdir()
    (tmp_path / "package.json").write_text('{"type": "module"}')
    for path, body, _ in contents():
        if ending(path) == "js":
            (tmp_path / path[1:]).write_bytes(body)
    (tmp_path / "sending.js").write_text(SENDING % (MAX_MESSAGES // 2 + 3))
    said = subprocess.run([node, "sending.js"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    exchanges = [json.loads(line) for line in said.splitlines()]
    assert len(exchanges) == MAX_MESSAGES // 2 + 3
    for made, sent in exchanges:
        assert made["k"] == sent["k"] == 3
        if len(made["messages"]) <= MAX_MESSAGES:
            assert sent == made
        else:
            assert len(sent["messages"]) == MAX_MESSAGES - 1
            assert sent["messages"] == made["messages"][1 - MAX_MESSAGES :]
            assert sent["messages"][0]["role"] == "user"
    longest, shortened = exchanges[-1]
    response = served.post("/v1/answer", {**longest, "k": 1, "max_tokens": 2})
    assert response.status_code == 422
    assert served.post("/v1/answer", {**shortened, "k": 1, "max_tokens": 2}).status_code == 200
