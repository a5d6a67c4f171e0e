"""A job's configuration is read as the trainer reads it, and says what is not reproduced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ai_toolkit_inference.core.errors import InvalidInputError
from ai_toolkit_inference.jobs.config import config_file, processes, read_config
from ai_toolkit_inference.jobs.fields import problems_of
from ai_toolkit_inference.jobs.job import read_job
from ai_toolkit_inference.jobs.models import model_of, weights_of

BOMB = "config:\n  name: a\n  a0: &a0 [x, x]\n" + "".join(
    f"  a{n + 1}: &a{n + 1} [*a{n}, *a{n}]\n" for n in range(30)
)
SAMPLE = {"neg": "", "prompts": ["a cat"]}


def write(folder: Path, process: dict[str, Any] | None = None, **sections: Any) -> Path:
    """A job folder with this process; sections replace parts of a plain one."""
    plain = {"type": "sd_trainer", "train": {"dtype": "bf16"}, "model": {"arch": "sd15"}}
    sections = {"sample": SAMPLE} | sections
    config = {"name": "mine", "process": [process or (plain | sections)]}
    (folder / ".job_config.json").write_text(json.dumps({"job": "extension", "config": config}))
    return folder


def test_the_trainers_own_file_wins_over_its_interfaces(tmp_path):
    write(tmp_path)
    assert config_file(tmp_path).name == ".job_config.json"
    (tmp_path / "config.yaml").write_text("config: {name: x}")
    assert config_file(tmp_path).name == "config.yaml"
    with pytest.raises(InvalidInputError, match=r"no config\.yaml in .*training_folder/name"):
        config_file(tmp_path / "nowhere")


def test_names_numbers_and_placeholders(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(
        "config:\n  name: mine\n  process:\n  - {lr: 1e-4, other: -2.5E+3, where: '${DATA}/x',"
        " text: 'a [name] [name]', list: ['[name]']}"
    )
    (process,) = processes(read_config(file, {"DATA": "/data"}))
    assert process == {
        "lr": 1e-4, "other": -2500.0, "text": "a mine mine", "where": "/data/x", "list": ["mine"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("config: {name: a, x: '${MISSING}'}", "variable MISSING"),
        ("config: {name: a, x: '${HF_TOKEN}'}", "HF_TOKEN, which looks like a secret"),
        ("config: [", "could not be parsed"),
        ("- a", "no `config` section"),
        ("config: {process: []}", "no name"),
        ("config: {name: a, process: []}", "no list of processes"),
        ("config: {name: a, x: !!python/object/apply:os.getcwd []}", "could not be parsed"),
        ("config: &a {name: a, process: *a}", "could not be parsed|no list of processes"),
        ("\x00", "could not be parsed"),
        (BOMB, "over 200000 values"),
    ],
)
def test_a_bad_configuration_is_refused(tmp_path, text, words):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(InvalidInputError, match=words):
        processes(read_config(file, {"HF_TOKEN": "hf_secret"}))


def test_several_processes(tmp_path):
    write(tmp_path)
    assert read_job(tmp_path).spec.id == "sd15"
    with pytest.raises(InvalidInputError, match="1 processes; there is no number 1"):
        read_job(tmp_path, 1)


@pytest.mark.parametrize(
    ("section", "model"),
    [
        ({}, "sd15"),
        ({"arch": "sd1"}, "sd15"),
        ({"is_xl": True}, "sdxl"),
        ({"is_flux": True, "name_or_path": "/models/mine"}, "flux"),
        ({"arch": "flux", "name_or_path": "black-forest-labs/FLUX.1-schnell"}, "flux_schnell"),
        ({"arch": "flux", "name_or_path": "/models/FLUX.1-schnell"}, "flux_schnell"),
        ({"arch": "flux", "name_or_path": "ostris/Flex.1-alpha"}, "flex1"),
        ({"arch": "flex1", "name_or_path": "/models/flex"}, "flex1"),
        ({"arch": "flux2", "name_or_path": "black-forest-labs/FLUX.2-dev"}, "flux2"),
        ({"arch": "zimage:turbo", "name_or_path": "/models/mine"}, "zimage_turbo"),
        ({"arch": "zimage", "name_or_path": "Tongyi-MAI/Z-Image-Turbo"}, "zimage_turbo"),
        ({"arch": "zimage", "name_or_path": "Tongyi-MAI/Z-Image"}, "zimage"),
        ({"arch": "qwen_image:2512"}, "qwen_image_2512"),
        ({"arch": "krea2:turbo"}, "krea2_turbo"),
    ],
)
def test_the_model_of_a_job(section, model):
    assert model_of(section).id == model


@pytest.mark.parametrize("section", [{"arch": "cogview4"}, {"is_v3": True}])
def test_a_model_that_is_not_here_is_refused(section):
    with pytest.raises(InvalidInputError, match=r"cogview4.*it has: .*flux|is_v3"):
        model_of(section)


def test_where_the_base_is(tmp_path):
    sd15 = model_of({})
    assert weights_of({"name_or_path": sd15.repo_id.upper()}, sd15) == "huggingface"
    assert weights_of({"name_or_path": str(tmp_path)}, sd15) == str(tmp_path)
    with pytest.raises(InvalidInputError, match=r"'someone/else', which is neither .*--weights"):
        weights_of({"name_or_path": "someone/else"}, sd15)


def test_seeds_walk_and_stay_as_in_the_trainer(tmp_path):
    items = [{"prompt": "a"}, {"prompt": "b", "seed": 7}, {"prompt": "c"}]
    for walk, seeds in ((False, [42, 7, 7]), (True, [42, 7, 44])):
        sample = SAMPLE | {"seed": 42, "walk_seed": walk, "samples": items}
        job = read_job(write(tmp_path, sample=sample))
        assert [s.settings["seed"] for s in job.samples] == seeds


def test_an_item_wins_over_the_section_and_nothing_is_left_to_our_defaults(tmp_path):
    item = {"prompt": "a", "width": 640, "network_multiplier": "0.5", "neg": "bad"}
    (first, second) = read_job(
        write(tmp_path, sample=SAMPLE | {"samples": [item, {"prompt": "b"}], "sampler": "ddim"})
    ).samples
    assert (first.settings["width"], first.multiplier) == (640, 0.5)
    assert second.settings == {
        "negative_prompt": "", "width": 512, "height": 512, "steps": 20, "guidance_scale": 7.0,
        "guidance_rescale": 0.0, "seed": 0, "num_frames": 1, "fps": 16, "sampler": "ddim",
        "control_index": 0,
    }  # fmt: skip


def test_an_item_without_prompt_takes_no_turn_but_its_settings_stay(tmp_path):
    items = [{"width": 640}, {"prompt": "a"}, {"prompt": "b", "width": 768}]
    samples = read_job(write(tmp_path, sample=SAMPLE | {"samples": items})).samples
    assert [(s.prompt, s.settings["width"]) for s in samples] == [("a", 640), ("b", 512)]


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        ({"prompts": ["a"]}, "sample 0 has no `neg`"),
        (SAMPLE | {"seed": -1}, "sample 0 has seed -1"),
    ],
)
def test_what_cannot_be_drawn_again_is_refused(tmp_path, sample, words):
    with pytest.raises(InvalidInputError, match=words):
        read_job(write(tmp_path, sample=sample))


@pytest.mark.parametrize(
    ("sections", "live"),
    [
        ({}, False),
        ({"sample": SAMPLE | {"prompts": ["a", "b --m 0.5"]}}, True),
        ({"sample": SAMPLE | {"prompts": ["a --m 0.5", "b --m 0.5"]}}, False),
        ({"model": {"arch": "sd15", "quantize": True}}, True),
        ({"model": {"arch": "sd15", "layer_offloading": True}}, True),
    ],
)
def test_when_the_lora_acts_live(tmp_path, sections, live):
    assert read_job(write(tmp_path, **sections)).live is live


@pytest.mark.parametrize(
    ("sections", "cached"),
    [
        ({}, False),
        ({"train": {"unload_text_encoder": True}}, True),
        ({"train": {"cache_text_embeddings": True}}, True),
        ({"datasets": [{}, {"cache_text_embeddings": True}]}, True),
    ],
)
def test_when_prompts_were_encoded_before_training(tmp_path, sections, cached):
    assert read_job(write(tmp_path, **sections)).cached_text is cached


def test_clips_are_animations_whatever_the_format_says(tmp_path):
    assert read_job(write(tmp_path, sample=SAMPLE | {"format": "png"})).format == "png"
    sample = SAMPLE | {"format": "png", "num_frames": 5}
    assert read_job(write(tmp_path, sample=sample)).format == "webp"


def test_fields_that_shape_samples_are_listed_and_others_are_not():
    process = {
        "type": "sd_trainer",
        "adapter": {"type": "ip"},
        "train": {"lr": 1e-4, "free_u": True, "made_up": 3},
        "model": {
            "arch": "flux", "name_or_path": "a", "extras_name_or_path": "a", "vae_path": "b",
            "low_vram": False, "model_kwargs": {}, "compile": True, "te_dtype": "fp16",
            "quantize": True, "quantize_te": False,
        },
        "sample": {"prompts": [], "do_cfg_norm": True, "samples": [{"prompt": "a", "hue": 1}]},
    }  # fmt: skip
    found = {problem.field: problem.pixels for problem in problems_of(process, "flux")}
    assert found == {
        "adapter": True,
        "train.free_u": True,
        "train.made_up": False,
        "model.quantize": True,
        "model.vae_path": True,
        "model.compile": True,
        "model.te_dtype": True,
        "sample.do_cfg_norm": True,
        "sample.samples[0].hue": False,
    }


def test_quantize_means_nothing_to_stable_diffusion_but_a_live_lora(tmp_path):
    job = read_job(write(tmp_path, model={"arch": "sd15", "quantize": True, "quantize_te": True}))
    assert (job.live, job.problems) == (True, ())
