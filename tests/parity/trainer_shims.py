"""Make an ai-toolkit checkout importable where libraries that only training needs are missing.

Used by `trainer_run.py`, inside the trainer's interpreter; imports nothing of this package.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import types
from pathlib import Path

# Imported at module level somewhere in the trainer, never called while it samples a picture.
OPTIONAL = """
    albucore albumentations av bitsandbytes controlnet_aux cv2 dadaptation easy_dwpose flatten_json
    gradio hf_transfer imwatermark k_diffusion kornia kornia_rs lion_pytorch lpips lycoris omegaconf
    open_clip optimum prodigyopt pytorch_fid pytorch_wavelets slugify soundfile tensorboard timm
    toml torchao torchaudio torchcodec wandb
"""

_KEPT: list[object] = []


class _StubClass(type):
    """Metaclass whose attributes are stub classes again (`stub.A.B`)."""

    def __getattr__(cls, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return stub_class(name)


def stub_class(name: str) -> type:
    """A class that can be imported and subclassed; calling it raises RuntimeError.

    A `...Config` can be made: the trainer fills tables with those when it is imported.
    """

    def refuse(self, *args, **kwargs):
        if not name.endswith("Config"):
            raise RuntimeError(f"{name} is a stand-in for a library that is not installed")

    return _StubClass(name, (), {"__init__": refuse})


class _StubModule(types.ModuleType):
    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return stub_class(name)


class StubFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """First import finder: answers for the named modules and all below them."""

    def __init__(self, names):
        self.names = set(names)
        self.used: list[str] = []

    def find_spec(self, fullname, path=None, target=None):
        parts = fullname.split(".")
        if self.names.isdisjoint(".".join(parts[: n + 1]) for n in range(len(parts))):
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec):
        self.used.append(spec.name)
        return _StubModule(spec.name)

    def exec_module(self, module):
        module.__path__ = []


def install_stubs() -> StubFinder:
    """The finder now standing in for every module of OPTIONAL that is not installed."""
    finder = StubFinder(name for name in OPTIONAL.split() if importlib.util.find_spec(name) is None)
    sys.meta_path.insert(0, finder)
    return finder


def import_models(finder: StubFinder) -> None:
    """Import the trainer's model plug-ins; a stub stands in for one that this environment refuses.

    The trainer imports all of them before any job, so one that wants another library version
    would keep the rest from running.
    """
    package = "extensions_built_in.diffusion_models"
    folder = Path(importlib.import_module("toolkit.paths").TOOLKIT_ROOT, *package.split("."))
    parent = types.ModuleType(package)
    parent.__path__ = [str(folder)]
    sys.modules[package] = parent  # its own code imports every plug-in
    for name in sorted(f"{package}.{path.name}" for path in folder.iterdir() if path.is_dir()):
        try:
            importlib.import_module(name)
        except (ImportError, RuntimeError):
            finder.names.add(name)
            forget(name)
    del sys.modules[package]
    importlib.import_module(package)


def forget(name: str) -> None:
    """Drop a module and everything below it from the imported ones."""
    for key in [key for key in sys.modules if key == name or key.startswith(f"{name}.")]:
        del sys.modules[key]


def import_torchvision() -> None:
    """Import torchvision, also a CUDA build beside a CPU torch.

    Its compiled part cannot load there, so the operators it registers fake kernels for do not
    exist; sampling calls none of them, and declaring their schemas is enough.
    """
    torch = importlib.import_module("torch")
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        forget("torchvision")
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)  # the schemas live as long as it does
        importlib.import_module("torchvision")


def _environment(device: str) -> None:
    settings = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "DISABLE_TELEMETRY": "YES"}
    settings |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    if device == "cpu":  # accelerate picks the device of a job, and prefers any accelerator
        settings |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    os.environ.update(settings)


def boot(toolkit: str, diffusers: str | None, device: str) -> StubFinder:
    """The stub finder, once the trainer's packages can be imported for `device` (cpu or cuda).

    Raises ValueError for another device and RuntimeError for cuda without a GPU.
    """
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device {device!r}: expected 'cpu' or 'cuda'")
    _environment(device)
    sys.path[:0] = [path for path in (diffusers, toolkit) if path]
    torch = importlib.import_module("torch")
    torch.set_num_threads(1)
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("device 'cuda' was asked for and torch sees no GPU")
    import_torchvision()
    # These look for optional libraries on import and must not find the stubs.
    for name in ("transformers", "accelerate", "peft", "diffusers"):
        importlib.import_module(name)
    for module, name in (("huggingface_hub", "Repository"), ("huggingface_hub.utils", "HfFolder")):
        # gone from huggingface_hub 1.x; 0.7.19 imports them and uses neither
        vars(importlib.import_module(module)).setdefault(name, stub_class(name))
    # Offline, diffusers refuses to guess the file name of a LoRA, even when handed a local file.
    vars(importlib.import_module("diffusers.loaders.lora_base"))["HF_HUB_OFFLINE"] = False
    return install_stubs()
