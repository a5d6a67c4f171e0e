"""What is compared with the trainer: one row per model, precision and way of applying the LoRA."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GOLDENS = Path(__file__).resolve().parent.parent / "goldens"
PROFILES = ("0.7.19", "0.12.26")
DTYPES = ("fp32", "bf16")
TRIGGER = "sks"
KOHYA = {"linear": 4, "linear_alpha": 2, "conv": 2, "conv_alpha": 1}  # scales of a half
PEFT = {"linear": 4, "linear_alpha": 2}  # the trainer ignores alpha here

# The curly quote and the ligature are where trainer versions tokenize CLIP prompts differently.
PROMPTS = (
    "a photo of [trigger] cat on the beach",
    "portrait of a woman\u2019s blue hat, \ufb01lm --w 104 --h 70 --seed 7 --cfg 3.5 --s 3 "
    "--n blurry, low quality",
)


@dataclass(frozen=True)
class ModelRow:
    """How the trainer is told to load and sample a model."""

    id: str
    arch: str  # of the trainer's config
    network: dict[str, int]
    guidance_scale: float
    samplers: tuple[str, ...] = ()  # those compared one by one, beside the default
    train: dict[str, Any] = field(default_factory=dict)


SD_SAMPLERS = (
    "ddim", "pndm", "lms", "k_lms", "euler", "k_euler", "euler_a", "dpmsolver++", "k_dpmsolver++",
    "dpmsingle", "heun", "dpm_2", "dpm_2_a", "lcm", "custom_lcm", "mean_flow", "flowmatch",
)  # fmt: skip
WITH_TEXT_ENCODERS = {"train_text_encoder": True}
MODELS = (
    ModelRow("sd15", "sd15", KOHYA, 7.0, SD_SAMPLERS, WITH_TEXT_ENCODERS),
    ModelRow("sdxl", "sdxl", KOHYA, 6.0, SD_SAMPLERS, WITH_TEXT_ENCODERS),
    ModelRow("flux", "flux", PEFT, 4.0, ("mean_flow",), WITH_TEXT_ENCODERS),
    ModelRow("flux_schnell", "flux", PEFT, 1.0),
    ModelRow("flex1", "flex1", PEFT, 4.0),
)


@dataclass(frozen=True)
class Row:
    """One job of the trainer: two samples, or one for a sampler row.

    multipliers: of the LoRA, per sample; empty without LoRA. Different ones make it live.
    """

    model: ModelRow
    dtype: str
    case: str
    multipliers: tuple[float, ...] = ()
    sampler: str = ""

    @property
    def id(self) -> str:
        return "-".join((self.model.id, self.dtype, self.case.replace("++", "pp")))

    @property
    def live(self) -> bool:
        return len(set(self.multipliers)) > 1

    def samples(self) -> list[dict[str, Any]]:
        """The trainer's sample list, each beside its multiplier."""
        if self.sampler:
            return [{"prompt": PROMPTS[0], "width": 64, "height": 64, "sample_steps": 4}]
        multipliers = self.multipliers or (1.0, 1.0)
        return [
            {"prompt": prompt, "network_multiplier": multiplier}
            for prompt, multiplier in zip(PROMPTS, multipliers, strict=True)
        ]


SAMPLE = {"width": 128, "height": 96, "seed": 42, "sample_steps": 4, "neg": "", "walk_seed": False}


def all_rows() -> Iterator[Row]:
    """Every row: LoRA cases in each dtype, then the samplers in bf16."""
    for model in MODELS:
        for dtype in DTYPES:
            yield Row(model, dtype, "plain")
            yield Row(model, dtype, "merged", (1.0, 1.0))
            yield Row(model, dtype, "merged_0.6", (0.6, 0.6))
            yield Row(model, dtype, "live", (1.0, 0.6))
        for sampler in model.samplers:
            yield Row(model, "bf16", sampler, sampler=sampler)


def lora_file(model: ModelRow, profile: str) -> Path:
    """The LoRA that the trainer of this version wrote for the model."""
    return GOLDENS / "loras" / f"{model.id}-{profile}.safetensors"


def job(row: Row, profile: str, checkpoint: Path) -> dict[str, Any]:
    """The row as trainer_run.py takes it."""
    return {
        "name": row.id.replace(".", "_"),
        "arch": row.model.arch,
        "checkpoint": str(checkpoint),
        "dtype": row.dtype,
        "sampler": row.sampler or None,
        "trigger_word": TRIGGER,
        "network": row.model.network,
        "train": row.model.train,
        "lora": str(lora_file(row.model, profile)) if row.multipliers else None,
        "sample": {**SAMPLE, "guidance_scale": row.model.guidance_scale},
        "samples": row.samples(),
    }
