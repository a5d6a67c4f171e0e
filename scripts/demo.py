"""The demo: a real ComfyUI with this pack renders two workflows, with nothing to download.

Weights and LoRA are the tiny random ones, so the pictures are patterns; what they show is that
everything works, and that the same graph gives the same bytes.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path

import comfyui

from ai_toolkit_inference.cli.comfy_client import Event, run_workflow

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "example_workflows" / "api"
OUT = ROOT / "out" / "demo"
PORT = 8188


def show(event: Event) -> None:
    """A line of progress, rewritten in a terminal."""
    if event.kind == "progress" and event.total > 1:
        bar = "#" * round(24 * event.value / event.total)
        end = "\n" if event.value == event.total else ""
        text = f"  {event.class_type:20} [{bar:24}] {event.value:g}/{event.total:g}"
        if sys.stdout.isatty():
            say(f"\r{text}{end}")
        elif end:
            say(f"{text}\n")
    elif event.kind == "text":
        say(f"  {event.text}\n")


def say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def main() -> int:
    started = time.monotonic()
    base = comfyui.cache_folder() / "demo"
    try:
        server = comfyui.find_server(base) or start(base)
        files = []
        for name in ("sd15_lora", "lora_strength_clip"):
            say(f"{name}\n")
            workflow = json.loads((EXAMPLES / f"{name}.json").read_text(encoding="utf-8"))
            files += run_workflow(server.url, workflow, OUT, show, timeout=600).files
    except comfyui.ComfyUIError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    say(f"\nDone in {time.monotonic() - started:.0f} s.\n")
    for file in files:
        say(f"  {'clip' if file.suffix == '.mp4' else 'picture':8} {file}\n")
    say(f"  page     {server.url}   drop a file of {EXAMPLES.parent.relative_to(ROOT)}/ on it\n")
    stop = [sys.executable, str(Path(__file__).with_name("comfyui.py")), "--stop", str(base)]
    say(f"  stop it  {shlex.join(stop)}\n")
    return 0


def start(base: Path) -> comfyui.Server:
    """A server on the usual port if it is free, else on any."""
    say("Starting ComfyUI\n")
    try:
        return comfyui.start_server(base, port=PORT)
    except comfyui.ComfyUIError as error:
        if "is not free" not in str(error):
            raise
        return comfyui.start_server(base)


if __name__ == "__main__":
    sys.exit(main())
