"""What is asked for: a model recipe and a sample of it, as immutable data."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace

from .errors import InvalidInputError, one_of
from .qtypes import AS_TRAINED, NONE, check_quantize_te, split_quantize
from .qtypes import NAMES as QTYPE_NAMES
from .versions import TRAINER_VERSIONS

DTYPES = ("bf16", "fp16", "fp32")
QUANTIZE = (AS_TRAINED, NONE, *QTYPE_NAMES)
OFFLOAD = ("auto", "none", "model", "group", "sequential")
MODES = ("as_trainer", "merged", "live")
LOW_VRAM = ("auto", "on", "off")
FORMATS = ("png", "jpg", "webp", "mp4", "webm")
MAX_SIDE = 16384  # px
MAX_STEPS = 10_000
MAX_SEED = 2**64 - 1


@dataclass(frozen=True)
class AdapterRef:
    """An adapter and the trainer's network_multiplier for it.

    path: a file, a peft folder, an https:// or hf:// address, or "tiny". low: the low-noise file
    of a model with two experts; path is then the high-noise one, and may be empty.
    allow_partial: whether layers that do not fit the model are left out instead of refused.
    """

    path: str
    multiplier: float = 1.0
    low: str = ""
    allow_partial: bool = False

    def __post_init__(self) -> None:
        _check_number("multiplier", self.multiplier)
        if not (self.path or self.low):
            raise InvalidInputError("an adapter needs a file; give the name of one")

    @property
    def files(self) -> tuple[str, ...]:
        """What it is read from: one, or those of two experts."""
        return tuple(name for name in (self.path, self.low) if name)


@dataclass(frozen=True)
class Recipe:
    """A model ready to be realised: which weights, which precision, which adapters.

    weights: "huggingface", "tiny", a diffusers folder or a .safetensors file.
    quantize: "as_trained" and "none", which without a job are the same, a qtype, or "qtype|file"
    with an accuracy recovery adapter. quantize_te: the text encoder's; "" is as quantize says.
    layer_offloading: the job's, which changes what qtypes compute.
    mode: how adapters act; "as_trainer" merges them where the trainer would.
    low_vram: the job's, with which some VAEs work in tiles; "auto" is as the trainer's form has it.
    assistant_lora_path, inference_lora_path, lora_path: the LoRAs under them, as a job's `model`
    section names them: see engine.training_adapters.
    """

    model: str
    weights: str = "huggingface"
    dtype: str = "bf16"
    quantize: str = "as_trained"
    trainer_version: str = "auto"
    offload: str = "auto"
    adapters: tuple[AdapterRef, ...] = ()
    mode: str = "as_trainer"
    quantize_te: str = ""
    layer_offloading: bool = False
    low_vram: str = "auto"
    assistant_lora_path: str = ""
    inference_lora_path: str = ""
    lora_path: str = ""

    def __post_init__(self) -> None:
        for what, allowed in (
            ("dtype", DTYPES),
            ("trainer_version", TRAINER_VERSIONS),
            ("offload", OFFLOAD),
            ("mode", MODES),
            ("low_vram", LOW_VRAM),
        ):
            if getattr(self, what) not in allowed:
                raise one_of(what, getattr(self, what), allowed)
        split_quantize(self.quantize)
        check_quantize_te(self.quantize_te)

    def with_adapter(self, adapter: AdapterRef, mode: str = "as_trainer") -> Recipe:
        """This recipe with one more adapter on top; its mode holds for all of them."""
        return replace(self, adapters=(*self.adapters, adapter), mode=mode)


@dataclass(frozen=True)
class SampleRequest:
    """One sample. 0 (and -1 for guidance_scale, "" for sampler) mean the model's default.

    width, height: px. seed: 0 to 2**64 - 1. denoise: share of the steps that are run, above 0
    to 1; only below 1 does `latents` (1, C, H/8, W/8; unscaled, as a VAE encoder gives them)
    shape the picture. cached_text: the prompt is read as in a job with `cache_text_embeddings` or
    `unload_text_encoder`. control_images: PIL images in the order of the job's `ctrl_img_1` to
    `_3`; see engine.control_images. control_index: the job's `ctrl_idx`. doubled_control: the job
    names the first one `ctrl_img`. switches: settings that few models have, ModelSpec.switches,
    with whether they are on; those left out are as in jobs of the trainer's form.
    """

    recipe: Recipe
    prompt: str = ""
    negative_prompt: str = ""
    width: int = 0
    height: int = 0
    steps: int = 0
    guidance_scale: float = -1.0
    seed: int = 42
    num_frames: int = 0
    fps: int = 0
    trigger_word: str = ""
    cached_text: bool = False
    sampler: str = ""
    guidance_rescale: float = 0.0
    control_images: tuple[object, ...] = ()
    control_index: int = 0
    doubled_control: bool = False
    switches: tuple[tuple[str, bool], ...] = ()
    latents: object | None = field(default=None, compare=False)
    denoise: float = 1.0

    def __post_init__(self) -> None:
        for name, most in (("width", MAX_SIDE), ("height", MAX_SIDE), ("steps", MAX_STEPS)):
            _check_range(name, getattr(self, name), 0, most)
        _check_range("num_frames", self.num_frames, 0, 10_000)
        _check_range("fps", self.fps, 0, 1_000)
        _check_range("control_index", self.control_index, 0, 1)
        _check_range("seed", self.seed, 0, MAX_SEED)
        _check_number("guidance_scale", self.guidance_scale)
        if self.guidance_scale < 0 and self.guidance_scale != -1:
            raise InvalidInputError(
                f"guidance_scale={self.guidance_scale}; it must be 0 or more, "
                "or -1 for the model's default"
            )
        _check_number("guidance_rescale", self.guidance_rescale)
        _check_number("denoise", self.denoise)
        if not 0 < self.denoise <= 1:
            raise InvalidInputError(f"denoise={self.denoise}; it must be above 0 and at most 1")
        if self.denoise < 1 and self.latents is None:
            raise InvalidInputError(
                f"denoise={self.denoise} needs latents to start from; connect a latent, or use 1.0"
            )


def parse_switches(text: str) -> tuple[tuple[str, bool], ...]:
    """SampleRequest.switches of text like `kv_cache=on, match_target_res=off`; none of none."""
    return tuple(_switch(part.strip()) for part in text.split(",") if part.strip())


def _switch(text: str) -> tuple[str, bool]:
    name, _, value = text.partition("=")
    if not name or value not in ("on", "off"):
        raise InvalidInputError(f"switch {text!r}; write NAME=on or NAME=off")
    return name, value == "on"


def _check_range(name: str, value: int, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InvalidInputError(f"{name}={value!r}; it must be a whole number, {least} to {most}")


def _check_number(name: str, value: float) -> None:
    known = isinstance(value, int | float) and not isinstance(value, bool)
    if not known or not abs(value) <= sys.float_info.max:
        raise InvalidInputError(f"{name}={value!r}; it must be a finite number")
