"""The node that renders."""

from __future__ import annotations

import json
from typing import Any

from ..core.errors import AitkError
from ..core.prompts import parse_flags
from ..core.requests import (
    MAX_SEED,
    MAX_SIDE,
    MAX_STEPS,
    Recipe,
    SampleRequest,
    parse_switches,
)
from ..pipelines._registry import list_models
from . import _comfy, _memory
from ._errors import plain_errors
from .latent import latent_samples

DEFAULT = "default"


def _samplers() -> list[str]:
    names: dict[str, None] = {}
    for spec in list_models():
        names.update(dict.fromkeys(spec.samplers))
    return [DEFAULT, *names]


class AIToolkitSample:
    """One sample, as the trainer draws it: same LoRA, prompt and seed, same pixels."""

    CATEGORY = _comfy.CATEGORY
    DESCRIPTION = (
        "Renders the sample that ostris/ai-toolkit renders from the same LoRA, prompt and seed. "
        "0 (-1 for guidance) means the model's own default, which is the trainer's."
    )
    RETURN_TYPES = ("IMAGE", "AUDIO", "FLOAT", "STRING")
    RETURN_NAMES = ("images", "audio", "fps", "info")
    OUTPUT_TOOLTIPS = (
        "The picture, or the frames of a clip.",
        "The sound of a clip; empty for models without sound.",
        "Frames per second of a clip.",
        "JSON: everything that decided the picture.",
    )
    FUNCTION = "sample"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        side = {"default": 0, "min": 0, "max": MAX_SIDE, "step": 8}
        text = {"multiline": True, "dynamicPrompts": True}
        return {
            "required": {
                "model": ("AITK_MODEL", {"tooltip": "The recipe to render."}),
                "prompt": (
                    "STRING",
                    {
                        **text,
                        "default": "",
                        "tooltip": "Inline flags are read as the trainer reads them and win over "
                        "the inputs below: --w 1024 --h 768 --seed 7 --cfg 4 --steps 20 --n text.",
                    },
                ),
                "negative_prompt": (
                    "STRING",
                    {**text, "default": "", "tooltip": "The job's `neg`. FLUX ignores it."},
                ),
                "width": (
                    "INT",
                    {**side, "tooltip": "px, 0: the model's default. Floored to its grid."},
                ),
                "height": (
                    "INT",
                    {**side, "tooltip": "px, 0: the model's default. Floored to its grid."},
                ),
                "steps": (
                    "INT",
                    {"default": 0, "min": 0, "max": MAX_STEPS, "tooltip": "0: the default."},
                ),
                "guidance_scale": (
                    "FLOAT",
                    {
                        "default": -1.0,
                        "min": -1.0,
                        "max": 100.0,
                        "step": 0.1,
                        "tooltip": "-1: the model's default.",
                    },
                ),
                "seed": (
                    "INT",
                    {
                        "default": 42,
                        "min": 0,
                        "max": MAX_SEED,
                        "control_after_generate": True,
                        "tooltip": "The trainer's seed. With walk_seed, sample i has seed + i.",
                    },
                ),
            },
            "optional": {
                "num_frames": (
                    "INT",
                    {"default": 0, "min": 0, "max": 10_000, "tooltip": "Of video models."},
                ),
                "fps": (
                    "INT",
                    {"default": 0, "min": 0, "max": 1_000, "tooltip": "Of video models."},
                ),
                "trigger_word": (
                    "STRING",
                    {"default": "", "tooltip": "Replaces [trigger] and [name] in the prompt."},
                ),
                "sampler": (
                    _samplers(),
                    {"tooltip": "The job's sample.sampler; default is the model's."},
                ),
                "cached_text": (
                    "BOOLEAN",
                    {
                        "default": False,
                        "advanced": True,
                        "tooltip": "On if the job had cache_text_embeddings or "
                        "unload_text_encoder: trainers before 0.10.28 then left [trigger] in the "
                        "prompt as it stood.",
                    },
                ),
                **{
                    f"control_image_{number}": (
                        "IMAGE",
                        {
                            "tooltip": "For models that edit or take reference images. A batch "
                            "counts as several, in order. A fourth channel is the alpha."
                        },
                    )
                    for number in (1, 2, 3)
                },
                "control_index": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 1,
                        "advanced": True,
                        "tooltip": "The job's ctrl_idx. Flex.2: 0 paints into the picture, 1 "
                        "follows it.",
                    },
                ),
                "doubled_control": (
                    "BOOLEAN",
                    {
                        "default": False,
                        "advanced": True,
                        "tooltip": "On if the job names its first picture ctrl_img instead of "
                        "ctrl_img_1: Qwen-Image-Edit-Plus then reads it twice.",
                    },
                ),
                "latent": (
                    "LATENT",
                    {"tooltip": "Its size is used; with denoise below 1, its content too."},
                ),
                "denoise": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": 0.01,
                        "max": 1.0,
                        "step": 0.01,
                        "tooltip": "Share of the steps to run, starting from the latent.",
                    },
                ),
                "switches": (
                    "STRING",
                    {
                        "default": "",
                        "advanced": True,
                        "tooltip": "Settings of few models, unlike the trainer's form has them: "
                        "kv_cache=off, match_target_res=off (Krea 2, editing), do_cfg_norm=on "
                        "(Qwen-Image-Edit-Plus), vae_tiling=on (Wan); with commas between.",
                    },
                ),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, prompt: str | None, switches: str | None = None) -> bool | str:
        # None is the text of another node, which is not known yet
        try:
            parse_flags(prompt or "")
            parse_switches(switches or "")
        except AitkError as error:
            return str(error)
        return True

    @plain_errors()
    def sample(
        self,
        model: Recipe,
        prompt: str,
        negative_prompt: str,
        width: int,
        height: int,
        steps: int,
        guidance_scale: float,
        seed: int,
        num_frames: int = 0,
        fps: int = 0,
        trigger_word: str = "",
        sampler: str = DEFAULT,
        cached_text: bool = False,
        control_index: int = 0,
        doubled_control: bool = False,
        latent: dict[str, Any] | None = None,
        denoise: float = 1.0,
        switches: str = "",
        unique_id: str = "",
        **control_images: Any,
    ) -> tuple[Any, Any, float, str]:
        request = SampleRequest(
            recipe=model,
            prompt=prompt,
            negative_prompt=negative_prompt,
            width=width,
            height=height,
            steps=steps,
            guidance_scale=guidance_scale,
            seed=seed,
            num_frames=num_frames,
            fps=fps,
            trigger_word=trigger_word,
            cached_text=cached_text,
            sampler="" if sampler == DEFAULT else sampler,
            control_images=_control_images(control_images),
            control_index=control_index,
            doubled_control=doubled_control,
            latents=None if latent is None else latent_samples(latent),
            denoise=denoise,
            switches=parse_switches(switches),
        )
        engine, status = _comfy.engine(), _comfy.status_reporter(unique_id)
        engine.plan(request, status)
        with _memory.room_for(engine, model):
            result = engine.sample(
                request,
                on_step=_comfy.step_reporter(unique_id),
                on_status=status,
                previews=True,
            )
        height, width = result.frames.shape[1:3]
        status(f"{width}x{height} px in {result.info['seconds']:.1f} s")  # else the last part stays
        images = _comfy.frames_to_image(result.frames)
        audio = _comfy.sound_to_audio(result.audio, result.audio_rate)
        return images, audio, float(result.fps), json.dumps(result.info, indent=2)


def _control_images(sockets: dict[str, Any]) -> tuple[Any, ...]:
    # in the order of the sockets, and of a batch's pictures
    given = [sockets[name] for name in sorted(sockets) if sockets[name] is not None]
    return tuple(picture for batch in given for picture in _comfy.image_to_pictures(batch))
