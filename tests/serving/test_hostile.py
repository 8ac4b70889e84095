"""Clients that misbehave are answered or closed, and others notice nothing."""

import contextlib
import gzip
import json
import logging
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from latentrag.assemble import live_memory, load
from latentrag.rag import Rag
from latentrag.serving.app import create_app
from latentrag.serving.guard import SECURITY_HEADERS, Access, Rate
from latentrag.serving.options import ServeOptions
from tests.serving.conftest import PATIENCE_S, Served, serving
from tests.test_rag import FakeRetriever
from tests.toy import ToyGenerator, passages

OPTIONS = ServeOptions(body_s=0.5, send_s=0.5, max_body_bytes=10_000, max_connections=20)
KEY = "a-key-of-some-length"
ASK = {"question": "who?"}


@pytest.fixture(scope="module")
def toy() -> Rag:
    return Rag(FakeRetriever(passages(4)), ToyGenerator(4, seed=11), k=3)


@pytest.fixture(scope="module")
def served(toy, live) -> Iterator[Served]:
    with serving(create_app(toy, live, name="toy", options=OPTIONS), OPTIONS) as running:
        yield running


@pytest.fixture(autouse=True)
def others_notice_nothing(served) -> Iterator[None]:
    yield
    assert served.post("/v1/answer", ASK).status_code == 200


def connected(served: Served) -> socket.socket:
    return socket.create_connection(("127.0.0.1", served.port), timeout=PATIENCE_S)


def head(length: object = None, *, kind: str = "application/json", more: str = "") -> bytes:
    size = "" if length is None else f"Content-Length: {length}\r\n"
    return f"POST /v1/answer HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n{size}{more}\r\n".encode()


def all_of(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    found = b""
    try:
        while part := connection.recv(65536):
            found += part
    except ConnectionResetError:
        pass
    return found


def status_and_error(response: bytes) -> tuple[int, str]:
    start, _, body = response.partition(b"\r\n\r\n")
    return int(start.split()[1]), json.loads(body)["error"]["message"]


@pytest.mark.parametrize("sent", [b"", b"POST /v1/answer HTTP/1.1\r\nHost: loc", b"GET /healthz HTTP/1.1\r\nA: b\r\n"])
def test_a_head_that_does_not_end_is_closed(served, sent) -> None:
    with connected(served) as slow:
        slow.sendall(sent)
        assert all_of(slow) == b""


@pytest.mark.parametrize("at_once", [True, False])
def test_a_second_head_that_does_not_end_is_closed(served, at_once) -> None:
    with connected(served) as slow:
        request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        slow.sendall(request + request[:20] if at_once else request)
        found = slow.recv(65536)
        if not at_once:
            slow.sendall(request[:20])
        assert (found + all_of(slow)).endswith(b'{"status":"alive"}')


def test_a_body_that_does_not_end_is_answered(served) -> None:
    with connected(served) as slow:
        slow.sendall(head(100) + b'{"question"')
        status, message = status_and_error(all_of(slow))
    assert (status, message) == (408, "the body has not arrived within 0.5 s; send it at once")


def test_a_client_that_reads_nothing_is_closed(served) -> None:
    """Its requests' responses fill what the system buffers for it."""
    with connected(served) as deaf:
        port = deaf.getsockname()[1]
        request = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
        deaf.setblocking(False)
        connections = served.server.server_state.connections

        def is_known() -> bool:
            return any(each.client and each.client[1] == port for each in list(connections))

        deaf.send(request)
        assert waited_for(is_known)

        def has_gone() -> bool:
            with contextlib.suppress(BlockingIOError, ConnectionResetError, BrokenPipeError):
                deaf.send(request * 10)
            return not is_known()

        assert waited_for(has_gone)


def waited_for(happened: Callable[[], bool]) -> bool:
    """Whether it happens in good time."""
    end_s = time.monotonic() + PATIENCE_S
    while not happened():
        if time.monotonic() > end_s:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.parametrize("chunked", [True, False])
def test_too_large_a_body(served, chunked) -> None:
    body = json.dumps({"question": "x" * 100_000}).encode()
    content = iter([body]) if chunked else body
    response = served.post("/v1/answer", None, content=content, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error"]["code"]) == (413, "too_large")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is not valid JSON"),
        (b"{", "the body is not valid JSON"),
        (b'{"question": "who?"} x', "the body is not valid JSON"),
        (b'{"question": "\xff"}', "byte 14 of the body is not UTF-8"),
        (b"[" * 9_000, "the body is nested too deeply"),
        (b'{"question": "who?", "length_penalty": NaN}', "NaN is no number"),
        (b'{"question": "who?", "length_penalty": -Infinity}', "-Infinity is no number"),
        (b'{"question": "who?", "k": ' + b"9" * 5_000 + b"}", "the body is not valid JSON"),
    ],
)
def test_what_is_no_json(served, body, message) -> None:
    response = served.post("/v1/answer", None, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_what_a_page_elsewhere_can_send_without_asking_is_refused(served, kind) -> None:
    response = served.post("/v1/answer", None, content=json.dumps(ASK), headers={"content-type": kind})
    assert (response.status_code, response.json()["error"]["code"]) == (415, "type")


def test_a_page_elsewhere_may_not(served) -> None:
    asking = {"origin": "https://elsewhere", "access-control-request-method": "POST"}
    preflight = served.client.options("/v1/answer", headers=asking)
    assert preflight.status_code == 405
    answer = served.post("/v1/answer", ASK, headers={"origin": "https://elsewhere"})
    for response in (preflight, answer):
        assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.parametrize("path", ["/v1/answer", "/healthz", "/docs", "/nothing"])
def test_every_response_says_what_browsers_may_not_do(served, path) -> None:
    response = served.get(path)
    for name, value in SECURITY_HEADERS.items():
        assert response.headers[name] == value
    assert "server" not in response.headers


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01 this is TLS\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000,
        b"POST /v1/answer HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/answer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n\r\n",
    ],
)
def test_what_is_no_http(served, sent) -> None:
    with connected(served) as strange:
        strange.sendall(sent)
        assert all_of(strange)[:12] in {b"HTTP/1.1 400", b""}


def test_too_many_connections(served) -> None:
    opened = [connected(served) for _ in range(2 * OPTIONS.max_connections)]
    refused = [all_of(each) for each in opened]  # those within the limit are closed for sending no head
    assert refused == [b""] * len(opened)
    for each in opened:
        each.close()


def test_other_names_of_this_machine_are_refused(toy, live) -> None:
    access = Access(hosts=frozenset({"localhost", "127.0.0.1", "[::1]"}))
    with serving(create_app(toy, live, name="toy", access=access)) as served:
        for name in ("localhost", f"localhost:{served.port}", "[::1]:8000", "127.0.0.1"):
            assert served.get("/healthz", headers={"host": name}).status_code == 200
        for name in ("evil.example", f"evil.example:{served.port}", "localhost.evil.example", "127.0.0.1.nip.io"):
            response = served.get("/healthz", headers={"host": name})
            assert (response.status_code, response.json()["error"]["code"]) == (421, "host")


def test_keys_and_rates(toy, live) -> None:
    options = ServeOptions(rate=0.001)  # in bursts of one
    access = Access(keys=(KEY, "another-key-of-some-length"))
    with serving(create_app(toy, live, name="toy", options=options, access=access)) as served:

        def status(key: str | None, path: str = "/v1/models") -> int:
            headers = {} if key is None else {"authorization": f"Bearer {key}"}
            return served.get(path, headers=headers).status_code

        assert status(KEY) == 200
        assert status("another-key-of-some-length") == 200
        assert status(KEY) == 429
        assert status(KEY[:-1]) == 401  # whoever has no key is a client, too
        assert [status(None), status("no-key"), status("x")] == [429] * 3


def test_what_needs_no_key(toy, live) -> None:
    with serving(create_app(toy, live, name="toy", access=Access(keys=(KEY,)))) as served:
        for path in ("/healthz", "/readyz", "/docs", "/openapi.json"):
            assert served.get(path).status_code == 200
        for path in ("/metrics", "/v1/memory", "/nothing"):
            response = served.get(path)
            assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
        for header in (f"Basic {KEY}", KEY, f"Bearer{KEY}"):
            assert served.get("/v1/models", headers={"authorization": header}).status_code == 401


def test_a_bucket_fills_again() -> None:
    rate = Rate(2.0)
    assert [rate.take("a", 0.0) for _ in range(4)] == [0, 0, 0, 0]
    assert rate.take("a", 0.0) == pytest.approx(0.5)
    assert rate.take("b", 0.0) == 0
    assert rate.take("a", 0.25) == pytest.approx(0.25)
    assert rate.take("a", 0.5) == 0
    assert rate.take("a", 100.0) == 0
    for client in range(20_000):
        rate.take(str(client), 200.0)
    assert len(rate._buckets) == 10_000


@pytest.mark.parametrize("asked_for", [False, True])
def test_questions_are_logged_only_if_that_was_asked_for(toy, live, caplog, asked_for) -> None:
    caplog.set_level(logging.INFO, "latentrag.serving")
    options = ServeOptions(log_questions=asked_for)
    with serving(create_app(toy, live, name="toy", options=options)) as served:
        served.post("/v1/answer", {"question": "a secret\n\u202equestion"})
        served.post("/v1/chat/completions", {"model": "toy", "messages": [{"role": "user", "content": "a secret"}]})
        served.get("/a secret/%1b[31m%0d%0aforged")
    lines = [record.getMessage() for record in caplog.records if record.name == "latentrag.serving"][-3:]
    assert lines[2].startswith("GET /a secret/\\x1b[31m\\r\\nforged 404 ")
    assert lines[0].startswith("POST /v1/answer 200 ")
    assert (r"a secret\n\u202equestion" in lines[0], "a secret" in lines[1]) == (asked_for, asked_for)
    assert all(line.isprintable() and "\n" not in line for line in lines)


# Uploads


WRITES = ServeOptions(body_s=0.5, send_s=0.5, max_connections=20, allow_writes=True, max_upload="10KB", upload_s=2.0)
DOCUMENTS = "/api/documents"


@pytest.fixture(scope="module")
def own(tmp_path_factory, memory) -> Path:
    return shutil.copytree(memory, tmp_path_factory.mktemp("uploads") / "own.lance")


@pytest.fixture(scope="module")
def uploads(own, model) -> Iterator[Served]:
    memory = live_memory(own)
    with serving(create_app(load(model, memory=memory), memory, name="tiny", options=WRITES), WRITES) as running:
        yield running


@pytest.fixture
def unchanged(own) -> Iterator[None]:
    """Nothing is half-written, whatever was sent."""
    before = sorted(each.relative_to(own).as_posix() for each in own.rglob("*"))
    yield
    after = [each.relative_to(own).as_posix() for each in own.rglob("*")]
    assert sorted(each for each in after if each != "_writer.lock") == [x for x in before if x != "_writer.lock"]


def form(*parts: tuple[str, bytes], end: bytes = b"--b--\r\n", field: str = "files") -> bytes:
    """A form as bytes: what stands in filename="…", and the file."""
    written = b""
    for name, content in parts:
        disposition = f'form-data; name="{field}"; filename="{name}"'.encode("utf-8", "surrogateescape")
        written += b"--b\r\nContent-Disposition: " + disposition + b"\r\n\r\n" + content + b"\r\n"
    return written + end


def sent(served: Served, body: bytes, **headers: str) -> tuple[int, str]:
    kind = {"content-type": "multipart/form-data; boundary=b"}
    response = served.client.post(DOCUMENTS, content=body, headers=kind | headers)
    return response.status_code, response.json()["error"]["message"] if response.is_error else ""


PATHS = [
    "../x.md",
    "..\\x.md",
    "/etc/x.md",
    "C:\\x.md",
    "a/b.md",
    "a\x00.md",
    "a\x1b.md",
    "\u202egm.md",
    "..",
    ".",
    ".hidden.md",
    "",
    " ",
    "\udcff.md",
    f"{'a' * 300}.md",
]


@pytest.mark.parametrize("name", PATHS, ids=ascii)
def test_names_that_are_no_plain_file_names(uploads, unchanged, own, name) -> None:
    status, message = sent(uploads, form(("good.md", b"Good."), (name, b"Bad.")))
    assert status == 422
    assert message.startswith("file name ")
    assert message.endswith("; send a plain name, such as notes.md")
    assert message.isascii()
    assert message.isprintable()
    assert not list(own.parent.rglob("x.md"))


def test_an_encoded_name_is_checked_too(uploads, unchanged) -> None:
    body = form(("a", b"A.")).replace(b'filename="a"', b"filename*=UTF-8''..%2Fx.md")
    assert sent(uploads, body)[0] == 422
    double = form(("a.md", b"A.")).replace(b'filename="a.md"', b"filename=\"a.md\"; filename*=utf-8''%00.md")
    assert sent(uploads, double)[0] == 422


@pytest.mark.parametrize("name", ["a.exe", "a", "a.pkl", "a.md.exe", "a.txt.gz", "a.zip"])
def test_types_that_are_not_read(uploads, unchanged, name) -> None:
    status, message = sent(uploads, form(("good.md", b"Good."), (name, b"\x80\x04.")))
    assert status == 415
    assert message.startswith(f"{name}: ")
    assert "convert it to one of" in message


BROKEN = {
    "a.pdf": b"%PDF-1.7 nothing",
    "a.docx": b"PK\x03\x04 nothing",
    "a.json": b"{",
    "a.jsonl.gz": b"\x1f\x8b\x08 nothing",
    "empty.md": b"",
}


@pytest.mark.parametrize("name", BROKEN)
def test_files_that_cannot_be_read(uploads, unchanged, own, name) -> None:
    beside = () if name == "empty.md" else (("good.md", b"Good."),)
    status, message = sent(uploads, form(*beside, (name, BROKEN[name])))
    assert status == 422
    assert message.isprintable()
    assert str(own) not in message
    assert "_scratch" not in message


FORMS = {
    "nothing": (b"", 400),
    "no file": (b"--b--\r\n", 422),
    "no boundary in it": (b"hello", 400),
    "ends early": (form(("a.md", b"A."), end=b""), 400),
    "ends in a header": (b"--b\r\nContent-Disp", 400),
    "a field that is no file": (b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n1\r\n--b--\r\n', 422),
    "a part without a head": (b"--b\r\n\r\nA.\r\n--b--\r\n", 422),
    "a head that does not end": (b"--b\r\nContent-Disposition: " + b"x" * 9_000, 400),
    "many heads": (b"--b\r\n" + b"a: b\r\n" * 100 + b"\r\nA.\r\n--b--\r\n", 400),
    "two of one name": (form(("a.md", b"A."), ("a.md", b"B.")), 422),
    "one name in two forms": (form(("e\u0301.md", b"A."), ("\u00e9.md", b"B.")), 422),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms_that_are_none(uploads, unchanged, name) -> None:
    body, expected = FORMS[name]
    status, message = sent(uploads, body)
    assert status == expected, message
    assert message.isprintable()


def test_more_files_than_one_request_may_have(uploads, unchanged) -> None:
    status, message = sent(uploads, form(*((f"{n}.md", b"A.") for n in range(101))))
    assert (status, message) == (422, "more than 100 files; send fewer at once")


@pytest.mark.parametrize("size", [10_001, 200_000, 6_000_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_uploads_that_are_too_large(uploads, unchanged, size, chunked) -> None:
    body = form(("a.md", b"A " * (size // 2)))
    content = iter([body[start : start + 65_536] for start in range(0, len(body), 65_536)]) if chunked else body
    try:
        response = uploads.client.post(
            DOCUMENTS, content=content, headers={"content-type": "multipart/form-data; boundary=b"}
        )
    except httpx.TransportError:
        assert size > 4_000_000  # so much is read of what is refused
        return
    assert response.status_code == 413
    assert response.json()["error"]["message"].startswith("the files exceed 10KB together; send fewer at once")


@pytest.mark.parametrize("drip", [False, True])
def test_an_upload_that_does_not_end_is_answered(uploads, unchanged, drip) -> None:
    with connected(uploads) as slow:
        kind = "multipart/form-data; boundary=b"
        start = head(5_000, kind=kind).replace(b"/v1/answer", DOCUMENTS.encode())
        slow.sendall(start + form(("a.md", b"A."), end=b""))
        if drip:
            with contextlib.suppress(OSError):
                for _ in range(20):
                    slow.sendall(b"A")
                    time.sleep(0.2)
        status, message = status_and_error(all_of(slow))
    assert (status, message) == (408, "the body has not arrived within 0.5 s; send it at once")
    assert uploads.get(f"{DOCUMENTS}/progress").json()["stage"] == "idle"


def test_an_upload_whose_client_dies(uploads, unchanged) -> None:
    with connected(uploads) as dying:
        start = head(5_000, kind="multipart/form-data; boundary=b").replace(b"/v1/answer", DOCUMENTS.encode())
        dying.sendall(start + form(("a.md", b"A."), end=b""))
    assert waited_for(lambda: uploads.get(f"{DOCUMENTS}/progress").json()["stage"] == "idle")


FOREIGN = [
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": "http://127.0.0.1:1"},
    {"origin": "http://127.0.0.1.evil.example"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"sec-fetch-site": "nonsense"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_pages_of_other_sites_change_no_documents(uploads, unchanged, headers) -> None:
    status, message = sent(uploads, form(("a.md", b"A.")), **headers)
    assert status == 403
    assert message.endswith("is another site; documents are changed from this server's own page only")
    deleting = uploads.client.delete(DOCUMENTS, params={"id": "rome.txt"}, headers=headers)
    assert deleting.status_code == 403
    assert uploads.get(DOCUMENTS, headers=headers).status_code == 403


def test_a_site_that_may_ask_may_still_not_write(own, model) -> None:
    options = ServeOptions(allow_writes=True, origins=("*", "https://friend.example"))
    memory = live_memory(own)
    with serving(create_app(load(model, memory=memory), memory, name="tiny", options=options), options) as running:
        status, _ = sent(running, form(("a.md", b"A.")), origin="https://friend.example")
        assert status == 403


KINDS = [(DOCUMENTS, "application/json"), (DOCUMENTS, "text/plain"), ("/v1/answer", "multipart/form-data; boundary=b")]


@pytest.mark.parametrize(("path", "kind"), KINDS)
def test_forms_are_for_documents_and_for_nothing_else(uploads, unchanged, path, kind) -> None:
    response = uploads.client.post(path, content=form(("a.md", b"A.")), headers={"content-type": kind})
    assert response.status_code == 415
    needed = "multipart/form-data" if path == DOCUMENTS else "application/json"
    assert response.json()["error"]["message"].endswith(f"needed {needed}")


def test_a_packed_upload(uploads, unchanged) -> None:
    assert sent(uploads, form(("a.md", b"A.")), **{"content-encoding": "gzip"})[0] == 415


def test_a_bomb_of_rows(uploads, unchanged, monkeypatch) -> None:
    monkeypatch.setattr("latentrag.serving.writing.MAX_ADDED", 50)
    packed = gzip.compress(b"".join(b'{"text": "row %d"}\n' % n for n in range(1_000)))
    status, message = sent(uploads, form(("a.jsonl.gz", packed)))
    assert status == 413
    assert message.startswith("the files have more than 50 passages")
