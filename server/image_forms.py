"""Edits sent as forms: files, and fields whose names tell how they lie in each other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile

from .errors import FieldError

Source = tuple[str, str | bytes]  # where the request has a picture, and a file's bytes or a text
IMAGES = ("image", "image[]", "images", "images[]", "url", "url[]")
MASK = "mask"
OBJECTS = ("lora", "loras", "switches", "images", MASK)  # these may be JSON
FIELD = re.compile(r"(\w+)(?:\[(\w*)\])?(?:\[(\w+)\])?")  # a, a[b], a[][b], a[0][b]


async def read_form(
    request: Request, most: int
) -> tuple[dict[str, Any], list[Source], Source | None]:
    """The fields of a form as they would be in JSON, its pictures in their order, and its mask.

    most: bytes of one field. Raises FieldError.
    """
    fields: list[tuple[str, str]] = []
    pictures: list[Source] = []
    masks: list[Source] = []
    async with request.form(max_part_size=most) as form:
        for key, value in form.multi_items():
            if key in IMAGES or key == MASK:
                source = await value.read() if isinstance(value, UploadFile) else value
                (masks if key == MASK else pictures).append((key, source))
            elif isinstance(value, UploadFile):
                raise FieldError(key, f"no such file is taken; allowed: {', '.join(IMAGES)}, mask")
            elif value or key == "prompt":
                fields.append((key, value))
    if len(masks) > 1:
        raise FieldError(MASK, "it is given twice; give it once")
    return nested(fields), pictures, next(iter(masks), None)


def nested(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Fields of a form as JSON would have them, with texts for numbers.

    `a[b]` is an object, `a[0][b]` and `a[][b]` are lists of them, as clients write them. Raises
    FieldError for a field that is given twice, or a list whose parts belong to no one.
    """
    plain: dict[str, Any] = {}
    objects: dict[str, dict[str | None, dict[str, list[str]]]] = {}
    for key, text in pairs:
        found = FIELD.fullmatch(key)
        name, index, part = found.groups() if found else (key, None, None)
        if index is None:
            if name in plain:
                raise FieldError(key, "it is given twice; give it once")
            plain[name] = _parsed(name, text)
        else:
            place = (None, index) if part is None else (index, part)
            texts = objects.setdefault(name, {}).setdefault(place[0], {})
            texts.setdefault(place[1], []).append(text)
    if both := plain.keys() & objects.keys():
        raise FieldError(min(both), "it is given twice, as one field and in parts; give it once")
    return plain | {name: _joined(name, parts) for name, parts in objects.items()}


def _parsed(name: str, text: str) -> Any:
    if name not in OBJECTS:
        return text
    try:
        return json.loads(text)
    except ValueError:
        raise FieldError(name, f"received {text[:80]!r}, which is no JSON") from None


def _joined(name: str, by_index: dict[str | None, dict[str, list[str]]]) -> Any:
    if list(by_index) == [None]:
        return _single(name, by_index[None])
    if list(by_index) == [""]:
        return _rows(name, by_index[""])
    if not all(index and index.isdecimal() for index in by_index):
        raise FieldError(
            name, "some of its parts have a number and some have none; send it as JSON"
        )
    return [_single(name, by_index[index]) for index in sorted(by_index, key=lambda i: int(i or 0))]


def _single(name: str, parts: dict[str, list[str]]) -> dict[str, str]:
    if twice := [part for part, texts in parts.items() if len(texts) > 1]:
        raise FieldError(f"{name}[{twice[0]}]", "it is given twice; give it once")
    return {part: texts[0] for part, texts in parts.items()}


def _rows(name: str, columns: dict[str, list[str]]) -> list[dict[str, str]]:
    # clients write all of one part, then all of the next, and leave out what an element lacks
    if len({len(texts) for texts in columns.values()}) > 1:
        raise FieldError(
            name,
            f"which {', '.join(columns)} belong together cannot be told; give each of them to "
            "every element, or send the field as JSON",
        )
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
