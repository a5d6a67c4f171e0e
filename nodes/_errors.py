"""What a node says when it fails: files as ComfyUI's lists call them, and how to mend it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ..core.errors import AitkError, MissingDependencyError
from ..core.missing import install_command, pip_command
from ._comfy import FILE_FOLDERS, JOBS, MODEL_FOLDERS

CATEGORIES = (*MODEL_FOLDERS, *FILE_FOLDERS, JOBS)  # whose lists name what lies there by category
LORAS = "loras"  # whose list does not
INSTALLED_BY_US = ("diffusers", "transformers", "huggingface_hub")
PACKAGES = {"yaml": "pyyaml", "PIL": "pillow", "skimage": "scikit-image"}


@contextmanager
def plain_errors(names: Mapping[str, str] | None = None, about: str = "") -> Iterator[None]:
    """Errors of a node, or a part of it, as its user knows things.

    names: path -> how the node's inputs call it. about: the input that errors are about which do
    not say so. Others than ours pass, an interrupt among them.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingDependencyError(_missing(error)) from error
    except AitkError as error:
        text = as_listed(str(error), names)
        if about and not text.startswith((about, *(names or {}).values())):
            text = f"{about}: {text}"
        if text == str(error):
            raise
        raise type(error)(text) from error


def as_listed(text: str, names: Mapping[str, str] | None = None) -> str:
    """A text with the names of ComfyUI's lists in the place of paths."""
    for path, name in (names or {}).items():
        text = text.replace(path, name)
    for folder, name in _folders():
        text = text.replace(folder + os.sep, name)
    return text


def _folders() -> list[tuple[str, str]]:
    folder_paths = sys.modules.get("folder_paths")
    if folder_paths is None:  # outside of ComfyUI
        return []
    known = folder_paths.folder_names_and_paths
    found = {
        str(folder): "" if category == LORAS else f"{category}/"
        for category in (*CATEGORIES, LORAS)
        if category in known
        for folder in folder_paths.get_folder_paths(category)
    }
    return sorted(found.items(), key=lambda item: -len(item[0]))  # an inner one first


def _missing(error: ModuleNotFoundError) -> str:
    package = (error.name or "").partition(".")[0]
    if package in INSTALLED_BY_US or not package:
        return f"{error}; run `{install_command()}`, and restart ComfyUI"
    return f"{error}; run `{pip_command(PACKAGES.get(package, package))}`, and restart ComfyUI"
