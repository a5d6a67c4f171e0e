"""Krea 2's network, computing as the trainer's own on the modules of diffusers.

diffusers' forward differs in the last bits: the trainer pads the tokens to a multiple of 256 and
masks the padding, and adds a norm's scale to one in fp32, from a scale that it has rounded. And it
can be shown pictures, which diffusers' has no place for.
Upstream: ostris/ai-toolkit@27a03a91
extensions_built_in/diffusion_models/krea2/src/mmdit.py::SingleStreamDiT
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
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
Pair = tuple[torch.Tensor, torch.Tensor]
# torch 2.6 and newer take the order
ORDERED = {"set_priority": True} if "set_priority" in str(inspect.signature(sdpa_kernel)) else {}


@dataclass
class Shown:
    """Pictures beside the one that is drawn.

    latents: of each, (1, C, h, w). apart: they see only one another, and so are the same in all
    steps. kept: once computed then, their keys and values in each block, (1, heads, L, D).
    """

    latents: tuple[torch.Tensor, ...] = ()
    apart: bool = False
    kept: list[Pair] = field(default_factory=list)


@dataclass
class _Memory:
    """What a block keeps of the tokens in `span`, or adds to those it is given."""

    span: slice | None = None
    kept: Pair | None = None

    def recall(self, key: torch.Tensor, value: torch.Tensor) -> Pair:
        """Keys and values (1, heads, L, D) to attend to, of those of the tokens at hand."""
        if self.span is not None:
            self.kept = (key[:, :, self.span].clone(), value[:, :, self.span].clone())
        elif self.kept is not None:
            key, value = (torch.cat(x, dim=2) for x in zip((key, value), self.kept, strict=True))
        return key, value


def compute_as_trainer(network: Any) -> Any:
    """The network of diffusers, from now on called as `_forward` is."""
    for module in network.modules():
        if type(module).__name__ == "Krea2Attention":
            module.set_processor(_Attention())
        elif type(module).__name__ == "Krea2TransformerBlock":
            module.forward = partial(_block, module)
        elif type(module).__name__ == "Krea2RMSNorm":
            module.forward = partial(_norm, module)
    network.forward = partial(_forward, network)
    return network


def _forward(
    network: Any,
    latents: torch.Tensor,  # (1, C, h, w)
    text: torch.Tensor,  # (1, L, layers, D)
    t: torch.Tensor,  # (1,), from 1 for noise to 0
    shown: Shown | None = None,
) -> torch.Tensor:
    # the velocity, (1, C, h, w): noise - picture; fills `shown.kept`
    shown = shown or Shown()
    pictures = (latents, *(() if shown.kept else shown.latents))
    packed = torch.cat([_pack(picture) for picture in pictures], dim=1)
    rows, columns = (side // PATCH for side in latents.shape[2:])
    length = text.shape[1]
    drawn, end = length + rows * columns, length + packed.shape[1]
    padding = -end % BLOCK

    moment = network.time_embed(t, dtype=latents.dtype)
    words = torch.ones(length, dtype=torch.bool, device=latents.device)
    context = network.txt_in(network.text_fusion(text, attention_mask=_pairs(words)))
    sequence = torch.cat([context, network.img_in(packed)], dim=1)
    sequence = F.pad(sequence, (0, 0, 0, padding))
    times = [(slice(None), moment)]  # tokens, and the time they are at
    if end > drawn:  # what is shown is at the end of time, with the padding behind it
        still = network.time_embed(torch.zeros_like(t), dtype=latents.dtype)
        times = [(slice(drawn), moment), (slice(drawn, None), still)]
    modulations = [(tokens, _modulation(network, time)) for tokens, time in times]
    rotary = network.rotary_emb(_positions(length, pictures, padding))
    mask = _mask(shown, drawn, end, padding, latents.device)
    memories = _memories(shown, slice(drawn, end), len(network.transformer_blocks))
    for block, memory in zip(network.transformer_blocks, memories, strict=True):
        sequence = block(sequence, modulations, rotary, mask, memory)
    shown.kept = [memory.kept for memory in memories if memory.kept]
    output = network.final_layer(sequence, moment)[:, length:drawn]
    return _unpack(output, rows, columns)


def _modulation(network: Any, moment: torch.Tensor) -> torch.Tensor:
    return network.time_mod_proj(F.gelu(moment, approximate="tanh"))


def _memories(shown: Shown, tokens: slice, blocks: int) -> list[_Memory]:
    # one for each block; tokens: where pictures are in the sequence
    if shown.kept:
        return [_Memory(kept=pair) for pair in shown.kept]
    return [_Memory(tokens if shown.apart and shown.latents else None) for _ in range(blocks)]


def _pairs(real: torch.Tensor) -> torch.Tensor:
    # which token may see which: (1, 1, L, L) of what is no padding, (L,)
    return (real[:, None] & real[None, :])[None, None]


def _mask(shown: Shown, drawn: int, end: int, padding: int, device: Any) -> torch.Tensor:
    # the same for the whole sequence, in which pictures are from `drawn` to `end`, and for what
    # is kept of them: (1, 1, L, L + kept)
    real = F.pad(torch.ones(end, dtype=torch.bool, device=device), (0, padding))
    mask = _pairs(real)
    if shown.apart:
        picture = torch.zeros_like(real)
        picture[drawn:end] = True
        mask = mask & (~picture[:, None] | picture[None, :])
    if shown.kept:
        kept = shown.kept[0][0].shape[2]
        mask = torch.cat([mask, real[None, None, :, None].expand(-1, -1, -1, kept)], dim=3)
    return mask


def _positions(length: int, pictures: tuple[torch.Tensor, ...], padding: int) -> torch.Tensor:
    # (L, 3): (frame, y, x), zero but for the pictures, of which the first is the one drawn
    grids = []
    for frame, picture in enumerate(pictures):
        sides = (torch.arange(side // PATCH, device=picture.device) for side in picture.shape[2:])
        grids.append(torch.cartesian_prod(torch.tensor([frame], device=picture.device), *sides))
    return F.pad(torch.cat(grids).float(), (0, 0, length, padding))


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


def _block(
    block: Any,
    x: torch.Tensor,  # (1, L, C)
    modulations: list[tuple[slice, torch.Tensor]],  # of some tokens, (1, 1, 6 * C)
    rotary: Any,
    mask: torch.Tensor,
    memory: _Memory,
) -> torch.Tensor:
    table = block.scale_shift_table
    parts = [(span, (m.unflatten(-1, (6, -1)) + table).unbind(-2)) for span, m in modulations]

    def modulated(x: torch.Tensor, scale: int, shift: int) -> torch.Tensor:
        return torch.cat([(1 + m[scale]) * x[:, span] + m[shift] for span, m in parts], dim=1)

    def gated(x: torch.Tensor, gate: int) -> torch.Tensor:
        return torch.cat([m[gate] * x[:, span] for span, m in parts], dim=1)

    seen = block.attn(
        modulated(block.norm1(x), 0, 1),
        attention_mask=mask,
        image_rotary_emb=rotary,
        memory=memory,
    )
    x = x + gated(seen, 2)
    return x + gated(block.ff(modulated(block.norm2(x), 3, 4)), 5)


class _Attention:
    """Attention in the trainer's order of steps, which a Krea2Attention calls."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,  # (B, L, C)
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: Any = None,
        memory: _Memory | None = None,
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
        if memory is not None:
            key, value = memory.recall(key, value)
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
