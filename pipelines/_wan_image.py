"""What Wan 2.1 sees of the picture that a clip starts from: by CLIP, and as its first frame.

Upstream: huggingface/diffusers@c9438378
src/diffusers/pipelines/wan/pipeline_wan_i2v.py::WanImageToVideoPipeline
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.versions import Profile
from ._render import RenderContext
from ._wan import latent_scale, latent_shape, whole_frames

MASK_CHANNELS = 4  # one for each frame of a latent


@dataclass(frozen=True)
class ClipPixels:
    """How CLIP's image processor makes pixels of a picture. size: px, of the square it sees."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def of(self, image: Any, profile: Profile) -> torch.Tensor:
        """An RGB picture, its shorter side shrunk and its middle cut out: fp32 (1, 3, S, S)."""
        wide, high = (int(self.size * side / min(image.size)) for side in image.size)
        if profile.has("wan_image_by_torchvision"):
            return self._by_torchvision(image, wide, high)
        return self._by_pillow(image, wide, high)

    def _by_pillow(self, image: Any, wide: int, high: int) -> torch.Tensor:
        from PIL import Image

        resized = np.asarray(image.resize((wide, high), Image.Resampling.BICUBIC))
        levels = (self._middle(resized.transpose(2, 0, 1)) * (1 / 255)).astype(np.float32)
        mean, std = (np.array(x, np.float32)[:, None, None] for x in (self.mean, self.std))
        return torch.from_numpy((levels - mean) / std)[None]

    def _by_torchvision(self, image: Any, wide: int, high: int) -> torch.Tensor:
        # torchvision's resize of whole numbers is torch's own
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].contiguous()
        resized = torch.nn.functional.interpolate(
            pixels, (high, wide), mode="bicubic", align_corners=False, antialias=True
        )
        mean, std = (
            (torch.tensor(x) * (1.0 / (1 / 255))).view(-1, 1, 1) for x in (self.mean, self.std)
        )
        return (self._middle(resized).float() - mean) / std

    def _middle(self, pixels: Any) -> Any:
        top, left = ((side - self.size) // 2 for side in pixels.shape[-2:])
        return pixels[..., top : top + self.size, left : left + self.size]


def read_clip_pixels(folder: Path) -> ClipPixels:
    """The numbers of a CLIP image processor's folder."""
    config = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    size = int(config["crop_size"]["height"])
    if config["size"] != {"shortest_edge": size}:
        raise ValueError(f"{folder} resizes to {config['size']} and cuts {size} px out")
    return ClipPixels(size, tuple(config["image_mean"]), tuple(config["image_std"]))


def fitted(context: RenderContext) -> Any:
    """The control image in the sample's size, stretched."""
    from PIL import Image

    size = (context.settings.width, context.settings.height)
    return context.control_images[0].convert("RGB").resize(size, Image.Resampling.LANCZOS)


def clip_hidden(context: RenderContext, image: Any, pixels: ClipPixels) -> torch.Tensor:
    """What CLIP makes of a picture: its last but one hidden state, (1, tokens, C)."""
    model = context.model
    given = pixels.of(image, context.profile).to(model.device)
    output = model.modules["image_encoder"](given, output_hidden_states=True)
    return output.hidden_states[-2].to(model.device, model.dtype)


def first_frame_condition(
    context: RenderContext, vae: Any, image: Any, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """What the network is given behind the noise: fp32 (1, 4 + C, f, h, w).

    Ones where frames are known, then the likeliest latents of the picture with nothing behind it,
    computed in a precision of their own.
    """
    device = context.model.device
    levels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    frames = whole_frames(context.settings.num_frames)
    clip = torch.zeros(1, 3, frames, image.height, image.width)
    clip[0, :, 0] = 2.0 * levels - 1.0
    posterior = vae.encode(clip.to(device, context.model.dtype)).latent_dist
    latents = posterior.mode().to(device, dtype)
    mean, scale = latent_scale(vae, latents)
    mask = torch.zeros(latent_shape(context, MASK_CHANNELS), device=device)
    mask[:, :, 0] = 1
    return torch.cat([mask, (latents - mean) * scale], dim=1)
