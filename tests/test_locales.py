"""The nodes' texts in other languages: whole, and shown by ComfyUI's page as they are written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

LOCALES = Path(__file__).resolve().parent.parent / "locales"
FILES = sorted(LOCALES.glob("*/nodeDefs.json"))
CHINESE = re.compile("[\u4e00-\u9fff]")
CODE = re.compile(r"--\w+|hf://[\w/]+|\b[a-z]+(?:[_.][a-z0-9]+)+\b|\[\w+\]")  # names and flags


def read(language: str) -> dict[str, str]:
    """Every text by its place: `AIToolkitSample.inputs.prompt.tooltip`."""
    file = LOCALES / language / "nodeDefs.json"
    return dict(_flat("", json.loads(file.read_text(encoding="utf-8"))))


def _flat(place: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield place, value
    else:
        for name, inner in value.items():
            yield from _flat(f"{place}.{name}".lstrip("."), inner)


def test_the_languages() -> None:
    assert [file.parent.name for file in FILES] == ["en", "zh"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)
def test_no_text_has_a_sign_that_the_page_reads_as_code(file: Path) -> None:
    """vue-i18n fills in `{}`, links with `@` and chooses at `|`."""
    for place, text in read(file.parent.name).items():
        assert text.strip() == text != "", place
        assert not set("{}@|") & set(text), (place, text)


def test_chinese_has_every_text_in_chinese() -> None:
    english, chinese = read("en"), read("zh")
    assert list(chinese) == list(english)
    assert not [place for place, text in chinese.items() if not CHINESE.search(text)]


def test_names_of_files_settings_and_flags_are_not_translated() -> None:
    english, chinese = read("en"), read("zh")
    for place, text in english.items():
        if not place.endswith(".name"):
            missing = [code for code in CODE.findall(text) if code not in chinese[place]]
            assert not missing, (place, missing)
