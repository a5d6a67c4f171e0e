"""What the trainer's network classes make of single layers: kept by the harness, read by tests.

manifest.json holds the digest of every result. <version>.safetensors holds tensors by digest, of
one multiplier and of stacks, those of a newer version only where the older one has no such.
"""

from __future__ import annotations

import json
from collections.abc import Container
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from rows import GOLDENS, PROFILES
from safetensors.torch import load_file, save_file
from trainer_layers import digest

FOLDER = GOLDENS / "layers"
MANIFEST = FOLDER / "manifest.json"
STORED = "0.6"  # the multiplier whose tensors are stored; of a stack, its first


@dataclass(frozen=True)
class Results:
    """All results of one version, in groups named `<case>/<base>/<way>/<multipliers>`.

    tensors: by digest.
    """

    version: str
    manifest: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    def layers(self, group: str) -> dict[str, str]:
        """Layer (or layer.weight, layer.bias) -> digest; empty if nothing was changed."""
        return dict(entry.split(":") for entry in self.manifest["results"].get(group, "").split())

    def groups(self) -> list[str]:
        """Names of all groups of results, but for the bases."""
        return [group for group in self.manifest["results"] if not group.startswith("base/")]


@cache
def results(version: str) -> Results:
    """The stored results of a trainer version."""
    manifest = json.loads(MANIFEST.read_text(encoding="utf-8"))
    tensors: dict[str, torch.Tensor] = {}
    for profile in PROFILES[: PROFILES.index(version) + 1]:
        tensors |= load_file(FOLDER / f"{profile}.safetensors")
    return Results(version, manifest[version], tensors)


@cache
def base() -> dict[str, torch.Tensor]:
    """Weights of the layers and their inputs, fp32."""
    return load_file(FOLDER / "base.safetensors")


def adapter_file(case: str, version: str) -> Path:
    """The adapter that the trainer of this version wrote."""
    return FOLDER / f"{case}-{version}.safetensors"


def store(version: str, out: Path) -> None:
    """Keeps what trainer_layers.py left in `out`."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    manifest = json.loads(MANIFEST.read_text(encoding="utf-8")) if MANIFEST.is_file() else {}
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    tensors = load_file(out / "results.safetensors")
    save_file(load_file(out / "base.safetensors"), FOLDER / "base.safetensors")
    for path in FOLDER.glob(f"*-{version}.safetensors"):
        path.unlink()
    for case in result["cases"]:
        adapter_file(case, version).write_bytes((out / f"{case}.safetensors").read_bytes())
    known = {} if version == PROFILES[0] else load_file(FOLDER / f"{PROFILES[0]}.safetensors")
    save_file(_to_store(tensors, known), FOLDER / f"{version}.safetensors")
    manifest[version] = result | {"results": _grouped(result["results"])}
    MANIFEST.write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _to_store(tensors: dict[str, torch.Tensor], known: Container[str]) -> dict[str, torch.Tensor]:
    kept = {}
    for name, tensor in tensors.items():
        case, base, way, multipliers, _ = name.split("/")
        wanted = case == "base" or multipliers.split(",")[0] == STORED
        # a bf16 merge is the fp32 one, rounded, and stacks merge one by one: digests are enough
        redundant = way == "merged" and (base == "bf16" or "+" in case)
        if wanted and not redundant and digest(tensor) not in known:
            kept[digest(tensor)] = tensor
    return kept


def _grouped(digests: dict[str, str]) -> dict[str, str]:
    # a line of the manifest for each group, "layer:digest layer:digest"
    groups: dict[str, list[str]] = {}
    for name, value in digests.items():
        group, _, layer = name.rpartition("/")
        groups.setdefault(group, []).append(f"{layer}:{value}")
    return {group: " ".join(sorted(entries)) for group, entries in groups.items()}
