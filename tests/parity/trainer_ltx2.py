"""Let the trainer load toy checkpoints of LTX-2, and keep the clips with sound that it makes.

Used by `trainer_run.py`, inside the trainer's interpreter; imports nothing of this package.
"""

import importlib
import shutil
from pathlib import Path

LTX2 = "extensions_built_in.diffusion_models.ltx2.ltx2"


def model_settings(job: dict, folder: str) -> dict:
    """What a job's `model` section needs: LTX-2.3 takes its text encoder from one folder."""
    if job["arch"] == "ltx2":
        return {}
    encoder = Path(folder, "gemma")
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(Path(job["checkpoint"], part), encoder, dirs_exist_ok=True)
    return {"te_name_or_path": str(encoder)}


def watch(watcher) -> None:
    """Keep what LTX-2 saves by a function of its own: frames as a picture, sound as an array.

    Training alone hears, so that what it hears with may lack its library.
    """
    module = importlib.import_module(LTX2)
    numpy, image = importlib.import_module("numpy"), importlib.import_module("PIL.Image")
    save = module.new_save_image_function

    def watched(config, clip, count=0, max_count=0, **kwargs):
        save(config, clip, count, max_count, **kwargs)
        watcher.note(config, count, Path(config.get_image_path(count, max_count)))
        frames = [image.fromarray(frame) for frame in clip["video"].numpy()]
        watcher.keep_frames(frames, watcher.folder / f"{count}.png")
        numpy.save(watcher.folder / f"{count}.npy", clip["audio"].numpy())

    class Deaf(importlib.import_module("torch").nn.Module):
        def __init__(self, **_):
            super().__init__()

    module.new_save_image_function = watched
    module.AudioProcessor = Deaf
