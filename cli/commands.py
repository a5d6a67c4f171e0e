"""What each command does. Each returns its report; without --json it also writes it for people."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ..core.errors import InvalidInputError
from ..core.requests import AdapterRef, Recipe, SampleRequest, parse_switches
from ..core.results import SampleResult
from ..core.specs import ModelSpec
from ..core.versions import PROFILES
from ..pipelines._registry import get_model, list_models


def models(options: argparse.Namespace) -> dict[str, Any]:
    """Every model: defaults, samplers, sizes, weights, and how its LoRA files name layers."""
    rows = [_model_row(spec) for spec in list_models()]
    if not options.json:
        title = max(len(row["title"]) for row in rows)
        for row in rows:
            defaults = row["defaults"]
            size = f"{defaults['width']}x{defaults['height']}"
            say(
                f"{row['id']:16} {row['title']:{title}} {size:10} {defaults['steps']:3} steps  "
                f"guidance {defaults['guidance_scale']:g}  {row['repo_id']}"
            )
    return {"models": rows}


def _model_row(spec: ModelSpec) -> dict[str, Any]:
    profiles = [profile for profile in PROFILES if not spec.since or profile.has(spec.since)]
    return {
        "id": spec.id,
        "title": spec.title,
        "task": spec.task,
        "arch": spec.arch,
        "repo_id": spec.repo_id,
        "pipeline": spec.pipeline,
        "components": list(spec.components),
        "single_file": spec.single_file,
        "part_file": spec.part_file,
        "needs_trainer_code": bool(spec.network),
        "multiple_of": spec.multiple_of,
        "defaults": asdict(spec.defaults),
        "samplers": list(spec.samplers),
        "negative_prompt": spec.negative_prompt,
        "control_images": asdict(spec.control_images),
        "trainer_versions": [profile.version for profile in profiles],
        "lora_prefixes": {
            prefix + spec.lora.separator: part for prefix, part in spec.lora.prefixes
        },
        "lora_base_model": spec.lora.base_model,
        "notes": list(spec.notes),
        "page": f"docs/models/{spec.id}.md",
    }


def sample(options: argparse.Namespace) -> dict[str, Any]:
    """Renders one sample into the file named by --out."""
    from ..engine.files import check_format

    out = Path(options.out)
    check_format(out)
    request = _request(options)
    from ..engine import Engine
    from ..engine.files import check_fit, save_sample

    engine = Engine(open_device(options.device))
    report = progress(options)
    plan = engine.plan(request, report)
    check_fit(out, plan.spec.task, plan.settings.num_frames)
    result = engine.sample(
        request,
        on_step=lambda step: report(f"step {step.index}/{step.total}"),
        on_status=said_once(report),
    )
    save_sample(result, out)
    report("")
    if not options.json:
        size = f"{result.info['width']}x{result.info['height']}"
        seconds = f"{result.info['seconds']:.1f} s"
        say(f"{out}  {size}{_clip(result, out)}  seed {result.info['seed']}  {seconds}")
    return {"file": str(out), "info": result.info}


def _clip(result: SampleResult, out: Path) -> str:
    # what the line about a clip says that one about a picture does not
    if len(result.frames) == 1:
        return ""
    silent = out.suffix.lower() == ".webp" and result.audio is not None
    sound = " without its sound, which a webp cannot hold" if silent else ""
    return f"  {len(result.frames)} frames  {result.fps:g} fps{sound}"


def lora_show(options: argparse.Namespace) -> dict[str, Any]:
    """What is in a LoRA file, and with --model, how it fits."""
    from ..adapters.report import describe, summary

    adapter, binding = _open_adapter(options)
    if not options.json:
        say(describe(adapter, Path(adapter.path).name, binding))
    return summary(adapter, binding)


def _open_adapter(options: argparse.Namespace) -> tuple[Any, Any]:
    # an adapter, and with --model how it falls on the model
    from ..adapters.bind import match
    from ..adapters.read import read_adapter
    from ..engine import Engine
    from ..engine.weights import fetch_link, find_adapter

    engine, report = Engine("cpu"), progress(options)
    if not options.model:
        return read_adapter(fetch_link(options.file, engine.downloads, report)), None
    spec = get_model(options.model)
    recipe = Recipe(spec.id, weights=options.weights)
    file = find_adapter(spec, options.weights, options.file, engine.downloads, report)
    modules = engine.modules(recipe) or engine.model(recipe).modules
    adapter = read_adapter(file)
    return adapter, match(adapter, spec, modules, options.side)


def tiny(options: argparse.Namespace) -> dict[str, Any]:
    """Writes a tiny checkpoint and, with --lora, a random LoRA for it."""
    spec = get_model(options.model)
    folder = Path(options.folder)
    if folder.exists():
        raise InvalidInputError(f"{folder} exists; name a folder that does not, or remove it")
    if options.lora and Path(options.lora).suffix != ".safetensors":
        raise InvalidInputError(f"--lora {options.lora}: the name has to end in .safetensors")
    from ..adapters.tiny import write_tiny_lora
    from ..engine import Engine
    from ..pipelines._tiny import write_tiny

    write_tiny(spec, folder, options.seed)
    report = {"folder": str(folder)}
    if options.lora:
        model = Engine("cpu").model(Recipe(spec.id, weights=str(folder), dtype="fp32"))
        write_tiny_lora(spec, model.modules, Path(options.lora), options.seed)
        report["lora"] = options.lora
    if not options.json:
        say("\n".join(report.values()))
    return report


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Submits a workflow to a ComfyUI server and waits for its results."""
    from .comfy_client import run_workflow

    path = Path(options.workflow)
    try:
        workflow = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInputError(f"{path} could not be read: {error.strerror}") from error
    except ValueError as error:
        raise InvalidInputError(f"{path} is not JSON: {error}") from error
    out = Path(options.out) if options.out else None
    report = progress(options)
    result = run_workflow(options.url, workflow, out, on_event=lambda event: report(str(event)))
    report("")
    files = [str(file) for file in result.files]
    if not options.json:
        say("\n".join(files) or f"done: {result.prompt_id}")
    return {"prompt_id": result.prompt_id, "files": files, "outputs": result.outputs}


def _request(options: argparse.Namespace) -> SampleRequest:
    from ..engine.control_images import read_control_image

    recipe = Recipe(
        model=get_model(options.model).id,
        weights=options.weights,
        dtype=options.dtype,
        quantize=options.quantize,
        quantize_te=options.quantize_te,
        layer_offloading=options.layer_offloading,
        trainer_version=options.trainer_version,
        offload=options.offload,
        adapters=_adapters(options),
        mode=options.mode,
        low_vram=options.low_vram,
        assistant_lora_path=options.assistant_lora,
        inference_lora_path=options.inference_lora,
        lora_path=options.base_lora,
    )
    return SampleRequest(
        recipe=recipe,
        prompt=options.prompt,
        negative_prompt=options.negative,
        width=options.width,
        height=options.height,
        steps=options.steps,
        guidance_scale=options.guidance,
        seed=options.seed,
        num_frames=options.frames,
        fps=options.fps,
        trigger_word=options.trigger_word,
        cached_text=options.cached_text,
        sampler=options.sampler,
        control_images=tuple(map(read_control_image, options.control_image)),
        control_index=options.control_index,
        doubled_control=options.doubled_control,
        switches=parse_switches(",".join(options.switch)),
    )


def _adapters(options: argparse.Namespace) -> tuple[AdapterRef, ...]:
    # the nth --lora-low belongs to the nth --lora; either may be alone
    pairs = zip_longest(map(parse_lora, options.lora), map(parse_lora, options.lora_low))
    return tuple(_pair(high, low, options.allow_partial) for high, low in pairs)


def _pair(high: AdapterRef | None, low: AdapterRef | None, allow_partial: bool) -> AdapterRef:
    given = [ref for ref in (high, low) if ref is not None]
    if len({ref.multiplier for ref in given}) > 1:
        raise InvalidInputError(
            "--lora and --lora-low of a pair have one multiplier, as in the trainer; "
            f"{given[0].multiplier} and {given[1].multiplier} were given"
        )
    path, low_path = (ref.path if ref else "" for ref in (high, low))
    return AdapterRef(path, given[0].multiplier, low_path, allow_partial)


def parse_lora(text: str) -> AdapterRef:
    """FILE or FILE:MULTIPLIER. Raises InvalidInputError for a multiplier that is no number."""
    found = re.fullmatch(r"(.{2,}):([^/\\]*)", text)  # C:\a.safetensors has no multiplier
    if not found:
        return AdapterRef(text)
    try:
        return AdapterRef(found[1], float(found[2]))
    except ValueError:
        if not found[1].lower().endswith((".safetensors", "tiny")):
            return AdapterRef(text)  # the colon is part of the name
        raise InvalidInputError(
            f"--lora {text}: {found[2]!r} is not a number; write FILE or FILE:MULTIPLIER"
        ) from None


def open_device(name: str | None) -> str | None:
    """The name of a device, if there is such a one. Raises InvalidInputError if not."""
    if name is None:
        return None
    import torch

    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise InvalidInputError(f"unknown device {name!r}; allowed: cpu, cuda, cuda:N")
    if name.startswith("cuda"):
        index = int(name.partition(":")[2] or 0)
        if index >= torch.cuda.device_count():
            raise InvalidInputError(
                f"there is no device {name} ({torch.cuda.device_count()} GPUs seen); use cpu"
            )
    return name


def say(text: str) -> None:
    """Writes a line for people."""
    sys.stdout.write(text + "\n")


def said_once(report: Callable[[str], None]) -> Callable[[str], None]:
    """The same, but for a text that is told again and again, which would hide others."""
    last = ""

    def tell(text: str) -> None:
        nonlocal last
        if text != last:
            last = text
            report(text)

    return tell


def progress(options: argparse.Namespace) -> Callable[[str], None]:
    """Shows one line that is rewritten, to people who watch; an empty text clears it."""
    if options.json or not sys.stderr.isatty():
        return lambda _: None

    def report(text: str) -> None:
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()

    return report
