"""The pictures that FLUX.2 is shown: tokens behind those of the sample.

Upstream: ostris/ai-toolkit@27a03a91
extensions_built_in/diffusion_models/flux2/src/sampling.py::encode_image_refs
"""

from __future__ import annotations

import math
from typing import Any

import torch

from ..core.errors import InvalidInputError
from ._render import unit_pixels

MAX_PIXELS = 1024**2  # of one picture; larger ones are shrunk
LEAST_SIDE = 64  # px
MOST_ASPECT = 8  # of a picture's sides
TOKEN = 16  # px a side
APART = 10  # frames between a picture and the next, of which the sample is the first


def check_references(request: Any, _settings: Any) -> None:
    """Raises InvalidInputError for pictures that the trainer's own code fails on."""
    model, dtype = request.recipe.model, request.recipe.dtype
    for number, image in enumerate(request.control_images, 1):
        width, height = image.size
        aspect = max(width, height) / min(width, height)
        if min(width, height) < LEAST_SIDE or aspect > MOST_ASPECT:
            raise InvalidInputError(
                f"control image {number} is {width}x{height} px; {model} takes "
                f"sides of {LEAST_SIDE} px or more, the longer one at most {MOST_ASPECT} times the "
                "shorter: crop or enlarge it"
            )
    if dtype == "fp16":
        raise InvalidInputError(
            f"{model} with control images in fp16: their tokens are bf16, which the trainer fails "
            "to join with fp16; use dtype bf16 or fp32"
        )


def reference_tokens(context: Any, vae: Any) -> tuple[Any, Any]:
    """Of all pictures: tokens (1, N, 128), bf16 in every precision, and positions (N, 4), int64.

    Positions are (frame, y, x, 0). Without pictures, N is 0 and the precision the model's.
    """
    model, frame = context.model, 0
    tokens = [torch.empty(1, 0, 4 * model.spec.latent_channels, device=model.device)]
    positions = [torch.empty(0, 4, dtype=torch.int64)]
    dtype = torch.bfloat16 if context.control_images else model.dtype
    for image in context.control_images:
        frame += APART
        encoded = _encode(vae, _pixels(image).to(model.device, model.dtype))
        tokens.append(encoded.flatten(2).mT)
        sides = map(torch.arange, encoded.shape[2:])
        positions.append(torch.cartesian_prod(torch.tensor([frame]), *sides, torch.tensor([0])))
    return torch.cat(tokens, dim=1).to(dtype), torch.cat(positions).to(model.device)


def _pixels(image: Any) -> Any:
    """A picture as the VAE takes it, (1, 3, H, W), -1 to 1: shrunk, and cut to whole tokens."""
    from PIL import Image

    image = image.convert("RGB")
    width, height = image.size
    if width * height > MAX_PIXELS:
        scale = math.sqrt(MAX_PIXELS / (width * height))
        width, height = int(width * scale), int(height * scale)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    left, top = (width % TOKEN) // 2, (height % TOKEN) // 2
    right, bottom = left + width - width % TOKEN, top + height - height % TOKEN
    return 2 * unit_pixels(image.crop((left, top, right, bottom)))[None] - 1


def _encode(vae: Any, pixels: Any) -> Any:
    """What the VAE holds likeliest, as the network has it: (1, 128, H/16, W/16), normalised."""
    mean = vae.encode(pixels).latent_dist.mode()
    folded = mean.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 1, 4, 5, 2, 3).flatten(1, 3)
    average, variance = (x.to(pixels.device) for x in (vae.bn.running_mean, vae.bn.running_var))
    return torch.nn.functional.batch_norm(folded, average, variance, eps=vae.config.batch_norm_eps)
