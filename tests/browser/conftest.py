"""A real ComfyUI, node with its packages, and a Chromium; without them tests here are skipped."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
SERVER = [sys.executable, str(ROOT / "scripts" / "comfyui.py")]
PACK_NAME = "AI-Toolkit.Inference-1.0"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


def require(what: str, found: str | None) -> str:
    """What was found; without it the test is skipped, but fails in CI."""
    if found is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"{what} is not installed")
    return found or ""


@pytest.fixture(scope="session")
def node() -> str:
    """node, with the packages of package.json beside the script."""
    npm = require("npm", shutil.which("npm"))
    if not (HERE / "node_modules" / "playwright-core").is_dir():
        quiet = ["--no-audit", "--no-fund", "--no-package-lock"]
        subprocess.run([npm, "install", *quiet], cwd=HERE, check=True, timeout=300)
    return require("node", shutil.which("node"))


@pytest.fixture(scope="session")
def chromium() -> str:
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    return require("chromium", os.environ.get("CHROMIUM") or found)


@pytest.fixture(scope="session")
def server(
    node: str, chromium: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """A running ComfyUI with the pack: its url and its base folder."""
    base = tmp_path_factory.mktemp("comfyui")
    started = subprocess.run(
        [*SERVER, "--detach", "--offline", "--base", str(base), "--pack-name", PACK_NAME],
        stdout=subprocess.PIPE,
        check=True,
    )
    yield json.loads(started.stdout)
    subprocess.run([*SERVER, "--stop", str(base)], check=True)


@pytest.fixture(scope="session")
def url(server: dict[str, str]) -> str:
    return server["url"]


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    """Where pictures of the page go: the folder AITK_SCREENSHOTS, if that is set."""
    folder = Path(os.environ.get("AITK_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
