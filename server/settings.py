"""What a server is started with: one table, read from the environment and from `aitk serve`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_type_hints

from ..core.errors import InvalidInputError
from ..core.requests import OFFLOAD

YES, NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
RANGES = {  # field -> least, most
    "port": (0, 65_535),
    "timeout": (1, 10_000_000),
    "keep_hours": (1, 1_000_000),
    "max_queue": (1, 1_000_000),
    "max_body_mb": (1, 100_000),
}


@dataclass(frozen=True)
class Settings:
    """Where a server listens, what it draws with, and what it takes. None: there is none."""

    host: Annotated[str, "HOST", "address to listen at; 0.0.0.0 is every network"] = "127.0.0.1"
    port: Annotated[int, "PORT", "port to listen at"] = 8000
    base_url: Annotated[
        str, "BASE_URL", "how clients reach the server, for links; as they called it if not given"
    ] = ""
    device: Annotated[str, "DEVICE", "cpu, cuda or cuda:N; the best there is if not given"] = ""
    enable_cpu_offload: Annotated[
        bool, "ENABLE_CPU_OFFLOAD", "the parts of a model take turns on the GPU: offload model"
    ] = False
    offload: Annotated[str, "AITK_OFFLOAD", f"where weights lie: {', '.join(OFFLOAD)}"] = "auto"
    model: Annotated[str, "AITK_MODEL", "the model of requests that name none"] = ""
    weights: Annotated[
        str,
        "AITK_WEIGHTS",
        "the weights of requests that name none: huggingface, tiny, or a name in weights_folder",
    ] = "huggingface"
    weights_folder: Annotated[
        Path | None, "AITK_WEIGHTS_PATH", "folder of the checkpoints that requests may name"
    ] = None
    lora_folder: Annotated[
        Path, "WORKFLOWS_BASE_PATH", "folder of the LoRA files that requests may name"
    ] = Path("loras")
    picture_folder: Annotated[
        Path | None, "AITK_PICTURE_PATH", "folder of the control images that requests may name"
    ] = None
    output_folder: Annotated[
        Path, "OUTPUT_BASE_PATH", "folder for pictures, clips and the list of requests"
    ] = Path("output")
    model_cache: Annotated[
        Path | None,
        "MODEL_CACHE_DIR",
        "folder for what is fetched from Hugging Face; its own if not given",
    ] = None
    timeout: Annotated[int, "INFERENCE_TIMEOUT", "seconds that drawing a request may take"] = 3600
    keep_hours: Annotated[
        int, "AITK_KEEP_HOURS", "hours after which a finished request and its files are removed"
    ] = 168
    max_queue: Annotated[int, "AITK_MAX_QUEUE", "requests that may wait"] = 100
    max_body_mb: Annotated[int, "AITK_MAX_BODY_MB", "megabytes that a request may have"] = 64
    api_key_file: Annotated[
        Path | None,
        "AITK_API_KEY_FILE",
        "file with the keys, one a line, that clients have to send",
    ] = None
    admin_key_file: Annotated[
        Path | None,
        "AITK_ADMIN_KEY_FILE",
        "the same for whoever may change the server's own LoRAs",
    ] = None
    debug: Annotated[bool, "DEBUG", "log every call, and more"] = False

    def __post_init__(self) -> None:
        if self.offload not in OFFLOAD:
            raise InvalidInputError(f"offload is {self.offload!r}; allowed: {', '.join(OFFLOAD)}")
        for name, (least, most) in RANGES.items():
            if not least <= getattr(self, name) <= most:
                raise InvalidInputError(
                    f"{name} is {getattr(self, name)}; allowed: {least} to {most}"
                )

    @property
    def how_offloaded(self) -> str:
        """Recipe.offload of every request."""
        return "model" if self.enable_cpu_offload and self.offload == "auto" else self.offload

    def with_texts(self, texts: Mapping[str, str]) -> Settings:
        """These settings with those that texts name by field; of "" it takes none.

        Raises InvalidInputError for what is no whole number or no yes or no.
        """
        known = {setting.name: setting for setting in SETTINGS}
        return replace(
            self, **{name: known[name].read(text) for name, text in texts.items() if text}
        )


@dataclass(frozen=True)
class Setting:
    """A field of Settings. env: the variable it is read from. text: what it means."""

    name: str
    kind: type
    env: str
    text: str
    default: Any

    @property
    def flag(self) -> str:
        """What `aitk serve` calls it."""
        return "--" + self.name.replace("_", "-")

    @property
    def usual(self) -> str:
        """The default as it would be given; "" is none."""
        return str(self.default).lower() if self.kind is bool else str(self.default or "")

    def read(self, text: str) -> Any:
        """The value that a text means."""
        what = f"{self.name} ({self.env}) is {text!r}"
        if self.kind is bool:
            if text.lower() not in (*YES, *NO):
                raise InvalidInputError(f"{what}; allowed: true or false")
            return text.lower() in YES
        if self.kind is int:
            if not re.fullmatch(r"[0-9]{1,9}", text):
                raise InvalidInputError(f"{what}; it has to be a whole number")
            return int(text)
        return text if self.kind is str else Path(text).expanduser()


def _settings() -> Iterator[Setting]:
    hints = get_type_hints(Settings, include_extras=True)
    for field in fields(Settings):
        kind, env, text = get_args(hints[field.name])
        kinds = [one for one in get_args(kind) or (kind,) if one is not NoneType]
        yield Setting(field.name, kinds[0], env, text, field.default)


SETTINGS = tuple(_settings())


def read_settings(
    environment: Mapping[str, str] = os.environ, flags: Mapping[str, str] | None = None
) -> Settings:
    """The settings that flags give, by field, or else the environment's variables."""
    texts = {one.name: environment.get(one.env, "") for one in SETTINGS}
    return Settings().with_texts(texts | dict(flags or {}))
