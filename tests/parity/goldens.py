"""What the harness keeps: the trainer's pictures and sounds, and how ours compared with them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sounds
from arithmetic import bf16_arithmetic, resizing
from rows import GOLDENS, PROMPTS, SAMPLE, TRIGGER, Row, all_rows, control_images

from ai_toolkit_inference.engine.record import library_versions

MANIFEST = GOLDENS / "manifest.json"
RESULTS = GOLDENS / "results.json"


@dataclass(frozen=True)
class Difference:
    """Two pictures compared: PNG bytes equal or not, pixels off, largest and mean level off."""

    same_file: bool
    pixels: int
    most: int
    mean: float


def load_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, empty if there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def golden(profile: str, row: Row) -> list[bytes]:
    """The stored pictures the trainer drew for a row."""
    names = load_json(MANIFEST)[profile]["rows"][row.id]
    return [(GOLDENS / "images" / name).read_bytes() for name in names]


def incomparable(profile: str, row: Row) -> str:
    """Why a row cannot agree with its stored pictures on this machine; empty if it can."""
    stored = load_json(MANIFEST)[profile]
    if row.dtype == "bf16" and bf16_arithmetic() != stored["bf16_arithmetic"]:
        return "this processor's bf16 kernels round otherwise than those of the goldens"
    if any(map(control_images, row.samples())) and resizing() != stored["resizing"]:
        return "this Pillow resizes control images otherwise than that of the goldens"
    return ""


def golden_sounds(profile: str, row: Row) -> sounds.Sounds:
    """The stored sounds of a row's clips."""
    return sounds.read(load_json(MANIFEST)[profile].get("sounds", {}).get(row.id, {}))


def store_goldens(
    profile: str, pictures: dict[str, list[bytes]], heard: dict[str, sounds.Sounds], trainer: Any
) -> None:
    """Keeps the trainer's pictures and sounds by content, and a manifest of what drew them.

    Rows that were not drawn this time stay as they are, unless there is no such row any more.
    """
    folder = GOLDENS / "images"
    folder.mkdir(parents=True, exist_ok=True)
    manifest = load_json(MANIFEST)
    known = {row.id for row in all_rows(profile)}
    before = manifest.get(profile, {})
    rows = {row_id: names for row_id, names in before.get("rows", {}).items() if row_id in known}
    for row_id, files in sorted(pictures.items()):
        rows[row_id] = [f"{hashlib.sha256(png).hexdigest()[:16]}.png" for png in files]
        for name, png in zip(rows[row_id], files, strict=True):
            (folder / name).write_bytes(png)
    manifest[profile] = {
        "trainer": trainer,
        "bf16_arithmetic": bf16_arithmetic(),
        "resizing": resizing(),
        "settings": {"sample": SAMPLE, "prompts": PROMPTS, "trigger_word": TRIGGER},
        "rows": rows,
        "sounds": sounds.write_rows(heard, before.get("sounds", {}), known),
    }
    write_json(MANIFEST, manifest)
    sounds.remove_unused(manifest)
    used = {
        name for entry in manifest.values() for names in entry["rows"].values() for name in names
    }
    for path in folder.glob("*.png"):
        if path.name not in used:
            path.unlink()


def groups(profile: str) -> dict[str, list[Row]]:
    """The rows by model and precision, whose results are kept together."""
    found: dict[str, list[Row]] = {}
    for row in all_rows(profile):
        found.setdefault(f"{row.model.id} {row.dtype} {profile}", []).append(row)
    return found


def store_results(profile: str, differences: dict[str, list[Difference]], device: str) -> None:
    """Keeps, per model, precision and library line, how many pictures were equal.

    Groups of which not all rows were drawn this time stay as they are.
    """
    results = load_json(RESULTS)
    libraries = library_versions()
    line = f"diffusers {libraries['diffusers']}, transformers {libraries['transformers']}"
    for group, rows in groups(profile).items():
        if all(row.id in differences for row in rows):
            offs = [off for row in rows for off in differences[row.id]]
            results[f"{group} {device} {line}"] = {
                "pictures": len(offs),
                "exact": sum(off.same_file for off in offs),
                "most": max(off.most for off in offs),
                "torch": libraries["torch"],
            }
    write_json(RESULTS, dict(sorted(results.items())))


def write_json(path: Path, content: Any) -> None:
    """Writes JSON so that its lines differ where its content does."""
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
