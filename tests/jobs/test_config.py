"""A job's configuration is read as the trainer reads it, and says what is not reproduced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ai_toolkit_inference.core.errors import InvalidInputError
from ai_toolkit_inference.jobs.config import config_file, processes, read_config
from ai_toolkit_inference.jobs.describe import describe
from ai_toolkit_inference.jobs.fields import problems_of
from ai_toolkit_inference.jobs.job import read_job, requests_of
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
    with pytest.raises(
        InvalidInputError, match=r"1 process\(es\), from number 0; there is no number 1"
    ):
        read_job(tmp_path, 1)


def test_which_process_and_of_what_kind(tmp_path):
    plain = json.loads(config_file(write(tmp_path)).read_text())
    (process,) = plain["config"]["process"]
    plain["config"]["process"] = [process, process | {"type": "concept_slider"}]
    (tmp_path / ".job_config.json").write_text(json.dumps(plain))
    first, second = (read_job(tmp_path, number) for number in (0, 1))
    assert (first.problems, [str(p) for p in second.problems]) == (
        (),
        ["type = 'concept_slider': another kind of process, which may draw samples otherwise"],
    )
    assert "process   1 of 0 to 1; --process chooses another" in describe(second)


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
        ({"arch": "krea2:o_edit", "model_kwargs": {"edit": True}}, "krea2_o_edit"),
        ({"arch": "krea2:o_edit", "model_kwargs": {}}, "krea2"),
        (
            {
                "arch": "krea2",
                "name_or_path": "krea/Krea-2-Turbo",
                "model_kwargs": {"edit": True},
            },
            "krea2_o_edit_turbo",
        ),
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
        "model.vae_path": True,
        "model.compile": True,
        "model.te_dtype": True,
        "sample.samples[0].hue": False,
    }


@pytest.mark.parametrize("arch", ["qwen_image", "flux", "wan21:1b", "wan21_i2v:14b", "ltx2"])
@pytest.mark.parametrize("low_vram", [True, False])
def test_low_vram_is_reproduced(arch, low_vram):
    process = {"type": "sd_trainer", "model": {"arch": arch, "low_vram": low_vram}}
    assert list(problems_of(process, arch)) == []


@pytest.mark.parametrize(
    ("arch", "kwargs", "problems"),
    [
        ("flux", {"x": 1}, {"x": False}),
        ("flex2", {"inpaint_dropout": 0.5, "do_random_inpainting": True}, {}),
        ("flux2", {"match_target_res": True}, {}),
        ("qwen_image_edit", {"match_target_res": True}, {"match_target_res": False}),
        ("qwen_image_edit_plus:2511", {"match_target_res": False}, {}),
        ("wan22_14b:t2v", {"train_high_noise": True, "vae_tiling": True}, {}),
        ("wan22_14b_i2v", {"train_low_noise": False, "vae_tiling": True}, {}),
        ("wan21:1b", {"vae_tiling": True}, {}),
        ("wan21_i2v:14b", {"vae_tiling": True}, {}),
        ("krea2:o_edit", {"edit": True, "kv_cache": True, "match_target_res": True}, {}),
        ("krea2", {"edit": False, "kv_cache": True}, {"kv_cache": False}),
        ("krea2", {"max_text_length": 512, "schedule_mu": 1.0}, {"schedule_mu": True}),
        ("hidream", {"llama_model_path": "a"}, {"llama_model_path": True}),
        ("hidream", {"llama_model_path": None}, {}),
    ],
)
def test_which_model_kwargs_are_reproduced(tmp_path, arch, kwargs, problems):
    job = read_job(write(tmp_path, model={"arch": arch, "model_kwargs": kwargs}))
    found = {problem.field.rpartition(".")[2]: problem.pixels for problem in job.problems}
    assert found == problems


@pytest.mark.parametrize(
    ("model", "sample", "switches"),
    [
        ({"arch": "flux"}, {"do_cfg_norm": True}, {}),
        ({"arch": "qwen_image_edit_plus"}, {"do_cfg_norm": True}, {"do_cfg_norm": True}),
        ({"arch": "qwen_image_edit_plus"}, {}, {"do_cfg_norm": False}),
        (
            {"arch": "krea2:o_edit", "model_kwargs": {"edit": True, "kv_cache": True}},
            {},
            {"kv_cache": True, "match_target_res": False},
        ),
    ],
)
def test_a_job_says_which_switches_are_on(tmp_path, model, sample, switches):
    job = read_job(write(tmp_path, model=model, sample=SAMPLE | sample))
    assert dict(job.switches) == switches
    (request,) = requests_of(job, job.recipe(0, "tiny"), {})
    assert request.switches == job.switches


def test_two_different_first_pictures_are_not_reproduced_where_both_are_seen():
    cases = {"qwen_image_edit_plus:2511": True, "krea2:o_edit": True, "flux2": False}
    for arch, found in cases.items():
        for again in ("a.png", "b.png", None):
            samples = {"samples": [{"prompt": "a", "ctrl_img": "a.png", "ctrl_img_1": again}]}
            process = {"type": "sd_trainer", "model": {"arch": arch}, "sample": samples}
            problems = [problem.field for problem in problems_of(process, arch)]
            expected = ["sample.samples[0].ctrl_img_1"] if found and again == "b.png" else []
            assert problems == expected


def test_a_job_says_whether_its_vae_works_in_tiles(tmp_path):
    cases: list[tuple[dict[str, bool], str]] = [({"low_vram": True}, "on"), ({}, "off")]
    for section, low_vram in cases:
        job = read_job(write(tmp_path, model={"arch": "qwen_image"} | section))
        assert job.recipe(0, "tiny").low_vram == low_vram
    tiling = {"model_kwargs": {"vae_tiling": True}}
    for arch in ("wan21:1b", "wan22_5b", "wan22_14b", "wan22_14b_i2v"):
        job = read_job(write(tmp_path, model={"arch": arch} | tiling))
        assert job.recipe(0, "tiny").low_vram == "off"
        assert job.switches == ((("vae_tiling", True),) if arch != "wan22_14b_i2v" else ())


def test_quantize_means_nothing_to_stable_diffusion_but_a_live_lora(tmp_path):
    job = read_job(write(tmp_path, model={"arch": "sd15", "quantize": True, "quantize_te": True}))
    assert (job.live, job.problems) == (True, ())
