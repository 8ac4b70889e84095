"""The page at `/`: files of this package, read once, which load nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import Response

KINDS = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
"""Nothing inline, nothing from elsewhere; and no text can become HTML or code, whatever our own scripts do."""


def page() -> APIRouter:
    """Routes with fixed paths: no request names a file."""
    router = APIRouter(include_in_schema=False)
    for path, body, kind in contents():
        router.add_api_route(path, _answering(body, kind), methods=["GET"])
    return router


def contents() -> list[tuple[str, bytes, str]]:
    """Path, body and content type of each file."""
    found = []
    for file in files("latentrag.serving").joinpath("static").iterdir():
        name, _, ending = file.name.rpartition(".")
        path = "/" if name == "index" else f"/static/{file.name}"
        found.append((path, file.read_bytes(), KINDS[ending]))
    return found


def paths() -> frozenset[str]:
    """Where the page's files are."""
    return frozenset(path for path, _, _ in contents())


def _answering(body: bytes, kind: str) -> Callable[[], Awaitable[Response]]:
    headers = {"content-type": kind, "content-security-policy": CONTENT_SECURITY_POLICY}

    async def file() -> Response:
        return Response(body, headers=headers)

    return file
