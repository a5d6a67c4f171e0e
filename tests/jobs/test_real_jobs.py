"""Folders of jobs that the trainer really trained (tests/parity/trainer_jobs.py), drawn again."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ai_toolkit_inference import Engine
from ai_toolkit_inference.cli.main import main
from ai_toolkit_inference.core.errors import InvalidInputError
from ai_toolkit_inference.core.results import SampleResult
from ai_toolkit_inference.jobs.compare import Pair, compare, heatmap, load_pair, side_by_side
from ai_toolkit_inference.jobs.describe import describe
from ai_toolkit_inference.jobs.folder import job_folder
from ai_toolkit_inference.jobs.job import Job, read_job
from ai_toolkit_inference.jobs.render import Rendered, as_trained, find_control, planned, render
from ai_toolkit_inference.jobs.report import sheet, write_report
from ai_toolkit_inference.jobs.rounding import saved_dtype, write_dithered
from ai_toolkit_inference.jobs.verdict import DRIFTED, IDENTICAL, ROUNDING, in_words, judge, summary

FOLDERS = Path(__file__).parent / "folders"
NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16"}
LIVE = job_folder("tiny")
LOKR, FLUX, ZIMAGE, CLIPS = (
    FOLDERS / name for name in ("lokr_qwen_image", "merged_flux", "merged_zimage", "clips_wan21")
)


@pytest.fixture(scope="module")
def cpu() -> Engine:
    return Engine("cpu")


def verdicts(engine: Engine, job: Job, step: int) -> list[Any]:
    drawn = render(engine, planned(job, as_trained(job, step, "tiny")))
    return [judge(engine, job, sample, job.samples_of(step)) for sample in drawn]


# bf16 of other processors rounds otherwise, so the verdicts are those of the goldens' kernels only
@pytest.mark.usefixtures("golden_bf16")
@pytest.mark.parametrize("step", [0, 2, 4])
@pytest.mark.parametrize("folder", [LIVE, LOKR], ids=lambda path: path.name)
def test_a_job_with_fp32_weights_and_a_live_network_is_drawn_again_exactly(cpu, folder, step):
    found = verdicts(cpu, read_job(folder), step)
    assert [v.verdict for v in found] == [IDENTICAL] * 2
    assert all(v.difference.same_file and not v.causes for v in found)


@pytest.mark.usefixtures("golden_bf16")
@pytest.mark.parametrize("folder", [FLUX, ZIMAGE], ids=lambda path: path.name)
def test_before_training_every_job_is_exact_and_later_within_rounding(cpu, folder):
    job = read_job(folder)
    assert [v.verdict for v in verdicts(cpu, job, 0)] == [IDENTICAL] * 2
    for step, drifted in ((2, False), (4, True)):
        later = verdicts(cpu, job, step)
        assert [v.verdict for v in later] == [ROUNDING] * 2
        for verdict in later:
            first, second = verdict.causes[:2]
            assert "saved as" in first.text and "levels" in first.evidence
            assert ("base had drifted" in second.text) is drifted


@pytest.mark.usefixtures("golden_bf16")
def test_clips_of_a_merged_job_are_exact_until_its_base_drifts(cpu):
    job = read_job(CLIPS)
    for step in (0, 2):  # before the LoRA was first taken out again
        found = verdicts(cpu, job, step)
        assert [v.verdict for v in found] == [IDENTICAL] * 2
        assert all(v.difference.same_file for v in found)
    for verdict in verdicts(cpu, job, 4):
        assert (verdict.verdict, verdict.rounding) == (DRIFTED, None)  # fp32 files
        assert "base had drifted" in verdict.causes[0].text
        assert "1 sampling(s) since training began" in verdict.causes[0].evidence
        assert len(verdict.pair.theirs) == 5
        assert 3 < verdict.difference.mean < 5  # webp takes its share


@pytest.mark.parametrize(
    ("folder", "model", "version"),
    [
        (LIVE, "sd15", "0.12.26"),
        (FLUX, "flux", "0.12.26"),
        (ZIMAGE, "zimage_turbo", "0.12.26"),
        (LOKR, "qwen_image", "0.7.19"),
        (CLIPS, "wan21_1b", "0.12.26"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_what_the_folders_are(cpu, folder, model, version):
    job = read_job(folder)
    assert (job.spec.id, job.problems) == (model, ())
    (request, *_) = (request for _, request in planned(job, as_trained(job, 4, "tiny")))
    assert cpu.plan(request).profile.version == version


def test_other_pictures_have_drifted(cpu):
    job = read_job(LIVE)
    (drawn,) = render(cpu, planned(job, as_trained(job, 4, "tiny"), only=(0,)))
    dark = replace(drawn, result=replace(drawn.result, frames=drawn.result.frames // 2))
    found = judge(cpu, job, dark, job.samples_of(4))
    assert (found.verdict, found.rounding) == (DRIFTED, None)  # nothing is lost in fp32 files
    assert found.info["trainer_version"] == "0.12.26"
    small = replace(drawn, result=replace(drawn.result, frames=drawn.result.frames[:, ::2]))
    found = judge(cpu, job, small, job.samples_of(4))
    assert "has 128x96 px, this 128x48 px" in found.causes[0].evidence
    assert in_words(found) == "another size"
    assert heatmap(found.pair).min() == 255


def test_of_a_clip_the_frame_that_differs_most_is_shown():
    frames = np.zeros((3, 4, 4, 3), np.uint8)
    other = frames.copy()
    other[1, 2, 2], other[2, 0, 0] = 9, 1
    pair = Pair(frames, other, False)
    assert pair.shown == 1
    assert np.argwhere(heatmap(pair).any(axis=2)).tolist() == [[2, 2]]
    assert side_by_side(pair)[2, 2].tolist() == [9, 9, 9]
    assert Pair(frames, other[:2], False).shown == 0


def test_a_lossy_sample_is_compared_after_the_same_loss(cpu):
    job = read_job(ZIMAGE)
    (drawn,) = render(cpu, planned(job, as_trained(job, 0, "tiny"), only=(0,)))
    file = job.samples_of(0).files[0]
    plain = np.asarray(Image.open(file).convert("RGB"), int)
    assert np.abs(drawn.result.frames[0] - plain).max() > 20  # what jpg does to it
    assert compare(load_pair(drawn.result, file)).most <= 1


def test_numbers_of_a_difference(tmp_path):
    frames = np.zeros((1, 16, 16, 3), np.uint8)
    frames[0, 4, 4] = 51
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "theirs.png")
    pair = load_pair(SampleResult(frames, 1.0, {}), tmp_path / "theirs.png")
    off = compare(pair)
    assert (off.most, off.identical, off.same_file) == (51, False, False)
    assert off.mean == pytest.approx(51 / 256)
    assert off.psnr == pytest.approx(20 * np.log10(255 / (51 / 16)))
    assert off.ssim is not None and 0 < off.ssim < 1
    assert np.argwhere(heatmap(pair).any(axis=2)).tolist() == [[4, 4]]
    assert side_by_side(pair).shape == (16, 3 * 16 + 8, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dithered_values_round_to_the_saved_ones(tmp_path, dtype):
    values = torch.randn(10_000, generator=torch.Generator().manual_seed(0)).to(dtype)
    values[:3] = torch.tensor([0.0, 6e-8, 1.0])
    save_file({"a": values, "b": torch.ones(2)}, tmp_path / "a.safetensors", {"k": "v"})
    write_dithered(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    moved = load_file(tmp_path / "b.safetensors")
    assert moved["a"].dtype == torch.float32
    assert moved["a"][0] == 0
    assert (moved["a"] != values.float()).float().mean() > 0.99
    # below a power of two values lie closer, so a few round to a neighbour
    assert (moved["a"].to(dtype) == values).float().mean() > 0.99
    assert torch.equal(moved["b"], torch.ones(2))
    assert saved_dtype(tmp_path / "b.safetensors") == "fp32"
    assert saved_dtype(tmp_path / "a.safetensors") == NAMES[dtype]


def test_what_is_not_reproduced_stops_a_rendering_unless_told(tmp_path):
    folder = shutil.copytree(LIVE, tmp_path / "job")
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("arch: sd15", "arch: sd15\n      vae_path: x"))
    job = read_job(folder)
    with pytest.raises(InvalidInputError, match=r"1 setting.*model\.vae_path = 'x'.*--anyway"):
        as_trained(job, 4, "tiny")
    assert as_trained(job, 4, "tiny", anyway=True).model == "sd15"
    assert "not reproduced: model.vae_path = 'x'" in describe(job)


def test_steps_and_samples_that_are_not_there():
    job = read_job(LIVE)
    assert (job.find_step("latest"), job.find_step("2"), job.find_step("0")) == (4, 2, 0)
    for step in ("3", "-1", "last"):
        with pytest.raises(
            InvalidInputError, match=f"no step {step} with weights; it has: 0, 2, 4"
        ):
            job.find_step(step)
    with pytest.raises(InvalidInputError, match="samples 0 to 1; there is no number 5"):
        planned(job, as_trained(job, 2, "tiny"), only=(5,))


def test_control_images_of_another_machine(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    for path in ("/data/a.png", "C:\\data\\a.png"):
        assert find_control(path, tmp_path) == tmp_path / "a.png"
    with pytest.raises(
        InvalidInputError, match=r"control image b\.png is not in .*--control-images"
    ):
        find_control("/data/b.png", tmp_path)


@pytest.mark.parametrize(("model", "needed"), [("flex2", False), ("flux_kontext", True)])
def test_a_missing_control_image_stops_a_rendering_unless_told(tmp_path, model, needed):
    folder = shutil.copytree(LIVE, tmp_path / "job")
    config = folder / "config.yaml"
    text = config.read_text().replace("arch: sd15", f"arch: {model}")
    text = text.replace("- prompt: a photo", "- ctrl_img: /data/a.png\n        prompt: a photo")
    config.write_text(text)
    job = read_job(folder)
    assert "with /data/a.png" in describe(job)
    recipe = as_trained(job, 4, "tiny")
    with pytest.raises(InvalidInputError, match=r"a\.png is not at /data"):
        planned(job, recipe, only=(0,))
    if needed:  # as the trainer, the model does nothing without
        with pytest.raises(InvalidInputError, match=r"a\.png is not at /data"):
            planned(job, recipe, only=(0,), anyway=True)
        return
    ((sample, request),) = planned(job, recipe, only=(0,), anyway=True)
    assert (sample.controls, request.control_images) == (("/data/a.png",), ())


@pytest.mark.usefixtures("golden_bf16")
def test_the_report_is_one_file_with_everything_in_it(cpu, tmp_path):
    job = read_job(FLUX)
    found = verdicts(cpu, job, 2)
    write_report(job, found, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 2
    assert "0 identical, 2 within" in page and "saved as" in page
    assert "Drawn on cpu as trainer 0.12.26 draws; base" in page
    assert "http" not in page
    assert summary(found)["within_save_rounding"] == 2
    assert sheet(found).shape[2] == 3


def test_the_commands(tmp_path, capsys):
    assert main(["job", "show", "tiny", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["model"], shown["mode"], shown["sample_steps"]) == ("sd15", "live", [0, 2, 4])
    common = ["tiny", "--device", "cpu", "--only", "0", "--json"]
    assert main(["job", "render", *common, "--step", "2", "--out", str(tmp_path)]) == 0
    (file,) = json.loads(capsys.readouterr().out)["files"]
    assert Path(file).name == "000000002_0.png"
    report = tmp_path / "report.html"
    assert main(["job", "compare", *common, "--report", str(report)]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 4
    assert report.stat().st_size > 1000
    assert main(["job", "show", str(tmp_path)]) == 2
    assert "no config.yaml" in capsys.readouterr().err


def test_comparing_says_which_samples_have_no_weights(tmp_path, capsys):
    folder = shutil.copytree(LIVE, tmp_path / "job")
    (folder / "live_sd15.safetensors").unlink()
    common = ["--weights", "tiny", "--device", "cpu", "--only", "0"]
    assert main(["job", "compare", str(folder), *common]) == 0
    said = capsys.readouterr().out
    assert "step 2 is the latest with weights; there are samples of 4 too" in said
    (folder / "live_sd15.safetensors").write_bytes(b"no")
    assert "weights   of steps 2, unknown (final)" in describe(read_job(folder))
    assert main(["job", "compare", str(folder), *common, "--step", "4"]) == 2
    assert "keeps the weights of the last few" in capsys.readouterr().err


def test_a_damaged_sample_is_named(cpu, tmp_path):
    folder = shutil.copytree(LIVE, tmp_path / "job")
    job = read_job(folder)
    file = job.samples_of(4).files[0]
    file.write_bytes(b"no")
    with pytest.raises(InvalidInputError, match=f"{file.name} could not be read.*out of samples/"):
        verdicts(cpu, job, 4)


def test_the_recipe_names_the_version_even_before_training():
    job = read_job(LIVE)
    (ref,) = job.recipe(0, "tiny").adapters
    assert (ref.multiplier, Path(ref.path).name) == (0.0, "live_sd15_000000002.safetensors")
    assert replace(job, checkpoints=()).recipe(0, "tiny").adapters == ()


def test_rendered_is_what_was_asked_for(cpu):
    job = read_job(LIVE)
    seen = []
    (drawn,) = render(
        cpu,
        planned(job, as_trained(job, 2, "tiny"), only=(1,)),
        on_sample=lambda done, total: seen.append((done, total)),
    )
    assert isinstance(drawn, Rendered)
    assert seen == [(1, 1)]
    assert (drawn.result.info["height"], drawn.result.info["width"]) == (64, 104)
