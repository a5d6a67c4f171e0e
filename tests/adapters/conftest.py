"""Layers of seeded random LoRAs, bound to modules by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ai_toolkit_inference.adapters.apply import Applied
from ai_toolkit_inference.adapters.bind import BoundLayer
from ai_toolkit_inference.adapters.read import LoraLayer


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
        return BoundLayer(path, module, LoraLayer(path, down, up, scale * rank), scale)

    return bound


@pytest.fixture(scope="session")
def applied() -> Callable[..., Applied]:
    """Layers as one adapter: applied([layer], 0.5, live=True)."""

    def applied(
        layers: list[BoundLayer], multiplier: float = 1.0, live: bool = False, digest: str = "a"
    ) -> Applied:
        return Applied(digest, tuple(layers), multiplier, live)

    return applied
