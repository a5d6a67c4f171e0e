"""FLUX.2's network and VAE as the trainer computes them, and their files.

The trainer has classes of its own. Those of diffusers give the same bytes in fp32 and bf16 once
they differ no more in: rotary angles in fp32, queries and keys normalised with one rounding more,
projections of a double block in one matrix, SiLU of the VAE as x * sigmoid(x) and its attention
by convolutions. Upstream: ostris/ai-toolkit@27a03a91
extensions_built_in/diffusion_models/flux2/src/{model,autoencoder}.py
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.bfl_names import FLUX2, FLUX2_VAE
from ..core.specs import ModelSpec
from ._bfl import count, fuse_joint_attention, read_released, shapes_in
from ._loading import part_path
from ._qwen3_vl import read_qwen_tokenizer
from ._text import encoder_config

NORMS = ("norm_q", "norm_k", "norm_added_q", "norm_added_k")


class _Angles(nn.Module):
    """Rotary embedding: (tokens, axes) to cosines and sines, each (tokens, head width)."""

    def __init__(self, theta: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.theta, self.widths = theta, widths

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        parts = [self._axis(ids[:, axis], width) for axis, width in enumerate(self.widths)]
        angles = torch.cat(parts, dim=-1).repeat_interleave(2, dim=-1)
        return angles.cos(), angles.sin()

    def _axis(self, positions: torch.Tensor, width: int) -> torch.Tensor:
        exponents = torch.arange(0, width, 2, device=positions.device) / width
        return positions[:, None] * (1.0 / self.theta**exponents)


class _HeadNorm(nn.Module):
    """RMS norm that rounds to the input's dtype before it is scaled."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        full = x.float()
        full = full * torch.rsqrt(full.square().mean(dim=-1, keepdim=True) + 1e-6)
        return full.to(x.dtype) * self.weight


class _LastNorm(nn.Module):
    """The norm before the last layer; its rows are shift, then scale, as released."""

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.norm, self.linear = stock.norm, stock.linear
        rows = self.linear.weight.chunk(2)  # diffusers: scale, then shift
        self.linear.weight = nn.Parameter(torch.cat(rows[::-1]), requires_grad=False)

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        shift, scale = self.linear(nn.functional.silu(embedding))[:, None].chunk(2, dim=-1)
        return (1 + scale) * self.norm(x) + shift


class _Swish(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(x)


class _ImageAttention(nn.Module):
    """The VAE's attention over pixels, its layers computed as convolutions of 1x1."""

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.group_norm, self.to_out = stock.group_norm, stock.to_out
        self.to_q, self.to_k, self.to_v = stock.to_q, stock.to_k, stock.to_v
        for layer in (self.to_q, self.to_k, self.to_v, self.to_out[0]):
            layer.forward = partial(_conv, layer)  # called as a module, so that it can be offloaded

    def forward(self, x: torch.Tensor, temb: Any = None) -> torch.Tensor:
        normed = self.group_norm(x)
        query, key, value = (
            layer(normed).flatten(2).mT[:, None].contiguous()  # (N, 1, H * W, C)
            for layer in (self.to_q, self.to_k, self.to_v)
        )
        attended = nn.functional.scaled_dot_product_attention(query, key, value)
        return x + self.to_out[0](attended[:, 0].mT.reshape(x.shape))


def _conv(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return nn.functional.conv2d(x, layer.weight[:, :, None, None], layer.bias)


def adapt_flux2(name: str, module: Any) -> None:
    """Makes a transformer or VAE of diffusers, loaded or empty, compute as the trainer's."""
    if name == "transformer":
        _adapt_transformer(module)
    elif name == "vae":
        _adapt_vae(module)


def _adapt_transformer(transformer: Any) -> None:
    config = transformer.config
    transformer.pos_embed = _Angles(config.rope_theta, tuple(config.axes_dims_rope))
    transformer.norm_out = _LastNorm(transformer.norm_out)
    for block in transformer.transformer_blocks:
        fuse_joint_attention(block.attn)
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        for norm in NORMS:
            if hasattr(block.attn, norm):
                setattr(block.attn, norm, _HeadNorm(getattr(block.attn, norm).weight))


def _adapt_vae(vae: Any) -> None:
    for side in (vae.encoder, vae.decoder):
        side.conv_act = _Swish()
        side.mid_block.attentions[0] = _ImageAttention(side.mid_block.attentions[0])
    for part in vae.modules():
        if type(part).__name__ == "ResnetBlock2D":
            part.nonlinearity = _Swish()


# --- files -----------------------------------------------------------------------------------


def load_flux2(
    spec: ModelSpec, source: Path, dtype: torch.dtype, folder: Path | None = None
) -> dict[str, Any]:
    """The parts of a checkpoint.

    source: a folder as diffusers has it; or the released transformer in a file, with the VAE's
    beside it or in `folder` as the rest.
    Upstream: ostris/ai-toolkit@27a03a91
    extensions_built_in/diffusion_models/flux2/flux2_model.py::Flux2Model.load_model
    """
    import diffusers

    rest = folder or source
    parts = {
        "tokenizer": read_chat_tokenizer(part_path(spec, rest, "tokenizer")),
        "text_encoder": _text_encoder(part_path(spec, rest, "text_encoder"), dtype),
    }
    if folder is None:
        parts["transformer"] = _stock(diffusers.Flux2Transformer2DModel, source, dtype)
    else:
        parts["transformer"] = _released_transformer(source, dtype)
    for name, file in spec.beside:
        if folder is not None and source.with_name(file).is_file():
            return parts | {name: _released_vae(source.with_name(file), dtype)}
    return parts | {"vae": _stock(diffusers.AutoencoderKLFlux2, rest, dtype)}


def _stock(module_class: Any, folder: Path, dtype: torch.dtype) -> Any:
    name = "vae" if "Autoencoder" in module_class.__name__ else "transformer"
    reading: dict[str, Any] = {"use_safetensors": True, "torch_dtype": dtype}
    module = module_class.from_pretrained(str(folder), subfolder=name, **reading)
    adapt_flux2(name, module)
    return module


def _text_encoder(path: str, dtype: torch.dtype) -> Any:
    # without the parts of Mistral that look at pictures
    import transformers

    config = encoder_config(path)
    module_class: Any = getattr(transformers, config.architectures[0])
    encoder = module_class.from_pretrained(
        path, config=config, use_safetensors=True, torch_dtype=dtype
    )
    if hasattr(encoder.model, "vision_tower"):
        encoder.model.vision_tower = encoder.model.multi_modal_projector = None
    return encoder


def read_chat_tokenizer(path: str) -> Any:
    """The tokenizer of Qwen3 or Mistral in a folder or repository, with its chat template.

    Mistral's is part of a processor, which needs torchvision; for text the tokenizer will do.
    """
    import transformers

    folder = Path(path)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        wanted = ["tokenizer*", "vocab.json", "merges.txt", "special_tokens*", "chat_template*"]
        folder = Path(snapshot_download(path, allow_patterns=wanted))
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    if str(settings.get("tokenizer_class", "")).startswith("Qwen2"):
        return read_qwen_tokenizer(folder)
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(str(folder))
    template = folder / "chat_template.json"  # as processors have had it
    if tokenizer.chat_template is None and template.is_file():
        tokenizer.chat_template = json.loads(template.read_text(encoding="utf-8"))["chat_template"]
    return tokenizer


def _released_transformer(file: Path, dtype: torch.dtype) -> Any:
    from accelerate import init_empty_weights

    with init_empty_weights():
        transformer = _transformer_of(shapes_in(file))
    return read_released(transformer, file, FLUX2, dtype)


def _transformer_of(shapes: dict[str, list[int]]) -> Any:
    import diffusers

    width, channels = shapes["img_in.weight"]
    head = shapes["double_blocks.0.img_attn.norm.query_norm.scale"][0]
    transformer: Any = diffusers.Flux2Transformer2DModel(
        in_channels=channels,
        num_layers=count(shapes, "double_blocks."),
        num_single_layers=count(shapes, "single_blocks."),
        attention_head_dim=head,
        num_attention_heads=width // head,
        joint_attention_dim=shapes["txt_in.weight"][1],
        mlp_ratio=shapes["double_blocks.0.img_mlp.2.weight"][1] / width,
        axes_dims_rope=(head // 4,) * 4,
        guidance_embeds="guidance_in.in_layer.weight" in shapes,
    )
    adapt_flux2("transformer", transformer)
    return transformer


def _released_vae(file: Path, dtype: torch.dtype) -> Any:
    import diffusers
    from accelerate import init_empty_weights

    shapes = shapes_in(file)

    def widths(side: str) -> tuple[int, ...]:
        levels = range(count(shapes, f"{side}."))
        return tuple(shapes[f"{side}.{level}.block.0.conv1.weight"][0] for level in levels)

    with init_empty_weights():
        vae: Any = diffusers.AutoencoderKLFlux2(
            block_out_channels=widths("encoder.down"),
            decoder_block_out_channels=widths("decoder.up"),  # fewer in the small decoder
            layers_per_block=count(shapes, "encoder.down.0.block."),
            latent_channels=shapes["decoder.conv_in.weight"][1],
        )
        adapt_flux2("vae", vae)
    return read_released(vae, file, FLUX2_VAE, dtype)
