"""The node that chooses a model."""

from __future__ import annotations

from typing import Any

from ..core.errors import AitkError
from ..core.requests import DTYPES, OFFLOAD, QUANTIZE, Recipe
from ..core.versions import TRAINER_VERSIONS
from ..pipelines._registry import get_model, list_models
from . import _comfy


class LoadAIToolkitModel:
    """A recipe: which model, which weights, which precision. Nothing is loaded before sampling."""

    CATEGORY = _comfy.CATEGORY
    DESCRIPTION = (
        "Chooses a model to render with, exactly as ostris/ai-toolkit does. Weights are read when "
        "the first sample is rendered and stay in memory for the next."
    )
    RETURN_TYPES = ("AITK_MODEL",)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("The recipe; connect it to a LoRA or to the sampler.",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": (
                    [spec.id for spec in list_models()],
                    {"default": "flux", "tooltip": "The model the LoRA was trained on."},
                ),
                "weights": (
                    _comfy.list_weights(),
                    {
                        "tooltip": "huggingface downloads what the trainer uses; tiny is a random "
                        "toy model for trying a workflow; the rest is in your model folders."
                    },
                ),
            },
            "optional": {
                "dtype": (
                    list(DTYPES),
                    {"default": "bf16", "tooltip": "train.dtype of the job; usually bf16."},
                ),
                "quantize": (
                    list(QUANTIZE),
                    {"tooltip": "as_trained follows a job's settings; without one it is none."},
                ),
                "trainer_version": (
                    list(TRAINER_VERSIONS),
                    {
                        "tooltip": "How the trainer sampled at that version. auto reads it from "
                        "the LoRA file."
                    },
                ),
                "offload": (
                    list(OFFLOAD),
                    {
                        "tooltip": "Where weights wait. auto keeps all on the GPU if they fit, "
                        "else only the part that works. The picture does not change."
                    },
                ),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, model: str, weights: str) -> bool | str:
        try:
            spec = get_model(model)
            if weights not in _comfy.list_weights():
                return f"weights {weights!r} are not in the model folders; refresh and choose again"
            if weights not in ("huggingface", "tiny"):
                from ..engine.weights import check_local

                check_local(spec, _comfy.find_weights(weights))
        except AitkError as error:
            return str(error)
        return True

    def load(
        self,
        model: str,
        weights: str,
        dtype: str = "bf16",
        quantize: str = "as_trained",
        trainer_version: str = "auto",
        offload: str = "auto",
    ) -> tuple[Recipe]:
        return (
            Recipe(
                model=model,
                weights=_comfy.find_weights(weights),
                dtype=dtype,
                quantize=quantize,
                trainer_version=trainer_version,
                offload=offload,
            ),
        )
