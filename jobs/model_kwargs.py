"""What a job's `model_kwargs` mean for its samples: switches of the model, nothing, or too much.

Upstream: ostris/ai-toolkit@27a03a91 extensions_built_in/diffusion_models/, toolkit/models/wan21/
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..core.specs import ModelSpec
from .fields import Problem

# How the trainer's name of a model starts -> what steers its training alone.
WITHOUT_EFFECT = {
    "flex2": """
        invert_inpaint_mask_chance inpaint_dropout control_dropout inpaint_random_chance
        random_blur_mask random_dialate_mask do_random_inpainting""",
    "flux2": "match_target_res",
    "krea2": "edit",  # it chooses the model
    "omnigen2": "use_image_refiner",
    "qwen_image_edit_plus": "match_target_res",
    "wan22_14b": "train_high_noise train_low_noise",
    "wan21_i2v": "vae_tiling",
    "wan22_14b_i2v": "vae_tiling",
}
# Others than these values are not reproduced.
PLAIN = {
    "krea2": {
        "max_text_length": 512, "control_image_max_pixels": 1024**2, "vlm_max_pixels": 384**2,
        "schedule_y1": 0.5, "schedule_y2": 1.15, "schedule_min_res": 256, "schedule_max_res": 1280,
        "schedule_mu": None, "mmdit_config": {},
    },
}  # fmt: skip
ELSEWHERE = "_path", "_filename"  # how names of parts that come from elsewhere end


def switches_of(process: Mapping[str, Any], spec: ModelSpec) -> tuple[tuple[str, bool], ...]:
    """Every switch of the model with whether the job has it on."""
    sample = process.get("sample") or {}
    settings = _kwargs(process) | {"do_cfg_norm": sample.get("do_cfg_norm")}
    return tuple((switch.name, bool(settings.get(switch.name))) for switch in spec.switches)


def model_kwargs_problems(process: Mapping[str, Any], spec: ModelSpec) -> Iterator[Problem]:
    """Every entry that the job's samples may depend on and that is not reproduced."""
    silent = {switch.name for switch in spec.switches}
    for start, names in WITHOUT_EFFECT.items():
        silent.update(names.split() if spec.arch.startswith(start) else ())
    plain: dict[str, Any] = {}
    for start, values in PLAIN.items():
        plain |= values if spec.arch.startswith(start) else {}
    for name, value in _kwargs(process).items():
        if name not in silent and value is not None:
            yield from _problem(f"model.model_kwargs.{name}", name, value, plain)


def _problem(field: str, name: str, value: Any, plain: Mapping[str, Any]) -> Iterator[Problem]:
    if name.endswith(ELSEWHERE):
        yield Problem(field, value, "parts from elsewhere; not reproduced")
    elif name not in plain:
        yield Problem(field, value, "unknown here; it may matter", pixels=False)
    elif value != plain[name]:
        yield Problem(field, value, "a setting of the architecture's own; not reproduced")


def _kwargs(process: Mapping[str, Any]) -> dict[str, Any]:
    return dict((process.get("model") or {}).get("model_kwargs") or {})
