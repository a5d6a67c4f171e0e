"""A LoRA layer fused into a weight as peft does it, in the precision of the weight."""

from __future__ import annotations

import torch
from torch.nn.functional import conv2d

from .lora import LoraLayer


def fuse(layer: LoraLayer, weight: torch.Tensor, device: torch.device) -> None:
    """Adds the layer's delta to the weight in place, rounding the delta by itself first.

    device: where it is computed; a CPU sums half precision in fp32, others round the product.
    Upstream: huggingface/peft src/peft/tuners/lora/layer.py::Linear.merge
    """
    dtype = weight.dtype
    down, up = (part.to(device, dtype) for part in (layer.down, layer.up))
    if device.type == "cpu":
        down, up = down.float(), up.float()
    if down.dim() == 4 and down.shape[2:] != (1, 1):
        delta = conv2d(down.permute(1, 0, 2, 3), up).permute(1, 0, 2, 3)
    else:
        delta = (up.flatten(1) @ down.flatten(1)).view(weight.shape)
    weight.copy_(weight.to(device) + (delta * layer.scale).to(dtype))
