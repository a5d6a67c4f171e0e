"""Tiny models whose modules files name in many ways, and layers for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch

from ai_toolkit_inference import get_model
from ai_toolkit_inference.adapters.bind import Binding
from ai_toolkit_inference.adapters.lora import LoraLayer
from ai_toolkit_inference.adapters.names import (
    spellings,
)

KINDS = torch.nn.Linear | torch.nn.Conv2d
EXPERTS = ("transformer", "transformer_2")


def sdxl_unet() -> Any:
    """A U-Net of SDXL's structure, with 8 channels for its 320."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        block_out_channels=(8, 16, 16),
        layers_per_block=2,
        norm_num_groups=8,
        attention_head_dim=(2, 2, 2),
        cross_attention_dim=12,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 3),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=60,
    )


def flux() -> Any:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )


def wan(image: bool = False) -> Any:
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        image_dim=20 if image else None,
        added_kv_proj_dim=24 if image else None,
    )


def ltx2() -> Any:
    from diffusers import LTX2VideoTransformer3DModel

    return LTX2VideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        audio_in_channels=8,
        audio_out_channels=8,
        audio_num_attention_heads=2,
        audio_attention_head_dim=8,
        audio_cross_attention_dim=16,
        num_layers=2,
        caption_channels=12,
    )


def krea2() -> Any:
    from diffusers import Krea2Transformer2DModel

    return Krea2Transformer2DModel(
        in_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        timestep_embed_dim=8,
        text_hidden_dim=16,
        num_text_layers=3,
        text_num_attention_heads=1,
        text_num_key_value_heads=1,
        text_intermediate_size=32,
        axes_dims_rope=(4, 6, 6),
    )


def adapted(name: str) -> Any:
    """The denoiser of a tiny checkpoint, as it is made the trainer's."""
    spec = get_model(name)
    module = spec.build_tiny(0)["transformer"]
    spec.adapt("transformer", module)
    return module


BUILDS: dict[str, Callable[[], Any]] = {
    "sgm": sdxl_unet,
    "bfl-flux": flux,
    "wan": wan,
    "wan i2v": lambda: wan(image=True),
    "ltx2": ltx2,
    "krea2": krea2,
    "flux2": lambda: adapted("flux2"),
    "chroma": lambda: adapted("chroma"),
}


@cache
def model(name: str) -> Any:
    """A tiny model, shared: leave it as it was."""
    torch.manual_seed(0)
    return BUILDS[name]().eval().requires_grad_(False)


def spec_of(name: str) -> Any:
    """A spec whose denoiser has these original names."""
    spec = get_model("sdxl" if name == "sgm" else "flux")
    return replace(spec, lora=replace(spec.lora, original=name.split()[0]))


def two_experts() -> Any:
    spec = spec_of("wan")
    return replace(spec, lora=replace(spec.lora, experts=EXPERTS))


def trained(module: torch.nn.Module) -> dict[str, torch.nn.Module]:
    return {path: part for path, part in module.named_modules() if isinstance(part, KINDS)}


def lora(seed: int, *modules: Any, rank: int = 2) -> LoraLayer:
    """A random layer for a module, or for several that are fused in the file."""
    generator = torch.Generator().manual_seed(seed)
    rows = sum(module.weight.shape[0] for module in modules)
    inner = modules[0].weight.shape[1:]
    up = torch.randn(rows, rank, *(1,) * (len(inner) - 1), generator=generator)
    return LoraLayer("x", None, torch.randn(rank, *inner, generator=generator), up)


def paths(binding: Binding) -> dict[str, str]:
    """Name in the file -> component.module."""
    assert binding.complete, (binding.unbound[:3], binding.mismatched[:3])
    assert len({bound.path for bound in binding.bound}) == len(binding.bound)
    return {bound.layer.name: bound.path for bound in binding.bound}


def original(name: str, path: str) -> str:
    """The name of the first release: the one after the module's own."""
    return [spelled for spelled, _ in spellings(path, name.split()[0])][:2][-1]
