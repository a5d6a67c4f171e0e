"""Run ai-toolkit's own training job on a list of small jobs, for its pictures or its LoRA files.

    $AI_TOOLKIT_PYTHON trainer_run.py JOBS.json OUT_DIR                 draw every job's samples
    $AI_TOOLKIT_PYTHON trainer_run.py --write-lora JOBS.json OUT_DIR    write every job's network

Run by the trainer's interpreter; imports nothing of this package. Environment: AI_TOOLKIT_PATH (a
checkout of ostris/ai-toolkit), AI_TOOLKIT_DIFFUSERS (optional folder put first on sys.path),
AI_TOOLKIT_COMMIT (optional, for a checkout without .git).

JOBS.json: {"device": "cpu"|"cuda", "jobs": [JOB, ...]}. JOB: name, arch, checkpoint, dtype
(fp32|bf16|fp16), samples [{prompt, width, height, seed, network_multiplier, ...}], and optionally
lora (file), sampler, trigger_word, and network, model, train, sample, save: mappings laid over the
defaults of `job_config`. `network: null` trains the whole model instead of a network. `live: true`
keeps the trainer from merging, as if the model were quantized; second: {"network", "lora",
"multiplier"} puts another network around the job's own. `cached: true` has prompts encoded before
training. For --write-lora: fill {"seed": int, "down": float, "up": float}.

A job without lora has the network a job has before its first step: up weights all zero. Equal
multipliers in all samples make the trainer merge, different ones make it hook. The sample list is
drawn once, by the sampling after the (empty) training loop.

OUT_DIR/<job>/<index>.<ext> are the bytes the trainer wrote, of a clip also <index>.png, its frames
one below the other, and <index>.npy, its sound; OUT_DIR/<job>.safetensors its LoRA,
OUT_DIR/result.json what was observed, OUT_DIR/trainer.log its output. Exit code 1 if a job failed.
"""

import argparse
import contextlib
import gc
import importlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import OrderedDict
from pathlib import Path

import trainer_ltx2
import trainer_networks
import trainer_shims
import trainer_small

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "numpy", "pillow")


def job_config(job: dict, folder: str) -> OrderedDict:
    """The configuration ai-toolkit would read from a job's YAML file; it writes under `folder`."""
    flow = job["arch"].partition(":")[0] not in ("sd1", "sd15", "sdxl")
    train = {
        "batch_size": 1, "steps": 0, "gradient_accumulation": 1, "train_unet": True,
        "train_text_encoder": False, "gradient_checkpointing": False, "optimizer": "adamw",
        "noise_scheduler": "flowmatch" if flow else "ddpm", "lr": 1e-4, "dtype": job["dtype"],
        "skip_first_sample": True,
    }  # fmt: skip
    sample = {
        "sampler": job.get("sampler") or ("flowmatch" if flow else "ddpm"), "sample_every": 1,
        "neg": "", "format": "png", "samples": job.get("samples") or [],
    }  # fmt: skip
    model = {"name_or_path": job["checkpoint"], "arch": job["arch"]}
    model |= trainer_small.model_settings(job, folder)
    given = job.get("model", {})
    kwargs = model.get("model_kwargs", {}) | given.get("model_kwargs", {})
    model |= given | ({"model_kwargs": kwargs} if kwargs else {})
    process: OrderedDict[str, object] = OrderedDict(
        type="sd_trainer",
        training_folder=folder,
        train=train | job.get("train", {}),
        model=model,
        sample=sample | job.get("sample", {}),
        save={"dtype": "float16"} | job.get("save", {}),
    )
    if job.get("network", {}) is not None:
        process["network"] = network_config(job)
    if job.get("trigger_word"):
        process["trigger_word"] = job["trigger_word"]
    config = OrderedDict(name=job["name"], process=[process])
    return OrderedDict(
        job="extension", config=config, meta=OrderedDict(name="[name]", version="1.0")
    )


def network_config(job: dict) -> dict:
    """The job's `network` section, with its LoRA as the file training would start from."""
    network = {"type": "lora", "linear": 4, "linear_alpha": 4} | job.get("network", {})
    if job.get("lora"):
        if not Path(job["lora"]).is_file():  # the trainer would go on without it
            raise FileNotFoundError(f"no LoRA file {job['lora']}")
        network["pretrained_lora_path"] = job["lora"]
    return network


class Watcher:
    """Copies each picture the trainer saves, and notes what it was drawn with; changes nothing."""

    def __init__(self, fresh):
        self.fresh = fresh
        self.folder = Path()
        self.process = None
        self.seen: list[dict] = []
        self.state: dict = {}
        request = importlib.import_module("toolkit.config_modules").GenerateImageConfig
        save_image = request.save_image

        def watched(config, image, count=0, max_count=0):
            save_image(config, image, count, max_count)
            self.note(config, count, Path(config.get_image_path(count, max_count)))
            if isinstance(image, list):  # a clip
                self.keep_frames(image, self.folder / f"{count}.png")

        request.save_image = watched

    def start(self, process, folder: Path) -> None:
        """Watch one job; its pictures go to `folder`."""
        self.process, self.folder, self.seen, self.state = process, folder, [], {}
        folder.mkdir(parents=True, exist_ok=True)

    def keep_frames(self, frames: list, path: Path) -> None:
        """Save a clip's frames one below the other, as its own format is lossy."""
        numpy = importlib.import_module("numpy")
        sheet = numpy.concatenate([numpy.asarray(frame.convert("RGB")) for frame in frames])
        importlib.import_module("PIL.Image").fromarray(sheet).save(path)

    def note(self, config, index: int, path: Path) -> None:
        """Copy the picture of one sample and keep the request the trainer made of it."""
        name = f"{index}{path.suffix}"
        shutil.copyfile(path, self.folder / name)
        self.state = self.state or observe(self.process)
        network = self.process.network if self.process else None
        fields = "prompt prompt_2 negative_prompt negative_prompt_2 width height seed "
        fields += "num_inference_steps guidance_scale guidance_rescale network_multiplier"
        entry = {field: getattr(config, field) for field in fields.split()}
        merged = bool(getattr(network, "is_merged_in", False))
        self.seen.append({"file": name, "merged": merged} | entry)


def observe(process) -> dict:
    """Facts of a running job: modules, dtypes, and which keys of the LoRA file it did not take."""
    sd, network = process.sd, process.network
    encoders = sd.text_encoder if isinstance(sd.text_encoder, list) else [sd.text_encoder]
    facts = {
        "model_class": type(sd).__name__,
        "model_dtype": str(sd.unet.dtype),
        "vae_dtype": str(sd.vae.dtype),
        "text_encoder_dtype": [str(encoder.dtype) for encoder in encoders],
        "device": str(sd.device_torch),
    }
    if assistant := sd.assistant_lora:
        facts["assistant"] = trainer_networks.observe(assistant, None)
        facts["assistant"]["acts"] = assistant.is_active and not assistant.is_merged_in
    if network is None:
        return facts | {"modules": 0}
    facts |= trainer_networks.observe(network, process.network_config.pretrained_lora_path)
    if second := getattr(network, "second", []):
        facts["second"] = trainer_networks.observe(second[0], second[0].file)
    return facts


def load_trainer(finder: trainer_shims.StubFinder) -> None:
    """Import all that jobs need, and take it out of the garbage collector's sight.

    The trainer collects after nearly every action, which costs more than a tiny model's work.
    """
    trainer_shims.import_models(finder)
    trainer_small.sample_small()
    importlib.import_module("jobs")
    importlib.import_module("toolkit.extension").get_all_extensions_process_dict()
    gc.collect()
    gc.freeze()


class FreshProcess:
    """Puts back what one job changes for the next in the same process."""

    def __init__(self):
        self.target_lists = trainer_networks.TargetLists()
        trainer_networks.keep_arguments()

    def restore(self) -> None:
        """Also lets go of the finished job's models: accelerate keeps all it prepared."""
        self.target_lists.restore()
        importlib.import_module("toolkit.accelerator").get_accelerator().free_memory()
        gc.collect()
        importlib.import_module("torch").cuda.empty_cache()


def run_job(job: dict, prepare) -> None:
    """Run one job by the trainer's job code; `prepare(process)` sees it before it starts."""
    with tempfile.TemporaryDirectory() as folder:
        get_job = importlib.import_module("toolkit.job").get_job
        trainer_job = get_job(job_config(job, folder))
        prepare(trainer_job.process[0])
        trainer_job.run()
        trainer_job.cleanup()


def draw(job: dict, out: Path, watcher: Watcher) -> dict:
    """The job's entry of result.json; its pictures are in OUT_DIR/<job>."""
    folder = out / job["name"]
    shutil.rmtree(folder, ignore_errors=True)

    def prepare(process):
        if job.get("cached") and not process.train_config.unload_text_encoder:
            process.is_caching_text_embeddings = True  # as a dataset of it would say
        sample = process.sample

        def arranged_sample(*args, **kwargs):
            trainer_networks.arrange(process, job, watcher.fresh.target_lists)
            sample(*args, **kwargs)

        process.sample = arranged_sample
        watcher.start(process, folder)

    run_job(job, prepare)
    if len(watcher.seen) != len(job["samples"]):
        raise RuntimeError(f"{len(watcher.seen)} pictures for {len(job['samples'])} samples")
    merged = {entry["merged"] for entry in watcher.seen}
    return {"merged": merged == {True}, **watcher.state, "samples": watcher.seen}


def write_lora(job: dict, out: Path, _watcher: Watcher) -> dict:
    """The job's entry of result.json; OUT_DIR/<job>.safetensors is its network, seeded values.

    Of a model with two experts these are two files. The trainer's own `save` writes them, so keys,
    dtype and metadata are the real ones.
    """
    facts: dict = {}

    def prepare(process):
        save = process.save

        def filled_save(step=None):
            trainer_networks.fill(process.network, **(trainer_networks.FILL | job.get("fill", {})))
            facts.update(observe(process))
            save(step)
            for file in Path(process.save_root).glob(f"{job['name']}*.safetensors"):
                files[file.name] = Path(shutil.copyfile(file, out / file.name))

        process.save = filled_save

    files: dict[str, Path] = {}
    quiet = job.get("train", {}) | {"disable_sampling": True}
    run_job(job | {"train": quiet}, prepare)
    return facts | {"files": {name: describe_file(file) for name, file in files.items()}}


def describe_file(path: Path) -> dict:
    """Keys, dtypes, shapes and metadata of a safetensors file."""
    with importlib.import_module("safetensors").safe_open(str(path), "pt") as file:
        keys = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        layout = {key: [str(v.dtype), list(v.shape)] for key, v in keys.items()}
        return {"number_of_keys": len(keys), "metadata": file.metadata(), "keys": layout}


def attempt(work, job: dict, out: Path, watcher: Watcher) -> dict:
    """What `work` returned for the job, or its traceback under `error`; always `seconds`."""
    start = time.time()
    try:
        if not re.fullmatch(r"[\w-]+", job["name"]):
            raise ValueError(f"job name {job['name']!r}: use letters, digits, '_' and '-'")
        entry = work(job, out, watcher)
    except Exception:  # noqa: BLE001  one job must not take the others with it; it is reported
        entry = {"error": traceback.format_exc()}
    return entry | {"seconds": round(time.time() - start, 2)}


def environment(toolkit: Path, device: str, stubs: list[str]) -> dict:
    """Everything a picture may depend on: trainer, libraries, machine."""
    torch = importlib.import_module("torch")
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    versions["diffusers"] = importlib.import_module("diffusers").__version__
    versions["torch"] = torch.__version__
    return {
        "trainer": importlib.import_module("version").VERSION,
        "trainer_commit": commit(toolkit),
        "versions": {"python": platform.python_version()} | versions,
        "device": device,
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "stubs": stubs,
    }


def commit(toolkit: Path) -> str | None:
    """The checkout's commit, else AI_TOOLKIT_COMMIT, else None."""
    if not (toolkit / ".git").exists():
        return os.environ.get("AI_TOOLKIT_COMMIT") or None
    command = ["git", "-C", str(toolkit), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def run_all(plan: dict, out: Path, work) -> bool:
    """Whether every job succeeded; writes result.json after each one."""
    toolkit, device = Path(os.environ["AI_TOOLKIT_PATH"]).resolve(), plan.get("device", "cpu")
    with (out / "trainer.log").open("w") as log:
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            diffusers = os.environ.get("AI_TOOLKIT_DIFFUSERS")
            finder = trainer_shims.boot(str(toolkit), diffusers, device)
            fresh = FreshProcess()
            watcher = Watcher(fresh)
            load_trainer(finder)
            trainer_ltx2.watch(watcher)
        result = {"jobs": {}}
        for job in plan["jobs"]:
            with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                entry = attempt(work, job, out, watcher)
                fresh.restore()
                result = environment(toolkit, device, finder.used) | {"jobs": result["jobs"]}
            result["jobs"][job["name"]] = entry
            (out / "result.json").write_text(json.dumps(result, indent=1))
            error = entry.get("error", "ok").strip().splitlines()[-1]
            sys.stdout.write(f"{job['name']}: {error} ({entry['seconds']} s)\n")
            sys.stdout.flush()
    return not any("error" in entry for entry in result["jobs"].values())


def main() -> int:
    """Exit code: 0 if every job succeeded."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write-lora", action="store_true")
    parser.add_argument("jobs", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    plan = json.loads(options.jobs.read_text())
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    return 0 if run_all(plan, out, write_lora if options.write_lora else draw) else 1


if __name__ == "__main__":
    sys.exit(main())
