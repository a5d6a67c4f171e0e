"""`aitk`: models, sample, lora, job, tiny, run, serve, doctor.

Exit 0 success, 2 bad input (one line on stderr), 1 anything else.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any, NoReturn

from ..core.errors import AitkError
from ..core.requests import DTYPES, LOW_VRAM, MODES, OFFLOAD, QUANTIZE
from ..core.versions import TRAINER_VERSIONS
from .serve import add_flags


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Returns the exit status."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    try:
        report = _command(options.command)(options)
        if options.json:
            sys.stdout.write(json.dumps(report) + "\n")
        sys.stdout.flush()
    except AitkError as error:
        sys.stderr.write(f"aitk: {' '.join(str(error).split())}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("aitk: interrupted\n")
        return 1
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


class Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line, as all commands do."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; the reference in the docs is made from it."""
    parser = Parser(
        prog="aitk", description="Render what ostris/ai-toolkit renders from the same LoRA."
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add(commands, "models", "list the models and their defaults")
    _add_sample(commands)
    _add_lora(commands)
    _add_job(commands)
    tiny = _add(commands, "tiny", "write a tiny random checkpoint, for trying things out")
    tiny.add_argument("model", metavar="ID", help="model id")
    tiny.add_argument("folder", metavar="DIR", help="folder to write; it must not exist")
    tiny.add_argument("--seed", type=int, default=0)
    tiny.add_argument("--lora", metavar="FILE", help="also write a random LoRA for it")
    run = _add(commands, "run", "submit a workflow (API format) to a running ComfyUI")
    run.add_argument("workflow", metavar="WORKFLOW_API.json")
    run.add_argument("--url", default="http://127.0.0.1:8188", help="of the ComfyUI server")
    run.add_argument("--out", metavar="DIR", help="fetch the results into this folder")
    _add_serve(commands)
    _add(commands, "doctor", "check versions, devices, folders and what would not be exact")
    return parser


def _add(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _add_sample(commands: Any) -> None:
    parser = _add(commands, "sample", "render one sample")
    add = parser.add_argument
    add("--model", required=True, metavar="ID", help="model id, see `aitk models`")
    add(
        "--weights",
        default="huggingface",
        help="huggingface, tiny, a diffusers folder, or a .safetensors file",
    )
    add(
        "--lora",
        action="append",
        default=[],
        metavar="FILE[:MULT]",
        help="a file, a peft folder, https://... or hf://owner/repo/file; may be repeated",
    )
    add(
        "--lora-low",
        action="append",
        default=[],
        metavar="FILE[:MULT]",
        help="the low-noise file beside --lora, for models with two experts",
    )
    add(
        "--allow-partial",
        action="store_true",
        help="leave out layers of a LoRA that do not fit, instead of refusing it",
    )
    add(
        "--assistant-lora",
        default="",
        metavar="FILE",
        help="the job's assistant_lora_path (FLUX, Z-Image, Krea 2): merged into the base, then "
        "taken away while sampling; a file, a folder, a link, or owner/repository/file",
    )
    add(
        "--inference-lora",
        default="",
        metavar="FILE",
        help="the job's inference_lora_path (FLUX): acts under --lora",
    )
    add(
        "--base-lora",
        default="",
        metavar="FILE",
        help="the job's lora_path (SD, SDXL, FLUX): fused into the base, whole",
    )
    add("--prompt", required=True, help="inline flags (--w 512 ...) are read as the trainer reads")
    add("--negative", default="", metavar="N", help="negative prompt")
    add("--width", type=int, default=0, help="px")
    add("--height", type=int, default=0, help="px")
    add("--steps", type=int, default=0)
    add("--guidance", type=float, default=-1.0, help="guidance scale; -1 is the model's default")
    add("--seed", type=int, default=42)
    add("--frames", type=int, default=0, help="of a video model")
    add("--fps", type=int, default=0, help="of a video model")
    add(
        "--control-image",
        action="append",
        default=[],
        metavar="FILE",
        help="for models that edit or take references, in order; *.inpaint.* keeps its alpha",
    )
    add("--control-index", type=int, default=0, metavar="I", help="the job's ctrl_idx (Flex.2)")
    add(
        "--doubled-control",
        action="store_true",
        help="the job names the first one ctrl_img, not ctrl_img_1 (Qwen-Image-Edit-Plus)",
    )
    add("--trigger-word", default="", help="replaces [trigger] and [name] in the prompt")
    add(
        "--cached-text",
        action="store_true",
        help="the job had cache_text_embeddings or unload_text_encoder, so trainers before "
        "0.10.28 left [trigger] as it stood",
    )
    add("--sampler", default="", help="the trainer's name of a scheduler")
    add("--dtype", default="bf16", choices=DTYPES)
    add(
        "--quantize",
        default="as_trained",
        metavar="QTYPE",
        help=f"{', '.join(QUANTIZE)}, or QTYPE|FILE with an accuracy recovery adapter; without a "
        "job as_trained is none",
    )
    add(
        "--quantize-te",
        default="",
        metavar="QTYPE",
        help="of the text encoder, if it is not as --quantize says; none leaves it as it is",
    )
    add("--layer-offloading", action="store_true", help="the job had it: qfloat8 is float8")
    add("--trainer-version", default="auto", choices=TRAINER_VERSIONS)
    add("--offload", default="auto", choices=OFFLOAD)
    add(
        "--low-vram",
        default="auto",
        choices=LOW_VRAM,
        help="the job's low_vram; auto is as in jobs of the trainer's own form",
    )
    add(
        "--switch",
        action="append",
        default=[],
        metavar="NAME=on|off",
        help="a setting that few models have: kv_cache and match_target_res (Krea 2, editing), "
        "do_cfg_norm (Qwen-Image-Edit Plus), vae_tiling (Wan); may be repeated",
    )
    add("--mode", default="as_trainer", choices=MODES, help="how the LoRA acts")
    add("--device", help="cpu, cuda or cuda:N")
    add("--out", required=True, metavar="FILE", help=".png, .jpg, .webp, .mp4 or .webm")


def _add_lora(commands: Any) -> None:
    group = commands.add_parser("lora", help="look into LoRA files")
    actions = group.add_subparsers(dest="lora_command", required=True, metavar="COMMAND")
    show = _add(actions, "show", "show a LoRA file: format, rank, alpha, strength, metadata")
    show.add_argument("file", metavar="FILE", help="or a peft folder, https://..., hf://...")
    show.add_argument("--model", metavar="ID", help="also bind it to this model")
    show.add_argument("--weights", default="huggingface", help="of that model")
    show.add_argument(
        "--side", default="", choices=("", "high", "low"), help="expert the file is for"
    )
    show.set_defaults(command="lora show")


def _add_job(commands: Any) -> None:
    group = commands.add_parser("job", help="a training job's folder: show, render, compare")
    actions = group.add_subparsers(dest="job_command", required=True, metavar="COMMAND")
    show = _add(actions, "show", "show a job: model, settings, weights, samples, what is missing")
    render = _add(actions, "render", "draw the samples of a step again")
    render.add_argument("--out", required=True, metavar="DIR", help="folder for the pictures")
    compare = _add(actions, "compare", "draw the samples of a step, and compare with the job's own")
    compare.add_argument("--report", metavar="FILE.html", help="also write a page with pictures")
    for parser in (show, render, compare):
        parser.add_argument(
            "folder", metavar="FOLDER", help="the job's, with its config.yaml; tiny: one to try"
        )
        parser.add_argument("--process", type=int, default=0, help="of a job with several")
        parser.set_defaults(command=parser.prog.removeprefix("aitk "))
    for parser in (render, compare):
        add = parser.add_argument
        add("--step", default="latest", metavar="N", help="0 is before training; latest")
        add("--only", type=int, action="append", default=[], metavar="I", help="this sample only")
        add("--weights", default="", help="where the base is, if not where the job says")
        add("--control-images", metavar="DIR", help="folder with the job's control images")
        add("--anyway", action="store_true", help="also if settings are not reproduced")
        add("--device", help="cpu, cuda or cuda:N")


def _add_serve(commands: Any) -> None:
    text = "answer over HTTP: a native API, and OpenAI's Images API"
    about = text[0].upper() + text[1:] + "; see docs/server.md."
    parser = commands.add_parser("serve", help=text, description=about, allow_abbrev=False)
    add_flags(parser)
    parser.set_defaults(json=False)  # it has no report


def _command(name: str) -> Callable[[argparse.Namespace], dict[str, Any]]:
    from . import commands, doctor, jobs, serve

    return {
        "models": commands.models,
        "sample": commands.sample,
        "lora show": commands.lora_show,
        "job show": jobs.job_show,
        "job render": jobs.job_render,
        "job compare": jobs.job_compare,
        "tiny": commands.tiny,
        "run": commands.run,
        "serve": serve.serve,
        "doctor": doctor.doctor,
    }[name]


def _version() -> str:
    try:
        return f"aitk {metadata.version('ai-toolkit-inference')}"
    except metadata.PackageNotFoundError:
        return "aitk (not installed)"


if __name__ == "__main__":
    sys.exit(main())
