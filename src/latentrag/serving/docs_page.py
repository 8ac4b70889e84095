"""OpenAPI as a plain page: no script, nothing from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any


def page(described: Mapping[str, Any]) -> str:
    """The document as HTML: every route with its text, the rest as JSON to unfold. Args: described: OpenAPI's."""
    info = described["info"]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width, initial-scale=1'>",
        f"<title>{escape(info['title'])}</title><h1>{escape(info['title'])} {escape(info['version'])}</h1>",
        f"<p>{escape(info['description'])} <a href=openapi.json>openapi.json</a></p>",
    ]
    for path, methods in described["paths"].items():
        for method, route in methods.items():
            parts += [
                f"<h2>{escape(method.upper())} {escape(path)}</h2>",
                f"<p>{escape(route.get('description', ''))}</p>",
            ]
            parts += [_unfolding(name, route.get(name)) for name in ("parameters", "requestBody", "responses")]
    parts.append("<h2>Schemas</h2>")
    parts += [_unfolding(name, schema) for name, schema in described["components"]["schemas"].items()]
    return "\n".join(parts)


def _unfolding(name: str, content: object) -> str:
    shown = escape(json.dumps(content, indent=2, ensure_ascii=False))
    return f"<details><summary>{escape(name)}</summary><pre>{shown}</pre></details>" if content else ""
