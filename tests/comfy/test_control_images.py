"""Control images on the sampler's sockets, in a real ComfyUI."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ai_toolkit_inference import Engine, SampleRequest
from ai_toolkit_inference.cli.comfy_client import run_workflow
from ai_toolkit_inference.core.errors import RemoteError
from ai_toolkit_inference.core.requests import Recipe
from ai_toolkit_inference.engine.control_images import read_control_image

CONTROLS = Path(__file__).resolve().parents[1] / "goldens" / "controls"
PROMPT, SMALL = "a cat", {"width": 64, "height": 64, "steps": 2}


@pytest.fixture(scope="module", autouse=True)
def pictures(comfy: Any) -> None:
    """The control images, in the server's input folder."""
    (comfy.base / "input").mkdir(parents=True, exist_ok=True)
    for file in CONTROLS.iterdir():
        shutil.copy(file, comfy.base / "input")


def load(name: str) -> dict[str, Any]:
    return {"class_type": "LoadImage", "inputs": {"image": name}}


def graph(model: str, nodes: dict[str, Any], **sockets: Any) -> dict[str, Any]:
    recipe = {"model": model, "weights": "tiny"}
    sample = {
        "model": ["1", 0], "prompt": PROMPT, "negative_prompt": "", **SMALL,
        "guidance_scale": -1.0, "seed": 42, **sockets,
    }  # fmt: skip
    return {
        "1": {"class_type": "LoadAIToolkitModel", "inputs": recipe},
        "2": {"class_type": "AIToolkitSample", "inputs": sample},
        "3": {
            "class_type": "SaveImage",
            "inputs": {"images": ["2", 0], "filename_prefix": "control"},
        },
        **nodes,
    }


def drawn(comfy: Any, workflow: dict[str, Any], folder: Path) -> np.ndarray:
    (file,) = run_workflow(comfy.url, workflow, folder, timeout=180).files
    return np.asarray(Image.open(file).convert("RGB"))


def expected(model: str, *pictures: Any, **fields: Any) -> np.ndarray:
    recipe = Recipe(model, weights="tiny")
    request = SampleRequest(recipe, PROMPT, control_images=pictures, **SMALL, **fields)
    return Engine("cpu").sample(request).frames[0]


def test_a_socket_gives_what_the_file_gives(comfy: Any, tmp_path: Path) -> None:
    workflow = graph("flux_kontext", {"9": load("portrait.png")}, control_image_1=["9", 0])
    picture = read_control_image(CONTROLS / "portrait.png")
    assert np.array_equal(drawn(comfy, workflow, tmp_path), expected("flux_kontext", picture))


def test_a_batch_counts_as_several_in_the_order_of_the_sockets(comfy: Any, tmp_path: Path) -> None:
    nodes = {
        "7": load("landscape.png"),
        "8": load("portrait.png"),
        "9": {"class_type": "ImageBatch", "inputs": {"image1": ["7", 0], "image2": ["7", 0]}},
    }
    workflow = graph("flux2", nodes, control_image_3=["9", 0], control_image_1=["8", 0])
    wide, tall = (read_control_image(CONTROLS / f"{n}.png") for n in ("landscape", "portrait"))
    found = drawn(comfy, workflow, tmp_path)
    assert np.array_equal(found, expected("flux2", tall, wide, wide))
    assert not np.array_equal(found, expected("flux2", wide, wide, tall))


def test_a_fourth_channel_is_the_alpha_to_inpaint(comfy: Any, tmp_path: Path) -> None:
    joined = {"image": ["8", 0], "alpha": ["8", 1]}
    nodes = {
        "8": load("hole.inpaint.png"),
        "9": {"class_type": "JoinImageWithAlpha", "inputs": joined},
    }
    picture = read_control_image(CONTROLS / "hole.inpaint.png")
    found = drawn(comfy, graph("flex2", nodes, control_image_1=["9", 0]), tmp_path)
    assert picture.mode == "RGBA"
    assert np.array_equal(found, expected("flex2", picture))
    plain = graph("flex2", nodes, control_image_1=["8", 0], control_index=1)
    rgb = expected("flex2", picture.convert("RGB"), control_index=1)
    assert np.array_equal(drawn(comfy, plain, tmp_path / "plain"), rgb)
    assert not np.array_equal(found, rgb)


@pytest.mark.parametrize(
    ("model", "sockets", "words"),
    [
        ("flux_kontext", (), "flux_kontext needs 1 control image, got 0; connect control_image_1"),
        ("flux_kontext", (1, 2), "flux_kontext takes at most 1 control image"),
        ("sd15", (1,), "sd15 takes no control images, got 1"),
    ],
)
def test_a_wrong_number_of_pictures_is_refused(
    comfy: Any, model: str, sockets: tuple[int, ...], words: str
) -> None:
    given = {f"control_image_{number}": ["9", 0] for number in sockets}
    with pytest.raises(RemoteError, match=words):
        run_workflow(comfy.url, graph(model, {"9": load("portrait.png")}, **given), timeout=120)
