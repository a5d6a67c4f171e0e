"""What Qwen-Image-Edit's text encoder is given: a prompt, and the control images beside it.

Nothing here is transformers' own image processor: its arithmetic depends on its version and on
whether torchvision is installed. This one computes what the trainer's does, with torch alone.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..core.errors import CheckpointError, InvalidInputError
from ..core.versions import Profile

LEVELS = 255
VAE_PIXELS = 1024 * 1024  # of a picture as the VAE is given it
GRID = 32  # px; of the sizes that control images are brought to
STEEPEST = 200  # longer side by shorter one that a Qwen2.5-VL takes
IMAGE_TOKEN = "<|image_pad|>"
SYSTEM = (
    "Describe the key features of the input image (color, shape, size, texture, objects, "
    "background), then explain how the user's text instruction should alter or modify the image. "
    "Generate a new image that meets the user's requirements while maintaining consistency with "
    "the original input where appropriate."
)
SYSTEM_TOKENS = 64  # of the released tokenizer, up to and with the line that names the user


@dataclass(frozen=True)
class PictureReader:
    """How a Qwen2.5-VL is shown pictures, as the preprocessor_config.json beside it says.

    least, most: pixels of a picture. reference_pixels: the most that the VAE is given of one, which
    only toy checkpoints say.
    """

    patch_size: int  # px
    merge_size: int  # patches a side that make one token
    temporal_patch_size: int  # frames that a patch has; a picture is repeated
    least: int
    most: int
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    reference_pixels: int = VAE_PIXELS

    def patches(self, picture: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        """A picture (1, 3, H, W) of 0 to 1 as flat patches, fp32 (rows * columns, values).

        Also gives (rows, columns). The picture's 0 to 1 is taken for 0 to 255, as in the trainer.
        Upstream: huggingface/transformers@v5.5.3
        src/transformers/models/qwen2_vl/image_processing_qwen2_vl.py::Qwen2VLImageProcessor
        """
        picture = _resized(picture, self.size(*picture.shape[-2:]))
        mean, std = (
            (torch.tensor(values, device=picture.device) * float(LEVELS)).view(-1, 1, 1)
            for values in (self.image_mean, self.image_std)
        )
        pixels = (picture[0].float() - mean) / std
        rows, columns = (side // self.patch_size for side in pixels.shape[-2:])
        merge, patch = self.merge_size, self.patch_size
        blocks = pixels.view(3, rows // merge, merge, patch, columns // merge, merge, patch)
        blocks = blocks.permute(1, 4, 2, 5, 0, 3, 6)  # token, patch in it, channel, pixels
        blocks = blocks.reshape(rows * columns, 3, 1, patch * patch)
        repeated = blocks.expand(-1, -1, self.temporal_patch_size, -1)
        return repeated.reshape(rows * columns, -1), (rows, columns)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) at which a picture is shown, px: whole tokens, `least` to `most` pixels.

        Raises InvalidInputError for a picture that is too long.
        """
        if max(height, width) > STEEPEST * min(height, width):
            raise too_long(height, width)
        grid = self.patch_size * self.merge_size
        sides = tuple(round(side / grid) * grid for side in (height, width))
        if sides[0] * sides[1] > self.most:
            shrink = math.sqrt((height * width) / self.most)
            sides = tuple(
                max(grid, math.floor(side / shrink / grid) * grid) for side in (height, width)
            )
        elif sides[0] * sides[1] < self.least:
            grow = math.sqrt(self.least / (height * width))
            sides = tuple(math.ceil(side * grow / grid) * grid for side in (height, width))
        return sides[0], sides[1]


def read_picture_reader(folder: Path) -> PictureReader:
    """The reader of a processor's folder. Raises CheckpointError if its settings are missing."""
    path = folder / "preprocessor_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        size = config.get("size") or {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}
        return PictureReader(
            patch_size=int(config["patch_size"]),
            merge_size=int(config["merge_size"]),
            temporal_patch_size=int(config["temporal_patch_size"]),
            least=int(config.get("min_pixels") or size["shortest_edge"]),
            most=int(config.get("max_pixels") or size["longest_edge"]),
            image_mean=tuple(map(float, config["image_mean"])),
            image_std=tuple(map(float, config["image_std"])),
            reference_pixels=int(config.get("reference_pixels", VAE_PIXELS)),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} does not say how pictures are shown to the text encoder ({error!r}); download "
            "the folder again"
        ) from error


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer in a processor's folder."""
    import transformers

    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise CheckpointError(
            f"{folder} has no tokenizer.json; download the folder again, with its processor"
        )
    return transformers.AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)


def look_as_trainer(encoder: Any) -> None:
    """Makes the vision tower turn by angles in the model's dtype, as transformers 4.57 to 5.12 do.

    5.23 turns by fp32, which shows in bf16.
    """
    rotary = encoder.model.visual.rotary_pos_emb
    if "x" in inspect.signature(rotary.forward).parameters:
        rotary.forward = partial(_turns, rotary)


def _turns(rotary: Any, _x: Any, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    # position_ids: (patches, 2), row and column
    angles = (position_ids[..., None] * rotary.inv_freq).flatten(1)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def too_long(*sides: int) -> InvalidInputError:
    """What to raise for a control image that would be seen with these sides, px."""
    return InvalidInputError(
        "a control image would be seen with sides of {} and {} px, too long for this checkpoint; "
        "crop it".format(*sides)
    )


def sides_of_area(area: int, ratio: float) -> tuple[int, int]:
    """A side and the one that it is `ratio` times as long as, of about `area` pixels.

    px, multiples of 32. Raises InvalidInputError where one of them would vanish.
    """
    first = math.sqrt(area * ratio)
    rounded = [round(side / GRID) * GRID for side in (first, first / ratio)]
    if 0 in rounded:
        raise too_long(*rounded)
    return rounded[0], rounded[1]


def as_tensor(image: Any, device: Any, dtype: torch.dtype) -> torch.Tensor:
    """A PIL image as the trainer hands it to the text encoder: (1, 3, H, W), 0 to 1."""
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    return pixels.float().div(LEVELS)[None].to(device, dtype)


def to_area(picture: torch.Tensor, area: int, profile: Profile) -> torch.Tensor:
    """A picture (1, 3, H, W) resized to an area, px; with its sides swapped before 0.7.33."""
    size = sides_of_area(area, picture.shape[2] / picture.shape[3])
    if not profile.has("qwen_edit_upright"):
        size = size[::-1]
    return F.interpolate(picture, size=size, mode="bilinear")


def encode(context: Any, pictures: Sequence[torch.Tensor], prompt: str) -> torch.Tensor:
    """What the transformer reads of a prompt and its pictures: (1, L, C).

    pictures: (1, 3, H, W), 0 to 1. prompt: with IMAGE_TOKEN where each of them is shown.
    """
    model = context.model
    reader, encoder = model.tokenizers["processor"], model.modules["text_encoder"]
    shown = [reader.patches(picture) for picture in pictures]
    grids = [tuple(side // reader.merge_size for side in sides) for _, sides in shown]
    ids = _token_ids(model.tokenizers["tokenizer"], prompt, grids).to(model.device)
    image_token = encoder.config.image_token_id
    by_place = not context.profile.has("qwen_vl_positions_in_line")
    output = encoder(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        position_ids=_positions(ids, image_token, grids if by_place else []),
        pixel_values=torch.cat([patches for patches, _ in shown]),
        image_grid_thw=torch.tensor([(1, *sides) for _, sides in shown], device=model.device),
        output_hidden_states=True,
        logits_to_keep=1,  # nothing is done with them
    )
    return output.hidden_states[-1][:, SYSTEM_TOKENS:].to(model.dtype)


def in_template(user: str) -> str:
    """What the user says, pictures first, as the conversation that the text encoder reads."""
    return (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def _token_ids(tokenizer: Any, prompt: str, grids: Sequence[tuple[int, int]]) -> torch.Tensor:
    # (1, L), int64: each picture as many tokens as it is shown by
    first, *rest = prompt.split(IMAGE_TOKEN)
    shown = (
        IMAGE_TOKEN * (rows * columns) + text
        for (rows, columns), text in zip(grids, rest, strict=True)
    )
    return tokenizer([first + "".join(shown)], return_tensors="pt").input_ids


def _positions(
    ids: torch.Tensor, image_token: int, grids: Sequence[tuple[int, int]]
) -> torch.Tensor:
    # (3, 1, L): time, row and column of each token. A text's token is one further on in all three,
    # a picture's by its place in the picture; of no grids, all are counted as text.
    # Upstream: huggingface/transformers@v4.57.3
    # src/transformers/models/qwen2_5_vl/modeling_qwen2_5_vl.py::Qwen2_5_VLModel.get_rope_index
    tokens = ids[0].tolist()
    parts, done, position = [], 0, 0
    for rows, columns in grids:
        text = tokens.index(image_token, done) - done
        parts.append(torch.arange(text).expand(3, -1) + position)
        place = torch.cartesian_prod(torch.arange(1), torch.arange(rows), torch.arange(columns))
        parts.append(place.T + position + text)
        done += text + rows * columns
        position += text + max(rows, columns)
    parts.append(torch.arange(len(tokens) - done).expand(3, -1) + position)
    return torch.cat(parts, dim=1)[:, None].to(ids.device)


def _resized(picture: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    # as torchvision resizes a tensor: bicubic in fp32, which is left out where nothing changes
    if tuple(picture.shape[-2:]) == size:
        return picture
    larger = F.interpolate(
        picture.float(), size=size, mode="bicubic", align_corners=False, antialias=True
    )
    return larger.to(picture.dtype)
