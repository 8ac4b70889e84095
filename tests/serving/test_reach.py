"""How a server is reached: by other sites' pages, under other names, behind a proxy in a folder, over slow streams."""

import gzip
import json
import threading
from collections.abc import Iterator

import pytest

from latentrag.errors import InputError
from latentrag.rag import Rag
from latentrag.serving.app import create_app
from latentrag.serving.guard import Access
from latentrag.serving.options import ServeOptions
from latentrag.serving.run import access_to
from tests.serving.conftest import PATIENCE_S, Served, serving
from tests.test_rag import FakeRetriever
from tests.toy import ToyGenerator, passages

SITE = "https://example.org"
KEY = "a-key-of-some-length"
ASK = {"question": "who?"}


def toy() -> Rag:
    return Rag(FakeRetriever(passages(4)), ToyGenerator(4, seed=11), k=3)


@pytest.fixture(scope="module")
def behind(live) -> Iterator[Served]:
    """With a key, open to one site, under a path, and by another name."""
    options = ServeOptions(origins=(SITE,), hosts=("rag.example.org",), root_path="/tools/rag")
    access = Access(keys=(KEY,), hosts=access_to("127.0.0.1", key_file=None, hosts=options.hosts).hosts)
    with serving(create_app(toy(), live, name="toy", options=options, access=access), options) as running:
        running.client.headers["authorization"] = f"Bearer {KEY}"
        yield running


# Bodies


@pytest.mark.parametrize(("coding", "status"), [("identity", 200), ("gzip", 415), ("gzip, identity", 415)])
def test_packed_bodies_are_refused(behind, coding, status) -> None:
    body = json.dumps(ASK).encode()
    headers = {"content-type": "application/json", "content-encoding": coding}
    content = body if coding == "identity" else gzip.compress(body)
    response = behind.client.post("/v1/answer", content=content, headers=headers)
    assert response.status_code == status
    if status == 415:
        assert "needed identity" in response.json()["error"]["message"]


# Other sites


def test_a_page_of_a_site_that_may_can_ask(behind) -> None:
    asking = {
        "origin": SITE,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-lang",
    }
    allowed = behind.client.request("OPTIONS", "/v1/answer", headers={**asking, "authorization": ""})
    assert allowed.status_code == 204
    assert allowed.headers["access-control-allow-origin"] == SITE
    assert allowed.headers["access-control-allow-headers"] == asking["access-control-request-headers"]
    assert "POST" in allowed.headers["access-control-allow-methods"]
    for body, status in ((ASK, 200), ({}, 422)):
        response = behind.post("/v1/answer", body, headers={"origin": SITE})
        assert response.status_code == status
        assert response.headers["access-control-allow-origin"] == SITE
        assert response.headers["cross-origin-resource-policy"] == "cross-origin"


@pytest.mark.parametrize("origin", ["https://evil.org", "http://example.org", "null", f"{SITE}.evil.org"])
def test_pages_of_other_sites_cannot(behind, origin) -> None:
    headers = {"origin": origin, "access-control-request-method": "POST"}
    assert behind.client.request("OPTIONS", "/v1/answer", headers=headers).status_code == 405
    response = behind.post("/v1/answer", ASK, headers={"origin": origin})
    assert "access-control-allow-origin" not in response.headers
    assert response.headers["cross-origin-resource-policy"] == "same-origin"


def test_every_site_where_that_is_wanted(live) -> None:
    options = ServeOptions(origins=("*",))
    with serving(create_app(toy(), live, name="toy", options=options), options) as served:
        response = served.get("/v1/models", headers={"origin": "https://any.org"})
    assert response.headers["access-control-allow-origin"] == "https://any.org"


@pytest.mark.parametrize("origin", ["example.org", "https://example.org/", "https://a b", ""])
def test_what_is_no_origin(origin) -> None:
    with pytest.raises(InputError, match="is no origin; write it as https://example.org"):
        ServeOptions(origins=(origin,))


# Names and paths


@pytest.mark.parametrize(("host", "status"), [("rag.example.org", 200), ("Rag.example.org:443", 200), ("x.org", 421)])
def test_other_names(behind, host, status) -> None:
    response = behind.get("/v1/models", headers={"host": host})
    assert response.status_code == status
    if status == 421:
        assert "start it with --allow-host" in response.json()["error"]["message"]


def test_names_bound_a_server_that_others_reach(monkeypatch) -> None:
    monkeypatch.setenv("LATENTRAG_API_KEY", KEY)
    assert access_to("0.0.0.0", key_file=None).hosts == frozenset()  # noqa: S104
    assert {"a.org", "localhost"} <= access_to("0.0.0.0", key_file=None, hosts=["A.org"]).hosts  # noqa: S104


@pytest.mark.parametrize("root", ["", "/tools/rag"])
def test_under_a_path_whether_or_not_the_proxy_takes_it_away(behind, root) -> None:
    assert behind.get(f"{root}/v1/models").status_code == 200
    assert behind.client.head(f"{root}/v1/models").status_code == 200
    assert behind.post(f"{root}/v1/answer", ASK).status_code == 200
    assert behind.get(f"{root}/").headers["content-type"].startswith("text/html")
    assert behind.get(f"{root}/static/main.js").status_code == 200
    assert behind.get("/openapi.json").json()["servers"] == [{"url": "/tools/rag"}]


def test_the_bare_path_leads_to_the_page(behind) -> None:
    response = behind.get("/tools/rag")
    assert (response.status_code, response.headers["location"]) == (307, "/tools/rag/")
    assert behind.get("/tools/ragged").status_code == 404


@pytest.mark.parametrize("path", ["rag", "/rag/", "/", "//x", "/a b"])
def test_what_is_no_root_path(path) -> None:
    with pytest.raises(InputError, match="is no path; write it as /rag"):
        ServeOptions(root_path=path)


def test_page_and_docs_name_nothing_from_the_root(behind) -> None:
    for path in ("/", "/docs", "/static/main.js", "/static/memory.js", "/static/ways.js", "/static/api.js"):
        text = behind.get(path).text
        for absolute in ('"/v1', '"/static', '"/docs', "=/openapi", '"/openapi'):
            assert absolute not in text, (path, absolute)


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/tools/rag/docs"])
def test_docs_need_no_key(behind, path) -> None:
    """A browser that follows the page's link sends none."""
    assert behind.get(path, headers={"authorization": ""}).status_code == 200
    assert behind.get("/v1/models", headers={"authorization": ""}).status_code == 401


# Slow streams


def test_a_stream_is_kept_alive_by_comments(gated, live) -> None:
    generator, permits = gated.generator, threading.Semaphore(0)
    generator.gate.set()
    steps = generator.step

    def permitted(state, parents, tokens):
        assert permits.acquire(timeout=PATIENCE_S)
        return steps(state, parents, tokens)

    generator.step = permitted
    options = ServeOptions(keep_alive_s=0.05)
    chat = {"model": "toy", "messages": [{"role": "user", "content": "long?"}], "stream": True}
    with serving(create_app(gated, live, name="toy", options=options), options) as served:
        body = {**chat, "latentrag": {"min_tokens": 6, "max_tokens": 8, "beams": 1}}
        with served.client.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = response.iter_lines()
            assert any(line == ": keep-alive" for line in lines)
            permits.release(10)
            rest = list(lines)
    assert rest[-2] == "data: [DONE]"
    assert json.loads(rest[-4].removeprefix("data: "))["choices"][0]["finish_reason"]
