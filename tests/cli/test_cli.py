"""`aitk`: exit status, one line of errors, one JSON object, equal bytes twice."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from importlib import metadata

import pytest
from PIL import Image

from ai_toolkit_inference import list_models
from ai_toolkit_inference.cli.commands import parse_lora, said_once
from ai_toolkit_inference.cli.main import main
from ai_toolkit_inference.core.errors import InvalidInputError

SMALL = ["--weights", "tiny", "--width", "64", "--height", "64", "--steps", "1"]
SMALL += ["--dtype", "fp32", "--device", "cpu"]


@pytest.fixture
def aitk(capfd):
    """aitk("models", "--json") -> (exit status, stdout, stderr)"""

    def aitk(*arguments: object) -> tuple[int, str, str]:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as exit:
            status = exit.code
        return (status, *capfd.readouterr())  # type: ignore

    return aitk


@pytest.fixture
def sample(aitk, tmp_path):
    """aitk sample of a small picture with more options; into a.png unless they name another."""

    def sample(*options: object, model: str = "sd15", prompt: str = "a cat", out: str = "a.png"):
        path = tmp_path / out
        basics = ("--model", model, "--prompt", prompt, *SMALL, "--out", path)
        return (*aitk("sample", *basics, *options), path)

    return sample


def one_object(stdout: str) -> dict:
    assert stdout.endswith("}\n")
    assert stdout.count("\n") == 1
    return json.loads(stdout)


def refused(status: int, stdout: str, stderr: str, message: str) -> None:
    assert (status, stdout) == (2, "")
    assert re.fullmatch(r"aitk[^\n]*\n", stderr), stderr
    assert re.search(message, stderr), stderr


# --- models, lora, tiny, doctor --------------------------------------------------------------


def test_models(aitk):
    status, stdout, stderr = aitk("models")
    assert (status, stderr) == (0, "")
    assert [line.split()[0] for line in stdout.splitlines()] == [spec.id for spec in list_models()]
    status, stdout, _ = aitk("models", "--json")
    rows = one_object(stdout)["models"]
    assert [row["id"] for row in rows] == [spec.id for spec in list_models()]
    assert all(row["defaults"]["sampler"] in row["samplers"] for row in rows)


def test_models_needs_no_torch():
    code = (
        "import sys; from ai_toolkit_inference.cli.main import main; "
        "main(['models', '--json']); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1] == "False"


def test_lora_show(aitk, trained_lora):
    path = trained_lora("sd15", "0.7.19")
    status, stdout, stderr = aitk("lora", "show", path)
    assert (status, stderr) == (0, "")
    assert "trained on sd_1.5 with ai-toolkit 0.7.19" in stdout
    assert "strongest blocks" in stdout
    for model, fits in (("sd15", True), ("sdxl", False)):
        options = ("--model", model, "--weights", "tiny", "--json")
        status, stdout, stderr = aitk("lora", "show", path, *options)
        assert (status, stderr) == (0, "")
        report = one_object(stdout)
        assert (report["trainer_version"], report["base_model"]) == ("0.7.19", "sd_1.5")
        assert (report["unbound"] + report["mismatched"] == []) == fits
        found = report["bound"] + len(report["unbound"]) + len(report["mismatched"])
        assert found == report["layers"]


@pytest.mark.parametrize("seed", [0, 3])
def test_tiny_writes_weights_and_a_lora_that_fit(aitk, tmp_path, seed):
    folder, lora = tmp_path / "new" / "tiny", tmp_path / "loras" / "a.safetensors"
    command = ("tiny", "flux", folder, "--lora", lora, "--seed", seed, "--json")
    status, stdout, stderr = aitk(*command)
    assert (status, stderr) == (0, "")
    assert one_object(stdout) == {"folder": str(folder), "lora": str(lora)}
    options = ("--model", "flux", "--weights", folder, "--json")
    report = one_object(aitk("lora", "show", lora, *options)[1])
    assert report["bound"] == report["layers"] > 0
    refused(*aitk(*command), "exists; name a folder that does not")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("sd3", "{new}"), "unknown model 'sd3'; allowed: "),
        (("sd15", "{new}", "--seed", "-1"), "seed=-1"),
        (("sd15", "{new}", "--seed", 2**40), "seed="),
        (("sd15", "{new}", "--seed", "x"), "--seed: invalid int value"),
        (("sd15", "{new}", "--lora", "a.pt"), r"end in \.safetensors"),
        (("sd15",), "required: DIR"),
    ],
)
def test_tiny_refuses(aitk, tmp_path, options, message):
    new = tmp_path / "new"
    refused(*aitk("tiny", *(str(option).format(new=new) for option in options)), message)
    assert not new.exists()


def test_tiny_where_nothing_can_be_written(aitk, tmp_path, lora):
    (tmp_path / "file").write_text("mine")
    for options in (
        (tmp_path / "file" / "tiny",),
        (tmp_path / "tiny", "--lora", tmp_path / "file" / "a.safetensors"),
    ):
        status, stdout, stderr = aitk("tiny", "sd15", *options)
        assert (status, stdout) == (1, "")
        assert re.fullmatch(r"aitk: [^\n]* could not be written: [^\n]*\n", stderr)
    assert (tmp_path / "file").read_text() == "mine"


def test_doctor(aitk, cache_folder):
    status, stdout, stderr = aitk("doctor", "--json")
    report = one_object(stdout)
    assert (status, stderr) == (0, "")
    assert report["folders"]["cache"] == str(cache_folder)
    assert report["devices"][0] == "cpu"
    assert report["versions"]["torch"] == metadata.version("torch")
    status, stdout, _ = aitk("doctor")
    assert status == 0
    assert all(finding in stdout for finding in report["findings"])


# --- sample ----------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["sd15", "flux"])
def test_the_same_command_twice_gives_equal_bytes(sample, lora, model):
    options = ("--lora", f"{lora(model)}:0.5", "--mode", "live", "--json")
    prompt, written = "a [trigger] --w 96 --seed 7", []
    for out in ("a.png", "sub/b.png"):
        command = (*options, "--trigger-word", "sks")
        status, stdout, stderr, path = sample(*command, model=model, prompt=prompt, out=out)
        assert (status, stderr) == (0, "")
        report = one_object(stdout)
        assert report["file"] == str(path)
        info = report["info"]
        assert (info["prompt"], info["seed"], info["width"]) == ("a sks", 7, 96)
        assert info["adapters"][0]["multiplier"] == 0.5
        written.append(path.read_bytes())
    assert written[0] == written[1]
    with Image.open(path) as image:
        assert image.size == (96, 64)


def test_two_processes_give_equal_bytes(tmp_path, sample):
    """And the command works from outside, started as a module."""
    command = [sys.executable, "-m", "ai_toolkit_inference.cli", "sample", "--model", "sd15"]
    command += ["--prompt", "a cat", *SMALL, "--out", "there.png"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert re.fullmatch(r"there\.png  64x64  seed 42  [0-9.]+ s\n", done.stdout)
    assert sample()[3].read_bytes() == (tmp_path / "there.png").read_bytes()


def test_options_reach_the_request(sample):
    _, stdout, _, _ = sample(
        *("--negative", "dull", "--guidance", "0", "--seed", 2**64 - 1, "--sampler", "ddim"),
        *("--trainer-version", "0.7.19", "--json"),
    )
    info = one_object(stdout)["info"]
    assert (info["negative_prompt"], info["guidance_scale"], info["sampler"]) == ("dull", 0, "ddim")
    assert (info["seed"], info["trainer_version"]) == (2**64 - 1, "0.7.19")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--steps", "0x"), "argument --steps: invalid int value"),
        (("--steps", "-1"), "steps=-1"),
        (("--width", "99999"), "width=99999"),
        (("--seed", "-1"), "seed=-1"),
        (("--seed", 2**64), "seed="),
        (("--guidance", "nan"), "guidance_scale=nan"),
        (("--guidance", "-3"), "guidance_scale=-3"),
        (("--sampler", "unipc"), "unknown sampler 'unipc'"),
        (("--dtype", "fp8"), "invalid choice"),
        (("--trainer-version", "0.8.0"), "invalid choice"),
        (("--device", "gpu"), "unknown device 'gpu'; allowed: cpu, cuda, cuda:N"),
        (("--device", "cuda:99"), "there is no device cuda:99"),
        (("--weights", "/none"), "no weights at /none"),
        (("--lora", "/none.safetensors"), "there is no LoRA file /none.safetensors"),
        (("--lora", "a.safetensors:x"), "'x' is not a number"),
        (("--lora", "a.safetensors:nan"), "multiplier=nan"),
        (("--assistant-lora", "a/b/c.safetensors"), "sd15 takes no assistant_lora_path"),
        (("--inference-lora", "tiny"), "sd15 takes no inference_lora_path"),
        (("--base-lora", "/none.safetensors"), "no LoRA at /none.safetensors"),
        (("--control-image", "a.png"), "no control image a"),
        (("--switch", "kv_cache"), "switch 'kv_cache'; write NAME=on or NAME=off"),
        (("--switch", "kv_cache=on"), "unknown switch of sd15 'kv_cache'; allowed: none"),
        (("--out", "a.gif"), r"unknown format '\.gif'"),
        (("--out", "folder/"), "unknown format"),
        (("--prompt", "a --w x"), "prompt flag --w got 'x'"),
        (("--prompt", "a --w \n0x"), "whole number"),
        (("--model", "sd3"), "unknown model 'sd3'"),
        (("--no-such-option",), "unrecognized arguments"),
    ],
)
def test_bad_input_is_one_line(sample, options, message):
    *outcome, path = sample(*options)
    refused(*outcome, message)
    assert not path.exists()


@pytest.mark.parametrize("arguments", [(), ("paint",), ("lora",), ("sample", "--model", "sd15")])
def test_incomplete_commands_are_one_line(aitk, arguments):
    refused(*aitk(*arguments), "see aitk.* --help")


def test_a_lora_of_another_model_is_refused(sample, lora):
    *outcome, path = sample("--lora", lora("sdxl"))
    refused(*outcome, r"does not fit sd15: .*[0-9]+ of [0-9]+")
    assert not path.exists()


def test_a_picture_that_cannot_be_saved(sample, tmp_path):
    (tmp_path / "file").write_text("mine")
    status, stdout, stderr, _ = sample(out="file/a.png")
    assert (status, stdout) == (1, "")
    assert re.fullmatch(r"aitk: [^\n]*could not be written[^\n]*\n", stderr)


@pytest.mark.parametrize("command", ["models", "sample", "lora", "tiny", "run", "doctor"])
def test_help(aitk, command):
    status, stdout, stderr = aitk(command, "--help")
    assert (status, stderr) == (0, "")
    assert stdout.startswith(f"usage: aitk {command}")
    assert aitk("--version")[1].startswith("aitk ")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a timer signal")
def test_an_interrupt_ends_with_one_line(sample, tmp_path):
    sample(out="first.png")  # everything is imported now
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 1)
        status, stdout, stderr, _ = sample("--steps", 999)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert (status, stdout, stderr) == (1, "", "aitk: interrupted\n")
    assert os.listdir(tmp_path) == ["first.png"]


# --- FILE:MULT -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "path", "multiplier"),
    [
        ("a.safetensors", "a.safetensors", 1.0),
        ("a.safetensors:0.5", "a.safetensors", 0.5),
        ("a.safetensors:-1", "a.safetensors", -1.0),
        ("a.safetensors:1e-3", "a.safetensors", 0.001),
        ("A.SAFETENSORS:2", "A.SAFETENSORS", 2.0),
        (r"C:\loras\a.safetensors", r"C:\loras\a.safetensors", 1.0),
        (r"C:\loras\a.safetensors:0.5", r"C:\loras\a.safetensors", 0.5),
        ("/a:b/c d.safetensors:2", "/a:b/c d.safetensors", 2.0),
        ("a.safetensors:1/b.safetensors", "a.safetensors:1/b.safetensors", 1.0),
        ("a.safetensors:1/b.safetensors:3", "a.safetensors:1/b.safetensors", 3.0),
        ("tiny", "tiny", 1.0),
        ("tiny:0.5", "tiny", 0.5),
        ("a.pt", "a.pt", 1.0),
        ("a.pt:0.5", "a.pt", 0.5),
        ("ab:c.safetensors", "ab:c.safetensors", 1.0),
        (r"C:a.safetensors", r"C:a.safetensors", 1.0),
    ],
)
def test_files_with_multipliers(text, path, multiplier):
    ref = parse_lora(text)
    assert (ref.path, ref.multiplier) == (path, multiplier)


@pytest.mark.parametrize(
    "text", ["a.safetensors:", "a.safetensors:x", "a.safetensors:1,5", "a.safetensors:inf", "tiny:"]
)
def test_multipliers_that_are_no_number(text):
    with pytest.raises(InvalidInputError):
        parse_lora(text)


def test_a_text_is_said_once_until_another_comes():
    said: list[str] = []
    tell = said_once(said.append)
    for text in ("Loading", "Sampling", "Sampling", "Sampling", "Decoding", "Sampling"):
        tell(text)
    assert said == ["Loading", "Sampling", "Decoding", "Sampling"]
