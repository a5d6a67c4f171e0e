"""The pack as the ComfyUI registry takes it: valid, whole, and nothing else."""

from __future__ import annotations

import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

from ai_toolkit_inference import NODE_CLASS_MAPPINGS

Tool = Callable[..., subprocess.CompletedProcess[str]]

FILES = {
    "CHANGELOG.md",
    "ComfyUI.md",
    "LICENSE",
    "README.md",
    "__init__.py",
    "install.py",
    "pyproject.toml",
    "requirements.txt",
    "requirements/pip.txt",
}
DATA = {"example_workflows", "locales", "web"}
NOT_THE_PACK = {"bench", "scripts", "tests"}


def _python_folders(checkout: Path) -> set[str]:
    folders = {path.relative_to(checkout).parts[0] for path in checkout.glob("*/**/*.py")}
    return folders - NOT_THE_PACK


def test_comfy_cli_finds_no_fault(tool: Tool) -> None:
    done = tool("comfy", "--skip-prompt", "--no-enable-telemetry", "node", "validate")
    said = done.stdout + done.stderr
    assert done.returncode == 0 and "All validation checks passed" in said, said
    assert "Warning" not in said


def test_comfy_test_finds_no_fault(pack_zip: Path, tool: Tool, tmp_path: Path) -> None:
    with zipfile.ZipFile(pack_zip) as archive:
        archive.extractall(tmp_path)
    done = tool("comfy-test", "lint", "--strict", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_zip_holds_the_pack_and_nothing_else(checkout: Path, pack_zip: Path) -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=checkout, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    folders = DATA | _python_folders(checkout)
    wanted = {name for name in tracked if name in FILES or name.split("/")[0] in folders}
    packed = set(zipfile.ZipFile(pack_zip).namelist())
    assert packed == wanted
    assert packed > FILES
    assert {f"web/docs/{node}.md" for node in NODE_CLASS_MAPPINGS} < packed


def test_the_zip_is_small(pack_zip: Path) -> None:
    assert pack_zip.stat().st_size < 5e6
