"""Seeded random layers of every kind, bound to modules by hand or written to files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ai_toolkit_inference.adapters.apply import Applied
from ai_toolkit_inference.adapters.bind import BoundLayer
from ai_toolkit_inference.adapters.dora import DoraLayer
from ai_toolkit_inference.adapters.full import DiffLayer, FullRankLayer
from ai_toolkit_inference.adapters.layer import Layer
from ai_toolkit_inference.adapters.lokr import LokrLayer
from ai_toolkit_inference.adapters.lora import LoraLayer

ENDINGS = {
    "down": "lora_down.weight",
    "up": "lora_up.weight",
    **{part: f"lokr_{part}" for part in ("w1", "w2", "w2_a", "w2_b")},
}


@pytest.fixture(scope="session")
def bound() -> Callable[..., BoundLayer]:
    """A layer for a module; `exact` ones are small multiples of 1/8, so that sums are exact."""

    def bound(
        module: Any,
        seed: int = 0,
        rank: int = 4,
        scale: float = 1.0,
        exact: bool = False,
        path: str = "unet.layer",
    ) -> BoundLayer:
        generator = torch.Generator().manual_seed(seed)
        shape = module.weight.shape

        def draw(*sides: int) -> torch.Tensor:
            if exact:
                return torch.randint(-8, 9, sides, generator=generator) / 8
            return torch.randn(sides, generator=generator)

        down = draw(rank, *shape[1:])
        up = draw(shape[0], rank, *(1,) * (len(shape) - 2))
        return BoundLayer(path, module, LoraLayer(path, scale * rank, down, up))

    return bound


@pytest.fixture(scope="session")
def applied() -> Callable[..., Applied]:
    """Layers as one adapter: applied([layer], 0.5, live=True)."""

    def applied(
        layers: list[BoundLayer], multiplier: float = 1.0, live: bool = False, digest: str = "a"
    ) -> Applied:
        return Applied(digest, tuple(layers), multiplier, live)

    return applied


@pytest.fixture(scope="session")
def draw_layer() -> Callable[..., Layer]:
    """A seeded random layer of a kind, in the shapes of a module."""

    def draw_layer(kind: str, module: Any, seed: int = 0, alpha: float | None = 2.0) -> Layer:
        generator = torch.Generator().manual_seed(seed)
        out, *inner = module.weight.shape

        def draw(*sides: int) -> torch.Tensor:
            return torch.randn(sides, generator=generator) / 8

        if kind in ("lora", "dora"):
            parts = {"down": draw(4, *inner), "up": draw(out, 4, *(1,) * (len(inner) - 1))}
            if kind == "dora":
                lengths = module.weight.float().flatten(1).norm(dim=1)
                return DoraLayer("x", alpha, **parts, magnitude=lengths * (1 + draw(out)))
            return LoraLayer("x", alpha, **parts)
        if kind == "lokr":
            return LokrLayer("x", alpha, draw(2, 2), draw(out // 2, inner[0] // 2, *inner[1:]))
        if kind == "lokr factored":
            sides = module.weight[0].numel() // 2
            return LokrLayer("x", alpha, draw(2, 2), None, draw(out // 2, 3), draw(3, sides))
        if kind == "fullrank":
            return FullRankLayer("x", None, draw(out, *inner))
        bias = draw(out) if kind == "diff" else None
        return DiffLayer("x", None, draw(out, *inner), bias)

    return draw_layer


@pytest.fixture(scope="session")
def write_layers() -> Callable[..., Path]:
    """Writes layers as a file: write_layers(path, {"transformer.a": layer}, metadata)."""

    def write_layers(
        path: Path, layers: dict[str, Layer], metadata: dict[str, str] | None = None
    ) -> Path:
        tensors = {}
        for name, layer in layers.items():
            for part in fields(layer):
                if isinstance(value := getattr(layer, part.name), torch.Tensor):
                    tensors[f"{name}.{ENDINGS.get(part.name, part.name)}"] = value.contiguous()
            if layer.alpha is not None:
                tensors[f"{name}.alpha"] = torch.tensor(layer.alpha)
        save_file(tensors, path, metadata)
        return path

    return write_layers
