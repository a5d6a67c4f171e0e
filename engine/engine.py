"""The engine: one model in memory, asked for samples."""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ..adapters.apply import AdapterState, Applied
from ..adapters.bind import bind, check_layout
from ..adapters.read import Adapter, read_adapter
from ..core.errors import InvalidInputError
from ..core.prompts import Settings, parse_flags, replace_trigger, resolve
from ..core.requests import MAX_SIDE, Recipe, SampleRequest
from ..core.results import SampleResult
from ..core.specs import ModelSpec
from ..core.versions import Profile, get_profile, profile_for_adapters
from ..pipelines._loading import LoadedModel, load_model
from ..pipelines._process import ONE_AT_A_TIME
from ..pipelines._quiet import quiet_libraries
from ..pipelines._registry import get_model
from ..pipelines._render import RenderContext, Step, fit_projection
from .numerics import trainer_numerics
from .placement import choose_offload, default_device, placed
from .weights import find_adapter, find_weights

ADAPTERS_KEPT = 4
LATENT_PIXELS = 8  # px per latent
LEAST_SIDE = 64  # px
LIBRARIES = ("ai-toolkit-inference", "torch", "diffusers", "transformers", "numpy", "pillow")


def _ignore(_: Any) -> None:
    return None


@dataclass(frozen=True)
class Plan:
    """A request with everything decided that needs no weights."""

    spec: ModelSpec
    settings: Settings
    profile: Profile
    adapters: tuple[tuple[Adapter, float], ...]
    live: bool


@dataclass
class _Base:
    key: tuple[str, str, str]
    weights: str  # as the recipe names them
    model: LoadedModel
    adapters: AdapterState


class Engine:
    """Renders sample requests; keeps the last model, and switches adapters on it.

    Safe to call from several threads: one render runs at a time in a process.
    """

    def __init__(self, device: str | torch.device | None = None) -> None:
        self.device = torch.device(device) if device else default_device()
        self._lock = ONE_AT_A_TIME
        self._base: _Base | None = None
        self._files: OrderedDict[tuple[str, str, int, int], Adapter] = OrderedDict()
        self.loads = 0  # how often weights were read, for tests and metrics

    def plan(self, request: SampleRequest) -> Plan:
        """Everything that can be decided, and refused, before weights are read."""
        recipe = request.recipe
        spec = get_model(recipe.model)
        settings = _fit_latents(spec, request, resolve(spec, request))
        adapters = [(self.adapter(recipe, ref.path), ref.multiplier) for ref in recipe.adapters]
        if settings.multiplier is not None:
            adapters = [(adapter, settings.multiplier) for adapter, _ in adapters]
        if recipe.trainer_version == "auto":
            profile = profile_for_adapters(tuple(adapter.metadata for adapter, _ in adapters))
        else:
            profile = get_profile(recipe.trainer_version)
        return Plan(spec, settings, profile, tuple(adapters), live=recipe.mode == "live")

    def sample(
        self,
        request: SampleRequest,
        on_step: Callable[[Step], None] = _ignore,
        on_status: Callable[[str], None] = _ignore,
        previews: bool = False,
    ) -> SampleResult:
        """The sample the trainer would draw for this request.

        on_step, on_status: told of progress; raising in them stops the run and leaves the base
        as it was loaded. previews: whether Step.preview() will be called.
        """
        plan = self.plan(request)
        with self._lock:
            started = time.perf_counter()
            base = self._load(request.recipe, plan.spec, on_status)
            with trainer_numerics(plan.settings.seed) as generator:
                applied = self._switch(base, plan)
                frames = self._render(base, plan, request, generator, on_step, previews)
            seconds = time.perf_counter() - started
        info = _info(plan, request.recipe, base.model, applied, seconds)
        return SampleResult(frames=frames, fps=float(plan.settings.fps), info=info)

    def adapter(self, recipe: Recipe, path: str) -> Adapter:
        """The adapter at a path (or `tiny`), read once and kept.

        Raises AdapterError if it is unreadable or its layers are not named as the model's are.
        """
        spec = get_model(recipe.model)
        adapter = self._read(find_adapter(spec, recipe.weights, path))
        check_layout(adapter, spec)
        return adapter

    def holds(self, recipe: Recipe) -> bool:
        """Whether the recipe's base model is in memory, so that a sample loads nothing."""
        base = self._base
        if base is None:
            return False
        held = (base.key[0], base.weights, base.key[2])
        return held == (recipe.model, recipe.weights, recipe.dtype)

    def unload(self) -> None:
        """Drops the model from memory."""
        with self._lock:
            self._base = None
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def model(self, recipe: Recipe) -> LoadedModel:
        """The recipe's base model, loaded, with no adapter applied."""
        with self._lock:
            base = self._load(recipe, get_model(recipe.model), _ignore)
            base.adapters.clear()
            return base.model

    def _read(self, file: Path) -> Adapter:
        if not os.path.isfile(file):  # Path.is_file raises for a name that is too long
            return read_adapter(file)  # says what is wrong
        stat = file.stat()
        key = (str(file), str(file.resolve()), stat.st_mtime_ns, stat.st_size)
        with self._lock:
            if key not in self._files:
                self._files[key] = read_adapter(file)
            self._files.move_to_end(key)
            while len(self._files) > ADAPTERS_KEPT:
                self._files.popitem(last=False)
            return self._files[key]

    def _load(self, recipe: Recipe, spec: ModelSpec, on_status: Callable[[str], None]) -> _Base:
        if self._base is not None and self.holds(recipe):
            return self._base
        source, configs = find_weights(spec, recipe.weights, on_status)
        key = (spec.id, str(source), recipe.dtype)
        if self._base is None or self._base.key != key:
            self.unload()
            on_status(f"Loading {spec.title}")
            with torch.inference_mode(False), torch.no_grad():
                model = load_model(spec, source, configs, recipe.dtype, self.device)
            self.loads += 1
            self._base = _Base(key, recipe.weights, model, AdapterState(self.device))
        return self._base

    def _switch(self, base: _Base, plan: Plan) -> tuple[Applied, ...]:
        applied = tuple(
            Applied(
                adapter.digest,
                bind(adapter, plan.spec, base.model.modules),
                multiplier,
                plan.live,
            )
            for adapter, multiplier in plan.adapters
        )
        base.adapters.switch(applied)
        return applied

    def _render(
        self,
        base: _Base,
        plan: Plan,
        request: SampleRequest,
        generator: torch.Generator,
        on_step: Callable[[Step], None],
        previews: bool,
    ) -> Any:
        model = base.model
        offload = choose_offload(request.recipe.offload, model)
        if previews and model.projection is None:
            vae = model.modules["vae"].to(model.device)
            model.projection = fit_projection(vae, model.device)
        context = RenderContext(
            model=model,
            settings=plan.settings,
            profile=plan.profile,
            generator=generator,
            place=lambda pipeline: placed(pipeline, model, offload),
            on_step=on_step,
            latents=request.latents,  # type: ignore[arg-type]
        )
        with quiet_libraries():
            return plan.spec.render(context)


def _fit_latents(spec: ModelSpec, request: SampleRequest, settings: Settings) -> Settings:
    # given latents decide the size; a size asked for beside them must agree
    if request.latents is None:
        return settings
    shape = _latents_shape(spec, request.latents)
    height, width = shape[2] * LATENT_PIXELS, shape[3] * LATENT_PIXELS
    _, flags = parse_flags(replace_trigger(request.prompt, request.trigger_word))
    for name, given in (("width", width), ("height", height)):
        asked = flags.get(name, getattr(request, name))
        if asked not in (0, given):
            raise InvalidInputError(f"{name}={asked} but the latents are {given} px; use 0")
    for side in (width, height):
        if side % spec.multiple_of or not LEAST_SIDE <= side <= MAX_SIDE:
            raise InvalidInputError(
                f"latents of {width}x{height} px; both sides must be multiples of "
                f"{spec.multiple_of} from {LEAST_SIDE} to {MAX_SIDE}"
            )
    return replace(settings, width=width, height=height)


def _latents_shape(spec: ModelSpec, latents: Any) -> tuple[int, ...]:
    if not isinstance(latents, torch.Tensor) or not latents.is_floating_point():
        kind = latents.dtype if isinstance(latents, torch.Tensor) else type(latents).__name__
        raise InvalidInputError(f"latents are of {kind}; they must be a tensor of floats")
    if latents.dim() != 4 or latents.shape[:2] != (1, spec.latent_channels):
        raise InvalidInputError(
            f"latents have the shape {list(latents.shape)}; {spec.id} takes one image: "
            f"(1, {spec.latent_channels}, H/8, W/8)"
        )
    if not latents.isfinite().all():
        raise InvalidInputError("latents hold NaN or infinite values; mend what made them")
    return tuple(latents.shape)


def _info(
    plan: Plan,
    recipe: Recipe,
    model: LoadedModel,
    applied: tuple[Applied, ...],
    seconds: float,
) -> dict[str, Any]:
    settings = {key: value for key, value in asdict(plan.settings).items() if value is not None}
    if plan.spec.id != "sdxl":
        del settings["prompt_2"], settings["negative_prompt_2"]
    return {
        "model": plan.spec.id,
        "weights": Path(recipe.weights).name,
        "dtype": recipe.dtype,
        "quantize": "none",
        "device": str(model.device),
        "trainer_version": plan.profile.version,
        "trainer_commit": plan.profile.commit,
        "adapters": [
            {
                "file": Path(adapter.path).name,
                "sha256": adapter.digest,
                "multiplier": multiplier,
                "mode": "live" if act.live else "merged",
                "layers": len(act.layers),
                "effective": adapter.effective,
            }
            for (adapter, multiplier), act in zip(plan.adapters, applied, strict=True)
        ],
        **settings,
        "libraries": library_versions(),
        "seconds": round(seconds, 3),
    }


def library_versions() -> dict[str, str]:
    """Versions of the installed libraries that decide pixels; those missing are left out."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
