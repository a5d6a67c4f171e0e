"""The node that writes frames as a clip."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

from . import _comfy

FORMATS = ("mp4", "webm", "webp")


class SaveVideo:
    """A clip file of the frames, shown on the node, and ComfyUI's VIDEO."""

    CATEGORY = _comfy.CATEGORY
    DESCRIPTION = (
        "Writes frames as mp4 (H.264), webm (VP9), or the animated webp that the trainer writes, "
        "byte for byte. mp4 and webm carry the workflow for drag and drop; the webp carries "
        "nothing, as the trainer's."
    )
    RETURN_TYPES = ("VIDEO",)
    RETURN_NAMES = ("video",)
    OUTPUT_TOOLTIPS = ("The clip, for other video nodes.",)
    FUNCTION = "save"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "images": ("IMAGE", {"tooltip": "The frames, in order."}),
                "fps": (
                    "FLOAT",
                    {
                        "default": 16.0,
                        "min": 0.01,
                        "max": 1000.0,
                        "step": 0.01,
                        "tooltip": "Frames per second.",
                    },
                ),
                "filename_prefix": (
                    "STRING",
                    {
                        "default": "video/aitk",
                        "tooltip": "Start of the file name, below the output folder.",
                    },
                ),
                "format": (
                    list(FORMATS),
                    {"tooltip": "webp is what the trainer writes for clips."},
                ),
            },
            "optional": {
                "audio": ("AUDIO", {"tooltip": "Sound for mp4 and webm."}),
                "crf": (
                    "INT",
                    {
                        "default": 19,
                        "min": 0,
                        "max": 51,
                        "tooltip": "Quality of mp4 and webm: 0 is best, larger is smaller.",
                    },
                ),
            },
            "hidden": {
                "prompt": "PROMPT",
                "extra_pnginfo": "EXTRA_PNGINFO",
                "unique_id": "UNIQUE_ID",
            },
        }

    def save(
        self,
        images: Any,
        fps: float,
        filename_prefix: str,
        format: str,
        audio: dict[str, Any] | None = None,
        crf: int = 19,
        prompt: Any = None,
        extra_pnginfo: dict[str, Any] | None = None,
        unique_id: str = "",
    ) -> dict[str, Any]:
        import folder_paths

        from ..engine.files import save_animation, save_video

        height, width = images.shape[1:3]
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory(), width, height
        )
        path = Path(folder) / f"{name}_{counter:05}_.{format}"
        frames = _comfy.image_to_frames(images)
        if format == "webp":
            save_animation(frames, path, fps)
        else:
            sound, rate = _sound(audio)
            save_video(
                frames,
                path,
                fps,
                sound,
                rate,
                crf,
                _metadata(prompt, extra_pnginfo),
                _comfy.frame_reporter(unique_id, len(frames)),
            )
        shown = {"filename": path.name, "subfolder": subfolder, "type": "output"}
        return {
            "ui": {"images": [shown], "animated": (True,)},
            "result": (_video(images, audio, fps),),
        }


def _sound(audio: dict[str, Any] | None) -> tuple[Any, int]:
    if audio is None:
        return None, 0
    return audio["waveform"][0].float().cpu().numpy(), int(audio["sample_rate"])


def _metadata(prompt: Any, extra_pnginfo: dict[str, Any] | None) -> dict[str, str]:
    tags = {} if prompt is None else {"prompt": json.dumps(prompt)}
    return tags | {key: json.dumps(value) for key, value in (extra_pnginfo or {}).items()}


def _video(images: Any, audio: Any, fps: float) -> Any:
    from comfy_api.input_impl import VideoFromComponents
    from comfy_api.util import VideoComponents

    rate = Fraction(fps).limit_denominator(1001)
    return VideoFromComponents(VideoComponents(images=images, audio=audio, frame_rate=rate))
