"""What ai-toolkit's own network classes make of single layers: outputs and merged weights.

    $AI_TOOLKIT_PYTHON trainer_layers.py OUT_DIR

Run by the trainer's interpreter; imports nothing of this package. Environment: as trainer_run.py.

Every case of CASES is a network over the layers of `Root`, filled with seeded values, saved by its
own `save_weights` and loaded again, so that all values are those of the file. OUT_DIR then holds
<case>.safetensors, base.safetensors (weights and inputs, fp32), results.safetensors and
result.json. Results are named <case>/<base>/<way>/<multiplier>/<layer>: base is fp32, bf16 or, for
bf16 layers quantized by the trainer's code, qfloat8 and float8; way is live (outputs), merged
(weights) or, for stacks, merged_output and mixed_output (the first merged, the others live).
"""

import argparse
import contextlib
import gc
import hashlib
import importlib
import importlib.metadata
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import trainer_run
import trainer_shims

MULTIPLIERS = (1.0, 0.6, -0.5, 0.0)
SEED = 20
SHAPES = {"linear": (2, 3), "conv": (5, 4)}  # of the inputs, beside their channels


@dataclass(frozen=True)
class Case:
    """One network. network: the job's section; transformer: as FLUX is one, and SD is not."""

    name: str
    network: dict
    transformer: bool = True
    save: str = "float16"  # the default of YAML files; the trainer's interface writes bf16
    since: str = ""
    quantized: bool = False  # is also tried on quantized layers
    seed: int = 0


@dataclass(frozen=True)
class Stack:
    """Networks applied one after the other to the same layers."""

    cases: tuple[str, ...]
    multipliers: tuple[float, ...] = field(default=(0.6, -0.5))

    @property
    def name(self) -> str:
        return "+".join(self.cases)


CONV = {"conv": 2, "conv_alpha": 1}
THIRD = {"linear": 3, "linear_alpha": 1}  # a scale that no float holds
FIFTH = {"linear": 5, "linear_alpha": 1}  # enough for full matrices in the smallest layers
FULL = {"type": "lokr", "lokr_full_rank": True, "lokr_factor": -1}
FACTORED = {"type": "lokr", "lokr_full_rank": False, "linear": 2, "linear_alpha": 1, **CONV}
NO_CONV = {"network_kwargs": {"ignore_if_contains": ["skip"]}}  # plain DoRA raises on it
ALL_LAYERS = {"all_layers": True, "network_kwargs": {"full_if_contains": ["ff", "down"]}}
KOHYA = {"transformer": False}
CASES = (
    Case("lora", {"type": "lora", "linear": 4, **CONV}, quantized=True),
    Case("lora2", {"type": "lora", "linear": 2}, save="bfloat16", seed=1),
    Case("lora_kohya", {"type": "lora", **THIRD, **CONV}, **KOHYA),
    Case("dora", {"type": "dora", "linear": 4, **NO_CONV}, quantized=True),
    Case("dora_kohya", {"type": "dora", "linear": 4, "linear_alpha": 4, **NO_CONV}, **KOHYA),
    Case("lokr", FULL, quantized=True),
    Case("lokr8", FULL | {"lokr_factor": 8}, save="bfloat16", seed=1),
    Case("lokr_factored", FACTORED, quantized=True),
    Case("lokr_factored8", FACTORED | {"lokr_factor": 8}, save="bfloat16"),
    Case("lokr_kohya", FULL, save="bfloat16", **KOHYA),
    Case("lokr_some_factored_kohya", FACTORED | FIFTH, **KOHYA),
    Case("lokr_old", FULL | {"old_lokr_format": True}),
    Case("lokr_factored_old", FACTORED | {"old_lokr_format": True}),
    Case("fullrank", {"type": "fullrank", "linear": 4, **CONV}, quantized=True),
    Case("fullrank_kohya", {"type": "fullrank", "linear": 4, "linear_alpha": 4}, **KOHYA),
    Case("diff", {"type": "lora", "linear": 4} | ALL_LAYERS, since="0.12", quantized=True),
    Case("diff_kohya", {"type": "lora", "linear": 4, **ALL_LAYERS}, since="0.12", **KOHYA),
    Case("diff_lokr", FULL | ALL_LAYERS, since="0.12"),
)
STACKS = (
    Stack(("lora", "lora2")),
    Stack(("lora", "lokr")),
    Stack(("lokr", "lora")),
    Stack(("lokr", "lokr8")),
    Stack(("dora", "lora")),
    Stack(("lora", "dora")),
    Stack(("dora", "lokr")),
    Stack(("lora", "fullrank", "lora2"), (0.6, -0.5, 1.0)),
)


def root_class():
    """A module class of few small layers of every kind that networks reach."""
    torch = importlib.import_module("torch")
    nn = torch.nn

    class Root(nn.Module):
        def __init__(self, linear_only: bool = False):
            super().__init__()
            self.attn = nn.Module()
            self.attn.to_q = nn.Linear(40, 24, bias=False)
            self.attn.to_out = nn.Linear(24, 40)
            self.ff = nn.Linear(64, 96)
            if not linear_only:
                self.conv_a = nn.Conv2d(6, 10, 3, padding=1)
                self.down = nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False)
                self.skip = nn.Conv2d(16, 10, 1)
                self.norm = nn.LayerNorm(24)
                self.group = nn.GroupNorm(4, 8)
                self.table = nn.Embedding(11, 24)

    return Root


def draw_base() -> dict:
    """Weights of a Root as <layer>.weight and .bias, and inputs as <layer>.input, all fp32."""
    torch = importlib.import_module("torch")
    generator = torch.Generator().manual_seed(SEED)
    tensors = {}
    for name, value in root_class()().state_dict().items():
        shift = 1.0 if name in ("norm.weight", "group.weight") else 0.0
        tensors[name] = shift + torch.randn(value.shape, generator=generator) / value.dim() ** 2
    for name, layer in layers(root_class()()).items():
        tensors[f"{name}.input"] = draw_input(layer, generator)
    return tensors


def draw_input(layer, generator):
    """Seeded input of a layer: rows of features, pictures, or numbers of an embedding."""
    torch = importlib.import_module("torch")
    if isinstance(layer, torch.nn.Embedding):
        return torch.randint(layer.num_embeddings, SHAPES["linear"], generator=generator)
    if isinstance(layer, torch.nn.Linear | torch.nn.LayerNorm):
        width = layer.weight.shape[-1]
        return torch.randn(*SHAPES["linear"], width, generator=generator)
    channels = getattr(layer, "in_channels", None) or layer.num_channels
    return torch.randn(2, channels, *SHAPES["conv"], generator=generator)


def layers(root) -> dict:
    """Layer name -> module, for all that have weights."""
    return {name: module for name, module in root.named_modules() if hasattr(module, "weight")}


class Lab:
    """Builds layers and networks as a job does, and keeps what they give."""

    def __init__(self, out: Path):
        self.out = out
        self.torch = importlib.import_module("torch")
        self.base = draw_base()
        self.results: dict = {}
        self.notes: dict = {}
        self.target = importlib.import_module("toolkit.lora_special").LoRASpecialNetwork
        self.config = importlib.import_module("toolkit.config_modules").NetworkConfig

    def root(self, base: str):
        """The layers in fp32 or bf16; by the name of a qtype, bf16 ones quantized."""
        root = root_class()(linear_only=base not in ("fp32", "bf16")).requires_grad_(False)
        root.load_state_dict({name: self.base[name] for name in root.state_dict()})
        if base == "fp32":
            return root
        root = root.to(self.torch.bfloat16)
        return root if base == "bf16" else self._quantized(root, base)

    def _quantized(self, root, qtype: str):
        quantize = importlib.import_module("toolkit.util.quantize")
        quantize.quantize(root, weights=quantize.get_qtype(qtype))
        importlib.import_module("optimum.quanto").freeze(root)
        return root

    def network(self, case: Case, root):
        """The case's network on `root`, made with the arguments a job gives it."""
        config = self.config(**case.network)
        network = self.target(
            text_encoder=[], unet=root, lora_dim=config.linear, multiplier=1.0,
            alpha=config.linear_alpha, train_unet=True, train_text_encoder=False,
            conv_lora_dim=config.conv, conv_alpha=config.conv_alpha, dropout=config.dropout,
            network_config=config, network_type=config.type,
            transformer_only=config.transformer_only, is_transformer=case.transformer,
            target_lin_modules=["Root"], target_conv_modules=[], **config.network_kwargs,
        )  # fmt: skip
        network.force_to("cpu", dtype=self.torch.float32)
        network._update_torch_multiplier()
        network.apply_to([], root, False, True)
        return network.requires_grad_(False).eval()

    def file(self, case: Case) -> Path:
        return self.out / f"{case.name}.safetensors"

    def write(self, case: Case) -> None:
        """Saves the case's network with seeded values; a job has it add the metadata."""
        network = self.network(case, self.root("fp32"))
        self.fill(network, case.seed)
        version = importlib.import_module("info").software_meta
        metadata = {"software": json.dumps(version), "ss_base_model_version": "layers"}
        dtype = getattr(self.torch, case.save)
        network.save_weights(str(self.file(case)), dtype=dtype, metadata=metadata)

    def fill(self, network, seed: int) -> None:
        """Seeded values in every parameter, of a size to matter and not to drown the base."""
        generator = self.torch.Generator().manual_seed(seed)
        for name, parameter in network.named_parameters():
            noise = self.torch.randn(parameter.shape, generator=generator)
            if name.endswith(".magnitude"):
                parameter.data.mul_(1 + noise / 10)
            elif parameter.dim() > 1:
                parameter.data.copy_(noise * 0.7 / parameter[0].numel() ** 0.5)
            else:
                parameter.data.copy_(noise * 0.1)

    def load(self, case: Case, root):
        """The case's network with the values of its file."""
        network = self.network(case, root)
        network.load_weights(str(self.file(case)))
        given = importlib.import_module("safetensors.torch").load_file(self.file(case))
        for module in network.get_all_modules():
            if hasattr(module, "magnitude") and not case.transformer:
                continue
            if hasattr(module, "magnitude"):  # its own loading loses them under peft names
                key = module.lora_name.replace("$$", ".") + ".magnitude"
                module.magnitude.data.copy_(given[key])
        own = network.get_state_dict(dtype=getattr(self.torch, case.save))
        wrong = [key for key in own if ".alpha" not in key and not own[key].equal(given[key])]
        if wrong or (hasattr(root, "skip") and set(own) != set(given)):
            raise RuntimeError(f"{case.name} was not loaded as saved: {wrong[:3]}")
        return network

    def keep(self, name: str, tensor) -> None:
        self.results[name] = tensor.detach().clone().contiguous()

    def outputs(self, root, networks, prefix: str) -> None:
        """Keeps what every layer that a network wraps answers to its input."""
        wrapped = {id(m.org_module[0]) for network in networks for m in network.get_all_modules()}
        for name, layer in layers(root).items():
            if id(layer) in wrapped:
                x = self.base[f"{name}.input"]
                x = x.to(next(root.parameters()).dtype) if x.is_floating_point() else x
                with contextlib.ExitStack() as active, self.torch.no_grad():
                    for network in networks:
                        active.enter_context(network)
                    self.keep(f"{prefix}/{name}", layer(x))

    def weights(self, root, networks, prefix: str) -> None:
        """Keeps the weights and biases, now merged, of every layer that a network wraps."""
        wrapped = {id(m.org_module[0]) for network in networks for m in network.get_all_modules()}
        for name, layer in layers(root).items():
            if id(layer) in wrapped:
                for kind, value in layer.named_parameters():
                    if not value.equal(self.root_of(root).get_parameter(f"{name}.{kind}")):
                        self.keep(f"{prefix}/{name}.{kind}", value)

    def root_of(self, root):
        """The same layers as they were."""
        return self.root("fp32" if next(root.parameters()).dtype == self.torch.float32 else "bf16")

    def measure(self, case: Case, base: str) -> None:
        """Keeps what one network does, live and merged."""
        for multiplier in MULTIPLIERS:
            root = self.root(base)
            network = self.load(case, root)
            network.multiplier = multiplier
            self.outputs(root, [network], f"{case.name}/{base}/live/{multiplier}")
            if base in ("fp32", "bf16"):
                network.merge_in(multiplier)
                self.weights(root, [network], f"{case.name}/{base}/merged/{multiplier}")

    def measure_stack(self, stack: Stack, base: str) -> None:
        """Keeps what several networks do: live, merged, and the first one merged."""
        for way, merged in (("live", 0), ("merged", len(stack.cases)), ("mixed_output", 1)):
            root = self.root(base)
            networks = [self.load(case_of(name), root) for name in stack.cases]
            for network, multiplier in zip(networks, stack.multipliers, strict=True):
                network.multiplier = multiplier
            for network, multiplier in list(zip(networks, stack.multipliers, strict=True))[:merged]:
                network.merge_in(multiplier)
            prefix = f"{stack.name}/{base}/{way}/{','.join(map(str, stack.multipliers))}"
            if way == "merged":
                self.weights(root, networks, prefix)
                prefix = prefix.replace("/merged/", "/merged_output/")
            self.outputs(root, networks, prefix)

    def measure_quantized(self, case: Case, qtype: str) -> None:
        """Keeps the live outputs on quantized layers, or why there are none."""
        plain = self.root(qtype)
        for name, layer in layers(plain).items():
            self.keep(f"base/{qtype}/weight/1.0/{name}", layer.weight.dequantize())
            with self.torch.no_grad():
                x = self.base[f"{name}.input"].to(self.torch.bfloat16)
                self.keep(f"base/{qtype}/live/1.0/{name}", layer(x))
        try:
            self.measure(case, qtype)
        except Exception as error:  # noqa: BLE001  what fails in the trainer is a result
            self.notes[f"{case.name}/{qtype}"] = f"{type(error).__name__}: {error}"


def case_of(name: str) -> Case:
    """The case of this name."""
    return next(case for case in CASES if case.name == name)


def measure_all(lab: Lab, version: str) -> list[Case]:
    """Every case and stack that this version has."""
    cases = [case for case in CASES if not case.since or not version.startswith("0.7.")]
    for case in cases:
        lab.write(case)
        for base in ("fp32", "bf16"):
            lab.measure(case, base)
        for qtype in ("qfloat8", "float8") if case.quantized else ():
            lab.measure_quantized(case, qtype)
        gc.collect()
    for stack in STACKS:
        for base in ("fp32", "bf16"):
            lab.measure_stack(stack, base)
    return cases


def digest(tensor) -> str:
    """Of a tensor's bits."""
    torch = importlib.import_module("torch")
    data = tensor.contiguous().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(data).hexdigest()[:12]


def describe(lab: Lab, cases: list[Case], stubs: list[str]) -> dict:
    """result.json: the environment, each case's file, and the digest of every result."""
    torch = importlib.import_module("torch")
    arithmetic = importlib.import_module("arithmetic")
    facts = trainer_run.environment(Path(os.environ["AI_TOOLKIT_PATH"]).resolve(), "cpu", stubs)
    for name in ("optimum-quanto", "torchao"):
        facts["versions"][name] = importlib.metadata.version(name)
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16}
    return {
        "trainer": facts,
        "arithmetic": {name: arithmetic.layer_arithmetic(dtype) for name, dtype in kinds.items()},
        "cases": {case.name: {"network": case.network} for case in cases},
        "stacks": {stack.name: list(stack.cases) for stack in STACKS},
        "notes": lab.notes,
        "results": {name: digest(tensor) for name, tensor in sorted(lab.results.items())},
    }


def main() -> int:
    """Exit code: 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        log = stack.enter_context((out / "trainer.log").open("w"))
        stack.enter_context(contextlib.redirect_stdout(log))
        stack.enter_context(contextlib.redirect_stderr(log))
        diffusers = os.environ.get("AI_TOOLKIT_DIFFUSERS")
        finder = trainer_shims.boot(os.environ["AI_TOOLKIT_PATH"], diffusers, "cpu")
        lab = Lab(out)
        cases = measure_all(lab, importlib.import_module("version").VERSION)
        result = describe(lab, cases, finder.used)
    save_file = importlib.import_module("safetensors.torch").save_file
    save_file(lab.base, out / "base.safetensors")
    save_file(lab.results, out / "results.safetensors")
    (out / "result.json").write_text(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
