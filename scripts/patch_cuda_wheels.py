"""Make the CUDA wheels of torchvision and torchaudio importable beside a CPU-only torch.

PyPI has no CPU builds of the two for Linux, and ComfyUI imports both. Their Python code, transforms
and spectrograms, works without their compiled operators; only detection operators, image codecs and
forced alignment are lost. A package that imports is left alone: nothing happens with a CUDA torch,
on macOS, or at the second run.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

# torchvision registers fake implementations of these two at import, so the operators have to exist.
DECLARE_OPERATORS = """
_declared_for_cpu = torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    _declared_for_cpu.define(_name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def main() -> int:
    for package, patch in (("torchvision", declare_operators), ("torchaudio", hide_libraries)):
        folder = folder_of(package)
        if folder is None:
            sys.stdout.write(f"{package}: not installed\n")
        elif not import_error(package):
            sys.stdout.write(f"{package}: imports, nothing to do\n")
        else:
            patch(folder)
            if error := import_error(package):
                sys.stderr.write(f"{package}: still does not import after the patch:\n{error}\n")
                return 1
            sys.stdout.write(f"{package}: patched for a CPU-only torch\n")
    return 0


def folder_of(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else None


def import_error(package: str) -> str:
    """Why a fresh interpreter cannot import the package; empty where it can."""
    run = subprocess.run(
        [sys.executable, "-c", f"import {package}"], capture_output=True, text=True, check=False
    )
    if run.returncode == 0:
        return ""
    return (run.stderr.strip().splitlines() or [f"exit status {run.returncode}"])[-1]


def declare_operators(torchvision: Path) -> None:
    target = torchvision / "extension.py"
    source = target.read_text(encoding="utf-8")
    if DECLARE_OPERATORS not in source:
        patched = source.replace("import torch\n", "import torch\n" + DECLARE_OPERATORS, 1)
        target.write_text(patched, encoding="utf-8")


def hide_libraries(torchaudio: Path) -> None:
    """torchaudio goes on without its libraries where it finds none."""
    for library in (torchaudio / "lib").glob("*.so"):
        library.rename(library.with_suffix(".so.cuda"))


if __name__ == "__main__":
    sys.exit(main())
