"""Chroma's network as the trainer computes it, and its files.

The trainer has a class of its own. That of diffusers gives the same bytes in fp32 and bf16 once
the norms of its approximator have its epsilon and the projections of a block are in one matrix.
Upstream: ostris/ai-toolkit@27a03a91 extensions_built_in/diffusion_models/chroma/src/model.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.bfl_names import CHROMA
from ..core.specs import ModelSpec
from ._bfl import count, fuse_joint_attention, fused, read_released, shapes_in
from ._loading import part_path


class _ParallelAttention(nn.Module):
    """Attention and MLP of a single block between two linear layers."""

    def __init__(self, stock: Any) -> None:
        super().__init__()
        attention = stock.attn
        self.heads, self.act = attention.heads, stock.act_mlp
        self.norm_q, self.norm_k = attention.norm_q, attention.norm_k
        projections = attention.to_q, attention.to_k, attention.to_v, stock.proj_mlp
        self.to_qkv_mlp_proj, self.to_out = fused(*projections), stock.proj_out

    def forward(self, x: torch.Tensor, rotary: Any, mask: torch.Tensor) -> torch.Tensor:
        from diffusers.models.embeddings import apply_rotary_emb

        width = x.shape[-1]
        projected = self.to_qkv_mlp_proj(x)
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in projected[..., : 3 * width].chunk(3, dim=-1)
        )  # (B, heads, L, D)
        query: Any = apply_rotary_emb(self.norm_q(query), rotary)
        key: Any = apply_rotary_emb(self.norm_k(key), rotary)
        attended = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        attended = attended.transpose(1, 2).flatten(2)
        return self.to_out(torch.cat([attended, self.act(projected[..., 3 * width :])], dim=-1))


class _SingleBlock(nn.Module):
    """Stands for diffusers' single block."""

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.norm, self.attn = stock.norm, _ParallelAttention(stock)

    def forward(
        self,
        hidden_states: torch.Tensor,
        temb: torch.Tensor,
        image_rotary_emb: Any,
        attention_mask: torch.Tensor,  # (B, L), bool
        joint_attention_kwargs: Any = None,
    ) -> torch.Tensor:
        mask = attention_mask[:, None, None, :] & attention_mask[:, None, :, None]
        normed, gate = self.norm(hidden_states, emb=temb)
        return hidden_states + gate[:, None] * self.attn(normed, image_rotary_emb, mask)


def adapt_chroma(name: str, module: Any) -> None:
    """Makes a transformer of diffusers, loaded or empty, compute as the trainer's."""
    if name != "transformer":
        return
    for norm in module.distilled_guidance_layer.norms:
        norm.eps = 1e-6
    for block in module.transformer_blocks:
        fuse_joint_attention(block.attn)
    blocks = module.single_transformer_blocks
    for index, block in enumerate(blocks):
        blocks[index] = _SingleBlock(block)


def load_chroma(
    spec: ModelSpec, source: Path, dtype: torch.dtype, folder: Path | None = None
) -> dict[str, Any]:
    """The parts of a checkpoint.

    source: a folder as diffusers has it, or the released transformer in a file, with the rest in
    `folder`.
    Upstream: ostris/ai-toolkit@27a03a91
    extensions_built_in/diffusion_models/chroma/chroma_model.py::ChromaModel.load_model
    """
    import diffusers
    import transformers

    rest = folder or source
    reading: dict[str, Any] = {"torch_dtype": dtype, "use_safetensors": True}
    encoder_class: Any = transformers.T5EncoderModel
    tokenizer_class: Any = transformers.T5TokenizerFast  # type: ignore[attr-defined]
    parts = {
        "tokenizer": tokenizer_class.from_pretrained(**_place(spec, rest, "tokenizer")),
        "text_encoder": encoder_class.from_pretrained(
            **_place(spec, rest, "text_encoder"), **reading
        ),
        "vae": diffusers.AutoencoderKL.from_pretrained(**_place(spec, rest, "vae"), **reading),
    }
    if folder is not None:
        return parts | {"transformer": _released_transformer(source, dtype)}
    transformer = diffusers.ChromaTransformer2DModel.from_pretrained(
        str(source), subfolder="transformer", **reading
    )
    adapt_chroma("transformer", transformer)
    return parts | {"transformer": transformer}


def _place(spec: ModelSpec, folder: Path, name: str) -> dict[str, str]:
    path = part_path(spec, folder, name)
    if Path(path).is_dir():
        return {"pretrained_model_name_or_path": path}
    owner, repository, subfolder = path.split("/")  # of a repository elsewhere
    return {"pretrained_model_name_or_path": f"{owner}/{repository}", "subfolder": subfolder}


def _released_transformer(file: Path, dtype: torch.dtype) -> Any:
    import diffusers
    from accelerate import init_empty_weights

    shapes = shapes_in(file)
    width, channels = shapes["img_in.weight"]
    head = shapes["double_blocks.0.img_attn.norm.query_norm.scale"][0]
    approximator = "distilled_guidance_layer"
    with init_empty_weights():
        transformer: Any = diffusers.ChromaTransformer2DModel(
            in_channels=channels,
            num_layers=count(shapes, "double_blocks."),
            num_single_layers=count(shapes, "single_blocks."),
            attention_head_dim=head,
            num_attention_heads=width // head,
            joint_attention_dim=shapes["txt_in.weight"][1],
            axes_dims_rope=(head // 8, head * 7 // 16, head * 7 // 16),
            approximator_num_channels=shapes[f"{approximator}.in_proj.weight"][1],
            approximator_hidden_dim=shapes[f"{approximator}.in_proj.weight"][0],
            approximator_layers=count(shapes, f"{approximator}.layers."),
        )
        adapt_chroma("transformer", transformer)
    return read_released(transformer, file, CHROMA, dtype)
