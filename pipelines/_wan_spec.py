"""What the specs of Wan 2.1 and 2.2 share; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..core.errors import InvalidInputError
from ..core.prompts import floor_side
from ..core.specs import LoraLayout, Switch

UMT5 = "ai-toolkit/umt5_xxl_encoder"  # where the trainer takes the text encoder from
ELSEWHERE = (("text_encoder", UMT5), ("tokenizer", UMT5))
LORA = LoraLayout(
    prefixes=(("diffusion_model", "transformer"),),
    separator=".",
    alpha=False,
    targets=("blocks.",),
    base_model="wan_2.1",
    original="wan",
    writes_original=True,
)
TILING = Switch("vae_tiling", known="wan_tiled_vae")
NOTES = (
    "Trainers before 0.9.3 sample by UniPC from a noise level of 0.9997, later ones by Euler with "
    "the shift applied twice; the checkpoint's own scheduler does neither.",
    "The whole transformer is cast, its norms, time embedding and rotary tables too, which "
    "diffusers keeps in fp32: 18 to 30 levels in bf16.",
    "The negative prompt is given even if empty, and both prompts are repaired by ftfy, cut to 512 "
    "tokens and zeroed behind their last one.",
    "The text encoder's softmax is computed in fp32, as transformers before 5.15 does.",
    "The VAE decodes in bf16; trainers before 0.10.22 also normalise in it in bf16.",
)


def check_sides(grid: int) -> Callable[[Any], None]:
    """A ModelSpec.check for what the trainer fails on: sides off the grid, after the 8."""

    def check(settings: Any) -> None:
        for name in ("width", "height"):
            side = floor_side(getattr(settings, name), 8)
            if side % grid:
                low = floor_side(side, grid)
                raise InvalidInputError(
                    f"{name}={getattr(settings, name)}; the trainer makes it {side} and then "
                    f"fails, since sides must be multiples of {grid}: use {low} or {low + grid}"
                )

    return check


def check_saving_frames(settings: Any) -> None:
    """A ModelSpec.check for what the trainer fails on from a picture: frames unlike 4 n + 1."""
    frames = settings.num_frames
    if settings.low_vram and frames % 4 != 1:
        low = (frames - 1) // 4 * 4 + 1
        raise InvalidInputError(
            f"num_frames={frames} with low_vram on, at which the trainer fails: use {low} or "
            f"{low + 4}, or turn low_vram off"
        )
