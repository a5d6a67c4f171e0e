"""What a LoRA file holds, for people and for programs."""

from __future__ import annotations

from typing import Any

from ..core.versions import trainer_version
from .read import Adapter


def summary(adapter: Adapter) -> dict[str, Any]:
    """Format, ranks, alphas, dtypes, provenance and metadata; JSON-ready.

    effective is False for a LoRA that cannot change anything.
    """
    ranks = sorted({layer.rank for layer in adapter.layers})
    alphas = sorted({layer.alpha for layer in adapter.layers if layer.alpha is not None})
    dtypes = {str(layer.down.dtype).removeprefix("torch.") for layer in adapter.layers}
    return {
        "file": adapter.path,
        "sha256": adapter.digest,
        "format": "kohya" if alphas else "peft",
        "layers": len(adapter.layers),
        "rank": ranks,
        "alpha": alphas,
        "dtype": sorted(dtypes),
        "effective": adapter.effective,
        "trainer_version": trainer_version(adapter.metadata),
        "base_model": adapter.metadata.get("ss_base_model_version"),
        "metadata": adapter.metadata,
    }


def describe(adapter: Adapter, name: str) -> str:
    """The summary in a few lines of text."""
    report = summary(adapter)
    lines = [
        f"{name}: {report['format']} LoRA, {report['layers']} layers, "
        f"rank {_joined(report['rank'])}, {_joined(report['dtype'])}",
        f"trained on {report['base_model'] or 'an unnamed model'} "
        f"with ai-toolkit {report['trainer_version'] or '(version not recorded)'}",
        f"sha256 {report['sha256']}",
    ]
    if not report["effective"]:
        lines.append("all its weights are zero, so it changes nothing")
    return "\n".join(lines)


def _joined(values: list[Any]) -> str:
    return ", ".join(str(value) for value in values)
