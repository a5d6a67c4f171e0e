"""What an adapter file holds and how it fits a model, for people and for programs."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from typing import Any

from ..core.versions import trainer_version
from .bind import Binding
from .layer import Layer
from .layouts import detect_layout
from .names import DENOISER, SOLE_ENCODER, split_name
from .read import Adapter

SHOWN = 5  # names in a text
TITLES = {
    "lora": "LoRA",
    "dora": "DoRA",
    "lokr": "LoKr",
    "fullrank": "full-rank LoRA",
    "diff": "full weights",
}


def summary(adapter: Adapter, binding: Binding | None = None) -> dict[str, Any]:
    """Format, kinds, ranks, alphas, provenance, strength and metadata; JSON-ready.

    effective is False for an adapter that cannot change anything. norms: block -> L2 norm of
    what is added to its weights at multiplier 1. binding: how it falls on a model's modules;
    adds the counts and names of what fits and what does not.
    """
    layers = adapter.layers
    layout = detect_layout(adapter.shapes)
    dtypes = {str(t.dtype).removeprefix("torch.") for layer in layers for t in layer.tensors()}
    report = {
        "file": adapter.path,
        "sha256": adapter.digest,
        "bytes": adapter.nbytes,
        "format": adapter.spelling,
        "layout": layout.title if layout else None,
        "models": list(layout.models) if layout else [],
        "kinds": dict(Counter(layer.kind for layer in layers)),
        "layers": len(layers),
        "rank": sorted({layer.rank for layer in layers if layer.rank}),
        "alpha": sorted({layer.alpha for layer in layers if layer.alpha is not None}),
        "dtype": sorted(dtypes),
        "effective": adapter.effective,
        "trainer_version": trainer_version(adapter.metadata),
        "base_model": adapter.metadata.get("ss_base_model_version"),
        "trigger_word": trigger_word(adapter.metadata),
        **_training(adapter.metadata),
        "norms": norms(layers),
        "metadata": adapter.metadata,
    }
    return report if binding is None else report | fit(binding)


def fit(binding: Binding) -> dict[str, Any]:
    """How an adapter fits: layers and modules bound, with the names of those that are not."""
    return {
        "bound": len({bound.layer.name for bound in binding.bound}),
        "modules": dict(Counter(bound.path.partition(".")[0] for bound in binding.bound)),
        "unbound": list(binding.unbound),
        "mismatched": list(binding.mismatched),
    }


def trigger_word(metadata: dict[str, str]) -> str | None:
    """The trigger word that the trainer noted as a tag, or None.

    Upstream: ostris/ai-toolkit@27a03a91 jobs/process/BaseSDTrainProcess.py (ss_tag_frequency)
    """
    tags = _json(metadata.get("ss_tag_frequency"))
    for counts in tags.values() if isinstance(tags, dict) else ():
        if isinstance(counts, dict) and len(counts) == 1:
            return str(next(iter(counts)))
    return None


def norms(layers: tuple[Layer, ...]) -> dict[str, float]:
    """Block of the model -> L2 norm of all that is added to its weights at multiplier 1."""
    squares: dict[str, float] = defaultdict(float)
    for layer in layers:
        squares[_block(layer.name)] += layer.norm**2
    return {block: square**0.5 for block, square in sorted(squares.items(), key=_numbered)}


def describe(adapter: Adapter, name: str, binding: Binding | None = None) -> str:
    """The summary in a few lines of text."""
    report = summary(adapter, binding)
    kinds = " and ".join(TITLES[kind] for kind in report["kinds"])
    rank = f"rank {_joined(report['rank'])}, " if report["rank"] else ""
    lines = [
        f"{name}: {report['format']} {kinds}, {report['layers']} layers, "
        f"{rank}{_joined(report['dtype'])}",
        f"trained on {report['base_model'] or report['layout'] or 'an unnamed model'} "
        f"with ai-toolkit {report['trainer_version'] or '(version not recorded)'}"
        + (f", step {report['step']}" if report["step"] is not None else ""),
    ]
    if report["trigger_word"]:
        lines.append(f"trigger word {report['trigger_word']}")
    lines += _strength(report)
    if binding is not None:
        lines += _fit_lines(report)
    return "\n".join([*lines, f"sha256 {report['sha256']}"])


def _strength(report: dict[str, Any]) -> list[str]:
    if not report["effective"]:
        return ["all its weights are zero, so it changes nothing"]
    strongest = sorted(report["norms"].items(), key=lambda item: -item[1])[:SHOWN]
    shown = ", ".join(f"{block} {norm:.3g}" for block, norm in strongest)
    return [f"strongest blocks (L2 of what is added): {shown}"]


def _fit_lines(report: dict[str, Any]) -> list[str]:
    where = ", ".join(f"{count} in {part}" for part, count in report["modules"].items())
    lines = [f"{report['bound']} of {report['layers']} layers bound: {where or 'no module'}"]
    for key, what in (("unbound", "name no module"), ("mismatched", "have another shape")):
        if names := report[key]:
            more = ", ..." if len(names) > SHOWN else ""
            lines.append(f"{len(names)} {what}: {', '.join(names[:SHOWN])}{more}")
    return lines


def _training(metadata: dict[str, str]) -> dict[str, Any]:
    info = _json(metadata.get("training_info"))
    info = info if isinstance(info, dict) else {}
    return {
        "name": metadata.get("ss_output_name"),
        "step": info.get("step"),
        "epoch": info.get("epoch"),
    }


def _block(name: str) -> str:
    # up to the first number: transformer_blocks.3, text_encoder.text_model.encoder.layers.0
    parsed = split_name(name)
    found = re.match(r".*?[._]\d+(?=[._]|$)", parsed.path)
    block = found[0] if found else parsed.path
    if parsed.part != DENOISER:
        return f"{'text_encoder' if parsed.part == SOLE_ENCODER else parsed.part}.{block}"
    return block if parsed.expert is None else f"transformer_{parsed.expert + 1}.{block}"


def _numbered(item: tuple[str, float]) -> list[tuple[int, str]]:
    # block 2 before block 10
    return [(int(part) if part.isdigit() else -1, part) for part in re.split(r"(\d+)", item[0])]


def _json(text: str | None) -> Any:
    try:
        return json.loads(text or "null")
    except (ValueError, RecursionError):
        return None


def _joined(values: list[Any]) -> str:
    return ", ".join(str(value) for value in values)
