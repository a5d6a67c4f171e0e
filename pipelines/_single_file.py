"""Whether a single file is a checkpoint of a model, told from its header, before it is loaded."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ..core.errors import CheckpointError
from ..core.specs import ModelSpec

UNET = "model.diffusion_model.input_blocks.0.0.weight"
VAE = r"(first_stage_model|vae)\.decoder\."
CLIP = r"cond_stage_model\.transformer\.text_model\."
SDXL_CLIP = r"conditioner\.embedders\.0\.transformer\.text_model\."
KREA2_FILE = {"transformer": r"txtfusion\.projector\.weight"}
FLUX2_FILE = {"transformer": r"double_stream_modulation_img\.lin\.weight"}
Z_IMAGE_FILE = {"transformer": r"layers\.0\.attention\.qkv\.weight"}
QWEN_IMAGE_FILE = {"transformer": r"transformer_blocks\.0\.img_mod\.1\."}
QWEN_IMAGE_ENDS = ("", "_2512", "_edit", "_edit_plus", "_edit_plus_2511")
LTX2_FILE = {
    "transformer": r"model\.diffusion_model\.patchify_proj\.",
    "connectors": r"(model\.diffusion_model\.)?(connectors\.)?text_embedding_projection\.",
    "video VAE": r"vae\.decoder\.",
    "audio VAE": r"audio_vae\.decoder\.",
    "vocoder": r"vocoder\.",
}
# model id -> what the file must hold, by how its tensors' names start
PARTS = {
    "sd15": {"UNet": UNET, "VAE": VAE, "text encoder": CLIP},
    "sdxl": {
        "UNet": UNET,
        "VAE": VAE,
        "first text encoder": SDXL_CLIP,
        "second text encoder": r"conditioner\.embedders\.1\.model\.",
    },
    **dict.fromkeys(("zimage", "zimage_turbo", "zimage_deturbo"), Z_IMAGE_FILE),
    **dict.fromkeys(("flux2", "flux2_klein_4b", "flux2_klein_9b"), FLUX2_FILE),
    "chroma": {"transformer": r"distilled_guidance_layer\.in_proj\.weight"},
    **dict.fromkeys((f"qwen_image{end}" for end in QWEN_IMAGE_ENDS), QWEN_IMAGE_FILE),
    **dict.fromkeys(("ltx2", "ltx2.3"), LTX2_FILE),
    "krea2": KREA2_FILE,
    "krea2_turbo": KREA2_FILE,
}
KINDS = {  # what a file of another kind is: the first of these starts that is found
    r".*(lora|lokr|hada)[_.]": "a LoRA; choose it as the LoRA",
    SDXL_CLIP: "an SDXL checkpoint",
    CLIP: "a Stable Diffusion 1 checkpoint",
    r"conditioner\.embedders\.0\.model\.": "an SDXL refiner",
    r"cond_stage_model\.model\.": "a Stable Diffusion 2 checkpoint",
    r"(model\.diffusion_model|input_blocks|(down|double|joint)_blocks)\.": "a UNet or "
    "transformer alone",
    r"((first_stage_model|vae)\.)?decoder\.": "a VAE",
}
# Tensors that mark an SDXL trained to predict something else than noise: no picture comes of it.
# diffusers reads v-prediction files as any SDXL, and gives Playground's another VAE scale.
OTHER_PREDICTION = ("v_pred", "edm_vpred.sigma_max", "edm_mean")
DTYPES = {"F64", "F32", "F16", "BF16", "I64", "I32"}

Header = dict[str, tuple[str, list[int]]]  # tensor -> dtype, shape


def check_single_file(spec: ModelSpec, path: Path) -> None:
    """Raises CheckpointError unless the file holds the model, or its part, as it was released."""
    header = _read_header(path)
    parts = PARTS[spec.id]
    missing = [part for part, start in parts.items() if not _has(header, start)]
    if missing:
        kind = next((kind for start, kind in KINDS.items() if _has(header, start)), "no checkpoint")
        raise CheckpointError(
            f"{path} is {kind}. {spec.id} needs {spec.title} in one file, as it was released: "
            f"{', '.join(parts)}; this one lacks {', '.join(missing)}"
        )
    if UNET in header:
        _check_variant(spec, path, header)
    if found := {dtype for dtype, _ in header.values()} - DTYPES:
        raise CheckpointError(
            f"{path} is quantized ({', '.join(sorted(found))}); choose the file with weights in "
            "fp32, fp16 or bf16"
        )


def _check_variant(spec: ModelSpec, path: Path, header: Header) -> None:
    channels = header[UNET][1][1]
    if channels != 4:
        raise CheckpointError(
            f"{path} is for inpainting or editing: its UNet takes {channels} channels, {spec.id} "
            "takes 4; choose a text-to-image checkpoint"
        )
    for name in OTHER_PREDICTION:
        if name in header:
            raise CheckpointError(
                f"{path} does not predict noise as {spec.id} does (it holds {name!r}); choose a "
                "checkpoint without v-prediction or EDM"
            )


def _has(header: Header, start: str) -> bool:
    return any(re.match(start, name) for name in header)


def _read_header(path: Path) -> Header:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        content = file.read(length) if length < size else b""
    try:
        entries = json.loads(content)
        entries.pop("__metadata__", None)
        end = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        header = {name: (entry["dtype"], entry["shape"]) for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a .safetensors file; download it again") from error
    if end != size:
        raise CheckpointError(
            f"{path} is not complete: {size} of {end} bytes; copy or download it again"
        )
    return header
