"""The tables of docs/server.md: settings, and the fields of a request."""

from __future__ import annotations

from typing import Any

from ai_toolkit_inference.server.schemas import InferenceRequest, Lora, Prompt
from ai_toolkit_inference.server.settings import SETTINGS

NAMES = {"array": "list", "object": "object", "boolean": "true, false", "string": "text"}


def tables() -> dict[str, str]:
    """The page's generated parts by name."""
    fields = {model.__name__: _fields(model) for model in (InferenceRequest, Prompt, Lora)}
    return {"settings": _settings(), **fields}


def _settings() -> str:
    lines = ["| flag | variable | default | meaning |", "|---|---|---|---|"]
    for setting in SETTINGS:
        usual = setting.usual and f"`{setting.usual}`"
        lines.append(f"| `{setting.flag}` | `{setting.env}` | {usual} | {setting.text} |")
    return "\n".join(lines)


def _fields(model: Any) -> str:
    schema = model.model_json_schema()
    lines = ["| field | default | allowed | meaning |", "|---|---|---|---|"]
    for name, field in schema["properties"].items():
        needed = name in schema.get("required", ())
        usual = "needed" if needed else _value(field.get("default"))
        meaning = field.get("description", "")
        lines.append(f"| `{name}` | {usual} | {_allowed(field)} | {meaning} |")
    return "\n".join(lines)


def _value(value: Any) -> str:
    text = "" if value in (None, "", [], {}) else str(value)
    return f"`{text.lower() if isinstance(value, bool) else text}`" if text else ""


def _allowed(field: dict[str, Any]) -> str:
    kinds = [one for one in field.get("anyOf", [field]) if one.get("type") != "null"]
    (kind,) = kinds
    if "enum" in kind:
        return ", ".join(f"`{value}`" for value in kind["enum"] if value)
    least, most = kind.get("minimum"), kind.get("maximum")
    bounds = [f"{least:g} or more"] if least is not None and most is None else []
    bounds += [f"{least} to {most}"] if most is not None else []
    many = [f"at most {kind['maxItems']}"] if "maxItems" in kind else []
    return ", ".join(bounds or [NAMES[kind["type"]], *many])
