"""What every request passes before a route is reached: host, key, rate, its body; and what every response gets.

A plain ASGI layer, so that nothing is buffered on the way out and clients that misbehave cost little.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from latentrag.serving.bodies import Upload, headers_of, json_body, replayed, shown
from latentrag.serving.failures import Gone, Refused
from latentrag.serving.metrics import SECONDS
from latentrag.serving.rights import Rights, set_rights

if TYPE_CHECKING:
    from latentrag.serving.metrics import Metrics
    from latentrag.serving.options import ServeOptions
    from latentrag.serving.waiting import Message, Receive, Send

    App = Any

_LOG = logging.getLogger("latentrag.serving")
_OPEN_PATHS = frozenset({"/healthz", "/readyz", "/docs", "/openapi.json"})
"""Which tell nothing about model and memory: a browser that follows a link sends no key."""
_MAX_CLIENTS = 10_000
_CLIENT_GONE = 499
SECURITY_HEADERS = {
    "content-security-policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


@dataclass(frozen=True, slots=True)
class Access:
    """Who may ask.

    Attributes:
        keys: API keys; without any, nobody needs one.
        hosts: names under which the server is spoken to, without port; empty: any.
        rights: of keys that have not the usual ones.
        without_key: what everybody may do where there are no keys.
    """

    keys: tuple[str, ...] = ()
    hosts: frozenset[str] = frozenset()
    rights: Mapping[str, Rights] = field(default_factory=dict)
    without_key: Rights = field(default_factory=lambda: Rights(exchange=True))

    def rights_of(self, given: str) -> Rights | None:
        """Those of a key, in a time that says nothing about the keys; None: it is none of them."""
        digest = hashlib.sha256(given.encode("utf-8", "replace")).digest()
        found = [hmac.compare_digest(digest, hashlib.sha256(key.encode()).digest()) for key in self.keys]
        known = [self.rights.get(key, Rights()) for key, is_it in zip(self.keys, found, strict=True) if is_it]
        return known[0] if known else None


class Rate:
    """A bucket for each client, that fills with ``rate`` a second and holds twice as many."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what is left, and when that was

    def take(self, client: str, now_s: float) -> float:
        """Seconds until the client may ask again; 0: it may now."""
        most = max(1.0, 2 * self._rate)
        left, then_s = self._buckets.pop(client, (most, now_s))
        left = min(most, left + (now_s - then_s) * self._rate)
        allowed = left >= 1
        self._buckets[client] = (left - 1 if allowed else left, now_s)
        if len(self._buckets) > _MAX_CLIENTS:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - left) / self._rate


class Guard:
    """The layer around an app.

    Args:
        methods: of each path that the app knows.
        files: paths of what is the same for everybody and costs nothing: a browser that opens the page has no key
            yet, and asks for all of them at once.
        uploads: paths whose body is a form with files, which is handed on as it comes; all others get JSON.
        own_pages_only: paths that no page of another site may use, whatever ``--cors-origin`` says.
    """

    def __init__(
        self,
        app: App,
        *,
        options: ServeOptions,
        access: Access,
        metrics: Metrics,
        methods: Mapping[str, frozenset[str]],
        files: frozenset[str] = frozenset(),
        uploads: frozenset[str] = frozenset(),
        own_pages_only: frozenset[str] = frozenset(),
    ) -> None:
        self._uploads, self._own_pages_only = uploads, own_pages_only
        self._app, self._options, self._access = app, options, access
        self._metrics, self._methods, self._files = metrics, methods, files
        self._root = options.root_path or ""
        self._rate = None if options.rate is None else Rate(options.rate)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            scope = {**scope, "path": _within(scope["path"], self._root)}
            await self._answered(scope, _Reply(send, self._cors(scope)), receive)

    async def _answered(self, scope: Message, reply: _Reply, receive: Receive) -> None:
        start_s = time.monotonic()
        body = b""
        try:
            if reply.is_open and scope["method"] == "OPTIONS":
                self._check_host(dict(scope["headers"]).get(b"host", b"").decode("latin-1"))
                await reply.allow(scope["headers"])
                return
            set_rights(self._check(scope))
            if not scope["path"]:
                await reply.redirect(f"{self._root}/")
                return
            send = reply.send
            if scope["path"] in self._own_pages_only:
                _check_own_page(scope)
            if scope["method"] == "POST" and scope["path"] in self._uploads:
                upload = Upload(receive, self._options, headers_of(scope))
                receive, send = upload.receive, partial(upload.send, reply)
            elif scope["method"] == "POST" and "POST" in self._methods.get(scope["path"], ()):
                body = await json_body(receive, self._options, headers_of(scope))
                receive = replayed(body, receive)
            await self._app(self._as_known(scope), receive, send)
        except Refused as refused:
            await reply.refuse(refused)
        except Gone:
            reply.status = reply.status or _CLIENT_GONE
        except Exception:  # noqa: BLE001  a bug ends this request, and is logged
            _LOG.exception("%s %s failed", scope["method"], shown(scope["path"]))
            await reply.refuse(Refused(500, "the server has failed; its log says why", "internal"))
        finally:
            self._note(scope, reply.status, time.monotonic() - start_s, body)

    def _as_known(self, scope: Message) -> Message:
        """HEAD is answered as GET is; the server leaves the body away."""
        is_head = scope["method"] == "HEAD" and "GET" in self._methods.get(scope["path"], ())
        path, method = self._root + scope["path"], "GET" if is_head else scope["method"]
        return {**scope, "root_path": self._root, "path": path, "method": method}

    def _cors(self, scope: Message) -> dict[str, str]:
        """Headers for a page of a site that may use the server; none for others."""
        origin, allowed = dict(scope["headers"]).get(b"origin", b"").decode("latin-1"), self._options.origins
        if not origin or ("*" not in allowed and origin not in allowed):
            return {}
        return {
            "access-control-allow-origin": origin,
            "access-control-expose-headers": "retry-after",
            "cross-origin-resource-policy": "cross-origin",
            "vary": "origin",
        }

    def _check(self, scope: Message) -> Rights:
        """What the client may see. Raises: Refused."""
        headers = headers_of(scope)
        self._check_host(headers.get("host", ""))
        if scope["path"] in self._files and scope["method"] in {"GET", "HEAD"}:
            return Rights()
        rights = None
        client = scope["client"][0] if scope["client"] else "unknown"
        if self._access.keys:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            key = given.strip() if scheme.lower() == "bearer" else None
            rights = None if key is None else self._access.rights_of(key)
            if key is not None and rights is not None:
                client = f"key {hashlib.sha256(key.encode()).hexdigest()}"
        wait_s = 0.0 if self._rate is None else self._rate.take(client, time.monotonic())
        if wait_s:
            raise Refused(
                429,
                f"more than {self._options.rate:g} requests a second; ask less often",
                "rate",
                retry_after_s=int(wait_s) + 1,
            )
        if self._access.keys and rights is None and scope["path"] not in _OPEN_PATHS:
            raise Refused(401, "no valid API key; send Authorization: Bearer KEY", "invalid_api_key")
        return rights or (Rights() if self._access.keys else self._access.without_key)

    def _check_host(self, host: str) -> None:
        """Against pages that let their own name point to this machine."""
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        if self._access.hosts and name.lower() not in self._access.hosts:
            names = " or ".join(sorted(self._access.hosts))
            message = f"Host {shown(host)!r} is not this server; needed {names}, or start it with --allow-host"
            raise Refused(421, message, "host")

    def _note(self, scope: Message, status: int, seconds: float, body: bytes) -> None:
        path = scope["path"] if scope["path"] in self._methods else "other"
        method = scope["method"] if scope["method"] in {"GET", "POST", "DELETE"} else "other"
        self._metrics.count("latentrag_requests_total", path=path, method=method, status=str(status))
        self._metrics.observe("latentrag_request_seconds", seconds, SECONDS, path=path)
        said = f" {_questions(body)}" if self._options.log_questions and body else ""
        _LOG.info("%s %s %d %.0f ms%s", method, shown(scope["path"]), status, 1000 * seconds, said)


class _Reply:
    """What is sent, with our headers.

    Args:
        cors: headers that let another site's page read it.
    """

    def __init__(self, send: Send, cors: Mapping[str, str]) -> None:
        self._send, self._cors = send, cors
        self.status = 0

    @property
    def is_open(self) -> bool:
        """Whether another site's page asks, and may."""
        return bool(self._cors)

    async def allow(self, asked: Sequence[tuple[bytes, bytes]]) -> None:
        """Answers a browser that asks first whether a page may send something with these headers."""
        wanted = dict(asked).get(b"access-control-request-headers", b"authorization, content-type")
        headers = [(b"access-control-allow-methods", b"GET, POST, DELETE"), (b"access-control-max-age", b"600")]
        headers.append((b"access-control-allow-headers", wanted))
        await self.send({"type": "http.response.start", "status": 204, "headers": headers})
        await self.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def redirect(self, place: str) -> None:
        """To an address on this server."""
        headers = [(b"location", place.encode("latin-1")), (b"content-length", b"0")]
        await self.send({"type": "http.response.start", "status": 307, "headers": headers})
        await self.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def send(self, message: Message) -> None:
        """As ASGI has it."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = list(message.get("headers", []))
            present = {name for name, _ in headers}
            ours = {**SECURITY_HEADERS, **self._cors}.items()
            added = [(name.encode(), value.encode("latin-1")) for name, value in ours]
            message = {**message, "headers": [*headers, *(each for each in added if each[0] not in present)]}
        await self._send(message)

    async def refuse(self, refused: Refused) -> None:
        """An error as the response, unless one has begun; the connection ends where a body may be on its way."""
        if self.status:
            return
        headers = {"content-type": "application/json", "content-length": str(len(refused.body)), **refused.headers}
        if refused.status in {408, 413}:
            headers["connection"] = "close"
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": refused.status, "headers": raw})
        await self.send({"type": "http.response.body", "body": refused.body, "more_body": False})


def _check_own_page(scope: Message) -> None:
    """Raises: Refused for a request that a page of another site has made; a browser says so."""
    headers = headers_of(scope)
    origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
    is_own = origin is None or urlsplit(origin).netloc.lower() == headers.get("host", "").lower() != ""
    if not is_own or site not in {"same-origin", "none"}:
        got = f"Origin {shown(origin)!r}" if origin is not None and not is_own else f"Sec-Fetch-Site {shown(site)!r}"
        raise Refused(403, f"{got} is another site; documents are changed from this server's own page only", "origin")


def _within(path: str, root: str) -> str:
    """The path below the one under which a proxy offers the server, whether or not the proxy has taken that away."""
    return path.removeprefix(root) if path == root or path.startswith(f"{root}/") else path


def _questions(body: bytes) -> str:
    """The texts of a request, for a log that is asked to have them."""
    asked = json.loads(body)
    if not isinstance(asked, dict):
        return ""
    shown: dict[str, Any] = {name: asked[name] for name in ("question", "x", "y", "labels") if name in asked}
    messages: Sequence[Any] = asked["messages"] if isinstance(asked.get("messages"), list) else []
    if messages:
        shown["messages"] = messages[-1:]
    return json.dumps(shown)
