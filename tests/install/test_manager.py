"""The zip file installed by ComfyUI-Manager into fresh ComfyUIs: nothing changes, and it renders.

Each environment is a copy, by links, of .venv-comfyui, which `make test-install` makes: what
ComfyUI requires, and the Manager.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfyui
import numpy as np
import pytest
from link_packages import link, link_packages, site_packages
from PIL import Image

from ai_toolkit_inference import NODE_CLASS_MAPPINGS, Engine, SampleRequest, __version__
from ai_toolkit_inference.cli.comfy_client import run_workflow
from ai_toolkit_inference.core.requests import AdapterRef, Recipe

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "example_workflows" / "api"
MANAGER = ROOT / ".venv-comfyui"
NAME = "ai-toolkit-inference"
ADDED = {"accelerate", "diffusers", "ftfy"}
LIST = """
import json
from importlib.metadata import distributions as found
print(json.dumps({d.metadata["Name"].lower().replace("_", "-"): d.version for d in found()}))
"""
PIP = "[default]\nuse_uv = False\n"  # by default the Manager takes uv where it is


@dataclass(frozen=True)
class Case:
    """What a ComfyUI has before the pack, and how its Manager is set."""

    requirements: str = ""  # a file in requirements/, of which the line for transformers is taken
    diffusers: bool = False
    config: str = ""


CASES = {
    "transformers 4.57": Case("transformers-4.57.txt", config=PIP),
    "transformers 5": Case(),
    "transformers 5 and diffusers": Case(diffusers=True),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_it_changes_no_package_and_renders(case: Case, pack_zip: Path, tmp_path: Path) -> None:
    with _fresh_comfyui(case) as venv, _served(pack_zip) as url:
        before = _packages(venv)
        assert (ADDED & set(before)) == ({"diffusers"} if case.diffusers else set())
        _install(venv, tmp_path / "comfyui", url, case.config)
        after = _packages(venv)
        assert {name: after.get(name) for name in before} == before
        assert set(after) >= ADDED
        assert "No broken requirements found" in _pip(venv, "check")
        _check_server(venv, tmp_path)


@contextlib.contextmanager
def _fresh_comfyui(case: Case) -> Iterator[Path]:
    """The environment of a ComfyUI without the pack."""
    venv = ROOT / ".cache" / f"install-{os.getpid()}"
    try:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
        shutil.copytree(
            site_packages(MANAGER), site_packages(venv), copy_function=link, dirs_exist_ok=True
        )
        if case.requirements:
            lines = (ROOT / "requirements" / case.requirements).read_text(encoding="utf-8")
            _pip(venv, "install", *[li for li in lines.splitlines() if li.startswith("transf")])
        if case.diffusers:
            link_packages(venv, ["diffusers"])
        yield venv
    finally:
        shutil.rmtree(venv, ignore_errors=True)


@contextlib.contextmanager
def _served(file: Path) -> Iterator[str]:
    """The address of a file, as the registry's storage has one."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(file.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/{file.name}"
        server.shutdown()


def _install(venv: Path, base: Path, url: str, config: str) -> None:
    settings = base / "user" / "__manager"
    settings.mkdir(parents=True)
    (base / "custom_nodes").mkdir()
    if config:
        (settings / "config.ini").write_text(config, encoding="utf-8")
    script = Path(__file__).with_name("manager_install.py")
    arguments = [str(comfyui.find_tree()), str(base), url, NAME, __version__]
    done = subprocess.run(
        [str(venv / "bin" / "python"), str(script), *arguments],
        env={**_environment(), "AI_TOOLKIT_REPO": str(base / "none"), "COLUMNS": "1000"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    tool = "'uv', 'pip'" if not config else "'-m', 'pip'"
    assert tool in done.stdout and "install.py" in done.stdout, done.stdout


def _check_server(venv: Path, folder: Path) -> None:
    server = comfyui.start_server(
        folder / "comfyui",
        pack=None,  # the Manager has put it there
        device="cpu",
        offline=True,
        python=str(venv / "bin" / "python"),
    )
    try:
        assert "sd15_lora" in _get(server.url, "workflow_templates")[NAME]
        assert set(NODE_CLASS_MAPPINGS) <= set(_get(server.url, "i18n")["zh"]["nodeDefs"])
        help_page = f"{server.url}/extensions/{NAME}/docs/LoadAIToolkitModel.md"
        with urllib.request.urlopen(help_page, timeout=30) as response:
            assert b"Load AI Toolkit Model" in response.read()
        for name in ("lora_strength_clip", "sd15_lora"):
            workflow = json.loads((EXAMPLES / f"{name}.json").read_text(encoding="utf-8"))
            (file,) = run_workflow(server.url, workflow, folder, timeout=300).files
    finally:
        server.stop()
    assert np.array_equal(np.asarray(Image.open(file).convert("RGB")), _render(workflow))


def _render(workflow: dict[str, Any]) -> np.ndarray:
    """What the engine draws, in this process, of the example with one LoRA."""
    load, lora, sample = (workflow[number]["inputs"] for number in "123")
    recipe = Recipe(
        load["model"],
        load["weights"],
        load["dtype"],
        adapters=(AdapterRef(lora["lora_name"], lora["multiplier"]),),
    )
    names = ("prompt", "width", "height", "steps", "seed", "trigger_word")
    request = SampleRequest(recipe, **{name: sample[name] for name in names})
    return Engine("cpu").sample(request).frames[0]


def _get(url: str, path: str) -> Any:
    with urllib.request.urlopen(f"{url}/{path}", timeout=60) as response:
        return json.load(response)


def _packages(venv: Path) -> dict[str, str]:
    return json.loads(_python(venv, "-c", LIST))


def _pip(venv: Path, *arguments: str) -> str:
    return _python(venv, "-m", "pip", "--disable-pip-version-check", *arguments)


def _python(venv: Path, *arguments: str) -> str:
    command = [str(venv / "bin" / "python"), *arguments]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _environment() -> dict[str, str]:
    """Without what would show this environment's packages to another."""
    hidden = ("PYTHONPATH", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if name not in hidden}
