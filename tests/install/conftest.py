"""The pack as the registry's zip file, and the tools that make it. Runs in `make test-install`."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
TOOLS = ROOT / ".venv-registry" / "bin"
IDENTITY = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
COMFY = ["comfy", "--skip-prompt", "--no-enable-telemetry", "node"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip = pytest.mark.skip(reason="make test-install runs it, in environments of its own")
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.install)
            if not os.environ.get("AITK_TEST_INSTALL"):
                item.add_marker(skip)


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of this repository as it would be committed now, without the goldens."""
    folder = tmp_path_factory.mktemp("checkout") / "ai-toolkit-inference"
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file() and not name.startswith("tests/goldens/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    for step in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "-m", "all"]):
        subprocess.run(["git", *IDENTITY, *step], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="session")
def tool(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """tool(name, *arguments) runs one of the registry's tools in the checkout."""
    home = tmp_path_factory.mktemp("home")
    environment = {**os.environ, "HOME": str(home), "XDG_CONFIG_HOME": str(home), "COLUMNS": "200"}
    environment |= {"DO_NOT_TRACK": "1", "PYTHONUTF8": "1"}

    def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(TOOLS / name), *arguments]
        return subprocess.run(
            command, cwd=checkout, env=environment, capture_output=True, text=True, check=False
        )

    return run


@pytest.fixture(scope="session")
def pack_zip(checkout: Path, tool: Callable[..., subprocess.CompletedProcess[str]]) -> Path:
    """What `comfy node publish` uploads."""
    done = tool(*COMFY, "pack")
    assert done.returncode == 0, done.stdout + done.stderr
    return checkout / "node.zip"
