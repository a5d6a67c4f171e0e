"""Ratios measured in one run: what the engine costs beside the least it could.

    python bench/bench.py [--only NAME]

Each ratio is printed with its target; absolute times are not, for they say more of the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from ai_toolkit_inference import Engine, SampleRequest, get_model
from ai_toolkit_inference.adapters.apply import AdapterState, Applied
from ai_toolkit_inference.adapters.bind import bind
from ai_toolkit_inference.adapters.read import read_adapter
from ai_toolkit_inference.adapters.tiny import write_tiny_lora
from ai_toolkit_inference.core.requests import Recipe
from ai_toolkit_inference.pipelines import _tiny

ROUNDS = 5
STEPS = 8
NO_BYTECODE = "PYTHONDONTWRITEBYTECODE"  # with it every start compiles the sources


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="rows whose name contains this")
    options = parser.parse_args()
    torch.set_num_threads(1)  # a second core that is busy elsewhere would decide the ratios
    rows = {
        "sampling over bare forwards": bench_sampling,
        "LoRA switch": bench_switch,
        "second render": bench_second_render,
        "import of the pack": bench_import,
    }
    for name, bench in rows.items():
        if options.only in name:
            for line in bench():
                sys.stdout.write(f"{name:28} {line}\n")
                sys.stdout.flush()
    return 0


def bench_sampling() -> Iterator[str]:
    """The whole denoising, beside the same forwards without the engine; per model, medians."""
    for model in ("sd15", "sdxl", "flux"):
        engine = Engine("cpu")
        recipe = Recipe(model, weights="tiny", dtype="fp32")
        request = SampleRequest(recipe, prompt="a cat", width=512, height=512, steps=STEPS)
        modules = engine.model(recipe).modules
        denoiser = modules.get("unet") or modules["transformer"]
        calls = forwards_in(engine, request, denoiser)
        after_first = calls[len(calls) // STEPS :]
        ratios = [
            steps_after_first(engine, request) / bare_forwards(denoiser, after_first)
            for _ in range(ROUNDS)
        ]
        yield f"{statistics.median(ratios):6.3f}   target <= 1.05   {model}"


def forwards_in(engine: Engine, request: SampleRequest, module: Any) -> list[tuple[Any, Any]]:
    """What a module is called with while a request is sampled."""
    calls: list[tuple[Any, Any]] = []
    hook = module.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append(copy.deepcopy((args, kwargs))), with_kwargs=True
    )
    engine.sample(request)
    hook.remove()
    return calls


def steps_after_first(engine: Engine, request: SampleRequest) -> float:
    """Seconds between the first and the last step, where nothing but denoising happens."""
    marks: list[float] = []
    engine.sample(request, on_step=lambda _: marks.append(time.perf_counter()))
    return marks[-1] - marks[0]


@torch.no_grad()
def bare_forwards(module: Any, calls: list[tuple[Any, Any]]) -> float:
    """Seconds of the same calls without the engine."""
    started = time.perf_counter()
    for args, kwargs in calls:
        module(*args, **kwargs)
    return time.perf_counter() - started


def bench_switch() -> Iterator[str]:
    """Switching merged LoRA A to B, over one pass that copies the weights it touches."""
    spec = get_model("flux")
    with tempfile.TemporaryDirectory() as folder:
        for dtype in (torch.float32, torch.bfloat16):
            transformer = wide_flux().to(dtype)
            modules = {"transformer": transformer, "text_encoder": torch.nn.Module()}
            files = [
                write_tiny_lora(spec, modules, Path(folder) / f"{seed}.safetensors", seed, rank=16)
                for seed in (1, 2)
            ]
            adapters = [
                Applied(adapter.digest, bind(adapter, spec, modules), 1.0, live=False)
                for adapter in map(read_adapter, files)
            ]
            copy, merged, live = switch_seconds(adapters)
            kind = str(dtype).removeprefix("torch.")
            layers = len(adapters[0].layers)
            yield f"{merged / copy:6.2f}   target <= 2.0   merged, {kind}, rank 16, {layers} layers"
        yield f"{live / copy:6.2f}   (live)"
        yield from bench_diffusers(transformer, files, copy, merged)


def switch_seconds(adapters: list[Applied]) -> tuple[float, float, float]:
    """Seconds of copying the touched weights once, and of a switch, merged and live."""
    state = AdapterState(torch.device("cpu"))
    for adapter in adapters:
        state.switch([adapter])
    touched: list[Any] = [bound.module.weight for bound in adapters[0].layers]
    spare = [weight.detach().clone() for weight in touched]
    copy = median(
        lambda: [new.copy_(old.detach()) for new, old in zip(spare, touched, strict=True)]
    )
    merged = median(lambda: [state.switch([adapter]) for adapter in adapters]) / 2
    live = [Applied(adapter.digest, adapter.layers, 1.0, live=True) for adapter in adapters]
    state.clear()
    hooked = median(lambda: [state.switch([adapter]) for adapter in live]) / 2
    state.clear()
    return copy, merged, hooked


def bench_diffusers(
    transformer: Any, files: list[Path], copy: float, merged: float
) -> Iterator[str]:
    """The same switch by diffusers, in the same run: hotswap, and unload + load + fuse."""
    import diffusers

    with contextlib.redirect_stderr(sys.stdout):
        diffusers.utils.logging.set_verbosity_error()
        pipeline_class: Any = diffusers.FluxPipeline
        absent = dict.fromkeys(
            ("scheduler", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
        )
        pipeline = pipeline_class(transformer=transformer, **absent)
        names = [str(file) for file in files]
        pipeline.load_lora_weights(names[0], adapter_name="a")
        swap = median(
            lambda: [
                pipeline.load_lora_weights(name, adapter_name="a", hotswap=True) for name in names
            ]
        )
        pipeline.unload_lora_weights()
        pipeline.load_lora_weights(names[0])
        pipeline.fuse_lora()
        fuse = median(lambda: [refuse(pipeline, name) for name in names])
    yield f"{swap / 2 / copy:6.2f}   (diffusers hotswap, LoRA kept beside the layers)"
    yield f"{fuse / 2 / copy:6.2f}   (diffusers unload + load + fuse, which changes the base)"
    yield f"{merged / (fuse / 2):6.2f}   target <= 1.0    ours over diffusers unload + load + fuse"


def refuse(pipeline: Any, name: str) -> None:
    pipeline.unfuse_lora()
    pipeline.unload_lora_weights()
    pipeline.load_lora_weights(name)
    pipeline.fuse_lora()


def wide_flux() -> Any:
    """A FLUX transformer wide enough for copying to cost something: about 60 million weights."""
    from diffusers import FluxTransformer2DModel

    return _tiny.fill(
        FluxTransformer2DModel(
            in_channels=64,
            num_layers=2,
            num_single_layers=4,
            attention_head_dim=64,
            num_attention_heads=12,
            joint_attention_dim=64,
            pooled_projection_dim=64,
            guidance_embeds=True,
            axes_dims_rope=(16, 24, 24),
        ),
        seed=0,
    )


def bench_second_render() -> Iterator[str]:
    """A second render over the first, and how often weights are read for both."""
    engine = Engine("cpu")
    recipe = Recipe("sd15", weights="tiny", dtype="fp32")
    request = SampleRequest(recipe, prompt="a cat", width=64, height=64, steps=1)
    started = time.perf_counter()
    engine.sample(request)
    first = time.perf_counter() - started
    second = median(lambda: engine.sample(request))
    yield f"{second / first:6.2f}   weights read {engine.loads} time(s), target 1"


def bench_import() -> Iterator[str]:
    """Importing the pack with its node list, over `import torch`, in fresh interpreters."""
    nodes = "import ai_toolkit_inference as p; p.NODE_CLASS_MAPPINGS; p.list_models()"
    import_seconds(nodes)  # writes the bytecode that later starts read
    pack = statistics.median(import_seconds(nodes) for _ in range(ROUNDS))
    torch_import = statistics.median(import_seconds("import torch") for _ in range(ROUNDS))
    yield f"{pack / torch_import:6.3f}   target <= 0.05   ({pack * 1000:.0f} ms, target < 100 ms)"


def import_seconds(statement: str) -> float:
    code = f"import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
    env = {name: value for name, value in os.environ.items() if name != NO_BYTECODE}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    return float(run.stdout)


def median(work: Callable[[], Any]) -> float:
    """Seconds of the median of ROUNDS runs, after one that is not counted."""
    work()
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


if __name__ == "__main__":
    sys.exit(main())
