"""A job's configuration, read as the trainer reads it."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..core.errors import InvalidInputError, MissingDependencyError
from ..core.missing import pip_command

FILES = ("config.yaml", "config.yml", ".job_config.json")
MAX_BYTES = 8 << 20
MAX_VALUES = 200_000
PLACEHOLDER = re.compile(r"\$\{([^}]+)\}")
SECRET = re.compile(r"TOKEN|KEY|SECRET|PASS|CREDENTIAL", re.IGNORECASE)
# YAML 1.1 takes 1e-4 for a text; the trainer's loader for a number
FLOAT = re.compile(
    r"""^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
    |[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+
    |[-+]?\.[0-9_]+(?:[eE][-+]?[0-9]+)?
    |[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$""",
    re.VERBOSE,
)


def config_file(folder: Path) -> Path:
    """The configuration in a job folder; the one that the trainer wrote, if there are several.

    Raises InvalidInputError if there is none.
    """
    if folder.is_file():
        return folder
    for name in FILES:
        if (folder / name).is_file():
            return folder / name
    raise InvalidInputError(
        f"no {FILES[0]} in {folder}; give the folder that the trainer wrote for the job "
        "(training_folder/name), with its config.yaml, or the configuration itself"
    )


def read_config(path: Path, environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """The whole configuration with `${NAME}` and `[name]` replaced, as the trainer replaces them.

    Raises InvalidInputError if it cannot be read, if a placeholder has no value, or if one names
    what looks like a secret, which a job from somewhere else must not learn.
    Upstream: ostris/ai-toolkit@27a03a91 toolkit/config.py::get_config
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InvalidInputError(f"{path.name} has over {MAX_BYTES >> 20} MiB; it is no job's")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(
            f"{path} could not be read as a configuration ({error}); give the job's folder, or its "
            "config.yaml"
        ) from error
    text = PLACEHOLDER.sub(lambda found: _value(found[1], environment), text)
    config = _parse(path, text)
    if not isinstance(config, dict) or not isinstance(config.get("config"), dict):
        raise InvalidInputError(f"{path.name} has no `config` section, so it is no job's")
    name = config["config"].get("name")
    if not isinstance(name, str) or not name:
        raise InvalidInputError(f"{path.name} gives the job no name (config.name)")
    try:
        return _named(config, name, itertools.count())
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{path.name} could not be parsed: {error}") from error


def processes(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The `process` sections of a configuration. Raises InvalidInputError if there are none."""
    found = config["config"].get("process")
    if not isinstance(found, list) or not found or not all(isinstance(p, dict) for p in found):
        raise InvalidInputError("the configuration has no list of processes (config.process)")
    return found


def _value(name: str, environment: Mapping[str, str]) -> str:
    if SECRET.search(name):
        raise InvalidInputError(
            f"the configuration asks for the environment variable {name}, which looks like a "
            "secret; write its value into the file if it is none"
        )
    if name not in environment:
        raise InvalidInputError(
            f"the configuration needs the environment variable {name}, as it did in training; "
            "set it"
        )
    return environment[name]


def _parse(path: Path, text: str) -> Any:
    try:
        if path.suffix == ".json":
            return json.loads(text)
        return _yaml(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{path.name} could not be parsed: {error}") from error


def _yaml(text: str) -> Any:
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"a job's config.yaml needs PyYAML ({error}); run `{pip_command('pyyaml')}`"
        ) from error

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+0123456789."))
    try:
        return yaml.load(text, Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(error) from error


def _named(value: Any, name: str, counter: Iterator[int]) -> Any:
    # aliases may make a small text endless
    if next(counter) > MAX_VALUES:
        raise ValueError(f"it holds over {MAX_VALUES} values")
    if isinstance(value, str):
        return value.replace("[name]", name)
    if isinstance(value, list):
        return [_named(item, name, counter) for item in value]
    if isinstance(value, dict):
        return {key: _named(item, name, counter) for key, item in value.items()}
    return value
