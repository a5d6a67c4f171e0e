"""What the nodes need of ComfyUI, in one place; imported only while a node works."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

from ..core.errors import AitkError, InvalidInputError

CATEGORY = "AI Toolkit"
MODEL_FOLDERS = ("diffusers", "aitk")
FILE_FOLDERS = ("checkpoints", "aitk")
JOBS = "aitk_jobs"
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


def lora_files() -> dict[str, str]:
    """The full path of every file of ComfyUI's loras list, by its name there."""
    import folder_paths

    paths = {name: folder_paths.get_full_path("loras", name) for name in list_loras()}
    return {name: path for name, path in paths.items() if path is not None}


def list_jobs() -> list[str]:
    """Training jobs in ComfyUI's aitk_jobs folders, by their folders' names, and `tiny`."""
    from ..jobs.folder import TINY

    return sorted(_jobs(), key=lambda name: (name == TINY, name))


def find_job(name: str) -> Path:
    """The folder of a listed job."""
    return _jobs()[name]


def list_job_steps() -> list[str]:
    """The steps of which any listed job has weights, and 0, as texts."""
    from ..jobs.folder import find_steps

    return [str(step) for step in sorted({0}.union(*map(find_steps, _jobs().values())))]


def check_inside(path: str) -> None:
    """Raises InvalidInputError unless weights are a word or lie in ComfyUI's model folders."""
    if path in ("huggingface", "tiny"):
        return
    roots = [root.resolve() for name in (*MODEL_FOLDERS, *FILE_FOLDERS) for root in _roots(name)]
    if not any(Path(path).resolve().is_relative_to(root) for root in roots):
        raise InvalidInputError(
            f"the job's base model {path} is not in a model folder of ComfyUI; choose it as weights"
        )


def input_folder() -> Path:
    """ComfyUI's input folder, where a job's control images are looked for."""
    import folder_paths

    return Path(folder_paths.get_input_directory())


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
    import comfy.utils

    bar, tell = comfy.utils.ProgressBar(total, node_id=node_id), status_reporter(node_id)

    def report(done: int) -> None:
        tell(f"Writing the clip: {done} of {total} frames")
        bar.update_absolute(done, total)

    return report


def status_reporter(node_id: str) -> Callable[[str], None]:
    """Shows a line of text on a node while it loads, and stops when the user says so."""
    import comfy.model_management
    from server import PromptServer

    shown = ""

    def report(text: str) -> None:
        nonlocal shown
        comfy.model_management.throw_exception_if_processing_interrupted()
        if text != shown:
            shown = text
            server: Any = PromptServer.instance
            server.send_progress_text(text, node_id)

    return report


def output_file(prefix: str, width: int, height: int, ending: str) -> tuple[Path, dict[str, str]]:
    """The next free file below ComfyUI's output folder, and how the page is told of it."""
    import folder_paths

    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
        prefix, folder_paths.get_output_directory(), width, height
    )
    path = Path(folder) / f"{name}_{counter:05}_.{ending}"
    return path, {"filename": path.name, "subfolder": subfolder, "type": "output"}


def temporary_picture(pixels: Any) -> dict[str, str]:
    """How the page is told of a uint8 (H, W, 3) picture, written into ComfyUI's temp folder."""
    import folder_paths
    from PIL import Image

    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
        "aitk_compare", folder_paths.get_temp_directory(), pixels.shape[1], pixels.shape[0]
    )
    path = Path(folder) / f"{name}_{counter:05}_.png"
    Image.fromarray(pixels).save(path, compress_level=1)
    return {"filename": path.name, "subfolder": subfolder, "type": "temp"}


def metadata_is_off() -> bool:
    """Whether ComfyUI was started with --disable-metadata."""
    from comfy.cli_args import args

    return args.disable_metadata


def make_video(images: Any, audio: Any, rate: Fraction) -> Any:
    """ComfyUI's VIDEO of frames; core's own class, whose interface grows with ComfyUI."""
    from comfy_api.latest import InputImpl, Types

    return InputImpl.VideoFromComponents(
        Types.VideoComponents(images=images, audio=audio, frame_rate=rate)
    )


def frames_to_image(frames: Any) -> Any:
    """uint8 (F, H, W, 3) frames as ComfyUI's IMAGE: float (F, H, W, 3), 0 to 1."""
    import torch

    return torch.tensor(frames, dtype=torch.float32).div_(255)


class Frames(Sequence[Any]):
    """ComfyUI's IMAGE as uint8 (H, W, 3) frames, each made when it is asked for."""

    def __init__(self, images: Any) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: Any) -> Any:
        return _to_bytes(self._images[index][..., :3])


def sound_to_audio(sound: Any, rate: int) -> dict[str, Any] | None:
    """(channels, samples) as ComfyUI's AUDIO: float32 (1, channels, samples); None without one."""
    import torch

    if sound is None:
        return None
    return {"waveform": torch.tensor(sound, dtype=torch.float32)[None], "sample_rate": int(rate)}


def audio_to_sound(audio: dict[str, Any] | None, seconds: float) -> tuple[Any, int]:
    """ComfyUI's AUDIO as a (channels, samples) array and its rate, cut to the first `seconds`."""
    if audio is None:
        return None, 0
    waveform, rate = audio["waveform"], int(audio["sample_rate"])
    if waveform.dim() != 3 or len(waveform) != 1:
        raise InvalidInputError(
            f"audio has the shape {list(waveform.shape)}; one sound is needed: "
            "(1, channels, samples)"
        )
    return waveform[0, :, : math.ceil(seconds * rate)].float().cpu().numpy(), rate


def image_to_array(images: Any) -> Any:
    """ComfyUI's IMAGE as frames, uint8 (F, H, W, 3)."""
    return _to_bytes(images[..., :3])


def image_to_pictures(images: Any) -> list[Any]:
    """ComfyUI's IMAGE as PIL images: RGBA where it has four channels, else RGB."""
    from PIL import Image

    return [Image.fromarray(_to_bytes(picture)) for picture in images]


def _to_bytes(pixels: Any) -> Any:
    return (pixels.clamp(0, 1) * 255).round().byte().cpu().numpy()


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


def _jobs() -> dict[str, Path]:
    import folder_paths

    from ..jobs.folder import TINY, TINY_FOLDER

    if JOBS not in folder_paths.folder_names_and_paths:
        folder_paths.add_model_folder_path(JOBS, str(Path(folder_paths.models_dir) / JOBS))
    found = {TINY: TINY_FOLDER}
    for root in _roots(JOBS):
        for file in sorted((*root.glob("*/config.yaml"), *root.glob("*/.job_config.json"))):
            found.setdefault(file.parent.name, file.parent)
    return found


def _roots(category: str) -> list[Path]:
    import folder_paths

    if category not in folder_paths.folder_names_and_paths:
        return []
    return [Path(folder) for folder in folder_paths.get_folder_paths(category)]
