"""Krea 2's network, computing as the trainer's own on the modules of diffusers.

diffusers' forward differs in the last bits: the trainer pads the tokens to a multiple of 256 and
masks the padding, and adds a norm's scale to one in fp32, from a scale that it has rounded.
Upstream: ostris/ai-toolkit@27a03a91
extensions_built_in/diffusion_models/krea2/src/mmdit.py::SingleStreamDiT
"""

from __future__ import annotations

import inspect
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..core.released_names import KREA2
from ._bfl import read_released

BLOCK = 256  # tokens; the sequence is padded to a multiple
PATCH = 2  # latents a side
# In this order: a GPU has several kernels for grouped heads with a mask.
KERNELS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
# torch 2.6 and newer take the order
ORDERED = {"set_priority": True} if "set_priority" in str(inspect.signature(sdpa_kernel)) else {}


def compute_as_trainer(network: Any) -> Any:
    """The network of diffusers, from now on called as `_forward` is."""
    for module in network.modules():
        if type(module).__name__ == "Krea2Attention":
            module.set_processor(_Attention())
        elif type(module).__name__ == "Krea2RMSNorm":
            module.forward = partial(_norm, module)
    network.forward = partial(_forward, network)
    return network


def _forward(
    network: Any,
    latents: torch.Tensor,  # (1, C, h, w)
    text: torch.Tensor,  # (1, L, layers, D)
    t: torch.Tensor,  # (1,), from 1 for noise to 0
) -> torch.Tensor:
    # the velocity, (1, C, h, w): noise - picture
    rows, columns = (side // PATCH for side in latents.shape[2:])
    length, tokens = text.shape[1], rows * columns
    padding = -(length + tokens) % BLOCK

    moment = network.time_embed(t, dtype=latents.dtype)
    modulation = network.time_mod_proj(F.gelu(moment, approximate="tanh"))
    words = torch.ones(length, dtype=torch.bool, device=latents.device)
    context = network.txt_in(network.text_fusion(text, attention_mask=_pairs(words)))

    sequence = torch.cat([context, network.img_in(_pack(latents))], dim=1)
    sequence = F.pad(sequence, (0, 0, 0, padding))
    real = _pairs(F.pad(words.new_ones(length + tokens), (0, padding)))
    rotary = network.rotary_emb(_positions(length, rows, columns, padding, latents.device))
    for block in network.transformer_blocks:
        sequence = block(sequence, modulation, rotary, real)
    output = network.final_layer(sequence, moment)[:, length : length + tokens]
    return _unpack(output, rows, columns)


def _pairs(real: torch.Tensor) -> torch.Tensor:
    # which token may see which: (1, 1, L, L) of what is no padding, (L,)
    return (real[:, None] & real[None, :])[None, None]


def _positions(length: int, rows: int, columns: int, padding: int, device: Any) -> torch.Tensor:
    # (length + rows * columns + padding, 3): (frame, y, x), zero but for the picture
    y, x = torch.meshgrid(
        torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij"
    )
    grid = torch.stack([torch.zeros_like(y), y, x], dim=-1).reshape(-1, 3)
    return F.pad(grid.float(), (0, 0, length, padding))


def _pack(latents: torch.Tensor) -> torch.Tensor:
    # (1, C, h, w) -> (1, h/2 * w/2, C * 4)
    tiles = latents.unflatten(3, (-1, PATCH)).unflatten(2, (-1, PATCH))  # (1, C, y, 2, x, 2)
    return tiles.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def _unpack(tokens: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    tiles = tokens.unflatten(2, (-1, PATCH, PATCH)).unflatten(1, (rows, columns))
    return tiles.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def _norm(norm: Any, x: torch.Tensor) -> torch.Tensor:
    scale = norm.weight.float() + 1.0
    return F.rms_norm(x.float(), (norm.dim,), weight=scale, eps=norm.eps).to(x.dtype)


class _Attention:
    """Attention in the trainer's order of steps, which a Krea2Attention calls."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,  # (B, L, C)
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> torch.Tensor:
        from diffusers.models.embeddings import apply_rotary_emb

        query: Any
        key: Any
        query, key, value = (
            project(hidden_states).unflatten(-1, (heads, -1)).transpose(1, 2)
            for project, heads in (
                (attn.to_q, attn.num_heads),
                (attn.to_k, attn.num_kv_heads),
                (attn.to_v, attn.num_kv_heads),
            )
        )  # (B, heads, L, D)
        gate = attn.to_gate(hidden_states)
        query, key = attn.norm_q(query), attn.norm_k(key)
        if image_rotary_emb is not None:
            query, key = (apply_rotary_emb(x, image_rotary_emb) for x in (query, key))
        with sdpa_kernel(KERNELS, **ORDERED):
            output = F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=attention_mask,
                enable_gqa=attn.num_heads != attn.num_kv_heads,
            )
        return attn.to_out[0](output.transpose(1, 2).flatten(2) * torch.sigmoid(gate))


def read_network(file: Path, folder: Path, dtype: torch.dtype) -> Any:
    """diffusers' network from the single file of the first release, on the CPU.

    folder: of its configuration. Raises CheckpointError unless the file has its tensors.
    """
    import diffusers
    from accelerate import init_empty_weights

    build: Any = diffusers.Krea2Transformer2DModel
    with init_empty_weights():
        network = build.from_config(build.load_config(str(folder)))
    return read_released(network, file, KREA2, dtype)
