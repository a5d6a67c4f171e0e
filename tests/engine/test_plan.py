"""Which files of an adapter go where, decided before any weight is read."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ai_toolkit_inference import get_model
from ai_toolkit_inference.core.errors import InvalidInputError
from ai_toolkit_inference.core.requests import AdapterRef
from ai_toolkit_inference.engine.plan import adapter_files


@pytest.mark.parametrize(
    ("path", "low", "files"),
    [
        ("a", "b", [("a", "high"), ("b", "low")]),
        ("a", "", [("a", "high")]),
        ("", "b", [("b", "low")]),
    ],
)
def test_a_model_with_two_experts_takes_a_pair(path, low, files):
    flux = get_model("flux")
    lora = replace(flux.lora, experts=("transformer", "transformer_2"))
    assert adapter_files(replace(flux, lora=lora), AdapterRef(path, low=low)) == files


def test_a_model_with_one_transformer_takes_one_file():
    assert adapter_files(get_model("flux"), AdapterRef("a")) == [("a", "")]
    for path in ("a", ""):
        with pytest.raises(InvalidInputError, match=r"flux has one transformer.*'b' has no place"):
            adapter_files(get_model("flux"), AdapterRef(path, low="b"))


def test_an_adapter_without_any_file_is_refused():
    with pytest.raises(InvalidInputError, match="needs a file"):
        AdapterRef("")
