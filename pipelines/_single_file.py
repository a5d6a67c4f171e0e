"""Whether a single file is a checkpoint of a model, told from its header before anything is loaded."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ..core.errors import CheckpointError
from ..core.specs import ModelSpec

UNET = r"model\.diffusion_model\."
CONV_IN = "model.diffusion_model.input_blocks.0.0.weight"
VAE = r"(first_stage_model|vae)\.decoder\."
CLIP = r"cond_stage_model\.transformer\.text_model\."
SDXL_CLIP = r"conditioner\.embedders\.0\.transformer\.text_model\."
SDXL_OPENCLIP = r"conditioner\.embedders\.1\.model\."
# model id -> what the file must hold, by how its tensors' names start
PARTS = {
    "sd15": {"UNet": UNET, "VAE": VAE, "text encoder": CLIP},
    "sdxl": {
        "UNet": UNET,
        "VAE": VAE,
        "first text encoder": SDXL_CLIP,
        "second text encoder": SDXL_OPENCLIP,
    },
}
KINDS = {  # what a file of another kind is: the first of these names that is found
    r".*(lora_|lokr_|hada_)": "a LoRA; choose it as the LoRA",
    SDXL_CLIP: "an SDXL checkpoint",
    CLIP: "a Stable Diffusion 1 checkpoint",
    r"conditioner\.embedders\.0\.model\.": "an SDXL refiner",
    r"cond_stage_model\.model\.": "a Stable Diffusion 2 checkpoint",
    r"(.*\.)?(input_blocks|down_blocks|double_blocks|joint_blocks)\.": "a UNet or transformer alone",
    r"((first_stage_model|vae)\.)?decoder\.": "a VAE",
}
# Names that mark an SDXL trained to predict something else than noise. diffusers reads such a
# file as any SDXL (v-prediction) or with another VAE scale (Playground), and it draws no picture.
OTHER_PREDICTION = {"v_pred", "edm_vpred.sigma_max", "edm_mean"}
DTYPES = {"F64", "F32", "F16", "BF16", "I64", "I32"}


def check_single_file(spec: ModelSpec, path: Path) -> None:
    """Raises CheckpointError unless the file holds the whole model, as it was released."""
    header = _header(path)
    missing = [part for part, start in PARTS[spec.id].items() if not _has(header, start)]
    if missing:
        kind = next((kind for start, kind in KINDS.items() if _has(header, start)), "something else")
        raise CheckpointError(
            f"{path} is {kind}; weights of {spec.id} are one file of {spec.title} with UNet, VAE "
            f"and text encoders as it was released, and this one has no {' and no '.join(missing)}"
        )
    channels = header.get(CONV_IN, {}).get("shape", [0, 4])[1]
    if channels != 4:
        raise CheckpointError(
            f"{path} is for inpainting or editing: its UNet takes {channels} channels, {spec.id} "
            "takes 4; choose a text-to-image checkpoint"
        )
    if found := OTHER_PREDICTION & header.keys():
        raise CheckpointError(
            f"{path} does not predict noise (its {found.pop()!r} says so) as {spec.id} does; "
            "choose a checkpoint without v-prediction or EDM"
        )
    if found := {entry["dtype"] for entry in header.values()} - DTYPES:
        raise CheckpointError(
            f"{path} is quantized ({', '.join(sorted(found))}); the trainer's pictures need the "
            "weights in fp32, fp16 or bf16"
        )


def _has(header: dict[str, Any], start: str) -> bool:
    return any(re.match(start, name) for name in header)


def _header(path: Path) -> dict[str, Any]:
    # name -> {"dtype", "shape", "data_offsets"}
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        content = file.read(length) if length < size else b""
    try:
        header = json.loads(content)
        header.pop("__metadata__", None)
        end = 8 + length + max(entry["data_offsets"][1] for entry in header.values())
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a .safetensors file; download it again") from error
    if end != size:
        raise CheckpointError(
            f"{path} is not complete: {size} of {end} bytes; copy or download it again"
        )
    return header
