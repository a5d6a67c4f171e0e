"""Packed weights on disk: read instead of made again, and made again where they are damaged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ai_toolkit_inference import Engine, SampleRequest
from ai_toolkit_inference.core.requests import Recipe
from ai_toolkit_inference.engine import quantized
from ai_toolkit_inference.quantization import base
from ai_toolkit_inference.quantization.base import Part, quantize_part
from ai_toolkit_inference.quantization.cache import PackedCache
from ai_toolkit_inference.quantization.quanto import QuantoBytes

RECIPE = Recipe("flux", weights="tiny", quantize="qfloat8")
REQUEST = SampleRequest(RECIPE, prompt="a cat", width=64, height=64, steps=1)
CPU = torch.device("cpu")


class LargestResult(TorchDispatchMode):
    """Remembers the largest tensor of floats that any operation made."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.is_floating_point():
            self.most = max(self.most, result.numel())
        return result


@pytest.fixture
def packs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for every weight that is quantized."""
    counted: list[int] = []
    pack = base._pack

    def counting(*args: Any) -> Any:
        counted.append(1)
        return pack(*args)

    monkeypatch.setattr(base, "_pack", counting)
    return counted


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Where the engine's packed weights are in this test."""
    monkeypatch.setattr(quantized, "cache_folder", lambda: tmp_path)
    yield tmp_path / "quantized"


def test_the_second_load_quantizes_nothing(packs: list[int], folder: Path) -> None:
    first = Engine("cpu").sample(REQUEST)
    made = len(packs)
    assert made == sum(first.info["quantized_layers"].values()) > 50
    second = Engine("cpu").sample(REQUEST)
    assert len(packs) == made
    assert (first.frames == second.frames).all()
    assert {file.name for file in folder.glob("*/*")} == {
        "transformer.safetensors", "text_encoder_2.safetensors"
    }  # fmt: skip


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_damaged_files_are_made_again(packs: list[int], folder: Path, damage: bytes | None) -> None:
    first = Engine("cpu").sample(REQUEST)
    made = len(packs)
    (file,) = folder.glob("*/transformer.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    second = Engine("cpu").sample(REQUEST)
    assert len(packs) == made + first.info["quantized_layers"]["transformer"]
    assert (first.frames == second.frames).all()
    assert file.read_bytes() == whole


def test_reading_makes_no_full_weights(tmp_path: Path) -> None:
    part = Part("part", "qint8")

    def model() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.Linear(512, 256)).bfloat16()

    stored = model()
    state = stored.state_dict()
    cache = PackedCache(tmp_path, "base")
    assert quantize_part(stored, part, CPU, cache) == 2
    again = model()
    again.load_state_dict(state)
    with LargestResult() as results:
        assert quantize_part(again, part, CPU, cache) == 2
    assert results.most <= 512  # scales, and no weights
    x = torch.randn(3, 256).bfloat16()
    assert torch.equal(stored(x), again(x))


def test_other_bases_have_other_files(tmp_path: Path) -> None:
    folders = {PackedCache(tmp_path, base)._folder for base in ("a", "b", ["a"], {"a": 1})}
    assert len(folders) == 4


def test_rows_that_lie_oddly_in_a_file_are_moved(tmp_path: Path) -> None:
    scheme, cache = QuantoBytes(torch.int8), PackedCache(tmp_path, "base")
    weight = torch.randn(24, 64).bfloat16()
    held = scheme.pack(weight)
    for length in range(1, 9):  # the header's length moves what is behind it
        path = "x" * length
        cache.write(path, {path: weight.shape}, {path: held})
        found = cache.read(path, {path: weight.shape})
        assert found is not None
        assert found[path]["codes"].data_ptr() % 16 == 0
        assert torch.equal(found[path]["codes"], held["codes"])
