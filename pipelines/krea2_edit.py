"""Krea 2 as a model that edits: up to three pictures, seen by its text encoder and its network.

Upstream: ostris/ai-toolkit@27a03a91 extensions_built_in/diffusion_models/krea2/krea2.py
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

from ..core.errors import InvalidInputError
from ..core.specs import ControlImages, Switch
from .krea2 import (
    KREA2_RAW,
    KREA2_TURBO,
    TOKEN,
    build_tiny_krea2,
    encode_krea2,
    load_krea2,
    render_krea2,
)

MAX_PIXELS = 1024**2  # of a picture as the network sees it, where it keeps its size
SIGHT_PIXELS = 384**2  # of a picture as the text encoder sees it
LEAST_SIGHT = 28  # px a side
MARKS = ("<|image_pad|>", "<|video_pad|>")  # in a prompt, the places of pictures and clips


def render_krea2_edit(context: Any) -> Any:
    """Krea 2 frames, uint8 (1, H, W, 3), as without editing if there are no control images."""
    return render_krea2(context, _seeing if context.control_images else None)


def check_pictures(request: Any, settings: Any) -> None:
    """Raises InvalidInputError for pictures and prompts that the trainer's own code fails on."""
    from ._qwen3_vl_vision import MOST_ASPECT

    for number, image in enumerate(request.control_images, 1):
        width, height = sight_size(*image.size)
        if max(width, height) > MOST_ASPECT * min(width, height):
            raise InvalidInputError(
                f"control image {number} is {image.width}x{image.height} px; its longer side may "
                f"be at most {MOST_ASPECT} times the shorter: crop it"
            )
    for prompt in (settings.prompt, settings.negative_prompt):
        for mark in MARKS:
            if mark in prompt:
                raise InvalidInputError(
                    f"the prompt has {mark}, which stands for a picture; take it out, pictures "
                    "come before the prompt by themselves"
                )


def sight_size(*size: int) -> tuple[int, int]:
    """The size in px at which the text encoder is handed a picture of this one."""
    scale = min(1.0, math.sqrt(SIGHT_PIXELS / math.prod(size)))
    first, second = (max(round(side * scale), LEAST_SIGHT) for side in size)
    return first, second


def _seeing(context: Any, pipeline: Any) -> tuple[Any, Any]:
    from ._krea2 import Shown

    images = [image.convert("RGB") for image in context.control_images]
    # a job's `ctrl_img` stands for `ctrl_img_1` too: the text encoder is shown both
    looked_at = images[:1] * context.settings.doubled_control + images
    encode = partial(encode_krea2, context, sights=[_sight(context, image) for image in looked_at])
    latents = tuple(_latents(context, pipeline.vae, image) for image in images)
    shown = Shown(latents, apart="kv_cache" in context.settings.switches)
    return encode, partial(pipeline.transformer, shown=shown)


def _sight(context: Any, image: Any) -> Any:
    from ._qwen3_vl_vision import cut, resized
    from ._render import unit_pixels

    model, (width, height) = context.model, sight_size(*image.size)
    picture = unit_pixels(image).to(model.device, model.dtype)
    if (width, height) != image.size:
        picture = resized(picture, height, width).clamp(0, 1)
    return cut(picture.float())


def _latents(context: Any, vae: Any, image: Any) -> Any:
    """A picture as the network sees it, (1, 16, h, w), drawn from what the VAE holds possible.

    The numbers come from the generator of the device, as the trainer's; on a CPU that is the one
    of the noise.
    """
    import torch

    from ._render import unit_pixels

    model, (width, height) = context.model, reference_size(context, *image.size)
    picture = unit_pixels(image)[None].to(model.device, model.dtype)
    if (width, height) != image.size:
        picture = torch.nn.functional.interpolate(picture, (height, width), mode="bilinear")
    latents = vae.encode((picture * 2 - 1)[:, :, None]).latent_dist.sample()[:, :, 0]
    mean, deviation = (
        torch.tensor(values).view(1, -1, 1, 1).to(latents)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return (latents - mean) * (1.0 / deviation)


def reference_size(context: Any, width: int, height: int) -> tuple[int, int]:
    """The size in px at which the network sees a picture of this one: of whole tokens."""
    area = MAX_PIXELS
    if filling := "match_target_res" in context.settings.switches:
        area = context.settings.width * context.settings.height
    wide, high = float(width), float(height)
    if filling or width * height > area:
        aspect = height / width
        high = math.sqrt(area * aspect)
        wide = high / aspect
    return max(TOKEN, round(wide / TOKEN) * TOKEN), max(TOKEN, round(high / TOKEN) * TOKEN)


# --- what users choose -------------------------------------------------------------------------

NOTES = (
    "Control images are seen twice: by the text encoder before the prompt (shrunk to 384x384 px in "
    "area, bicubic) and by the network (in the area of the sample, bilinear without smoothing).",
    "A job that names its first picture `ctrl_img` shows it to the text encoder twice.",
    "The network's latents of a picture are drawn, not the VAE's mode, and before the noise, from "
    "the generator of the device: a CPU cannot show that CUDA draws the same.",
    "Pictures see only one another in the network, as the trainer's UI sets it (`kv_cache`) since "
    "0.10.22; LoRAs of jobs without it expect that they see everything: turn the switch off.",
)
O_EDIT = replace(
    KREA2_RAW,
    id="krea2_o_edit",
    title="Krea 2 Raw, editing",
    task="edit",
    arch="krea2:o_edit",
    since="krea2_edit",
    control_images=ControlImages(0, 3, doubled=True),
    check_images=check_pictures,
    switches=(
        Switch("kv_cache", known="krea2_references_apart", usual="krea2_references_apart"),
        Switch("match_target_res", usual="krea2_references_apart"),
    ),
    notes=(*NOTES, *KREA2_RAW.notes),
    load=partial(load_krea2, seeing=True),
    render=render_krea2_edit,
    build_tiny=lambda seed: build_tiny_krea2(seed, deepstack=(0, 1, 2)),
)
O_EDIT_TURBO = replace(
    O_EDIT,
    id="krea2_o_edit_turbo",
    title="Krea 2 Turbo, editing",
    arch="krea2:o_edit_turbo",
    repo_id=KREA2_TURBO.repo_id,
    defaults=replace(KREA2_TURBO.defaults, steps=8),
    build_tiny=lambda seed: build_tiny_krea2(seed, layers=1, deepstack=(0, 1, 2)),
)
MODELS = (O_EDIT, O_EDIT_TURBO)
