"""The page of a model, from its spec, its counted parameters and the measured results."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ai_toolkit_inference.core.specs import ModelSpec
from ai_toolkit_inference.core.versions import CHANGES, PROFILES

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "models"
PARAMETERS = PAGES / "parameters.json"
RESULTS = ROOT / "tests" / "goldens" / "results.json"
BF16 = 2  # bytes

# As the repositories state them; models that are not named here state none that is sure.
LICENCES = {
    "sd15": "CreativeML Open RAIL-M",
    "sdxl": "CreativeML Open RAIL++-M",
    "flux": "FLUX.1 [dev] Non-Commercial License",
    "flux_schnell": "Apache 2.0",
    "flex1": "Apache 2.0",
    "flex2": "Apache 2.0",
    "flux_kontext": "FLUX.1 [dev] Non-Commercial License",
    "zimage": "Apache 2.0",
    "zimage_turbo": "Apache 2.0",
    "qwen_image": "Apache 2.0",
    "qwen_image_2512": "Apache 2.0",
    "qwen_image_edit": "Apache 2.0",
    "qwen_image_edit_plus": "Apache 2.0",
    "qwen_image_edit_plus_2511": "Apache 2.0",
    "lumina2": "Apache 2.0",
    "chroma": "Apache 2.0",
    "hidream": "MIT; its Llama has Meta's own",
    "hidream_e1": "MIT; its Llama has Meta's own",
    "omnigen2": "Apache 2.0",
    "flux2": "FLUX.2 [dev] Non-Commercial License",
    "flux2_diffusers": "FLUX.2 [dev] Non-Commercial License",
    "flux2_klein_4b": "Apache 2.0",
    "flux2_klein_9b": "FLUX Non-Commercial License",
}
GATED = ("flux", "flux_kontext", "flux2", "flux2_diffusers", "flux2_klein_9b")


def page(spec: ModelSpec) -> str:
    """The page of a model, Markdown."""
    parts = (
        [f"# {spec.title}: `{spec.id}`"],
        _about(spec),
        _settings(spec),
        _weights(spec),
        _memory(spec),
        _lora(spec),
        _notes(spec),
        _exactness(spec),
        _try_it(spec),
    )
    return "\n\n".join(block for part in parts for block in part) + "\n"


def _about(spec: ModelSpec) -> list[str]:
    article = "An" if spec.task[0] in "aeiou" else "A"
    lines = [f"{article} {spec.task} model; the trainer calls it `{spec.arch}`."]
    lines.append(f"Drawn as `{spec.source}`.")
    if spec.since:
        since = next(row.since for row in CHANGES if row.name == spec.since)
        lines.append(f"The trainer has it since version {since}.")
    licence = LICENCES.get(spec.id)
    lines.append(f"Licence of the weights: {licence}." if licence else "")
    if spec.id in GATED:
        lines.append("Its repository is gated: accept the terms there and set `HF_TOKEN`.")
    return [" ".join(filter(None, lines))]


def _settings(spec: ModelSpec) -> list[str]:
    defaults = spec.defaults
    negative = "used" if spec.negative_prompt else "changes nothing"
    rows = [
        ("size", f"{defaults.width}x{defaults.height}"),
        ("sides", f"floored to multiples of {_grid(spec)}"),
        ("steps", str(defaults.steps)),
        ("guidance", f"{defaults.guidance_scale:g}"),
        ("negative prompt", negative),
        ("sampler", f"`{defaults.sampler}`"),
    ]
    if defaults.num_frames > 1:
        rows += [("frames", str(defaults.num_frames)), ("fps", str(defaults.fps))]
    if others := [f"`{name}`" for name in spec.samplers if name != defaults.sampler]:
        rows.append(("other samplers", ", ".join(others)))
    rows.append(("control images", _control_images(spec)))
    table = ["| setting | the trainer's default |", "|---|---|"]
    return ["## Settings", "\n".join([*table, *(f"| {name} | {value} |" for name, value in rows)])]


def _control_images(spec: ModelSpec) -> str:
    taken = spec.control_images
    if taken.most == 0:
        return "none"
    if taken.required == taken.most:
        return f"{taken.most}"
    return f"{taken.required or 'none'} to {taken.most}"


def _grid(spec: ModelSpec) -> str:
    text = f"{spec.multiple_of} px"
    if spec.multiple_of_before is not None:
        name, before = spec.multiple_of_before
        change = next(row for row in CHANGES if row.name == name)
        text += f" ({before} px before trainer {change.since})"
    return text


def _weights(spec: ModelSpec) -> list[str]:
    fetched = [f"`{'/'.join(filter(None, (spec.repo_id, spec.released_file)))}`"]
    if spec.rest_repo_id:
        fetched.append(f"all but the network from `{spec.rest_repo_id}`")
    for repo in dict.fromkeys(repo for _, repo in spec.elsewhere):
        named = [part for part, other in spec.elsewhere if other == repo]
        fetched.append(f"{' and '.join(named)} from `{repo}`")
    classes = " or ".join(f"`{name}`" for name in (spec.pipeline, *spec.other_pipelines))
    lines = [
        f"- `huggingface`: {', '.join(fetched)}",
        f"- a folder laid out as that repository: its `model_index.json` names {classes}",
    ]
    if spec.single_file:
        lines.append("- one `.safetensors` file with the whole checkpoint, as released")
    if spec.part_file:
        lines.append(
            f"- one `.safetensors` file with the "
            f"{', '.join((spec.part_file, *spec.in_part_file))} as released; the other parts are "
            "taken from the folder it lies in or is named after, or fetched"
            + "".join(f"; {part} may lie beside it as `{file}`" for part, file in spec.beside)
        )
    lines.append("- `tiny`: a random toy, built in a second")
    blocks = ["## Weights", "\n".join(lines)]
    if spec.network:
        blocks.append(
            "Its network is the trainer's own code, which `python install.py` fetches into the "
            "pack's folder (or `AI_TOOLKIT_PATH` names a checkout)."
        )
    return blocks


def _memory(spec: ModelSpec) -> list[str]:
    counts = json.loads(PARAMETERS.read_text(encoding="utf-8")).get(spec.id, {})
    if set(counts) != set(spec.components):
        raise SystemExit(
            f"{PARAMETERS.name} has {sorted(counts)} of {spec.id}, which has "
            f"{sorted(spec.components)}: describe them in scripts/released_configs.py and run it"
        )
    rows = ["| part | class | parameters | GB in bf16 |", "|---|---|---|---|"]
    for name in spec.components:
        entry = counts[name]
        millions = f"{entry['parameters'] / 1e6:,.0f} M"
        rows.append(f"| {name} | {entry['class']} | {millions} | {_gb(entry['parameters'])} |")
    sizes = [entry["parameters"] for entry in counts.values()]
    rows.append(f"| all | | {sum(sizes) / 1e6:,.0f} M | **{_gb(sum(sizes))}** |")
    text = (
        f"On a GPU, beside what a picture takes while it is drawn: {_gb(sum(sizes))} GB with "
        f"offload `none`, {_gb(max(sizes))} GB with `model`, less with `group` and `sequential`, "
        "which keep the rest in host memory. fp32 takes twice as much. While files are read, host "
        "memory holds the weights once, and at most a tenth on top."
    )
    dropped = sum(entry.get("dropped", 0) for entry in counts.values())
    if dropped:
        text += f" A vision tower of {_gb(dropped)} GB is read with the rest and dropped."
    return ["## Memory", "\n".join(rows), text]


def _gb(parameters: int) -> str:
    return f"{parameters * BF16 / 1e9:.1f}"


def _lora(spec: ModelSpec) -> list[str]:
    lora = spec.lora
    names = [f"`{prefix}{lora.separator}` ({part})" for prefix, part in lora.prefixes]
    alpha = (
        "a layer's scale is alpha / rank" if lora.alpha else "they have no alpha, the scale is 1"
    )
    text = (
        f"The trainer's files name layers {' and '.join(names)}; {alpha}. It trains what has "
        f"{' or '.join(f'`{target}`' for target in lora.targets)} in its path. "
        f"`ss_base_model_version` is `{lora.base_model}`."
    )
    if lora.writes_original:
        text += " Layers have the names of the model's first release; diffusers' are read, too."
    elif lora.original:
        text += " Layers may also have the names of the model's first release."
    return ["## LoRA", text + " Other kinds and spellings: [adapters.md](../adapters.md)."]


def _notes(spec: ModelSpec) -> list[str]:
    if not spec.notes:
        return []
    return ["## Why other tools draw otherwise", "\n".join(f"- {note}" for note in spec.notes)]


def _exactness(spec: ModelSpec) -> list[str]:
    cells = results_of(spec.id)
    if not cells:
        return ["## Exactness", "Not compared with the trainer on this repository's machines yet."]
    columns = sorted({column for column, _ in cells}, key=_by_version)
    rows = [
        "| libraries | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for libraries in sorted({libraries for _, libraries in cells}):
        entries = [cells.get((column, libraries)) for column in columns]
        texts = [exactness(**entry) if entry else "-" for entry in entries]
        rows.append(f"| {libraries} | " + " | ".join(texts) + " |")
    text = (
        "Pictures that are the trainer's byte for byte, without LoRA, merged and live; "
        "[parity.md](../parity.md) says how that is measured."
    )
    return ["## Exactness", text, "\n".join(rows)]


def results_of(model: str) -> dict[tuple[str, str], dict[str, int]]:
    """(trainer, precision, device; libraries) -> exact, pictures and most of a model's rows."""
    cells: dict[tuple[str, str], dict[str, int]] = defaultdict(
        lambda: {"exact": 0, "pictures": 0, "most": 0}
    )
    for key, entry in json.loads(RESULTS.read_text(encoding="utf-8")).items():
        found, dtype, profile, device, libraries = key.split(" ", 4)
        if found == model:
            cell = cells[f"{profile}, {dtype}, {device}", libraries]
            cell["exact"] += entry["exact"]
            cell["pictures"] += entry["pictures"]
            cell["most"] = max(cell["most"], entry["most"])
    return cells


def exactness(exact: int, pictures: int, most: int) -> str:
    """A cell of a table of exactness. most: levels of 255 that any picture is off."""
    if exact == pictures:
        return f"exact ({exact} of {pictures})"
    return f"{exact} of {pictures} exact, others up to {most} levels"


def _by_version(column: str) -> list[Any]:
    return [*map(int, re.findall(r"\d+", column.split(",")[0])), column]


def _try_it(spec: ModelSpec) -> list[str]:
    name = f"{spec.id}_lora.json"
    command = (
        f"aitk sample --model {spec.id} --lora my_lora.safetensors "
        '--prompt "a photo of [trigger]" --trigger-word sks --seed 42 --out picture.png'
    )
    has = [profile for profile in PROFILES if not spec.since or profile.has(spec.since)]
    versions = ", ".join(f"`{profile.version}`" for profile in has)
    graphs = (
        f"In ComfyUI: [{name}](../../example_workflows/{name}), which runs as it is with tiny "
        f"weights; for `POST /prompt` and `aitk run`: [its API format]"
        f"(../../example_workflows/api/{name}). `trainer_version` is {versions} or `auto`: what "
        "the LoRA file says."
    )
    return ["## Use it", f"```\n{command}\n```", graphs]


def pages(specs: tuple[ModelSpec, ...]) -> Iterator[tuple[Path, str]]:
    """File and content of every model's page."""
    for spec in specs:
        yield PAGES / f"{spec.id}.md", page(spec)
