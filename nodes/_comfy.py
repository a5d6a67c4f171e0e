"""What the nodes need of ComfyUI, in one place; imported only while a node works."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from ..core.errors import AitkError

CATEGORY = "AI Toolkit"
MODEL_FOLDERS = ("diffusers", "aitk")
FILE_FOLDERS = ("checkpoints", "aitk")
DOWNLOADS = "aitk_downloads"  # in the first loras folder


@cache
def engine() -> Any:
    """The engine all nodes share, on the device ComfyUI computes on."""
    import comfy.model_management
    import folder_paths

    from ..engine import Engine

    downloads = Path(folder_paths.get_folder_paths("loras")[0]) / DOWNLOADS
    return Engine(comfy.model_management.get_torch_device(), downloads)


def list_weights() -> list[str]:
    """`huggingface`, `tiny`, then what lies in ComfyUI's model folders, as folder/name."""
    return ["huggingface", "tiny", *sorted(_local_weights())]


def find_weights(name: str) -> str:
    """The path of a listed entry; the two words stay as they are."""
    return name if name in ("huggingface", "tiny") else str(_local_weights()[name])


def list_loras() -> list[str]:
    """ComfyUI's loras list."""
    import folder_paths

    return folder_paths.get_filename_list("loras")


def find_lora(name: str) -> str:
    """The full path of a listed LoRA file."""
    import folder_paths

    return folder_paths.get_full_path_or_raise("loras", name)


def is_link(name: str) -> bool:
    """Whether a LoRA's name is an address to fetch it from."""
    from ..engine.downloads import is_remote

    return is_remote(name)


def link_problem(url: str) -> str:
    """What is wrong with the address of a LoRA; empty if nothing is, or if there is none."""
    from ..engine.downloads import is_remote, read_link

    if not url.strip():
        return ""
    if not is_remote(url):
        return f"url={url!r}; it must start with https:// or hf://, or be empty"
    try:
        read_link(url)
    except AitkError as error:
        return str(error)
    return ""


def make_room() -> None:
    """Lets ComfyUI drop its own models from the GPU before ours is loaded."""
    import comfy.model_management

    if comfy.model_management.get_torch_device().type != "cpu":
        comfy.model_management.unload_all_models()
        comfy.model_management.soft_empty_cache()


def step_reporter(node_id: str) -> Callable[[Any], None]:
    """Shows each step and its preview on a node, and stops the run when the user says so."""
    import comfy.model_management
    import comfy.utils
    from PIL import Image

    bars: list[Any] = []

    def report(step: Any) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if not bars:
            bars.append(comfy.utils.ProgressBar(step.total, node_id=node_id))
        preview = Image.fromarray(step.preview())
        preview = preview.resize((preview.width * 8, preview.height * 8), Image.Resampling.BILINEAR)
        bars[0].update_absolute(step.index, step.total, ("JPEG", preview, 512))

    return report


def frame_reporter(node_id: str, total: int) -> Callable[[int], None]:
    """Shows how many frames are written, and stops when the user says so."""
    import comfy.model_management
    import comfy.utils

    bar = comfy.utils.ProgressBar(total, node_id=node_id)

    def report(done: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    return report


def status_reporter(node_id: str) -> Callable[[str], None]:
    """Shows a line of text on a node while it loads, and stops when the user says so."""
    import comfy.model_management
    from server import PromptServer

    def report(text: str) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        server: Any = PromptServer.instance
        server.send_progress_text(text, node_id)

    return report


def frames_to_image(frames: Any) -> Any:
    """uint8 (F, H, W, 3) frames as ComfyUI's IMAGE: float (F, H, W, 3), 0 to 1."""
    import torch

    return torch.from_numpy(frames.copy()).float() / 255


def image_to_frames(images: Any) -> Any:
    """ComfyUI's IMAGE as uint8 (F, H, W, 3) frames."""
    return (images[..., :3].clamp(0, 1) * 255).round().byte().cpu().numpy()


def image_to_pictures(images: Any) -> list[Any]:
    """ComfyUI's IMAGE as PIL images: RGBA where it has four channels, else RGB."""
    from PIL import Image

    pixels = (images.clamp(0, 1) * 255).round().byte().cpu().numpy()
    return [Image.fromarray(picture) for picture in pixels]


def _local_weights() -> dict[str, Path]:
    import folder_paths

    if "aitk" not in folder_paths.folder_names_and_paths:
        folder_paths.add_model_folder_path("aitk", str(Path(folder_paths.models_dir) / "aitk"))
    found: dict[str, Path] = {}
    for category in MODEL_FOLDERS:
        for root in _roots(category):
            for index in sorted(root.glob("**/model_index.json")):
                name = index.parent.relative_to(root).as_posix()
                found.setdefault(f"{category}/{name}", index.parent)
    for category in FILE_FOLDERS:
        for root in _roots(category):
            for file in sorted(root.glob("*.safetensors")):
                found.setdefault(f"{category}/{file.name}", file)
    return found


def _roots(category: str) -> list[Path]:
    import folder_paths

    if category not in folder_paths.folder_names_and_paths:
        return []
    return [Path(folder) for folder in folder_paths.get_folder_paths(category)]
