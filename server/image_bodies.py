"""The bodies of OpenAI's Images API, with fields of this server beside OpenAI's own."""

from __future__ import annotations

import random
import re
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, model_validator

from ..core.requests import MAX_SEED, MAX_SIDE, MAX_STEPS
from .errors import FieldError
from .schemas import InferenceRequest, Lora, ModelChoice, Name, Prompt, Strict, Text

MAX_IMAGES = 10
MAX_PARTIAL = 3
MAX_LORAS = 16
ENDINGS = {"png": "png", "jpeg": "jpg", "webp": "webp"}
SIZE = re.compile(r"(\d{1,5})x(\d{1,5})", re.IGNORECASE)
FILE, SCALE = ("path", "local_path", "lora_path"), ("scale", "strength", "network_multiplier")
ALIASES = {
    "steps": ("steps", "num_inference_steps", "sample_steps"),
    "negative_prompt": ("negative_prompt", "neg"),
    "lora": ("lora", "loras"),
}
PROMPT_FIELDS = {  # of the native API
    "prompt": "prompt",
    "neg": "negative_prompt",
    "sample_steps": "steps",
    "guidance_scale": "guidance_scale",
    "sampler": "sampler",
    "switches": "switches",
}
AS_DRAWN = "accepted, as it changes no picture"


def _alias(name: str) -> AliasChoices:
    return AliasChoices(*ALIASES[name])


def _without_null(body: Any, *aliases: tuple[str, ...]) -> Any:
    """The body with what is null left out. Raises ValueError if it has a field under two names."""
    if not isinstance(body, dict):
        return body
    given = {name: value for name, value in body.items() if value is not None}
    for names in aliases:
        if len(twice := [name for name in names if name in given]) > 1:
            raise ValueError(f"{' and '.join(twice)} are one field; give one of them")
    return given


class ImageLora(Strict):
    """A LoRA, under the names that servers of OpenAI's API have for its parts."""

    name: Name = Field(
        "",
        description="which, as `path` of POST /v1/inference; beside a path only what it is called",
    )
    path: Name = Field("", validation_alias=AliasChoices(*FILE))
    scale: float = Field(
        1.0, ge=-100, le=100, validation_alias=AliasChoices(*SCALE), description="0 is none"
    )
    transformer: Literal["high", "low"] | None = None
    allow_partial: bool = False

    @model_validator(mode="before")
    @classmethod
    def _one_name_each(cls, body: Any) -> Any:
        return _without_null(body, FILE, SCALE)

    @model_validator(mode="after")
    def _named(self) -> ImageLora:
        if not (self.path or self.name):
            raise ValueError("a LoRA needs a name or a path")
        return self

    def native(self) -> Lora:
        """The same for the native API."""
        return Lora(
            path=self.path or self.name,
            transformer=self.transformer,
            network_multiplier=self.scale,
            allow_partial=self.allow_partial,
        )


class Generation(ModelChoice):
    """Pictures of a text."""

    prompt: Text = Field(min_length=1)
    n: int = Field(1, ge=1, le=MAX_IMAGES, description="picture i has seed + i")
    size: str = Field("auto", description="WIDTHxHEIGHT in px; auto is the model's default")
    response_format: Literal["b64_json", "url"] = "b64_json"
    output_format: Literal["png", "jpeg", "webp"] = Field(
        "png", description="encoded as the trainer does"
    )
    output_compression: int | None = Field(
        None, ge=100, le=100, description="not to be chosen: the trainer has one for each format"
    )
    quality: Literal["auto", "standard"] | None = Field(None, description="choose `steps` instead")
    style: Literal["vivid"] | None = Field(None, description="say it in the prompt instead")
    background: Literal["auto", "opaque"] | None = Field(None, description="pictures are opaque")
    moderation: Literal["auto", "low"] | None = Field(None, description=AS_DRAWN)
    user: Text | None = Field(None, description=AS_DRAWN)
    safety_identifier: Text | None = Field(None, description=AS_DRAWN)
    stream: bool = False
    partial_images: int = Field(0, ge=0, le=MAX_PARTIAL, description="of a stream")

    lora: list[ImageLora] | None = Field(
        None,
        max_length=MAX_LORAS,
        validation_alias=_alias("lora"),
        description="one, or a list; [] is none; left out, those given with set_lora",
    )
    seed: int = Field(42, ge=-1, le=MAX_SEED, description="-1 is one at random, which is told")
    negative_prompt: Text = Field("", validation_alias=_alias("negative_prompt"))
    steps: int = Field(0, ge=0, le=MAX_STEPS, validation_alias=_alias("steps"))
    guidance_scale: float = Field(-1.0, ge=-1)
    sampler: Name = ""
    switches: dict[str, bool] = Field({}, description="as of POST /v1/inference")

    @model_validator(mode="before")
    @classmethod
    def _one_name_each(cls, body: Any) -> Any:
        given = _without_null(body, *ALIASES.values())
        if isinstance(given, dict):
            given |= {x: [given[x]] for x in ALIASES["lora"] if isinstance(given.get(x), dict)}
        return given

    @model_validator(mode="after")
    def _streams_one(self) -> Generation:
        if not self.stream and self.partial_images:
            raise ValueError("partial_images are sent in a stream only; set stream to true")
        if self.stream and self.n > 1:
            raise ValueError(f"n is {self.n}; a stream has one picture, ask for each in its own")
        if self.stream and self.response_format == "url":
            raise ValueError("a stream sends b64_json; leave response_format out")
        return self

    @property
    def sides(self) -> tuple[int, int]:
        """Width and height in px, 0 for the model's default. Raises FieldError."""
        if self.size.lower() == "auto":
            return 0, 0
        found = SIZE.fullmatch(self.size)
        width, height = (int(side) for side in found.groups()) if found else (-1, -1)
        if not (0 <= width <= MAX_SIDE and 0 <= height <= MAX_SIDE):
            raise FieldError(
                "size", f"received {self.size!r}; give WIDTHxHEIGHT, each 0 to {MAX_SIDE}, or auto"
            )
        return width, height

    def native(self) -> InferenceRequest:
        """The same for the native API, with a prompt for each picture. Raises FieldError."""
        own = {
            "loras": None if self.lora is None else [one.native() for one in self.lora],
            "prompts": [self._prompt(seed) for seed in self._seeds()],
            "output_format": ENDINGS[self.output_format],
        }
        # of the mode it matters whether it was given: the server's own LoRAs bring theirs
        shared = self.model_dump(include=set(ModelChoice.model_fields), exclude_unset=True)
        return InferenceRequest.model_validate(shared | own)

    def _seeds(self) -> range:
        first = random.randrange(2**32) if self.seed == -1 else self.seed
        if first + self.n - 1 > MAX_SEED:
            raise FieldError("seed", f"seed + n - 1 is above {MAX_SEED}; give a smaller seed")
        return range(first, first + self.n)

    def _prompt(self, seed: int) -> Prompt:
        width, height = self.sides
        told = {name: getattr(self, ours) for name, ours in PROMPT_FIELDS.items()}
        return Prompt.model_validate(told | {"seed": seed, "width": width, "height": height})


class Picture(Strict):
    """A picture of an edit sent as JSON."""

    image_url: Annotated[str, Field(min_length=1)]


class Edit(Generation):
    """Pictures of a text and of other pictures."""

    images: list[Picture] = Field([], description="in JSON; forms send files instead")
    mask: Picture | None = Field(
        None,
        description="transparent where to paint; of models that paint into a picture, as flex2",
    )
    input_fidelity: Literal["low"] | None = Field(None, description="there is nothing to choose")
    ctrl_idx: int = Field(0, ge=0, le=1, description="flex2: 1 follows the picture")

    def _prompt(self, seed: int) -> Prompt:
        return super()._prompt(seed).model_copy(update={"ctrl_idx": self.ctrl_idx})
