"""Latents in a real ComfyUI: empty, of a picture, between two passes, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ai_toolkit_inference.cli.comfy_client import run_workflow
from ai_toolkit_inference.core.errors import RemoteError

SAMPLE = {
    "prompt": "a photo of a cat",
    "negative_prompt": "",
    "width": 0,
    "height": 0,
    "steps": 4,
    "guidance_scale": -1.0,
    "seed": 7,
}


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def model(name: str = "sd15") -> dict[str, Any]:
    return node("LoadAIToolkitModel", model=name, weights="tiny")


def saved(source: list[Any], name: str) -> dict[str, Any]:
    return node("SaveImage", images=source, filename_prefix=name)


def pixels(folder: Path, name: str) -> np.ndarray:
    (file,) = folder.rglob(f"{name}_*.png")
    return np.asarray(Image.open(file).convert("RGB"))


def run(comfy: Any, workflow: dict[str, Any], out: Path) -> None:
    run_workflow(comfy.url, workflow, out, lambda _: None, timeout=180)


@pytest.mark.parametrize("name", ["sd15", "flux", "qwen_image", "flux2"])
def test_two_passes(comfy: Any, tmp_path: Path, name: str) -> None:
    """An empty latent changes no byte; a second pass keeps what the first one drew."""
    first = node("AIToolkitSample", model=["m", 0], **(SAMPLE | {"width": 96, "height": 64}))
    workflow = {
        "m": model(name),
        "first": first,
        "empty": node("AIToolkitEmptyLatent", model=["m", 0], width=96, height=64),
        "sized": node("AIToolkitSample", model=["m", 0], latent=["empty", 0], **SAMPLE),
        "larger": node(
            "ImageScale",
            image=["first", 0],
            upscale_method="lanczos",
            width=192,
            height=128,
            crop="disabled",
        ),
        "encoded": node("AIToolkitEncode", model=["m", 0], image=["larger", 0]),
        "decoded": node("AIToolkitDecode", model=["m", 0], latent=["encoded", 0]),
        "second": node(
            "AIToolkitSample",
            model=["m", 0],
            latent=["encoded", 0],
            denoise=0.5,
            **SAMPLE,
        ),
        "whole": node("AIToolkitSample", model=["m", 0], latent=["encoded", 0], **SAMPLE),
        "plain": node(
            "AIToolkitSample", model=["m", 0], **(SAMPLE | {"width": 192, "height": 128})
        ),
    }
    pictures = ("first", "sized", "decoded", "second", "whole", "plain")
    workflow |= {f"save_{picture}": saved([picture, 0], picture) for picture in pictures}
    run(comfy, workflow, tmp_path)
    first, sized, decoded, second, whole, plain = (pixels(tmp_path, name) for name in pictures)
    assert np.array_equal(first, sized)
    assert np.array_equal(plain, whole)
    assert decoded.shape == second.shape == (128, 192, 3)
    assert not np.array_equal(second, whole)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("sd15", {"image": ["batch", 0]}, "image is a batch of 2"),
        ("sd15", {"image": ["odd", 0]}, "a picture of 100x64 px; for sd15 both sides must be"),
        ("wan21_1b", {}, "wan21_1b draws clips"),
    ],
)
def test_pictures_that_are_refused(
    comfy: Any, tmp_path: Path, name: str, change: dict[str, Any], message: str
) -> None:
    workflow = {
        "m": model(name),
        "one": node("EmptyImage", width=64, height=64, batch_size=1, color=255),
        "batch": node("EmptyImage", width=64, height=64, batch_size=2, color=255),
        "odd": node("EmptyImage", width=100, height=64, batch_size=1, color=255),
        "encoded": node("AIToolkitEncode", **({"model": ["m", 0], "image": ["one", 0]} | change)),
        "decoded": node("AIToolkitDecode", model=["m", 0], latent=["encoded", 0]),
        "save": saved(["decoded", 0], "never"),
    }
    with pytest.raises(RemoteError, match=message):
        run(comfy, workflow, tmp_path)


def test_latents_that_are_refused(comfy: Any, tmp_path: Path) -> None:
    masked = {
        "m": model(),
        "empty": node("AIToolkitEmptyLatent", model=["m", 0], width=64, height=64),
        "mask": node("SolidMask", value=1.0, width=64, height=64),
        "masked": node("SetLatentNoiseMask", samples=["empty", 0], mask=["mask", 0]),
        "sample": node("AIToolkitSample", model=["m", 0], latent=["masked", 0], **SAMPLE),
        "save": saved(["sample", 0], "never"),
    }
    with pytest.raises(RemoteError, match="noise mask"):
        run(comfy, masked, tmp_path)
    masked["m"] = model("flux")
    masked["sample"]["inputs"]["latent"] = ["others", 0]
    masked["others"] = node("EmptyLatentImage", width=64, height=64, batch_size=1)
    with pytest.raises(RemoteError, match=r"\(1, 16, H/8, W/8\).*AI Toolkit Empty Latent"):
        run(comfy, masked, tmp_path)
