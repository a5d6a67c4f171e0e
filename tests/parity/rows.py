"""What is compared with the trainer: a row per model, precision and way of applying adapters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinds import (
    BASE_FILL,
    BASE_LORAS,
    BASE_PARTS,
    KINDS,
    PROFILES,
    STACKS,
    STRENGTHS,
    Kind,
)
from models import MODELS, PROMPTS, WIDE, WIDE_CLIP, WIDE_CONTROL, ModelRow
from quantized import (
    DEFAULT,
    NOT_IN_BF16,
    RECOVERY,
    assisted_cases,
    quantized_cases,
    settings_of,
)

GOLDENS = Path(__file__).resolve().parent.parent / "goldens"
DTYPES = ("fp32", "bf16")
TRIGGER = "sks"
SAMPLE_SWITCHES = ("do_cfg_norm",)  # those of a job's `sample` section; others are model_kwargs
CONTROLS = GOLDENS / "controls"
SIDES = ("high", "low")  # the experts of a model with two
CONTROL_KEYS = ("ctrl_img", "ctrl_img_1", "ctrl_img_2", "ctrl_img_3")
# Architectures that the trainer lets cache text embeddings only, not unload the text encoder.
ONLY_CACHED = ("qwen_image_edit",)
# Longer than the 256 tokens up to which bf16 can count, as it must where it holds the mask.
LONG = f"a photo of [trigger] {'and of a hat ' * 90} --n blurry, low quality"


@dataclass(frozen=True)
class Row:
    """One job of the trainer: two samples, or one for rows of a sampler or of other kinds.

    multipliers: of the first adapter, per sample; empty without adapter. Different ones make it
    live, as does `hooked`. kinds: of the adapters; `lora` is the model's own network. cached: its
    prompts are encoded before training. controlled: it has the model's control images. sides: the
    experts that are trained, of two. base_lora: the field of the `model` section that names another
    adapter, of the kind `base`. quantized: see quantized.settings_of. tiled: one picture for which
    the VAE works in tiles. saving: with `low_vram`, which changes more than that. whole: one clip
    without the `low_vram` of the model's other rows.
    switches: of the job, unlike the
    trainer's form has them.
    """

    model: ModelRow
    dtype: str
    case: str
    multipliers: tuple[float, ...] = ()
    sampler: str = ""
    kinds: tuple[str, ...] = ("lora",)
    hooked: bool = False
    cached: bool = False
    controlled: bool = False
    sides: tuple[str, ...] = SIDES
    tiled: bool = False
    saving: bool = False
    whole: bool = False
    base_lora: str = ""
    quantized: str = ""
    switches: tuple[tuple[str, bool], ...] = ()

    @property
    def id(self) -> str:
        return "-".join((self.model.id, self.dtype, self.case.replace("++", "pp")))

    @property
    def live(self) -> bool:
        return self.hooked or len(set(self.multipliers)) > 1

    @property
    def low_vram(self) -> bool:
        """What the job says as `low_vram`, or what it comes to."""
        always = bool(self.model.model.get("low_vram")) and not self.whole
        return self.tiled or self.saving or always

    @property
    def wide(self) -> bool:
        """Whether it is one picture, of more than a tile of the VAE."""
        return self.tiled or ("vae_tiling", True) in self.switches

    @property
    def since(self) -> str:
        """The first version of the trainer that has all of its kinds."""
        kinds = (kind_of(self.model, kind).since for kind in self.kinds)
        return max(self.model.since, *kinds, key=PROFILES.index)

    @property
    def merges(self) -> bool:
        """Whether the trainer merges the first adapter."""
        stays = self.live or self.is_quantized
        return bool(self.multipliers) and not stays and self._first.merges

    @property
    def is_quantized(self) -> bool:
        """Whether the trainer does not merge because of how the base is held."""
        settings = settings_of(self.model.id, self.quantized, PROFILES[-1])
        return bool(settings.get("quantize") or settings.get("layer_offloading"))

    @property
    def _first(self) -> Kind:
        return kind_of(self.model, self.kinds[0])

    def samples(self) -> list[dict[str, Any]]:
        """The trainer's sample list, each beside its multiplier."""
        if self.sampler:
            return [{"prompt": PROMPTS[0], "width": 64, "height": 64, "sample_steps": 4}]
        if self.wide:
            controls = WIDE_CONTROL if self.model.needs_controls else {}
            return [{"prompt": PROMPTS[0], **WIDE, **controls}]
        if self.whole:
            return [{"prompt": PROMPTS[0], **WIDE_CLIP}]
        prompts = (self.model.prompts[0], LONG) if self.cached else self.model.prompts
        multipliers = self.multipliers or (1.0, 1.0)
        samples: list[dict[str, Any]] = [
            {"prompt": prompt, "network_multiplier": multiplier}
            for prompt, multiplier in zip(prompts, multipliers, strict=False)
        ]
        if self.controlled or self.model.needs_controls:
            for sample, controls in zip(samples, self.model.controls, strict=False):
                sample |= controls
        for sample, more in zip(samples, self.model.saving if self.saving else (), strict=False):
            sample |= more
        return samples

    def adapters(self, profile: str, sample: dict[str, Any]) -> list[tuple[list[str], float]]:
        """Files and multipliers of what acts in a sample, in order.

        Of a model with two experts there is a file for each, empty for one that is not trained.
        """
        if not self.multipliers:
            return []
        multipliers = (sample["network_multiplier"], *STRENGTHS[1:])
        files = (self.files(profile, kind) for kind in self.kinds)
        return list(zip(files, multipliers, strict=False))

    def files(self, profile: str, kind: str) -> list[str]:
        """The files of an adapter: one, or one for each expert."""
        if not self.model.pair:
            return [str(lora_file(self.model, profile, kind))]
        return [
            str(lora_file(self.model, profile, kind, side)) if side in self.sides else ""
            for side in SIDES
        ]


def kind_of(model: ModelRow, name: str) -> Kind:
    """A model's kind of network by its name."""
    if name == "base":
        return Kind(model.network | BASE_PARTS.get(model.id, {}), BASE_FILL)
    return Kind(model.network) if name == "lora" else KINDS[model.id][name]


SAMPLE = {"width": 128, "height": 96, "seed": 42, "sample_steps": 4, "neg": "", "walk_seed": False}


def all_rows(profile: str) -> Iterator[Row]:
    """Every row that this version of the trainer has."""
    known = PROFILES[: PROFILES.index(profile) + 1]
    for model in (model for model in MODELS if model.since in known):
        for dtype in DTYPES:
            yield Row(model, dtype, "plain")
            yield Row(model, dtype, "cached", cached=True)
            yield Row(model, dtype, "merged", (1.0, 1.0))
            yield Row(model, dtype, "merged_0.6", (0.6, 0.6))
            yield Row(model, dtype, "live", (1.0, 0.6))
            if model.controls and not model.needs_controls:
                yield Row(model, dtype, "control", controlled=True)
                yield Row(model, dtype, "control_live", (1.0, 0.6), controlled=True)
            if model.tiles and dtype == "bf16":
                yield Row(model, dtype, "tiled", tiled=True)
            if model.saving:
                yield Row(model, dtype, "low_vram", saving=True)
            if model.model.get("low_vram") and dtype == "bf16":
                yield Row(model, dtype, "whole", whole=True)
            if model.pair:  # one of each is enough
                side = "high" if dtype == "fp32" else "low"
                yield Row(model, dtype, side, (1.0, 1.0), sides=(side,))
            for name, on in model.switches.items():
                case = f"{name}_{'on' if on else 'off'}"
                yield Row(model, dtype, case, switches=((name, on),))
            yield from _base_lora_rows(model, dtype)
            if dtype == "bf16":
                yield from _assisted_rows(model, profile)
            if dtype == "bf16":
                yield from _quantized_rows(model, profile)
            for row in _kind_rows(model, dtype):
                if row.since in known:
                    yield row
        for sampler in model.samplers:
            yield Row(model, "bf16", sampler, sampler=sampler)


def _kind_rows(model: ModelRow, dtype: str) -> Iterator[Row]:
    cases = {kind: (kind,) for kind in KINDS.get(model.id, ())}
    if model.id in STACKS:
        cases["stack"] = STACKS[model.id]
    for case, kinds in cases.items():
        if len(kinds) > 1 or kind_of(model, kinds[0]).merges:
            yield Row(model, dtype, f"{case}_merged", STRENGTHS[:1], kinds=kinds)
        yield Row(model, dtype, f"{case}_live", STRENGTHS[:1], kinds=kinds, hooked=True)


def _base_lora_rows(model: ModelRow, dtype: str) -> Iterator[Row]:
    for case, name in BASE_LORAS.get(model.id, {}).items():
        yield Row(model, dtype, f"{case}_merged", (1.0, 1.0), base_lora=name)
        if case != "fused":
            yield Row(model, dtype, f"{case}_plain", base_lora=name)
            yield Row(model, dtype, f"{case}_live", (1.0, 0.6), base_lora=name)


def _assisted_rows(model: ModelRow, profile: str) -> Iterator[Row]:
    for case in assisted_cases(model.id, profile):
        name, field = f"assistant_{case}", BASE_LORAS[model.id]["assistant"]
        yield Row(model, "bf16", name, (1.0, 0.0), base_lora=field, quantized=case)


def _quantized_rows(model: ModelRow, profile: str) -> Iterator[Row]:
    for case in quantized_cases(model.id, profile):
        multipliers = (1.0, 0.0) if case in DEFAULT else (1.0,)
        dtype = "fp32" if case in NOT_IN_BF16 else "bf16"
        yield Row(model, dtype, case, multipliers, quantized=case)


def lora_file(model: ModelRow, profile: str, kind: str = "lora", side: str = "") -> Path:
    """The adapter that the trainer of this version wrote for the model, or for one expert."""
    name = model.id if kind == "lora" else f"{model.id}-{kind}"
    return GOLDENS / "loras" / f"{name}-{profile}{expert_suffix(side)}.safetensors"


def expert_suffix(side: str) -> str:
    """What the trainer puts behind a file's name for one of two experts."""
    return f"_{side}_noise" if side else ""


def control_images(sample: dict[str, Any]) -> list[Path]:
    """The files of a sample's control images, in the order of their slots."""
    first = sample.get("ctrl_img", sample.get("ctrl_img_1"))
    names = (first, sample.get("ctrl_img_2"), sample.get("ctrl_img_3"))
    return [CONTROLS / name for name in names if name]


def _as_paths(sample: dict[str, Any]) -> dict[str, Any]:
    files = {key: str(CONTROLS / name) for key, name in sample.items() if key in CONTROL_KEYS}
    return sample | files


def _model_settings(row: Row) -> dict[str, Any]:
    kwargs = {f"train_{side}_noise": False for side in SIDES if side not in row.sides}
    kwargs |= {name: on for name, on in row.switches if name not in SAMPLE_SWITCHES}
    settings = dict(row.model.model)
    if row.tiled or row.saving or row.whole:
        settings["low_vram"] = row.low_vram
    return settings | ({"model_kwargs": kwargs} if kwargs else {})


def base_lora(row: Row, profile: str) -> dict[str, str]:
    """What the job's `model` section names under the trained network, by the name of its field."""
    return {row.base_lora: str(lora_file(row.model, profile, "base"))} if row.base_lora else {}


def quantization(row: Row, profile: str) -> dict[str, Any]:
    """What the job's `model` section says of quantization."""
    if not row.quantized:
        return {}
    settings = settings_of(row.model.id, row.quantized, profile)
    if RECOVERY in (qtype := settings.get("qtype", "")):
        settings["qtype"] = qtype.replace(RECOVERY, str(lora_file(row.model, profile)))
    return settings


def _train(row: Row) -> dict[str, Any]:
    if row.cached and row.model.arch not in ONLY_CACHED:
        return {"unload_text_encoder": True}
    return {} if row.cached else row.model.train


def job(row: Row, profile: str, checkpoint: Path) -> dict[str, Any]:
    """The row as trainer_run.py takes it."""
    # of a pair, the trainer finds the other file by its name
    files = [next(filter(None, row.files(profile, kind))) for kind in row.kinds]
    networks = [kind_of(row.model, kind).network for kind in row.kinds]
    given = {
        "name": row.id.replace(".", "_"),
        "arch": row.model.arch,
        "checkpoint": str(checkpoint),
        "dtype": row.dtype,
        "sampler": row.sampler or None,
        "trigger_word": TRIGGER,
        "network": networks[0],
        "train": _train(row),
        "cached": row.cached,
        "lora": files[0] if row.multipliers else None,
        "live": row.hooked,
        "model": _model_settings(row) | base_lora(row, profile) | quantization(row, profile),
        "sample": SAMPLE
        | {"guidance_scale": row.model.guidance_scale, **row.model.sample}
        | {name: on for name, on in row.switches if name in SAMPLE_SWITCHES}
        | (WIDE if row.wide else {}),
        "samples": [_as_paths(sample) for sample in row.samples()],
    }
    if len(files) > 1:
        given["second"] = {"network": networks[1], "lora": files[1], "multiplier": STRENGTHS[1]}
    return given
