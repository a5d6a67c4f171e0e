"""Classes of the trainer itself, for models whose network is its own code.

install.py fetches the pinned trainer into vendor/ai-toolkit and checks its hash.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from pathlib import Path
from types import ModuleType

from ..core.errors import MissingDependencyError
from ..core.missing import install_command, pip_command

VENDOR = Path(__file__).resolve().parent.parent / "vendor" / "ai-toolkit"
PACKAGE = "ai_toolkit_inference_vendor"  # so that nothing of the trainer is importable as `toolkit`


def trainer_folder() -> Path | None:
    """The trainer's checkout: AI_TOOLKIT_PATH, else the vendored one; None without either."""
    named = os.environ.get("AI_TOOLKIT_PATH")
    folder = Path(named) if named else VENDOR
    return folder if (folder / "version.py").is_file() else None


def trainer_module(path: str) -> ModuleType:
    """A module of the trainer by its dotted path, without running its packages' __init__ files.

    Those import the whole training stack. The module may import others of the trainer by
    relative imports only. Raises MissingDependencyError if the trainer is not there.
    """
    folder = trainer_folder()
    if folder is None:
        raise MissingDependencyError(
            "this model's network is the trainer's own code, which is not here; run "
            f"`{install_command()}`, or set AI_TOOLKIT_PATH to a checkout"
        )
    parents = path.split(".")[:-1]
    for depth in range(len(parents) + 1):
        name = ".".join([PACKAGE, *parents[:depth]])
        package = sys.modules.setdefault(name, ModuleType(name))
        package.__path__ = [str(folder.joinpath(*parents[:depth]))]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of libraries it would rather have
            return importlib.import_module(f"{PACKAGE}.{path}")
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith(PACKAGE):
            raise MissingDependencyError(
                f"{folder} has no {path}; delete that folder and run `{install_command()}`"
            ) from error
        raise MissingDependencyError(
            f"the trainer's {path} needs {error.name}; run `{pip_command(str(error.name))}`"
        ) from error
