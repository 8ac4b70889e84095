"""OpenAPI as a plain page: no script, nothing from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any


def page(described: Mapping[str, Any]) -> str:
    """The document as HTML. Args: described: as ``/openapi.json``."""
    info = described["info"]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width, initial-scale=1'>",
        f"<title>{escape(info['title'])}</title><h1>{escape(info['title'])} {escape(info['version'])}</h1>",
        f"<p>{escape(info['description'])} <a href=/openapi.json>openapi.json</a></p>",
    ]
    for path, methods in described["paths"].items():
        for method, route in methods.items():
            parts.append(f"<h2>{escape(method.upper())} {escape(path)}</h2>")
            parts.append(f"<p>{escape(route.get('description', ''))}</p>")
            parts += _parameters(route.get("parameters", ()))
            parts += _content(route.get("requestBody"), "Request", described)
            parts += _content(route["responses"].get("200"), "Response", described)
    return "\n".join(parts)


def _content(holder: Mapping[str, Any] | None, title: str, described: Mapping[str, Any]) -> Iterator[str]:
    for kind, content in (holder or {}).get("content", {}).items():
        schema = content.get("schema", content.get("itemSchema", {}))
        yield f"<h3>{title} ({escape(kind)})</h3>"
        yield from _fields(schema, described)


def _parameters(parameters: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if parameters:
        needed = [each["name"] for each in parameters if each.get("required")]
        fields = {each["name"]: {"description": each.get("description", ""), **each["schema"]} for each in parameters}
        yield "<h3>Parameters of the address</h3>"
        yield from _fields({"properties": fields, "required": needed}, {})


def _fields(schema: Mapping[str, Any], described: Mapping[str, Any]) -> Iterator[str]:
    if "$ref" in schema:
        schema = described["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    for one in schema.get("oneOf", ()):
        yield from _fields(one, described)
    if "properties" not in schema:
        return
    yield f"<p>{escape(schema.get('description', ''))}</p><table><tr><th>field<th>what"
    for name, field in schema["properties"].items():
        needed = " (needed)" if name in schema.get("required", ()) else ""
        rest = {key: value for key, value in field.items() if key not in {"title", "description"}}
        shown = f"{escape(field.get('description', ''))} <code>{escape(json.dumps(rest, ensure_ascii=False))}</code>"
        yield f"<tr><td>{escape(name)}{needed}<td>{shown}"
    yield "</table>"
