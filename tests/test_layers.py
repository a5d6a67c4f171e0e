"""The direction of imports, read from the source: a folder is a layer."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent

# layer -> the layers it may import; "" is the root __init__. Nothing imports nodes or cli,
# and the server only what starts it.
MAY_IMPORT = {
    "": {"nodes", "engine", "pipelines", "core"},
    "core": set(),
    "pipelines": {"core"},
    "quantization": {"core"},
    "adapters": {"core"},
    "engine": {"pipelines", "adapters", "quantization", "core"},
    "jobs": {"engine", "pipelines", "adapters", "core"},
    "nodes": {"jobs", "engine", "pipelines", "adapters", "core"},
    "server": {"jobs", "engine", "pipelines", "adapters", "core"},
    "cli": {"server", "jobs", "engine", "pipelines", "adapters", "core"},
}
LAYERS = [layer for layer in MAY_IMPORT if layer]
HEAVY = {"accelerate", "diffusers", "peft", "torch", "torchaudio", "torchvision", "transformers"}


class Import(NamedTuple):
    file: Path
    line: int
    level: int  # dots in front; 0 is absolute
    module: str
    in_function: bool

    @property
    def top(self) -> str:
        return self.module.split(".")[0]

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {'.' * self.level}{self.module}"


def imports_in(layer: str) -> list[Import]:
    files = sorted((ROOT / layer).rglob("*.py")) if layer else [ROOT / "__init__.py"]
    trees = [(file, ast.parse(file.read_text(encoding="utf-8"))) for file in files]
    return [found for file, tree in trees for found in _walk(file, tree, in_function=False)]


def _walk(file: Path, node: ast.AST, in_function: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(file, child.lineno, 0, alias.name, in_function)
        elif isinstance(child, ast.ImportFrom):
            for module in [child.module] if child.module else [alias.name for alias in child.names]:
                yield Import(file, child.lineno, child.level, module, in_function)
        elif not _is_type_checking(child):
            inside = in_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from _walk(file, child, inside)


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def target_layer(imported: Import) -> str | None:
    """The layer a relative import reaches, None where it stays inside its own."""
    depth = len(imported.file.relative_to(ROOT).parts) - imported.level
    return imported.top if depth == 0 else None


@pytest.mark.parametrize("layer", MAY_IMPORT, ids=lambda layer: layer or "root")
def test_layers_import_only_what_lies_below(layer):
    allowed = MAY_IMPORT[layer] | {layer, None}
    assert not [str(found) for found in imports_in(layer) if target_layer(found) not in allowed]


@pytest.mark.parametrize("layer", MAY_IMPORT, ids=lambda layer: layer or "root")
def test_the_pack_imports_itself_relatively(layer):
    own = {"ai_toolkit_inference", *LAYERS} - {"nodes", "server"}  # so are modules of ComfyUI named
    absolute = [found for found in imports_in(layer) if found.level == 0]
    assert not [str(found) for found in absolute if found.top in own]


def test_core_never_imports_a_heavy_library():
    assert not [str(found) for found in imports_in("core") if found.top in HEAVY]


@pytest.mark.parametrize(
    "layer", ["", "nodes", "pipelines", "cli"], ids=lambda layer: layer or "root"
)
def test_heavy_libraries_are_imported_inside_functions(layer):
    """Files named _x.py are shared code that only functions import."""
    at_import = [
        found
        for found in imports_in(layer)
        if not found.in_function and (found.file.stem == "__init__" or found.file.name[0] != "_")
    ]
    assert not [str(found) for found in at_import if found.top in HEAVY]


def test_every_folder_of_the_pack_is_a_known_layer():
    others = {"tests", "scripts", "bench", "docs", "vendor", "build", "dist"}
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert folders - others <= set(LAYERS)
