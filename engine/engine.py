"""The engine: one model in memory, asked for samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..adapters.apply import AdapterState, Applied
from ..adapters.bind import (
    Binding,
    check_fit,
    check_layout,
    match,
    strange_names,
)
from ..adapters.cache import AdapterCache
from ..adapters.originals import StoredWeights
from ..adapters.read import Adapter
from ..core.errors import CheckpointError
from ..core.requests import AdapterRef, Recipe, SampleRequest
from ..core.results import SampleResult
from ..core.specs import ModelSpec
from ..pipelines._loading import LoadedModel, load_model
from ..pipelines._process import ONE_AT_A_TIME
from ..pipelines._quiet import quiet_libraries
from ..pipelines._registry import get_model
from ..pipelines._render import Clip, RenderContext, Step, fit_projection
from ..pipelines._skeleton import skeleton
from ..pipelines._watch import Watch, told_of_parts
from .base import Base, bind_once, is_live
from .latents import (
    check_draws_images,
    check_latents,
    check_size,
    decode_latents,
    encode_picture,
)
from .numerics import trainer_numerics
from .placement import choose_offload, default_device, placed
from .plan import Plan, adapter_files, make_plan
from .quantized import Quantized, open_quantized, quantize_model, spec_to_load
from .record import record
from .training_adapters import (
    FIELDS,
    BaseLora,
    attach_base_loras,
    merge_base_loras,
    open_base_loras,
)
from .weights import (
    cache_folder,
    fetch_elsewhere,
    find_adapter,
    find_weights,
    weights_stamp,
)

FOREVER = -1.0  # as Lock.acquire has it


def _ignore(_: Any) -> None:
    return None


class Engine:
    """Renders sample requests; keeps the last model, and switches adapters on it.

    Safe to call from several threads: one render runs at a time in a process.
    downloads: where LoRA files behind links are kept; a folder of the cache if not given.
    """

    def __init__(
        self, device: str | torch.device | None = None, downloads: Path | None = None
    ) -> None:
        self.device = torch.device(device) if device else default_device()
        self._lock = ONE_AT_A_TIME
        self._base: Base | None = None
        self.downloads = downloads or cache_folder() / "loras"
        self._adapters = AdapterCache()
        self._skeleton: tuple[tuple[str, str], dict[str, Any]] | None = None
        self.loads = 0  # how often weights were read, for tests and metrics

    def plan(self, request: SampleRequest, on_status: Callable[[str], None] = _ignore) -> Plan:
        """Everything that can be decided, and refused, before weights are read."""
        recipe = request.recipe
        return make_plan(request, lambda path: self.adapter(recipe, path, on_status))

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
        plan = self.plan(request, on_status)
        with self._lock:
            started = time.perf_counter()
            base = self._load(request.recipe, plan.spec, on_status)
            with trainer_numerics(plan.settings.seed) as generator:
                applied = self._switch(base, plan, on_status)
                clip = self._render(base, plan, request, generator, on_step, on_status, previews)
            seconds = time.perf_counter() - started
        info = record(plan, request, base.model.device, base.packed, applied, seconds)
        # not every model draws what is asked
        info["num_frames"], info["height"], info["width"] = clip.frames.shape[:3]
        fps = float(clip.fps or plan.settings.fps)
        info["fps"] = fps if fps % 1 else int(fps)
        return SampleResult(clip.frames, fps, info, clip.audio, clip.audio_rate)

    def encode(
        self, recipe: Recipe, picture: Any, on_status: Callable[[str], None] = _ignore
    ) -> torch.Tensor:
        """What the recipe's VAE makes of an RGB image of PIL, for SampleRequest.latents.

        Raises InvalidInputError for models of clips, and for sizes that it does not draw.
        """
        spec = get_model(recipe.model)
        check_draws_images(spec)
        width, height = picture.size
        check_size(spec, width, height, spec.multiple_of, "a picture")
        with self._vae(recipe, spec, on_status) as vae:
            return encode_picture(vae, picture, self.device)

    def decode(
        self, recipe: Recipe, latents: torch.Tensor, on_status: Callable[[str], None] = _ignore
    ) -> Any:
        """The picture of latents as encode gives them: uint8 (1, H, W, 3)."""
        spec = get_model(recipe.model)
        check_latents(spec, latents)
        with self._vae(recipe, spec, on_status) as vae:
            return decode_latents(vae, latents, self.device)

    def adapter(
        self, recipe: Recipe, path: str, on_status: Callable[[str], None] = _ignore
    ) -> Adapter:
        """The adapter at a path, an address or `tiny`, fetched and read once and kept.

        Raises AdapterError if it is unreadable or its layers are not named as the model's are.
        """
        adapter = self._read(recipe, path, on_status)
        check_layout(adapter, get_model(recipe.model))
        return adapter

    def fit(
        self,
        recipe: Recipe,
        ref: AdapterRef,
        on_status: Callable[[str], None] = _ignore,
        patience: float = FOREVER,
    ) -> list[tuple[Adapter, Binding | None]]:
        """As judge, but raises AdapterError if a file does not fit completely, unless
        ref.allow_partial."""
        fits = self.judge(recipe, ref, on_status, patience)
        for adapter, binding in fits:
            if binding is not None:
                check_fit(adapter, get_model(recipe.model), binding, ref.allow_partial)
        return fits

    def judge(
        self,
        recipe: Recipe,
        ref: AdapterRef,
        on_status: Callable[[str], None] = _ignore,
        patience: float = FOREVER,
    ) -> list[tuple[Adapter, Binding | None]]:
        """The files of an adapter, each with how it falls on the model's modules; loads no weights.

        None where only the names were looked at, because the model is not on this machine yet or
        because of patience: see modules.
        """
        spec, modules = get_model(recipe.model), self.modules(recipe, patience)
        fits: list[tuple[Adapter, Binding | None]] = []
        for path, side in adapter_files(spec, ref):
            adapter = self._read(recipe, path, on_status)
            binding = None if modules is None else match(adapter, spec, modules, side)
            if strange := strange_names(adapter, spec):
                binding = Binding((), strange, ())
            fits.append((adapter, binding))
        return fits

    def holds(self, recipe: Recipe) -> bool:
        """Whether the recipe's base model is in memory, so that a sample loads nothing."""
        base = self._base
        if base is None:
            return False
        model, source, dtype, stamp, loras, quantized = base.key
        held = (model, base.weights, dtype) == (recipe.model, recipe.weights, recipe.dtype)
        if not held or base.loras != _lora_names(recipe):
            return False
        spec = get_model(recipe.model)
        now = tuple(lora.key for lora in self._base_loras(recipe, spec, _ignore))
        same = now == loras and self._quantized(recipe, spec, _ignore).key == quantized
        return same and weights_stamp(Path(source)) == stamp

    @property
    def loaded(self) -> tuple[str, str, str] | None:
        """Model, weights and dtype, as the recipe named them, of what is in memory."""
        base = self._base
        return None if base is None else (base.key[0], base.weights, base.key[2])

    def weight_bytes(self, device: torch.device | None = None) -> int:
        """How much the weights in memory take: all of them, or those on a device."""
        if self._base is None:
            return 0
        return sum(
            tensor.numel() * tensor.element_size()
            for module in self._base.model.modules.values()
            for tensor in (*module.parameters(), *module.buffers())
            if device is None or tensor.device.type == device.type
        )

    def file_bytes(self, recipe: Recipe) -> int:
        """How much the recipe's weights take as files; 0 if they are not on this machine yet."""
        if recipe.weights == "huggingface":
            return 0
        source = Path(recipe.weights)
        if source.suffix != ".safetensors":
            source, _ = find_weights(get_model(recipe.model), recipe.weights, _ignore)
        return sum(size for _, _, size in weights_stamp(source))

    def evict(self) -> None:
        """Takes the weights off the device; they stay in memory, and the next sample puts them
        back."""
        with self._lock:
            for module in self._base.model.modules.values() if self._base else ():
                module.to("cpu")
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def unload(self) -> None:
        """Drops the model from memory."""
        with self._lock:
            self._base = None
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def modules(self, recipe: Recipe, patience: float = FOREVER) -> dict[str, Any] | None:
        """The modules that adapters bind to: of the model in memory, or empty ones from its
        configurations; None where these are not on this machine yet.

        patience: seconds to wait for a render that is under way, since nothing can be built beside
        it; None is given after them.
        """
        base, spec = self._base, get_model(recipe.model)
        if base is not None and self.holds(recipe) and base is self._base:  # not another meanwhile
            return base.model.modules
        if recipe.weights == "huggingface" or Path(recipe.weights).suffix == ".safetensors":
            return None
        key, known = (spec.id, recipe.weights), self._skeleton
        if known is None or known[0] != key:
            if not self._lock.acquire(timeout=patience):
                return None
            try:
                folder, _ = find_weights(spec, recipe.weights, _ignore)
                known = self._skeleton = (key, skeleton(spec, folder))
            finally:
                self._lock.release()
        return known[1]

    def model(self, recipe: Recipe) -> LoadedModel:
        """The recipe's base model, loaded, with no adapter applied."""
        with self._lock:
            base = self._load(recipe, get_model(recipe.model), _ignore)
            try:
                base.adapters.clear()
            except CheckpointError:  # the base cannot be restored
                self.unload()
                raise
            return base.model

    def _read(self, recipe: Recipe, path: str, on_status: Callable[[str], None]) -> Adapter:
        spec = get_model(recipe.model)
        return self._adapters.get(
            find_adapter(spec, recipe.weights, path, self.downloads, on_status)
        )

    def _load(self, recipe: Recipe, spec: ModelSpec, on_status: Callable[[str], None]) -> Base:
        if self._base is not None and self.holds(recipe):
            return self._base
        source, configs = find_weights(spec, recipe.weights, on_status)
        loras = self._base_loras(recipe, spec, on_status)
        keys = tuple(lora.key for lora in loras)
        quantized = self._quantized(recipe, spec, on_status)
        weights = (spec.id, str(source), recipe.dtype, weights_stamp(source), keys)
        key = (*weights, quantized.key)
        if self._base is None or self._base.key != key:
            self.unload()
            fetch_elsewhere(spec, configs or source, on_status)
            on_status(f"Loading {spec.title}")
            with torch.inference_mode(False), torch.no_grad():
                loaded = spec_to_load(spec, quantized)
                model = load_model(loaded, source, configs, recipe.dtype, self.device, on_status)
                with Watch(on_status, f"Preparing {spec.title}") as watch:
                    under = merge_base_loras(model, loras)
                    packed = quantize_model(model, quantized, weights, watch.say)
                    attach_base_loras(model, under)
            self.loads += 1
            state = AdapterState(self.device, StoredWeights(model.folders))
            names, merges = _lora_names(recipe), quantized.quantization.merges
            self._base = Base(key, recipe.weights, names, model, state, merges, packed)
        return self._base

    @contextmanager
    def _vae(
        self, recipe: Recipe, spec: ModelSpec, on_status: Callable[[str], None]
    ) -> Iterator[Any]:
        with self._lock:
            model = self._load(recipe, spec, on_status).model
            offload = choose_offload(recipe.offload, model)
            told = told_of_parts(spec, model.modules, on_status)
            with trainer_numerics(0), quiet_libraries(), placed(model, offload, on_status), told:
                yield model.modules["vae"]

    def _base_loras(
        self, recipe: Recipe, spec: ModelSpec, on_status: Callable[[str], None]
    ) -> tuple[BaseLora, ...]:
        return open_base_loras(spec, recipe, lambda path: self.adapter(recipe, path, on_status))

    def _quantized(
        self, recipe: Recipe, spec: ModelSpec, on_status: Callable[[str], None]
    ) -> Quantized:
        return open_quantized(spec, recipe, lambda path: self.adapter(recipe, path, on_status))

    def _switch(
        self, base: Base, plan: Plan, on_status: Callable[[str], None]
    ) -> tuple[Applied, ...]:
        kept = [key for key in base.bindings if key[0] in self._adapters]
        base.bindings = {key: base.bindings[key] for key in kept}
        applied = tuple(
            Applied(
                planned.adapter.digest,
                bind_once(base, plan.spec, planned),
                planned.multiplier,
                is_live(plan.mode, planned.adapter, base),
                planned.profile,
            )
            for planned in plan.adapters
        )
        try:
            with Watch(on_status, "Applying the adapters"):
                base.adapters.switch(applied)
        except CheckpointError:  # the base cannot be restored
            self.unload()
            raise
        return applied

    def _render(
        self,
        base: Base,
        plan: Plan,
        request: SampleRequest,
        generator: torch.Generator,
        on_step: Callable[[Step], None],
        on_status: Callable[[str], None],
        previews: bool,
    ) -> Clip:
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
            place=lambda _pipeline: placed(model, offload, on_status),
            on_step=on_step,
            latents=request.latents,  # type: ignore[arg-type]
            control_images=request.control_images,
        )
        with quiet_libraries(), told_of_parts(plan.spec, model.modules, on_status):
            drawn = plan.spec.render(context)
        return drawn if isinstance(drawn, Clip) else Clip(drawn)


def _lora_names(recipe: Recipe) -> tuple[str, ...]:
    return tuple(getattr(recipe, field) for field in FIELDS)
