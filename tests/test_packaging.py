"""One set of files as a custom node of ComfyUI, an installed package and a list of requirements."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import ai_toolkit_inference
from ai_toolkit_inference import install

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = PROJECT["tool"]["setuptools"]["packages"]
COMFYUI_MODULES = {"comfy", "comfy_api", "comfy_execution", "folder_paths", "nodes", "server"}
OUTSIDE = {"tests", "scripts", "bench", "docs", "vendor", "build", "dist", "out"}

# What nodes.load_custom_node of ComfyUI does with a folder, and then a look at the result.
LOAD_LIKE_COMFYUI = """
import importlib.util, json, os, sys
folder = sys.argv[1]
name = folder.replace(".", "_x_")
spec = importlib.util.spec_from_file_location(name, os.path.join(folder, "__init__.py"))
module = importlib.util.module_from_spec(spec)
sys.modules[name] = module
spec.loader.exec_module(module)
print(json.dumps({
    "web_directory": hasattr(module, "WEB_DIRECTORY"),
    "nodes": {id: cls.__module__ for id, cls in module.NODE_CLASS_MAPPINGS.items()},
    "titles": module.NODE_DISPLAY_NAME_MAPPINGS,
    "models": [spec.id for spec in module.list_models()],
    "name": name,
    "modules": list(sys.modules),
}))
"""


def requirement_lines(name: str) -> list[str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def requirement_names(name: str) -> set[str]:
    return {_normal(re.split(r"[^\w.-]", line)[0]) for line in requirement_lines(name)}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def source_folders() -> set[Path]:
    """Folders of the pack that hold Python files, relative to the root."""
    folders = {path.parent.relative_to(ROOT) for path in ROOT.glob("*.py")}
    for top in ROOT.iterdir():
        if top.is_dir() and top.name not in OUTSIDE and not top.name.startswith("."):
            folders |= {path.parent.relative_to(ROOT) for path in top.rglob("*.py")}
    return folders


def test_every_folder_is_packaged():
    folders = {Path(*package.split(".")[1:]) for package in PACKAGES}
    assert folders == source_folders()


def test_versions_agree():
    assert ai_toolkit_inference.__version__ == PROJECT["project"]["version"]


def test_public_names_are_all_there():
    for name in ai_toolkit_inference.__all__:
        assert getattr(ai_toolkit_inference, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        ai_toolkit_inference.no_such_name  # noqa: B018


@pytest.mark.parametrize("line", requirement_lines("requirements.txt"))
def test_requirements_are_plain_lines_with_lower_bounds_only(line):
    """ComfyUI-Manager passes each line to pip by itself; upper bounds could downgrade packages."""
    assert re.fullmatch(r"[A-Za-z0-9_.-]+(>=[0-9.]+)?", line)


def test_requirements_leave_comfyuis_core_packages_alone():
    core = {"diffusers", "huggingface-hub", "numpy", "peft", "tokenizers", "torch", "transformers"}
    core |= {"torchaudio", "torchvision", "xformers"}
    assert not requirement_names("requirements.txt") & core


def test_pip_and_install_py_ask_for_the_same_diffusers():
    assert install.DIFFUSERS in requirement_lines("requirements/pip.txt")


def test_every_import_is_a_declared_requirement():
    declared = requirement_names("requirements.txt") | requirement_names("requirements/pip.txt")
    for extra in PROJECT["project"]["optional-dependencies"].values():
        declared |= {_normal(re.split(r"[^\w.-]", line)[0]) for line in extra}
    # Python 3.10 finds only packages that say it in a file that newer builds leave out
    distributions = {"skimage": ["scikit-image"], **packages_distributions()}
    given = set(sys.stdlib_module_names) | COMFYUI_MODULES
    undeclared = {
        module: files
        for module, files in third_party_imports().items()
        if module not in given
        and not {_normal(name) for name in distributions.get(module, [module])} & declared
    }
    assert not undeclared


def third_party_imports() -> dict[str, set[str]]:
    """Top-level module -> the pack's files that import it."""
    found: dict[str, set[str]] = {}
    for file in (path for folder in source_folders() for path in (ROOT / folder).glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            for name in names:
                found.setdefault(name.split(".")[0], set()).add(str(file.relative_to(ROOT)))
    return found


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """What ComfyUI sees of a clone in a folder named with spaces, dashes and dots."""
    clone = tmp_path_factory.mktemp("custom_nodes") / "My Pack-v1.2.d"
    for folder in source_folders():
        (clone / folder).mkdir(parents=True, exist_ok=True)
        for file in (ROOT / folder).glob("*.py"):
            shutil.copy(file, clone / folder)
    command = [sys.executable, "-c", LOAD_LIKE_COMFYUI, str(clone)]
    done = subprocess.run(command, cwd=clone.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_clone_in_an_awkward_folder_gives_the_nodes(loaded):
    assert "LoadAIToolkitModel" in loaded["nodes"]
    assert set(loaded["nodes"]) == set(loaded["titles"])
    assert all(module.startswith(f"{loaded['name']}.") for module in loaded["nodes"].values())
    assert {"flux", "sd15", "sdxl"} <= set(loaded["models"])


def test_a_clone_is_not_mixed_with_the_installed_package(loaded):
    imported = {name.split(".")[0] for name in loaded["modules"]}
    assert "ai_toolkit_inference" not in imported
    assert not loaded["web_directory"]  # [tool.comfy] web already serves the folder


def test_the_node_list_needs_no_heavy_library(loaded):
    heavy = {"accelerate", "av", "diffusers", "peft", "torch", "transformers"}
    assert not heavy & set(loaded["modules"])


def test_importing_the_root_imports_nothing_else():
    code = "import json, sys, ai_toolkit_inference; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not [
        name for name in json.loads(done.stdout) if name.startswith("ai_toolkit_inference.")
    ]


def test_comfyui_registry_fields():
    assert (ROOT / PROJECT["tool"]["comfy"]["web"]).is_dir()
    assert PROJECT["tool"]["comfy"]["PublisherId"]


@pytest.mark.parametrize("way", ["variable", "argument"])
def test_make_uses_the_interpreter_it_is_given(tmp_path, monkeypatch, way):
    python, venv = tmp_path / "python", tmp_path / "venv"
    python.write_text('#!/bin/sh\necho "$1 $2" >>"$0.asked"\n')  # notes what it is asked, no more
    python.chmod(0o755)
    monkeypatch.delenv("MAKEFLAGS", raising=False)  # what the make was told that runs the tests
    if way == "variable":
        monkeypatch.setenv("PYTHON", str(python))
    run = make_venv(venv, *([f"PYTHON={python}"] if way == "argument" else ()))
    assert run.returncode == 0
    asked = (tmp_path / "python.asked").read_text().splitlines()
    assert (asked[0][:2], asked[1:]) == ("-c", ["-m venv"])


@pytest.mark.parametrize("version", [(3, 9, 25), (3, 14, 0)])
def test_make_refuses_an_interpreter_it_has_no_libraries_for(tmp_path, version):
    python = tmp_path / "python"  # a mock: this interpreter, which tells another version
    told_first = f"import sys; sys.version_info = {version}"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{told_first}; $2"\n')
    python.chmod(0o755)
    run = make_venv(tmp_path / "venv", f"PYTHON={python}")
    told = f"This is Python {version[0]}.{version[1]}; needed is 3.10 to 3.13: PYTHON="
    assert (run.returncode, told in run.stderr) == (2, True), run.stderr
    assert not (tmp_path / "venv").exists()


def make_venv(folder: Path, *variables: str) -> subprocess.CompletedProcess[str]:
    command = ["make", f"VENV={folder}", *variables, f"{folder}/bin/python"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
