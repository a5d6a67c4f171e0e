"""The sound of clips: the trainer's beside ours, and as goldens."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from rows import GOLDENS

FOLDER = GOLDENS / "sounds"
# What rounding to fp16 and other processors' fp32 kernels may change, of 1.
TOLERANCE = 2e-3

Sounds = dict[int, np.ndarray]  # sample -> float32 (channels, samples), of samples that have one


def of_samples(samples: list[Any]) -> Sounds:
    """Of samples as the engine gives them."""
    return {n: sample.audio for n, sample in enumerate(samples) if sample.audio is not None}


def of_trainer(folder: Path) -> Sounds:
    """Of a job's folder, as trainer_run.py leaves it."""
    return {int(file.stem): np.load(file) for file in folder.glob("*.npy")}


def are_equal(ours: Sounds, theirs: Sounds) -> bool:
    """Whether the same samples have sound, of the same bits."""
    return ours.keys() == theirs.keys() and all(
        ours[n].dtype == theirs[n].dtype and np.array_equal(ours[n], theirs[n]) for n in ours
    )


def are_close(ours: Sounds, theirs: Sounds) -> bool:
    """Whether the same samples have sound, up to TOLERANCE."""
    return ours.keys() == theirs.keys() and all(
        ours[n].shape == theirs[n].shape and np.abs(ours[n] - theirs[n]).max() <= TOLERANCE
        for n in ours
    )


def write_rows(rows: dict[str, Sounds], before: Any, known: set[str]) -> dict[str, dict[str, str]]:
    """Keeps sounds in fp16, by content: row id -> sample -> file name.

    before: what it gave then, of which rows that are not drawn now stay, if they are known.
    """
    kept = {row_id: names for row_id, names in before.items() if row_id in known}
    return kept | {row_id: _write(found) for row_id, found in rows.items() if found}


def _write(sounds: Sounds) -> dict[str, str]:
    FOLDER.mkdir(parents=True, exist_ok=True)
    names = {}
    for n, sound in sorted(sounds.items()):
        name = f"{hashlib.sha256(sound.tobytes()).hexdigest()[:16]}.npz"
        np.savez_compressed(FOLDER / name, sound=sound.astype(np.float16))
        names[str(n)] = name
    return names


def read(names: dict[str, str]) -> Sounds:
    """What `write_rows` kept of a row."""
    return {int(n): np.load(FOLDER / name)["sound"].astype(np.float32) for n, name in names.items()}


def remove_unused(manifest: dict[str, Any]) -> None:
    """Deletes the files that the manifest does not name any more."""
    rows = (row for entry in manifest.values() for row in entry.get("sounds", {}).values())
    used = {name for row in rows for name in row.values()}
    for path in FOLDER.glob("*.npz"):
        if path.name not in used:
            path.unlink()
