"""The node that writes frames as a clip."""

from __future__ import annotations

import json
import re
from typing import Any

from . import _comfy
from ._errors import plain_errors

FORMATS = ("mp4", "webm", "webp")
TEXT_OR_NUMBER = re.compile(r'"(?:[^"\\]|\\.)*"|NaN|-?Infinity')


class SaveVideo:
    """A clip file of the frames, shown on the node, and ComfyUI's VIDEO."""

    CATEGORY = _comfy.CATEGORY
    DESCRIPTION = (
        "Writes frames as mp4 (H.264, AAC), webm (VP9, Opus), or the animated webp that the "
        "trainer writes, its frames byte for byte. All bring the workflow back when dropped on the "
        "page; mp4 and webm carry sound as well."
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
                    {
                        "tooltip": "webp: the frames that the trainer writes for clips, byte for "
                        "byte; no sound. mp4 and webm: smaller, with sound; their pixels are "
                        "close, not equal."
                    },
                ),
            },
            "optional": {
                "audio": (
                    "AUDIO",
                    {
                        "tooltip": "Mono or stereo sound for mp4 and webm. What is longer than "
                        "the frames is cut; after a shorter one it is silent."
                    },
                ),
                "crf": (
                    "INT",
                    {
                        "default": 19,
                        "min": 0,
                        "max": 51,
                        "tooltip": "Quality of mp4 and webm: low is good, high is small. An mp4 "
                        "with 0 is of a kind that some players refuse.",
                    },
                ),
            },
            "hidden": {
                "prompt": "PROMPT",
                "extra_pnginfo": "EXTRA_PNGINFO",
                "unique_id": "UNIQUE_ID",
            },
        }

    @plain_errors()
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
        from ..engine.files import save_animation
        from ..engine.video import frame_rate, save_video

        path, shown = _comfy.output_file(filename_prefix, images.shape[2], images.shape[1], format)
        frames = _comfy.Frames(images)
        report = _comfy.frame_reporter(unique_id, len(frames))
        tags = {} if _comfy.metadata_is_off() else _metadata(prompt, extra_pnginfo)
        if format == "webp":
            # without a graph to bring back it stays the trainer's own file
            save_animation(frames, path, fps, report, tags if "workflow" in tags else {})
        else:
            sound, rate = _comfy.audio_to_sound(audio, len(frames) / fps)
            save_video(frames, path, fps, sound, rate, crf, tags, report)
        return {
            "ui": {"images": [shown], "animated": (True,)},
            "result": (_comfy.make_video(images, audio, frame_rate(fps)),),
        }


def _metadata(prompt: Any, extra_pnginfo: dict[str, Any] | None) -> dict[str, str]:
    tags = {} if prompt is None else {"prompt": _to_json(prompt)}
    return tags | {key: _to_json(value) for key, value in (extra_pnginfo or {}).items()}


def _to_json(value: Any) -> str:
    """JSON that ComfyUI's page can read back from a file.

    Its reader of webm files ends at the brace that closes the first, counting those in texts as
    well; so these are escaped. NaN, which IS_CHANGED may answer, is no JSON to a browser.
    """
    return TEXT_OR_NUMBER.sub(_escaped, json.dumps(value))


def _escaped(found: re.Match[str]) -> str:
    if not found[0].startswith('"'):
        return "null"
    return found[0].replace("{", r"\u007b").replace("}", r"\u007d")
