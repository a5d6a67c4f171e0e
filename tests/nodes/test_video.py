"""What the nodes make of clips and sound, and what they write into files for ComfyUI's page."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ai_toolkit_inference import SampleResult
from ai_toolkit_inference.core.errors import InvalidInputError
from ai_toolkit_inference.core.requests import Recipe
from ai_toolkit_inference.engine.files import save_animation
from ai_toolkit_inference.nodes import _comfy, _memory, sample, video


class Engine:
    """One that gives a ready result."""

    def __init__(self, result: SampleResult) -> None:
        self.result = result

    def plan(self, request, on_status):
        return None

    def holds(self, recipe):
        return True

    def sample(self, request, **reporters):
        return self.result


def drawn(monkeypatch, result: SampleResult):
    monkeypatch.setattr(_comfy, "engine", lambda: Engine(result))
    monkeypatch.setattr(_comfy, "step_reporter", lambda node_id: None)
    monkeypatch.setattr(_comfy, "status_reporter", lambda node_id: lambda text: None)
    monkeypatch.setattr(_memory, "room_for", lambda engine, recipe: nullcontext())
    node = sample.AIToolkitSample()
    return node.sample(Recipe("sd15", weights="tiny"), "a cat", "", 0, 0, 0, -1.0, 42)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_clip_with_sound_is_comfyuis_audio(monkeypatch, dtype):
    frames = np.random.default_rng(0).integers(0, 256, (5, 6, 8, 3), np.uint8)
    frames.flags.writeable = False
    sound = np.random.default_rng(1).uniform(-1, 1, (2, 300)).astype(dtype)
    result = SampleResult(frames, 24, {"seed": 42, "seconds": 1.0}, sound, np.int64(24_000))
    images, audio, fps, info = drawn(monkeypatch, result)
    assert torch.equal(images, torch.from_numpy(frames.copy()).float() / 255)
    assert audio["waveform"].dtype == torch.float32
    assert np.array_equal(audio["waveform"].numpy(), sound.astype(np.float32)[None])
    assert (audio["sample_rate"], type(audio["sample_rate"])) == (24_000, int)
    assert (fps, type(fps)) == (24.0, float)
    assert json.loads(info) == result.info


def test_a_model_without_sound_has_no_audio(monkeypatch):
    _, audio, fps, _ = drawn(
        monkeypatch, SampleResult(np.zeros((1, 4, 4, 3), np.uint8), 16, {"seconds": 1.0})
    )
    assert (audio, fps) == (None, 16.0)


def test_frames_come_back_as_they_went():
    frames = np.arange(256, dtype=np.uint8).repeat(3).reshape(4, 8, 8, 3)
    given = _comfy.Frames(_comfy.frames_to_image(frames))
    assert len(given) == 4
    assert np.array_equal(np.stack(list(given)), frames)


def test_frames_are_cut_to_three_channels_and_to_their_range():
    images = torch.tensor([[-0.5, 0.5, 1.5, 0.25]]).expand(2, 3, 4, 4)
    assert np.stack(list(_comfy.Frames(images))).tolist()[0][0][0] == [0, 128, 255]


@pytest.mark.parametrize(("seconds", "samples"), [(0.5, 500), (0.0005, 1), (2.0, 1000)])
def test_sound_ends_with_the_clip(seconds, samples):
    audio = {"waveform": torch.rand(1, 2, 1000, dtype=torch.float16), "sample_rate": 1000}
    sound, rate = _comfy.audio_to_sound(audio, seconds)
    assert (sound.shape, sound.dtype, rate) == ((2, samples), np.float32, 1000)
    assert np.array_equal(sound, audio["waveform"][0, :, :samples].float())
    assert _comfy.audio_to_sound(None, seconds) == (None, 0)


@pytest.mark.parametrize("shape", [(3, 2, 100), (2, 100), (0, 2, 100)])
def test_several_sounds_are_refused(shape):
    audio = {"waveform": torch.zeros(shape), "sample_rate": 8000}
    with pytest.raises(InvalidInputError, match="one sound is needed"):
        _comfy.audio_to_sound(audio, 1)


def test_tags_are_json_without_braces_in_texts():
    prompt = {
        "1": {"text": 'a smile :} \\"{" and {a|b', "é": [1.5, math.nan, math.inf, -math.inf]},
        "2": {"is_changed": [math.nan], "name": "NaN and -Infinity {"},
    }
    tags = video._metadata(prompt, {"workflow": {"nodes": [{"title": "}}"}]}})
    assert json.loads(tags["workflow"]) == {"nodes": [{"title": "}}"}]}
    found = json.loads(tags["prompt"], parse_constant=pytest.fail)
    expected = prompt | {"2": {"is_changed": [None], "name": "NaN and -Infinity {"}}
    expected["1"] = prompt["1"] | {"é": [1.5, None, None, None]}
    assert found == expected
    for tag in tags.values():
        assert _closing_brace(tag) == len(tag) - 1


def _closing_brace(text: str) -> int:
    # as ComfyUI's page looks for it
    depth = 0
    for index, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return index
    return -1


def test_nothing_to_tell_is_no_tag():
    assert video._metadata(None, None) == {}


@pytest.mark.parametrize("ending", ["mp4", "webp"])
@pytest.mark.parametrize(("off", "sent"), [(False, True), (True, True), (False, False)])
def test_no_tags_where_comfyui_was_told_so(monkeypatch, tmp_path, off, sent, ending):
    shown = {"filename": f"a.{ending}", "subfolder": "", "type": "output"}
    monkeypatch.setattr(_comfy, "output_file", lambda *_: (tmp_path / f"a.{ending}", shown))
    monkeypatch.setattr(_comfy, "frame_reporter", lambda *_: lambda done: None)
    monkeypatch.setattr(_comfy, "metadata_is_off", lambda: off)
    monkeypatch.setattr(_comfy, "make_video", lambda images, audio, rate: (images, audio, rate))
    images = torch.zeros(3, 32, 48, 3)
    page = {"workflow": {}} if sent else None  # what a script does not send
    done = video.SaveVideo().save(images, 23.976, "a", ending, prompt={"1": {}}, extra_pnginfo=page)
    assert done["ui"] == {"images": [shown], "animated": (True,)}
    given, sound, rate = done["result"][0]
    assert given is images and sound is None and rate == Fraction(2997, 125)
    plain = off or (ending == "webp" and not sent)
    assert has_prompt(tmp_path / f"a.{ending}") is not plain
    if plain and ending == "webp":
        save_animation(_comfy.Frames(images), tmp_path / "ours.webp", 23.976)
        assert (tmp_path / "a.webp").read_bytes() == (tmp_path / "ours.webp").read_bytes()


def has_prompt(file: Path) -> bool:
    import av

    if file.suffix == ".webp":
        with Image.open(file) as image:
            return 'prompt:{"1": {}}' in image.getexif().values()
    with av.open(str(file)) as clip:
        return "prompt" in clip.metadata
