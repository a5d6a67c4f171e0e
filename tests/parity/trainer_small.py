"""Let the trainer load and sample toy checkpoints of models for which it assumes released sizes.

Used by `trainer_run.py`, inside the trainer's interpreter; imports nothing of this package.
"""

import functools
import importlib
import shutil
from pathlib import Path

import trainer_bfl
import trainer_krea2
import trainer_ltx2
import trainer_qwen
import trainer_wan

HIDREAM = "extensions_built_in.diffusion_models.hidream.src.pipelines.hidream_image"


def model_settings(job: dict, folder: str) -> dict:
    """What a job's `model` section needs beyond the checkpoint; files are put under `folder`.

    HiDream's Llama and its tokenizer lie in one folder of their own.
    """
    if job["arch"].startswith("krea2"):
        return trainer_krea2.model_settings(job, folder)
    if job["arch"].startswith("ltx2"):
        return trainer_ltx2.model_settings(job, folder)
    if job["arch"].startswith(("flux2", "chroma")):
        return trainer_bfl.model_settings(job, folder)
    if job["arch"].startswith("wan"):
        return trainer_wan.model_settings(job, folder)
    if job["arch"] not in ("hidream", "hidream_e1"):
        return {}
    llama = Path(folder, "llama")
    for part in ("text_encoder_4", "tokenizer_4"):
        shutil.copytree(Path(job["checkpoint"], part), llama, dirs_exist_ok=True)
    return {"model_kwargs": {"llama_model_path": str(llama)}}


def sample_small() -> None:
    """Give HiDream's samples the area that the network was made for, where that is smaller.

    And the control images of Qwen-Image-Edit, see trainer_qwen.
    """
    trainer_qwen.reference_small()
    module = importlib.import_module(f"{HIDREAM}.pipeline_hidream_image")
    pipeline = module.HiDreamImagePipeline
    build = pipeline.__init__

    @functools.wraps(build)  # diffusers reads its arguments
    def small(self, *args, **kwargs):
        build(self, *args, **kwargs)
        sides = self.transformer.config.max_resolution
        self.default_sample_size = min(self.default_sample_size, *sides)

    pipeline.__init__ = small
