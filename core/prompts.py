"""The trainer's reading of a prompt: trigger words, inline flags, sizes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from .errors import InvalidInputError, one_of
from .requests import MAX_SEED, MAX_SIDE, MAX_STEPS, SampleRequest
from .specs import ModelSpec
from .versions import LATEST, Profile


@dataclass(frozen=True)
class Settings:
    """Everything that decides a sample once defaults, trigger and inline flags are resolved.

    width, height: px as rendered. off_grid: px that the trainer's sample is wider and higher, which
    models see that fit a picture to it. multiplier: of all adapters, or None to keep each its own.
    negative_prompt_2: for the second text encoder of SDXL; the trainer lets an inline `--n` reach
    it only in cached text.
    """

    prompt: str
    prompt_2: str
    negative_prompt: str
    negative_prompt_2: str
    width: int
    height: int
    steps: int
    guidance_scale: float
    guidance_rescale: float
    seed: int
    num_frames: int
    fps: int
    sampler: str
    denoise: float
    control_index: int = 0
    doubled_control: bool = False
    low_vram: bool = False
    switches: tuple[str, ...] = ()
    multiplier: float | None = None
    off_grid: tuple[int, int] = (0, 0)


def _text(content: str) -> str:
    return content


# flag -> (field of Settings, how its text is read). p2 and n2 are read and then overwritten by
# the trainer; a, ref and ev belong to its IP adapters and refiners, ctrl_img is refused.
FLAGS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "n": ("negative_prompt", _text),
    "w": ("width", int),
    "h": ("height", int),
    "d": ("seed", int),
    "seed": ("seed", int),
    "l": ("guidance_scale", float),
    "cfg": ("guidance_scale", float),
    "s": ("steps", int),
    "steps": ("steps", int),
    "m": ("multiplier", float),
    "network_multiplier": ("multiplier", float),
    "gr": ("guidance_rescale", float),
    "frames": ("num_frames", int),
    "num_frames": ("num_frames", int),
    "fps": ("fps", int),
    "ctrl_idx": ("control_index", int),
}


def resolve(spec: ModelSpec, request: SampleRequest, profile: Profile = LATEST) -> Settings:
    """The settings the trainer of this version would arrive at for this request.

    Inline flags win over the request's fields; sides are floored to 8 px, lifted to 64 px, then
    floored to the model's grid. Raises InvalidInputError for a flag whose value cannot be read
    or is out of range, an unknown sampler, and inputs the model does not take.
    Upstream: ostris/ai-toolkit@27a03a91 toolkit/config_modules.py::GenerateImageConfig
    """
    _check_inputs(spec, request)
    defaults = spec.defaults
    prompt, flags = read_prompt(request, profile)
    if request.cached_text and "negative_prompt" in flags:
        flags["negative_prompt_2"] = flags["negative_prompt"]
    given = Settings(
        prompt=prompt,
        prompt_2=prompt,
        negative_prompt=request.negative_prompt,
        negative_prompt_2=request.negative_prompt,
        width=request.width or defaults.width,
        height=request.height or defaults.height,
        steps=request.steps or defaults.steps,
        guidance_scale=(
            defaults.guidance_scale if request.guidance_scale == -1 else request.guidance_scale
        ),
        guidance_rescale=request.guidance_rescale,
        seed=request.seed,
        num_frames=request.num_frames or defaults.num_frames,
        fps=request.fps or defaults.fps,
        sampler=request.sampler or defaults.sampler,
        denoise=request.denoise,
        control_index=request.control_index,
        doubled_control=request.doubled_control,
        low_vram={"on": True, "off": False}.get(request.recipe.low_vram, spec.low_vram),
        switches=_switches(spec, request, profile),
    )
    settings = replace(given, **flags)
    _check_flag_values(settings)
    _check_controls(spec, request, settings)
    spec.check(settings)
    grid = spec.grid(profile)
    wide, high = (floor_side(side, 1) for side in (settings.width, settings.height))
    off_grid = wide % grid, high % grid
    return replace(settings, width=wide - off_grid[0], height=high - off_grid[1], off_grid=off_grid)


def _switches(spec: ModelSpec, request: SampleRequest, profile: Profile) -> tuple[str, ...]:
    # those that are on
    known, asked = [switch.name for switch in spec.switches], dict(request.switches)
    if strange := sorted(asked.keys() - set(known)):
        raise one_of(f"switch of {spec.id}", strange[0], known or ("none",))
    return tuple(x.name for x in spec.switches if x.is_on(asked.get(x.name), profile))


def read_prompt(request: SampleRequest, profile: Profile) -> tuple[str, dict[str, Any]]:
    """The request's prompt with its trigger word put in: the text, and the values of its flags."""
    prompt = request.prompt
    if profile.has("trigger_in_cached_text") or not request.cached_text:
        prompt = replace_trigger(prompt, request.trigger_word)
    return parse_flags(prompt)


def replace_trigger(prompt: str, trigger_word: str) -> str:
    """The prompt with `[trigger]` and `[name]` replaced; as it is without a trigger word.

    Upstream: ostris/ai-toolkit@27a03a91 toolkit/prompt_utils.py::inject_trigger_into_prompt
    """
    if not trigger_word:
        return prompt
    return prompt.replace("[name]", trigger_word).replace("[trigger]", trigger_word)


def parse_flags(prompt: str) -> tuple[str, dict[str, Any]]:
    """The text before the first `--`, and the values of the flags behind it.

    Unknown flags are dropped, as the trainer drops them. Raises InvalidInputError for a value
    that is no number where one is needed.
    """
    text, *parts = prompt.strip().split("--")
    values: dict[str, Any] = {}
    for part in parts:
        flag = part.split(" ")[0].strip()
        content = part[len(flag) :].strip()
        if flag in FLAGS:
            name, read = FLAGS[flag]
            values[name] = _read(flag, content, read)
    return text.strip(), values


def floor_side(side: int, multiple_of: int) -> int:
    """A side in px as the trainer renders it: to 8, at least 64, then to the model's grid."""
    side = max(64, side - side % 8)
    return side - side % multiple_of


def _read(flag: str, content: str, read: Callable[[str], Any]) -> Any:
    try:
        return read(content)
    except ValueError:
        kind = "a whole number" if read is int else "a number"
        raise InvalidInputError(
            f"prompt flag --{flag} got {content!r}; it needs {kind}. The trainer reads every `--` "
            "in a prompt as a flag: write a dash another way if you meant text"
        ) from None


def _check_flag_values(settings: Settings) -> None:
    limits = (
        ("width", 1, MAX_SIDE),
        ("height", 1, MAX_SIDE),
        ("steps", 1, MAX_STEPS),
        ("seed", 0, MAX_SEED),
        ("num_frames", 1, 10_000),
        ("fps", 1, 1_000),
        ("control_index", 0, 1),
    )
    for name, least, most in limits:
        value = getattr(settings, name)
        if not least <= value <= most:
            raise InvalidInputError(
                f"{name}={value} from the prompt's flags; it must be {least} to {most}"
            )
    for name in ("guidance_scale", "guidance_rescale", "multiplier"):
        value = getattr(settings, name)
        if value is not None and not math.isfinite(value):
            raise InvalidInputError(f"{name}={value} from the prompt's flags; it must be finite")


def _check_inputs(spec: ModelSpec, request: SampleRequest) -> None:
    if request.sampler and request.sampler not in spec.samplers:
        raise InvalidInputError(
            f"unknown sampler {request.sampler!r} for {spec.id}; "
            f"allowed: {', '.join(spec.samplers)}"
        )
    given, taken = len(request.control_images), spec.control_images
    if given > taken.most:
        raise InvalidInputError(
            f"{spec.id} takes {_count(taken.most, 'at most ')}, got {given}; disconnect the others "
            "or choose another model"
        )
    if given < taken.required:
        raise InvalidInputError(
            f"{spec.id} needs {_count(taken.required)}, got {given}; connect control_image_1, or "
            "give --control-image"
        )


def _count(number: int, words: str = "") -> str:
    if number == 0:
        return "no control images"
    return f"{words}{number} control image{'s' * (number > 1)}"


def _check_controls(spec: ModelSpec, request: SampleRequest, settings: Settings) -> None:
    taken = spec.control_images
    if taken.most and re.search(r"--ctrl_img(?![a-z_])", request.prompt):
        raise InvalidInputError(
            "--ctrl_img in the prompt names a file, which prompts may not; connect the picture to "
            "control_image_1, or give --control-image"
        )
    if settings.control_index and not taken.index:
        if "--ctrl_idx" in request.prompt:  # the trainer's other models take no notice
            return
        raise InvalidInputError(
            f"control_index={settings.control_index}, but {spec.id} uses control images in one way "
            "only; use 0"
        )
    if taken.index and taken.alpha and request.control_images:
        _check_use(spec, request.control_images[0], settings.control_index)
    if settings.doubled_control and not taken.doubled:
        raise InvalidInputError(
            f"doubled_control is on, but {spec.id} reads no control image twice; turn it off"
        )


def _check_use(spec: ModelSpec, image: Any, index: int) -> None:
    # the trainer's network is given the wrong number of channels by the other two ways, and fails
    alpha = image.mode == "RGBA"
    if alpha and index:
        raise InvalidInputError(
            f"control_index=1, but the picture has alpha, which tells {spec.id} what to paint; use "
            "control_index 0, or give the picture without alpha to be followed"
        )
    if not alpha and not index:
        raise InvalidInputError(
            f"control_index=0, but the picture has no alpha to tell {spec.id} what to paint; use "
            "control_index 1 to have it followed, or give an RGBA picture, in the shell a file "
            "named *.inpaint.png"
        )
