"""The bodies of the native API, as clients send them. A field that is not listed is refused."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..core.requests import FORMATS, LOW_VRAM, MAX_SEED, MAX_SIDE, MAX_STEPS, MODES
from ..core.versions import TRAINER_VERSIONS

MAX_PROMPTS = 64
MAX_TEXT = 20_000  # characters
UNDER = "a LoRA under those of `loras`, as a job's `model` section names it"
Side = Annotated[int, Field(ge=0, le=MAX_SIDE, description="px; 0 is the model's default")]
Text = Annotated[str, Field(max_length=MAX_TEXT)]
Name = Annotated[str, Field(max_length=2_000)]


class Strict(BaseModel):
    """A body in which nothing is silently ignored."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Lora(Strict):
    """A LoRA of a request."""

    path: Name = Field(
        min_length=1,
        description="a file in the server's LoRA folder, a nickname given with set_lora, an "
        "https:// or hf:// address, or tiny",
    )
    transformer: Literal["high", "low"] | None = Field(
        None, description="the expert it is for, in models with two"
    )
    network_multiplier: float = Field(1.0, ge=-100, le=100, description="its strength")
    allow_partial: bool = Field(False, description="leave out layers that do not fit the model")


class Prompt(Strict):
    """One sample. What is left out is as the trainer has it for the model."""

    prompt: Text = Field("", description="inline flags (--w 512 ...) are read as in a job")
    neg: Text = Field("", description="negative prompt")
    trigger_word: Text | None = Field(None, description="instead of the request's")
    width: Side = 0
    height: Side = 0
    sample_steps: int = Field(0, ge=0, le=MAX_STEPS, description="0 is the model's default")
    guidance_scale: float = Field(-1.0, ge=-1, description="-1 is the model's default")
    seed: int = Field(42, ge=-1, le=MAX_SEED, description="-1 is one at random, which is told")
    sampler: Name = Field("", description="the trainer's name of a scheduler, see /v1/models")
    num_frames: int = Field(0, ge=0, le=10_000, description="of a video model; 0 is its default")
    fps: int = Field(0, ge=0, le=1_000, description="of a video model; 0 is its default")
    ctrl_img: str | None = Field(
        None,
        description="a picture: https:// address, data: address, base64, or a name in the "
        "server's picture folder",
    )
    ctrl_img_1: str | None = Field(None, description="the same, instead of ctrl_img")
    ctrl_img_2: str | None = Field(None, description="for models that take several")
    ctrl_img_3: str | None = Field(None, description="for models that take several")
    ctrl_idx: int = Field(0, ge=0, le=1, description="as in the job (Flex.2)")
    switches: dict[str, bool] = Field(
        {}, description="settings that few models have, as kv_cache or match_target_res"
    )

    @property
    def pictures(self) -> tuple[str | None, ...]:
        """The control images in their order; None where one is left out."""
        return (self.ctrl_img or self.ctrl_img_1, self.ctrl_img_2, self.ctrl_img_3)


class ModelChoice(Strict):
    """The model of a request, and how it is to compute."""

    model: Name = Field("", description="see /v1/models; the server's own if left out")
    trigger_word: Text = Field("", description="replaces [trigger] and [name] in prompts")
    weights: Name = Field("", description="huggingface, tiny, or a name in the server's folder")
    dtype: Literal["bf16", "fp16", "fp32"] = Field("bf16", description="the job's `train.dtype`")
    quantize: Name = Field(
        "as_trained", description="the job's `model.qtype`, or none; as_trained is none as well"
    )
    quantize_te: Name = Field("", description="the job's `model.qtype_te`, if it differs")
    layer_offloading: bool = Field(False, description="the job had it")
    trainer_version: Literal[TRAINER_VERSIONS] = Field(  # type: ignore[valid-type]
        "auto", description="the trainer to draw as; auto is the one that wrote the LoRA"
    )
    mode: Literal[MODES] = Field(  # type: ignore[valid-type]
        "as_trainer", description="how LoRAs act"
    )
    low_vram: Literal[LOW_VRAM] = Field(  # type: ignore[valid-type]
        "auto", description="the job's `model.low_vram`"
    )
    cached_text: bool = Field(False, description="the job cached its texts' embeddings")
    assistant_lora_path: Name = Field("", description=UNDER)
    inference_lora_path: Name = Field("", description=UNDER)
    lora_path: Name = Field("", description=UNDER)


class InferenceRequest(ModelChoice):
    """Samples of one model with the same LoRAs, drawn one after the other."""

    loras: list[Lora] | None = Field(
        None, max_length=16, description="[] is none; left out, those given with set_lora"
    )
    prompts: list[Prompt] = Field(
        min_length=1, max_length=MAX_PROMPTS, description="one for each picture or clip"
    )
    output_format: Literal[("", *FORMATS)] = Field(  # type: ignore[valid-type]
        "", description="jpg for pictures and mp4 for clips if left out; png holds every bit"
    )
