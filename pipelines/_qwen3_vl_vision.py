"""Pictures shown to Qwen3-VL: cut to patches, looked at, and put before a prompt.

Computed as by the transformers of the trainer (5.5.3) with torchvision, and without that library,
whatever is installed: other versions add up the vision tower's positions in another precision, and
4.57 gives hidden states out with what later layers add to them.
Upstream: huggingface/transformers@v5.5.3 src/transformers/models/qwen3_vl/modeling_qwen3_vl.py,
src/transformers/models/qwen2_vl/image_processing_qwen2_vl.py
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F

PATCH = 16  # px a side
MERGED = 2  # patches a side of a token
FRAMES = 2  # of a patch; a picture stands still
# px of a picture, as the released preprocessor_config.json has it
LEAST_PIXELS, MOST_PIXELS = 256**2, 4096**2
MOST_ASPECT = 200  # of a picture's sides
THETA = 10_000.0


@dataclass(frozen=True)
class Sight:
    """A picture cut to patches: (rows * columns, 1536), those of a token one after another."""

    patches: torch.Tensor
    rows: int
    columns: int

    @property
    def tokens(self) -> int:
        return self.rows * self.columns // MERGED**2


@dataclass
class _Features:
    """What a vision tower gives: unpacked by transformers 4, asked for by these names by 5."""

    pooler_output: torch.Tensor
    deepstack_features: list[torch.Tensor]

    def __iter__(self) -> Iterator[Any]:
        return iter((self.pooler_output, self.deepstack_features))


def cut(picture: torch.Tensor) -> Sight:
    """A picture, float32 (3, H, W) from 0 to 1, in the size that the encoder looks at."""
    height, width = fit(*picture.shape[1:])
    if (height, width) != tuple(picture.shape[1:]):
        picture = resized(picture, height, width)
    rows, columns = height // PATCH, width // PATCH
    tiles = ((picture - 0.5) / 0.5).expand(FRAMES, -1, -1, -1)
    tiles = tiles.reshape(
        FRAMES, 3, rows // MERGED, MERGED, PATCH, columns // MERGED, MERGED, PATCH
    )
    patches = tiles.permute(2, 5, 3, 6, 1, 0, 4, 7).reshape(rows * columns, -1)
    return Sight(patches, rows, columns)


def fit(height: int, width: int) -> tuple[int, int]:
    """Sides in px, of whole tokens, within the limits of the encoder."""
    token = PATCH * MERGED
    rounded = round(height / token) * token, round(width / token) * token
    if math.prod(rounded) > MOST_PIXELS:
        scale = math.sqrt(height * width / MOST_PIXELS)
        sides = (math.floor(side / scale / token) * token for side in (height, width))
        return max(token, next(sides)), max(token, next(sides))
    if math.prod(rounded) < LEAST_PIXELS:
        scale = math.sqrt(LEAST_PIXELS / (height * width))
        return math.ceil(height * scale / token) * token, math.ceil(width * scale / token) * token
    return rounded


def resized(picture: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """A picture (3, H, W) in another size, float32, bicubic; values may leave 0 to 1."""
    given = picture[None].float()
    return F.interpolate(given, (height, width), mode="bicubic", antialias=True)[0]


def encoder_inputs(encoder: Any, ids: torch.Tensor, sights: Sequence[Sight]) -> dict[str, Any]:
    """What a Qwen3-VL is called with beside the ids (1, L) of a prompt that has places for sights.

    Nothing without sights. The model must have been through `look_as_trainer`.
    """
    if not sights:
        return {}
    grids = torch.tensor([(1, sight.rows, sight.columns) for sight in sights])
    patches = torch.cat([sight.patches for sight in sights])
    return {
        "pixel_values": patches.to(ids.device, encoder.dtype),
        "image_grid_thw": grids.to(ids.device),
        "position_ids": _positions(ids[0].tolist(), encoder.config.image_token_id, sights).to(
            ids.device
        ),
    }


def _positions(ids: list[int], place: int, sights: Sequence[Sight]) -> torch.Tensor:
    # (3, 1, L): (frame, y, x); a picture takes as many of them as its longer side has tokens
    following, parts, start = iter(sights), [], 0
    for shown, group in groupby(ids, key=lambda token: token == place):
        if shown:
            sight = next(following)
            sides = (sight.rows // MERGED, sight.columns // MERGED)
            grid = torch.cartesian_prod(torch.arange(1), *map(torch.arange, sides)).mT
            parts.append(grid + start)
            start += max(sides)
        else:
            length = len(list(group))
            parts.append(torch.arange(start, start + length).expand(3, -1))
            start += length
    return torch.cat(parts, dim=1)[:, None]


# --- the model's own look ------------------------------------------------------------------------


def look_as_trainer(encoder: Any) -> Any:
    """A Qwen3-VL of transformers, from now on computing as the trainer's."""
    model = getattr(encoder, "model", encoder)
    projection = model.visual.patch_embed.proj
    projection.forward = partial(_project, projection)
    model.visual.forward = partial(_look, model.visual)
    model.language_model._deepstack_process = _add
    return encoder


def _project(projection: Any, patches: torch.Tensor) -> torch.Tensor:
    # the trainer has a matrix for the convolution over one patch
    return F.linear(patches, projection.weight.flatten(1), projection.bias)


def _add(hidden: torch.Tensor, where: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    # to a copy: the caller's was given out as a hidden state
    added = hidden.clone()
    added[where] = hidden[where] + features.to(hidden.device, hidden.dtype)
    return added


def _look(visual: Any, patches: torch.Tensor, grid_thw: torch.Tensor, **_: Any) -> _Features:
    grids = [(rows, columns) for _, rows, columns in grid_thw.tolist()]
    hidden = visual.patch_embed.proj(patches)
    hidden = hidden + torch.cat([_embedded(visual, *grid) for grid in grids])
    rotary = _rotary(visual.config, grids, hidden.device)
    lengths = torch.tensor([0, *(rows * columns for rows, columns in grids)])
    ends = lengths.cumsum(0).to(hidden.device, torch.int32)
    levels, features = list(visual.config.deepstack_visual_indexes), []
    for number, block in enumerate(visual.blocks):
        hidden = block(hidden, cu_seqlens=ends, position_embeddings=rotary)
        if number in levels:
            features.append(visual.deepstack_merger_list[levels.index(number)](hidden))
    return _Features(visual.merger(hidden), features)


def _embedded(visual: Any, rows: int, columns: int) -> torch.Tensor:
    # learned positions, between those of the square grid that has them: (rows * columns, C)
    side = int(visual.config.num_position_embeddings**0.5)
    (above, below, down), (left, right, across) = (_between(n, side) for n in (rows, columns))
    weights = (1 - down, 1 - across), (1 - down, across), (down, 1 - across), (down, across)
    corners = (above, left), (above, right), (below, left), (below, right)
    total = None
    for (y, x), (of_y, of_x) in zip(corners, weights, strict=True):
        places = (y[:, None] * side + x).flatten().to(visual.pos_embed.weight.device)
        embedded = visual.pos_embed(places)
        weight = (of_y[:, None] * of_x).flatten()[:, None].to(embedded.device, embedded.dtype)
        total = embedded * weight if total is None else total + embedded * weight
    return _by_token(total, rows, columns)


def _between(count: int, side: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    # of so many places over a side: the last known before, the first behind, and how far between
    places = torch.linspace(0, side - 1, count)
    before = places.int()
    return before, (before + 1).clip(max=side - 1), places - before


def _by_token(of_patches: Any, rows: int, columns: int) -> torch.Tensor:
    # (rows * columns, C), row by row, in the order of patches: those of a token one after another
    tiles = of_patches.reshape(rows // MERGED, MERGED, columns // MERGED, MERGED, -1)
    return tiles.transpose(1, 2).flatten(0, 3)


def _rotary(config: Any, grids: list[tuple[int, int]], device: Any) -> tuple[Any, Any]:
    # cosines and sines, each (patches, head width): of y and x, twice
    width = config.hidden_size // config.num_heads // 2
    frequencies = 1.0 / THETA ** (torch.arange(0, width, 2, dtype=torch.float) / width)
    places = [_by_token(torch.cartesian_prod(*map(torch.arange, grid)), *grid) for grid in grids]
    angles = torch.cat(places)[:, :, None].to(device) * frequencies.to(device)
    angles = torch.cat((angles.flatten(1), angles.flatten(1)), dim=-1)
    return angles.cos(), angles.sin()
