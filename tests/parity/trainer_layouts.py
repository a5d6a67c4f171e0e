"""Write the key -> shape table of every LoRA file ai-toolkit would save: one JSON file a layout.

    $AI_TOOLKIT_PYTHON trainer_layouts.py OUT_DIR [NAME ...]

NAME: only the architectures whose name starts so. Run by the trainer's interpreter with the
environment of `trainer_run.py`; imports nothing of this package. lycoris_lora is needed for the
`locon` tables only.

The trainer's own classes make the tables: the model's transformer at its released widths, but one
block of each kind and on the meta device, so without memory; the network that a job would wrap it
in; `get_state_dict`, with the renaming of the model; `save_lora` where a model splits its file.
A table like an earlier one is not written, but named in that one's "same". Tables of a UNet keep
the first of the layers that differ only in their block's number, or in its side (not sdxl-lora).
"""

import argparse
import contextlib
import importlib
import json
import os
import re
import sys
import traceback
from pathlib import Path
from typing import Any

import trainer_shims
from trainer_arches import ARCHES, NETWORKS, Arch, symbol

LEGACY = ("sd1", "sdxl", "flux", "lumina2")
KINDS_OF_MODEL = "v2 v3 pixart auraflow flux lumina2 ssd vega"
NUMBERED = re.compile(r"(blocks|attentions|resnets|samplers)_\d+")
SIDE = re.compile(r"(down|up|mid)_blocks?")


def on_meta() -> contextlib.ExitStack:
    """A context in which tensors have a shape and no values, and stay so when asked to move."""
    torch = importlib.import_module("torch")

    class Stay(importlib.import_module("torch.overrides").TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if args and getattr(args[0], "is_meta", False):
                if func is torch.Tensor.to:
                    return args[0]
                if func is torch.Tensor.__bool__:  # the trainer asserts that none is NaN
                    return True
            return func(*args, **(kwargs or {}))

    stack = contextlib.ExitStack()
    stack.enter_context(torch.device("meta"))
    stack.enter_context(Stay())
    stack.enter_context(torch.no_grad())
    return stack


def base_model(arch: Arch) -> Any:
    """The trainer's model class around the transformer, with nothing loaded."""
    config = symbol("toolkit.config_modules:ModelConfig")(name_or_path="none", arch=arch.arch)
    cls = symbol("toolkit.util.get_model:get_model_class")(config)
    if cls.__name__ == "StableDiffusion" and arch.arch not in LEGACY:  # also what it falls back to
        raise ValueError(f"the trainer does not know {arch.arch}")
    base = cls("cpu", config, "fp32")
    base.unet = arch.build()
    return base


def network_of(base: Any, config: Any, encoders: Any) -> Any:
    """The network as BaseSDTrainProcess makes it, on every layer it would train."""
    kwargs = dict(config.network_kwargs)
    if hasattr(base, "target_lora_modules"):
        kwargs["target_lin_modules"] = list(base.target_lora_modules)
    model = base.model_config
    train_encoders = bool(encoders)
    path = "toolkit.lora_special:LoRASpecialNetwork"
    if config.type == "locon":
        path = "toolkit.lycoris_special:LycorisSpecialNetwork"
    network = symbol(path)(
        text_encoder=encoders,
        unet=base.get_model_to_train(),
        lora_dim=config.linear,
        multiplier=1.0,
        alpha=config.linear_alpha,
        train_unet=not train_encoders,
        train_text_encoder=train_encoders,
        conv_lora_dim=config.conv,
        conv_alpha=config.conv_alpha,
        is_sdxl=model.is_xl or model.is_ssd,
        dropout=config.dropout,
        network_config=config,
        network_type=config.type,
        transformer_only=config.transformer_only,
        is_transformer=base.is_transformer,
        base_model=base,
        **{f"is_{kind}": getattr(model, f"is_{kind}") for kind in KINDS_OF_MODEL.split()},
        **kwargs,
    )
    base.network = network
    if config.type == "locon":
        # saving reads these, and both pinned versions fail for want of them
        network.network_type, network.peft_format, network.base_model_ref = "locon", False, None
        for lora in network.text_encoder_loras + network.unet_loras:
            network.add_module(lora.lora_name, lora)
    else:
        network.apply_to(encoders, base.unet, train_encoders, not train_encoders)
    return network


def tables(arch: Arch, kind: str) -> dict[str, dict[str, list[int]]]:
    """Suffix of the file's name ("" or "-high_noise"...) -> key -> shape."""
    config = symbol("toolkit.config_modules:NetworkConfig")(**NETWORKS[kind])
    with on_meta():
        base = base_model(arch)
        network = network_of(base, config, arch.encoders() if kind == "te" else [])
        state = network.get_state_dict()
    files = saved_files(base, state) if hasattr(base, "save_lora") else {"": state}
    return {
        suffix: shapes(sd, both_sides=arch.name == "sdxl" and kind == "lora")
        for suffix, sd in files.items()
    }


def saved_files(base: Any, state: dict) -> dict[str, dict]:
    """What the model's own `save_lora` would write, by what it adds to the file's name."""
    files: dict[str, dict] = {}
    module = sys.modules[type(base).save_lora.__module__]
    real = module.save_file

    def note(state_dict, path, metadata=None):
        files[path[len("lora") : -len(".safetensors")].replace("_", "-", 1)] = state_dict

    module.save_file = note
    try:
        base.save_lora(state, "lora.safetensors", {})
    finally:
        module.save_file = real
    return files


def shapes(state: dict, both_sides: bool) -> dict[str, list[int]]:
    """Key -> shape, without the repetitions of a UNet."""
    seen, table = set(), {}
    for key, tensor in state.items():
        kind = NUMBERED.sub(r"\1_N", key)
        kind = (kind if both_sides else SIDE.sub("blocks", kind), tuple(tensor.shape))
        if not key.startswith("lora_unet_") or kind not in seen:
            table[key] = list(tensor.shape)
        seen.add(kind)
    return table


def write(path: Path, facts: dict, table: dict[str, list[int]]) -> None:
    """One line a key, so that a change is one line."""
    head = json.dumps(facts)[:-1]
    rows = (
        (json.dumps(key), json.dumps(shape, separators=(",", ":"))) for key, shape in table.items()
    )
    lines = ",\n".join(f"{key}:{shape}" for key, shape in rows)
    path.write_text(f'{head}, "keys": {{\n{lines}\n}}}}\n')


class Tables:
    """All tables that differ, by the name of their file."""

    def __init__(self, version: str):
        self.version = version
        self.made: dict[str, tuple[dict, dict]] = {}

    def add(self, arch: Arch, kind: str) -> list[str]:
        """Lines of the report, one a file."""
        targets = symbol("toolkit.kohya_lora:LoRANetwork").UNET_TARGET_REPLACE_MODULE
        original = list(targets)
        try:
            files = tables(arch, kind)
        except Exception as error:  # noqa: BLE001  one must not take the others with it
            traceback.print_exc()
            return [f"{arch.name}-{kind}: {type(error).__name__}: {str(error)[:200]}"]
        finally:
            targets[:] = original  # a network with a conv rank appends to it
        files = {suffix: table for suffix, table in files.items() if table}
        lines = [self.note(arch, kind, suffix, table) for suffix, table in files.items()]
        return lines or [f"{arch.name}-{kind}: the trainer writes nothing"]

    def note(self, arch: Arch, kind: str, suffix: str, table: dict) -> str:
        """Line of the report on one table."""
        name = f"{arch.name}-{kind}{suffix}"
        for other, (facts, known) in self.made.items():
            if known == table:
                facts.setdefault("same", []).append(name)
                return f"{name}: as {other}"
        facts = {"arch": arch.arch, "trainer": self.version, "network": kind}
        self.made[name] = facts, table
        return f"{name}: {len(table)} keys"

    def write(self, out: Path) -> None:
        """One file each."""
        for name, (facts, table) in self.made.items():
            write(out / f"{name}.json", facts, table)


def main() -> int:
    """Exit code: 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    toolkit, diffusers = os.environ["AI_TOOLKIT_PATH"], os.environ.get("AI_TOOLKIT_DIFFUSERS")
    with (out / "trainer.log").open("w") as log:
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            trainer_shims.import_models(trainer_shims.boot(toolkit, diffusers, "cpu"))
            made = Tables(importlib.import_module("version").VERSION)
        for arch in ARCHES:
            if options.names and not arch.name.startswith(tuple(options.names)):
                continue
            for kind in arch.networks:
                with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                    lines = made.add(arch, kind)
                sys.stdout.write("\n".join(lines) + "\n")
                sys.stdout.flush()
    made.write(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
