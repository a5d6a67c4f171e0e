"""Let ai-toolkit really train small jobs, and keep the folders it leaves.

    $AI_TOOLKIT_PYTHON trainer_jobs.py JOBS.json OUT_DIR

Run by the trainer's interpreter, with the environment of trainer_run.py; imports nothing of this
package. JOBS.json: {"jobs": [JOB, ...]}, JOB as for trainer_run.py, which adds `steps`, `every`
(steps between two samples, and between two files). OUT_DIR/<job> is what the trainer wrote for it,
without the optimizer's state, paths of this machine replaced by `CHECKPOINT` and `DATA`.
"""

import contextlib
import importlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import trainer_run
import trainer_shims
import trainer_small

KEPT = (".yaml", ".safetensors", ".png", ".jpg", ".webp")
PICTURES = 2
SIDE = 64  # px


def write_data(folder: Path) -> None:
    """A few pictures with captions."""
    numpy, image = importlib.import_module("numpy"), importlib.import_module("PIL.Image")
    folder.mkdir(parents=True, exist_ok=True)
    down, right = numpy.mgrid[0:SIDE, 0:SIDE]
    for index in range(PICTURES):
        planes = (right * 4, down * 2 * (index + 1), (right + down) * 2)
        pixels = (numpy.stack(planes, -1) % 256).astype("uint8")
        image.fromarray(pixels).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text("a photo of [trigger] cat")


def train(job: dict, out: Path) -> None:
    """Run one job to its end and keep its folder."""
    with tempfile.TemporaryDirectory() as folder:
        config = trainer_run.job_config(job, folder)
        (process,) = config["config"]["process"]
        data = Path(folder, "data")
        write_data(data)
        every = job["every"]
        process["datasets"] = [
            {"folder_path": str(data), "caption_ext": "txt", "resolution": [SIDE]}
            | job.get("dataset", {})
        ]
        process["train"] |= {"steps": job["steps"], "lr": job.get("lr", 3e-3)}
        process["train"]["skip_first_sample"] = False
        process["sample"]["sample_every"] = every
        process["save"] |= {"save_every": every, "max_step_saves_to_keep": 10}
        trainer_job = importlib.import_module("toolkit.job").get_job(config)
        trainer_job.run()
        trainer_job.cleanup()
        keep(Path(folder, job["name"]), out / job["name"], str(data), job["checkpoint"])


def keep(folder: Path, out: Path, data: str, checkpoint: str) -> None:
    """Copy what a job left, small and without paths of this machine."""
    shutil.rmtree(out, ignore_errors=True)
    for file in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if file.is_file() and file.suffix in KEPT and not hidden:
            target = out / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    config = out / "config.yaml"
    text = config.read_text().replace(data, "DATA").replace(checkpoint, "CHECKPOINT")
    config.write_text(text.replace(str(folder.parent), "OUTPUT"))


def main() -> int:
    """Exit code: 0 if every job succeeded."""
    plan, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]).resolve()
    out.mkdir(parents=True, exist_ok=True)
    toolkit = Path(os.environ["AI_TOOLKIT_PATH"]).resolve()
    with (
        (out / "trainer.log").open("w") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        diffusers = os.environ.get("AI_TOOLKIT_DIFFUSERS")
        finder = trainer_shims.boot(str(toolkit), diffusers, "cpu")
        fresh = trainer_run.FreshProcess()
        trainer_shims.import_models(finder)
        trainer_small.sample_small()
        importlib.import_module("toolkit.extension").get_all_extensions_process_dict()
        for job in plan["jobs"]:
            train(job, out)
            fresh.restore()
    return 0


if __name__ == "__main__":
    sys.exit(main())
