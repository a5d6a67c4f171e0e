"""The image-as-a-frame VAE of Qwen-Image: how it rounds, its tiles, and a toy one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from ..core.versions import Profile

NORMS = ("QwenImageRMS_norm", "WanRMS_norm")  # diffusers has the same layer under both names


@contextmanager
def norms_of(vae: Any, profile: Profile, change: str = "vae_norm_in_fp32") -> Iterator[None]:
    """The VAE's norms computing as this trainer version lets them.

    change: the row of core.versions.CHANGES since which they do it in fp32. Enter it before a
    pipeline is offloaded: offloading wraps what it finds.
    """
    if profile.has(change):
        yield
        return
    norms = [module for module in vae.modules() if type(module).__name__ in NORMS]
    for norm in norms:
        norm.forward = partial(_norm_in_own_dtype, norm)
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


@contextmanager
def in_tiles(vae: Any, tiled: bool) -> Iterator[None]:
    """The VAE working in overlapping tiles of 256 px, or at once."""
    if not tiled:
        yield
        return
    vae.enable_tiling()
    try:
        yield
    finally:
        vae.disable_tiling()


def is_tiled(context: Any) -> bool:
    """Whether the trainer's VAE of Qwen-Image and its edit models works in tiles."""
    return context.settings.low_vram and context.profile.has("qwen_tiled_vae")


def _norm_in_own_dtype(norm: Any, x: torch.Tensor) -> torch.Tensor:
    # Upstream: huggingface/diffusers@8600b4c1
    # src/diffusers/models/autoencoders/autoencoder_kl_qwenimage.py::QwenImageRMS_norm
    unit = torch.nn.functional.normalize(x, dim=1 if norm.channel_first else -1)
    return unit * norm.scale * norm.gamma + norm.bias


def tiny_qwen_vae(seed: int) -> torch.nn.Module:
    """A Qwen-Image VAE of 16 channels and factor 8, 8 wide at its narrowest."""
    from diffusers import AutoencoderKLQwenImage

    from ._tiny import fill

    return fill(AutoencoderKLQwenImage(base_dim=8, num_res_blocks=1), seed)
