"""The node that puts a LoRA on a model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ..core.errors import InvalidInputError
from ..core.requests import MODES, AdapterRef, Recipe
from ..pipelines._registry import get_model
from . import _comfy

NONE = "none"
TINY = "tiny"


class ApplyAIToolkitLoRA:
    """The recipe with one more LoRA, and what is in the file."""

    CATEGORY = _comfy.CATEGORY
    DESCRIPTION = (
        "Puts a LoRA trained with ostris/ai-toolkit on the model, with the trainer's arithmetic. "
        "A file that does not fit the model completely is refused."
    )
    RETURN_TYPES = ("AITK_MODEL", "STRING")
    RETURN_NAMES = ("model", "report")
    OUTPUT_TOOLTIPS = ("The recipe with this LoRA on top.", "What the file holds.")
    FUNCTION = "apply"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        loras = _comfy.list_loras()
        return {
            "required": {
                "model": ("AITK_MODEL", {"tooltip": "The recipe to put the LoRA on."}),
                "lora_name": (
                    [*loras, TINY],
                    {
                        "tooltip": "A .safetensors file of ComfyUI's loras folder. tiny is a "
                        "random LoRA for the tiny weights, for trying a workflow."
                    },
                ),
                "multiplier": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": -100.0,
                        "max": 100.0,
                        "step": 0.01,
                        "tooltip": "The trainer's network_multiplier; its samples use 1.0. "
                        "--m in the prompt overrides it.",
                    },
                ),
            },
            "optional": {
                "lora_name_low": (
                    [NONE, *loras],
                    {
                        "tooltip": "Only for models with two experts: the low-noise file; "
                        "lora_name is then the high-noise one."
                    },
                ),
                "mode": (
                    list(MODES),
                    {
                        "tooltip": "as_trainer merges the LoRA into the weights, as the trainer "
                        "does for a sample list with one multiplier; live computes it beside the "
                        "layers, as the trainer does for several multipliers."
                    },
                ),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, multiplier: float) -> bool | str:
        if not math.isfinite(multiplier) or abs(multiplier) > 100:
            return f"multiplier={multiplier}; it must be a number from -100 to 100"
        return True

    @classmethod
    def IS_CHANGED(cls, lora_name: str, **_: Any) -> str:
        if lora_name == TINY:
            return TINY
        # a training that goes on writes the same file again
        stat = Path(_comfy.find_lora(lora_name)).stat()
        return f"{stat.st_mtime_ns} {stat.st_size}"

    def apply(
        self,
        model: Recipe,
        lora_name: str,
        multiplier: float,
        lora_name_low: str = NONE,
        mode: str = "as_trainer",
    ) -> tuple[Recipe, str]:
        from ..adapters.report import describe

        spec = get_model(model.model)
        if lora_name_low != NONE:
            raise InvalidInputError(
                f"{spec.id} has one transformer, so lora_name_low={lora_name_low!r} has no place; "
                f"choose {NONE!r}"
            )
        path = TINY if lora_name == TINY else _comfy.find_lora(lora_name)
        adapter = _comfy.engine().adapter(model, path)
        recipe = model.with_adapter(AdapterRef(path, multiplier), mode)
        return recipe, describe(adapter, name=lora_name)
