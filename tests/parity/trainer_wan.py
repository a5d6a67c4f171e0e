"""Let the trainer sample toy checkpoints of Wan, also with `low_vram` and on a CPU.

Used by `trainer_run.py`, inside the trainer's interpreter; imports nothing of this package.
"""

import importlib
from pathlib import Path

WAN21 = "toolkit.models.wan21"
WAN22 = "extensions_built_in.diffusion_models.wan22"


def model_settings(job: dict, _folder: str) -> dict:
    """What a job's `model` section needs beyond the checkpoint: nothing.

    The VAE of Wan 2.2 14B is taken from a repository, whatever the checkpoint has, so that its path
    is put where the trainer has it.
    """
    if job["arch"].startswith("wan22_14b"):
        module = importlib.import_module(f"{WAN22}.wan22_14b_model")
        module.Wan2214bModel._wan_vae_path = str(Path(job["checkpoint"], "vae"))
    if job.get("model", {}).get("low_vram"):
        save_memory()
    return {}


def save_memory() -> None:
    """Let jobs with `low_vram` come to their end; what they compute stays the trainer's."""
    # Of a VAE that lies on the CPU, the trainer takes this method of diffusers for the device that
    # the VAE belongs on, and fails to move it there.
    torch = importlib.import_module("torch")
    pipeline = importlib.import_module(f"{WAN22}.wan22_pipeline").Wan22Pipeline
    pipeline.reset_device_map = torch.device("cpu")
    # Once the frames are drawn, diffusers is to free hooks of an offloading that is not in use. It
    # refuses to, on a GPU as well: since it knows Wan 2.2 its pipeline has an argument more than
    # the trainer's copy.
    pipeline = importlib.import_module(f"{WAN21}.wan21_i2v").AggressiveWanI2VUnloadPipeline
    pipeline.maybe_free_model_hooks = lambda self: None
