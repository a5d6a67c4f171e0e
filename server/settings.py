"""What a server is started with: one table, read from the environment and from `aitk serve`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..core.errors import InvalidInputError
from ..core.requests import OFFLOAD

YES, NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


def _setting(env: str, default: Any, text: str) -> Any:
    return field(default=default, metadata={"env": env, "text": text})


@dataclass(frozen=True)
class Settings:
    """Where a server listens, what it draws with, and what it takes. None: there is none."""

    host: str = _setting("HOST", "127.0.0.1", "address to listen at; 0.0.0.0 is every network")
    port: int = _setting("PORT", 8000, "port to listen at")
    base_url: str = _setting(
        "BASE_URL", "", "how clients reach the server, for links; as they called it if not given"
    )
    device: str = _setting("DEVICE", "", "cpu, cuda or cuda:N; the best there is if not given")
    enable_cpu_offload: bool = _setting(
        "ENABLE_CPU_OFFLOAD", False, "the parts of a model take turns on the GPU: offload model"
    )
    offload: str = _setting("AITK_OFFLOAD", "auto", f"where weights lie: {', '.join(OFFLOAD)}")
    model: str = _setting("AITK_MODEL", "", "the model of requests that name none")
    weights: str = _setting(
        "AITK_WEIGHTS",
        "huggingface",
        "the weights of requests that name none: huggingface, tiny, or a name in weights_folder",
    )
    weights_folder: Path | None = _setting(
        "AITK_WEIGHTS_PATH", None, "folder of the checkpoints that requests may name"
    )
    lora_folder: Path = _setting(
        "WORKFLOWS_BASE_PATH", Path("loras"), "folder of the LoRA files that requests may name"
    )
    picture_folder: Path | None = _setting(
        "AITK_PICTURE_PATH", None, "folder of the control images that requests may name"
    )
    output_folder: Path = _setting(
        "OUTPUT_BASE_PATH", Path("output"), "folder for pictures, clips and the list of requests"
    )
    model_cache: Path | None = _setting(
        "MODEL_CACHE_DIR", None, "folder for what is fetched from Hugging Face; its own if not given"
    )
    timeout: int = _setting("INFERENCE_TIMEOUT", 3600, "seconds after which a request is given up")
    keep_hours: int = _setting(
        "AITK_KEEP_HOURS", 168, "hours after which a finished request and its files are removed"
    )
    max_queue: int = _setting("AITK_MAX_QUEUE", 100, "requests that may wait")
    max_body_mb: int = _setting("AITK_MAX_BODY_MB", 64, "megabytes that a request may have")
    api_key_file: Path | None = _setting(
        "AITK_API_KEY_FILE", None, "file with the keys, one a line, that clients have to send"
    )
    admin_key_file: Path | None = _setting(
        "AITK_ADMIN_KEY_FILE", None, "the same for whoever may change the server's own LoRAs"
    )
    debug: bool = _setting("DEBUG", False, "log everything")

    def __post_init__(self) -> None:
        if self.offload not in OFFLOAD:
            raise InvalidInputError(f"offload is {self.offload!r}; allowed: {', '.join(OFFLOAD)}")
        for name, least in (("port", 0), ("timeout", 1), ("keep_hours", 1), ("max_queue", 1)):
            if getattr(self, name) < least:
                raise InvalidInputError(f"{name} is {getattr(self, name)}; at least {least} is")
        if self.max_body_mb < 1:
            raise InvalidInputError(f"max_body_mb is {self.max_body_mb}; at least 1 is needed")

    @property
    def how_offloaded(self) -> str:
        """Recipe.offload of every request."""
        return "model" if self.enable_cpu_offload and self.offload == "auto" else self.offload

    def with_texts(self, texts: Mapping[str, str]) -> Settings:
        """These settings with those that texts name by field; of "" it takes none.

        Raises InvalidInputError for what is no whole number or no yes or no.
        """
        known = {one.name: one for one in fields(self)}
        given = {name: _read(known[name], text) for name, text in texts.items() if text != ""}
        return replace(self, **given)


def read_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings that the environment's variables give, and the usual ones."""
    texts = {one.name: environment.get(one.metadata["env"], "") for one in fields(Settings)}
    return Settings().with_texts(texts)


def _read(one: Field[Any], text: str) -> Any:
    name, env, kind = one.name, one.metadata["env"], str(one.type)
    if kind.startswith("Path"):
        return Path(text).expanduser()
    if kind == "bool":
        if text.lower() not in (*YES, *NO):
            raise InvalidInputError(f"{name} ({env}) is {text!r}; allowed: true or false")
        return text.lower() in YES
    if kind == "int":
        try:
            return int(text)
        except ValueError:
            raise InvalidInputError(f"{name} ({env}) is {text!r}; it is a whole number") from None
    return text
