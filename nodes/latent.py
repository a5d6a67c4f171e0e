"""The nodes around latents: empty ones, those of a picture, and the picture of some."""

from __future__ import annotations

from typing import Any

from ..core.errors import InvalidInputError
from ..core.requests import MAX_SIDE, Recipe
from ..pipelines._registry import get_model
from . import _comfy, _memory
from ._errors import plain_errors

MODEL = ("AITK_MODEL", {"tooltip": "The recipe whose latents they are; not one of clips."})


class AIToolkitEmptyLatent:
    """An empty latent, which gives a sample its size."""

    CATEGORY = _comfy.CATEGORY
    DESCRIPTION = (
        "An empty latent in the form the model works in. AI Toolkit Sample takes its size from it; "
        "with denoise 1 the picture is the one it draws without."
    )
    RETURN_TYPES = ("LATENT",)
    RETURN_NAMES = ("latent",)
    OUTPUT_TOOLTIPS = ("For AI Toolkit Sample.",)
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        side = {
            "default": 0,
            "min": 0,
            "max": MAX_SIDE,
            "step": 8,
            "tooltip": "px, 0: the model's default. Floored to its grid.",
        }
        return {"required": {"model": MODEL, "width": ("INT", side), "height": ("INT", side)}}

    @plain_errors()
    def make(self, model: Recipe, width: int, height: int) -> tuple[dict[str, Any]]:
        from ..engine.latents import empty_latents

        return ({"samples": empty_latents(get_model(model.model), width, height)},)


class AIToolkitEncode:
    """The latent of a picture."""

    CATEGORY = _comfy.CATEGORY
    DESCRIPTION = (
        "What the model's VAE makes of a picture, to start a sample from: for image to image, or "
        "a second pass over an enlarged sample, with denoise below 1."
    )
    RETURN_TYPES = ("LATENT",)
    RETURN_NAMES = ("latent",)
    OUTPUT_TOOLTIPS = ("For AI Toolkit Sample with denoise below 1.",)
    FUNCTION = "encode"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": MODEL,
                "image": (
                    "IMAGE",
                    {
                        "tooltip": "One picture. Its sides must lie on the model's grid, which is "
                        "8, 16 or 32 px: enlarge or crop it to them. A fourth channel is left out."
                    },
                ),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    @plain_errors()
    def encode(self, model: Recipe, image: Any, unique_id: str = "") -> tuple[dict[str, Any]]:
        pictures = _comfy.image_to_pictures(image[..., :3])
        if len(pictures) != 1:
            raise InvalidInputError(
                f"image is a batch of {len(pictures)}; a sample starts from one: choose it with "
                "ComfyUI's Image From Batch"
            )
        engine, status = _comfy.engine(), _comfy.status_reporter(unique_id)
        with _memory.room_for(engine, model):
            latents = engine.encode(model, pictures[0], status)
        status("Encoded")
        return ({"samples": latents},)


class AIToolkitDecode:
    """The picture of a latent."""

    CATEGORY = _comfy.CATEGORY
    DESCRIPTION = "The picture that the model's VAE makes of a latent."
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("One picture.",)
    FUNCTION = "decode"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": MODEL,
                "latent": ("LATENT", {"tooltip": "Of AI Toolkit Encode, or of the same form."}),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    @plain_errors()
    def decode(self, model: Recipe, latent: dict[str, Any], unique_id: str = "") -> tuple[Any]:
        engine, status = _comfy.engine(), _comfy.status_reporter(unique_id)
        with _memory.room_for(engine, model):
            frames = engine.decode(model, latent_samples(latent), status)
        status("Decoded")
        return (_comfy.frames_to_image(frames),)


def latent_samples(latent: dict[str, Any]) -> Any:
    """The tensor of ComfyUI's LATENT. Raises InvalidInputError for a masked one."""
    if latent.get("noise_mask") is not None:
        raise InvalidInputError(
            "latent has a noise mask, which the trainer's models are not sampled with; connect it "
            "without Set Latent Noise Mask"
        )
    return latent["samples"]
