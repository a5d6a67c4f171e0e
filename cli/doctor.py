"""`aitk doctor`: what is installed, what would not be exact, and what to do about it."""

from __future__ import annotations

import argparse
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from ..core.versions import LATEST
from .serve import missing_packages

# library -> (lowest tested, first not tested)
TESTED = {
    "diffusers": ((0, 39), (0, 43)),
    "transformers": ((4, 57), (6, 0)),
    "torch": ((2, 4), (3, 0)),
}


def doctor(options: argparse.Namespace) -> dict[str, Any]:
    """Versions, devices, folders and findings. A finding says what is wrong and what to do."""
    versions = {
        name: _installed(name) for name in (*TESTED, "accelerate", "safetensors", "ftfy", "av")
    }
    report: dict[str, Any] = {
        "python": sys.version.split()[0],
        "versions": versions,
        "devices": _devices(),
        "folders": _folders(),
        "trainer": {"version": LATEST.version, "commit": LATEST.commit, **_vendored()},
        "server": {"missing": missing_packages()},
        "findings": [*_version_findings(versions)],
    }
    if not options.json:
        sys.stdout.write(_for_people(report))
    return report


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> list[str]:
    if _installed("torch") is None:
        return []
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ["cpu", *gpus]


def _folders() -> dict[str, str]:
    from ..engine.weights import cache_folder

    return {"cache": str(cache_folder()), "pack": str(_pack())}


def _pack() -> Path:
    return Path(__file__).resolve().parent.parent


def _vendored() -> dict[str, Any]:
    folder = _pack() / "vendor" / "ai-toolkit"
    return {"vendored": (folder / "version.py").is_file()}


def _version_findings(versions: dict[str, str | None]) -> list[str]:
    findings = []
    for name, (lowest, above) in TESTED.items():
        version = versions[name]
        wanted = f">={_dotted(lowest)},<{_dotted(above)}"
        if version is None:
            findings.append(f'{name} is not installed; pip install "{name}{wanted}"')
        elif not lowest <= _numbers(version) < above:
            findings.append(f"{name} {version} is not tested ({wanted}); pixels may differ")
    if (versions["transformers"] or "").startswith("5.0."):
        findings.append("transformers 5.0 computes T5 in other bits; use 4.57 or 5.1 and newer")
    if versions["ftfy"] is None:
        findings.append(
            "ftfy is not installed; CLIP prompts as of trainer 0.7.19 need it: pip install ftfy"
        )
    if versions["av"] is None:
        findings.append("av (PyAV) is not installed; mp4 and webm need it: pip install av")
    return findings


def _for_people(report: dict[str, Any]) -> str:
    lines = [f"python        {report['python']}"]
    lines += [f"{name:13} {version or '-'}" for name, version in report["versions"].items()]
    lines += [f"device        {device}" for device in report["devices"]]
    lines += [f"{name:13} {folder}" for name, folder in report["folders"].items()]
    trainer = report["trainer"]
    vendored = "vendored" if trainer["vendored"] else "not vendored (run install.py)"
    lines.append(f"trainer       {trainer['version']} {trainer['commit'][:8]} {vendored}")
    missing = ", ".join(report["server"]["missing"])
    lines.append(f"server        {f'not installed ({missing})' if missing else 'installed'}")
    lines += [f"! {finding}" for finding in report["findings"]] or ["nothing to mend"]
    return "\n".join(lines) + "\n"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(str(number) for number in numbers)
