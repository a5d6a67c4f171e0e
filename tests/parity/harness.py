"""Draws the rows with the trainer and with the engine, and compares them.

    python tests/parity/harness.py table                the stored results
    python tests/parity/harness.py loras                let the trainer write the LoRA files
    python tests/parity/harness.py layers               its networks on single layers, as goldens
    python tests/parity/harness.py quantized            its qtypes on single layers, as goldens
    python tests/parity/harness.py compare [--store]    trainer against engine, in one run

The last three need AI_TOOLKIT_PATH and AI_TOOLKIT_PYTHON (see docs/parity.md); --store keeps the
trainer's pictures as goldens and the results for the exactness table.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import layer_goldens
import numpy as np
import sounds
from arithmetic import layer_arithmetic
from filelock import FileLock
from goldens import RESULTS, Difference, load_json, store_goldens, store_results, write_json
from PIL import Image
from quantized_layers import DTYPES
from rows import (
    GOLDENS,
    SAMPLE,
    SIDES,
    TRIGGER,
    Row,
    all_rows,
    base_lora,
    control_images,
    expert_suffix,
    job,
    kind_of,
    lora_file,
    quantization,
)
from safetensors.torch import load_file

from ai_toolkit_inference import Engine, SampleRequest, SampleResult
from ai_toolkit_inference.core.qtypes import QTYPES
from ai_toolkit_inference.core.quantizing import qtypes_of_job
from ai_toolkit_inference.core.requests import AdapterRef, Recipe
from ai_toolkit_inference.core.versions import PROFILES, get_profile
from ai_toolkit_inference.engine.control_images import read_control_image
from ai_toolkit_inference.engine.files import save_animation, save_image
from ai_toolkit_inference.engine.training_adapters import LIVE
from ai_toolkit_inference.engine.weights import tiny_folder
from ai_toolkit_inference.pipelines._registry import get_model

QUANTIZED = GOLDENS / "quantized.json"


def compare(ours: bytes, theirs: bytes) -> Difference:
    """How two PNG files differ. Pictures of different size count as entirely different."""
    a, b = (np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), int) for png in (ours, theirs))
    if a.shape != b.shape:
        return Difference(False, a.size, 255, 255.0)
    off = np.abs(a - b)
    return Difference(ours == theirs, int((off > 0).sum()), int(off.max()), float(off.mean()))


def as_png(result: SampleResult) -> bytes:
    """A sample as the PNG file that users get; of a clip, its frames one below the other."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sample.png"
        save_image(np.concatenate(list(result.frames)), path)
        return path.read_bytes()


def as_animation(result: SampleResult) -> bytes:
    """A clip as the animated webp that users get."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sample.webp"
        save_animation(result.frames, path, result.fps)
        return path.read_bytes()


def draw(engine: Engine, row: Row, profile: str, sample: dict[str, Any]) -> SampleResult:
    """One of the row's samples, rendered by the engine."""
    settings = SAMPLE | row.model.sample | sample
    adapters = tuple(
        AdapterRef(files[0], multiplier, *files[1:])
        for files, multiplier in row.adapters(profile, sample)
    )
    request = SampleRequest(
        recipe=Recipe(
            row.model.id,
            weights="tiny",
            dtype=row.dtype,
            trainer_version=profile,
            adapters=adapters,
            mode="live" if row.live and not row.quantized else "as_trainer",
            **quantize(row, profile),
            **base_lora(row, profile),
            low_vram="on" if row.low_vram else "off",
        ),
        prompt=sample["prompt"],
        width=settings["width"],
        height=settings["height"],
        steps=settings["sample_steps"],
        num_frames=settings.get("num_frames", 0),
        fps=settings.get("fps", 0),
        guidance_scale=row.model.guidance_scale,
        seed=42,
        control_images=tuple(map(read_control_image, control_images(sample))),
        control_index=sample.get("ctrl_idx", 0),
        doubled_control=_is_doubled(row, sample),
        trigger_word=TRIGGER,
        cached_text=row.cached,
        sampler=row.sampler,
        switches=row.switches,
    )
    return engine.sample(request)


def quantize(row: Row, profile: str) -> dict[str, Any]:
    """The fields of a recipe that say how a row's base is held."""
    settings = quantization(row, profile)
    quantize, encoders = qtypes_of_job(settings, get_model(row.model.id))
    offloading = settings.get("layer_offloading", False)
    return {"quantize": quantize, "quantize_te": encoders, "layer_offloading": offloading}


def _is_doubled(row: Row, sample: dict[str, Any]) -> bool:
    return "ctrl_img" in sample and get_model(row.model.id).control_images.doubled


# --- the trainer -----------------------------------------------------------------------------


def trainer_available() -> str:
    """Empty if the trainer can be run here, else what is missing."""
    for name in ("AI_TOOLKIT_PATH", "AI_TOOLKIT_PYTHON"):
        if not os.environ.get(name):
            return f"{name} is not set, so the trainer's own code cannot be run beside ours"
    return ""


def trainer_profile() -> str:
    """The version of the trainer at AI_TOOLKIT_PATH. Raises RuntimeError if it is not pinned."""
    text = (Path(os.environ["AI_TOOLKIT_PATH"]) / "version.py").read_text(encoding="utf-8")
    for profile in PROFILES:
        if f'"{profile.version}"' in text:
            return profile.version
    raise RuntimeError(f"the trainer at AI_TOOLKIT_PATH is not a pinned version: {text.strip()}")


def run_trainer(jobs: list[dict[str, Any]], out: Path, *flags: str, device: str = "cpu") -> Any:
    """Runs jobs in the trainer's interpreter. Returns its result.json; raises if a job failed."""
    out.mkdir(parents=True, exist_ok=True)
    plan = out / "jobs.json"
    plan.write_text(json.dumps({"device": device, "jobs": jobs}), encoding="utf-8")
    script = Path(__file__).with_name("trainer_run.py")
    command = [os.environ["AI_TOOLKIT_PYTHON"], str(script), *flags, str(plan), str(out)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    failed = {name: entry["error"] for name, entry in result["jobs"].items() if "error" in entry}
    if done.returncode or failed:
        raise RuntimeError(f"the trainer failed at {list(failed)}: {list(failed.values())[:1]}")
    return result


def trainer_pictures(rows: list[Row], profile: str, out: Path, device: str) -> tuple[Any, Any]:
    """The trainer's PNG files: {row id: [bytes]}, and what it said of its environment.

    The animations it wrote and its sounds stay in `out`, see trainer_animations.
    """
    jobs = [job(row, profile, tiny_folder(get_model(row.model.id))) for row in rows]
    result = run_trainer(jobs, out, device=device)
    pictures = {}
    for row, entry in zip(rows, result["jobs"].values(), strict=True):
        _check_case(row, entry)
        folder = row_folder(row, out)
        pictures[row.id] = [(folder / f"{n}.png").read_bytes() for n in range(len(row.samples()))]
    return pictures, {key: value for key, value in result.items() if key != "jobs"}


def row_folder(row: Row, out: Path) -> Path:
    """Where trainer_pictures leaves the files of a row."""
    return out / row.id.replace(".", "_")


def trainer_animations(row: Row, out: Path) -> list[bytes]:
    """The animated webp files that trainer_pictures left of a row; none if it draws pictures."""
    files = sorted(row_folder(row, out).glob("*.webp"))
    return [file.read_bytes() for file in files]


def _check_case(row: Row, entry: dict[str, Any]) -> None:
    # a row is worth nothing if the trainer did something else than it says
    if row.multipliers and entry["merged"] != row.merges:
        raise RuntimeError(f"{row.id}: the trainer merged={entry['merged']}")
    if not row.multipliers and entry["modules_with_effect"]:
        raise RuntimeError(f"{row.id}: the trainer's network is not as before its first step")
    if row.base_lora in LIVE and not entry.get("assistant", {}).get("acts"):
        raise RuntimeError(f"{row.id}: the trainer's {row.base_lora} does not act")
    networks = [entry, entry["second"]] if len(row.kinds) > 1 else [entry]
    for network in networks if row.multipliers else ():
        if network["lora_keys_not_loaded"] or not network["modules_with_effect"]:
            raise RuntimeError(f"{row.id}: the trainer did not load the adapters as given")


def write_loras(patterns: list[str]) -> None:
    """Lets the trainer write an adapter with random values for every model and kind."""
    profile = trainer_profile()
    targets = {}
    for row in all_rows(profile):
        for kind in (*row.kinds, *(("base",) if row.base_lora else ())):
            targets[lora_file(row.model, profile, kind)] = (row.model, kind)
    targets = {
        path: target for path, target in targets.items() if any(p in path.name for p in patterns)
    }
    jobs = []
    for path, (model, kind) in targets.items():
        row = Row(model, "fp32", path.stem.replace(".", "_"), kinds=(kind,))
        given = job(row, profile, tiny_folder(get_model(model.id)))
        jobs.append(given | {"name": row.case, "fill": kind_of(model, kind).fill})
    with tempfile.TemporaryDirectory() as folder:
        run_trainer(jobs, Path(folder), "--write-lora")
        for (path, (model, _)), given in zip(targets.items(), jobs, strict=True):
            for end in map(expert_suffix, SIDES if model.pair else [""]):
                written = Path(folder) / f"{given['name']}{end}.safetensors"
                _keep(written, path.with_name(f"{path.stem}{end}.safetensors"))


def _keep(written: Path, path: Path) -> None:
    if not _same_tensors(path, written):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(written.read_bytes())


def _same_tensors(path: Path, other: Path) -> bool:
    if not path.is_file():
        return False
    a, b = load_file(path), load_file(other)
    return a.keys() == b.keys() and all(a[key].equal(b[key]) for key in a)


def write_layers() -> None:
    """Lets the trainer's network classes work on single layers, and keeps what they gave."""
    script = Path(__file__).with_name("trainer_layers.py")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([os.environ["AI_TOOLKIT_PYTHON"], str(script), folder], check=True)
        layer_goldens.store(trainer_profile(), Path(folder))


def write_quantized() -> None:
    """Lets the trainer quantize single layers, and keeps digests of what it gave."""
    profile = get_profile(trainer_profile())
    names = [q.name for q in QTYPES if not q.since or profile.has(q.since)]
    with tempfile.TemporaryDirectory() as folder:
        qtypes, out = Path(folder) / "qtypes.json", Path(folder) / "out.json"
        qtypes.write_text(json.dumps(names), encoding="utf-8")
        script = Path(__file__).with_name("trainer_quantized.py")
        command = [os.environ["AI_TOOLKIT_PYTHON"], str(script), str(qtypes), str(out)]
        subprocess.run(command, check=True)
        measured = load_json(out)
    arithmetic = {name: layer_arithmetic(dtype) for name, dtype in DTYPES.items()}
    stored = load_json(QUANTIZED)
    stored[measured["version"]] = {"arithmetic": arithmetic, "results": measured["results"]}
    write_json(QUANTIZED, stored)


# --- commands --------------------------------------------------------------------------------


def run_comparison(store: bool, device: str, patterns: list[str]) -> int:
    """Trainer against engine. Returns 0 if every picture is the same file."""
    profile = trainer_profile()
    rows = [row for row in all_rows(profile) if any(part in row.id for part in patterns)]
    engine = Engine(device)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        pictures, trainer = trainer_pictures(rows, profile, out, device)
        differences = {row.id: compare_row(engine, row, profile, pictures, out) for row in rows}
        heard = {row.id: sounds.of_trainer(row_folder(row, out)) for row in rows}
    for row_id, offs in differences.items():
        verdict = [
            "exact" if off.same_file else f"most {off.most} mean {off.mean:.3f}" for off in offs
        ]
        sys.stdout.write(f"{row_id:34} {profile:8} {', '.join(verdict)}\n")
    if store:
        with FileLock(Path(tempfile.gettempdir()) / "aitk-goldens.lock"):
            if device == "cpu":
                store_goldens(profile, pictures, heard, trainer)
            store_results(profile, differences, device)
    return 0 if all(off.same_file for offs in differences.values() for off in offs) else 1


def compare_row(
    engine: Engine, row: Row, profile: str, pictures: dict[str, list[bytes]], out: Path
) -> list[Difference]:
    """How each sample of a row differs from the trainer's; a clip in its animation or sound, too.

    pictures, out: what trainer_pictures gave and was given.
    """
    samples = [draw(engine, row, profile, sample) for sample in row.samples()]
    offs = [compare(as_png(x), png) for x, png in zip(samples, pictures[row.id], strict=True)]
    animations = trainer_animations(row, out)
    if animations and [as_animation(sample) for sample in samples] != animations:
        offs = [replace(off, same_file=False) for off in offs]
    if not sounds.are_equal(sounds.of_samples(samples), sounds.of_trainer(row_folder(row, out))):
        offs = [replace(off, same_file=False) for off in offs]
    return offs


def print_table() -> None:
    """The stored results, one line each."""
    for key, entry in load_json(RESULTS).items():
        verdict = "exact" if entry["exact"] == entry["pictures"] else f"most {entry['most']} levels"
        sys.stdout.write(f"{key:78} {entry['exact']:3}/{entry['pictures']:<3} {verdict}\n")


WRITERS = {
    "loras": write_loras,
    "layers": lambda _: write_layers(),
    "quantized": lambda _: write_quantized(),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("command", choices=(*WRITERS, "table", "compare"))
    parser.add_argument("--store", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--only", action="append", help="rows, or files, whose name contains this, or another"
    )
    options = parser.parse_args()
    only = options.only or [""]
    if options.command == "table":
        print_table()
        return 0
    if missing := trainer_available():
        sys.stderr.write(missing + "\n")
        return 2
    import torch

    torch.set_num_threads(1)  # as the trainer is run; fp32 sums differ by thread count
    if options.command in WRITERS:
        WRITERS[options.command](only)
        return 0
    return run_comparison(options.store, options.device, only)


if __name__ == "__main__":
    sys.exit(main())
