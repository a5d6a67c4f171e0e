"""The scheme of every qtype."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from ..core.qtypes import NAMES
from .convrot import RotatedBits, RotatedBytes, RotatedRows4, RotatedTernary
from .float4 import Nvfp4, RotatedFloat4
from .orbit import Orbit
from .orbit_vq import OrbitPoints
from .quanto import QuantoBits, QuantoBytes
from .scheme import Scheme
from .torchao import Float8Rows, Int8Rows, UintGroups

_MADE_BY: dict[str, Callable[[], Scheme]] = {
    "qfloat8": partial(QuantoBytes, torch.float8_e4m3fn),
    "qfloat8_e4m3fn": partial(QuantoBytes, torch.float8_e4m3fn),
    "qfloat8_e5m2": partial(QuantoBytes, torch.float8_e5m2),
    "qint8": partial(QuantoBytes, torch.int8),
    "qint4": partial(QuantoBits, 4),
    "qint2": partial(QuantoBits, 2),
    "float8": Float8Rows,
    **{f"uint{bits}": partial(UintGroups, bits) for bits in range(2, 8)},
    "int8": Int8Rows,
    **{f"orbit{bits}": partial(Orbit, bits) for bits in (2, 3, 4)},
    **{f"orbitvq{bits}": partial(OrbitPoints, bits) for bits in (2, 3, 4)},
    "convrot8": RotatedBytes,
    "convrot4": RotatedFloat4,
    **{f"convrotint{bits}": partial(RotatedBits, bits) for bits in range(2, 9)},
    "convrotbitnet": RotatedTernary,
    "convrotcomfyw4a4": RotatedRows4,
    "nvfp4": Nvfp4,
}
UNCHANGED = ("uint8",)  # the trainer fails at it, layer by layer, and goes on
assert {*_MADE_BY, *UNCHANGED} == set(NAMES)


def scheme_of(qtype: str) -> Scheme | None:
    """The scheme of a qtype, None for one that leaves weights as they are."""
    return None if qtype in UNCHANGED else _MADE_BY[qtype]()
