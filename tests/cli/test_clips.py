"""`aitk sample --out clip.*`: clips with their sound, and files that cannot hold what is drawn."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ai_toolkit_inference import Engine, SampleResult
from ai_toolkit_inference.cli.main import main

FRAMES, RATE = 9, 24_000


@pytest.fixture
def aitk(capfd, tmp_path):
    """aitk sample --out of a name in tmp_path: (exit status, stdout, stderr)"""

    def aitk(out: str, *options: str) -> tuple[int, str, str]:
        command = ["sample", "--model", "sd15", "--weights", "tiny", "--prompt", "a cat"]
        small = ["--width", "64", "--height", "64", "--steps", "1", "--device", "cpu"]
        return (
            main([*command, *small, *options, "--out", str(tmp_path / out)]),
            *capfd.readouterr(),
        )

    return aitk


@pytest.fixture
def clips(monkeypatch):
    """Every model draws nine frames with a second of sound; what was drawn, in a list."""
    frames = np.random.default_rng(0).integers(0, 256, (FRAMES, 48, 64, 3), np.uint8)
    sound = np.sin(np.arange(RATE) / RATE * 2 * np.pi * 440)[None].astype(np.float32)
    info = {"width": 64, "height": 48, "seed": 42, "seconds": 1.0}
    drawn = []

    def sample(self, request, **reporters):
        drawn.append(SampleResult(frames, 9, info, sound, RATE))
        return drawn[-1]

    settings = SimpleNamespace(num_frames=FRAMES)
    plan = SimpleNamespace(spec=SimpleNamespace(task="video"), settings=settings)
    monkeypatch.setattr(Engine, "sample", sample)
    monkeypatch.setattr(Engine, "plan", lambda *_: plan)
    return drawn


@pytest.mark.parametrize("ending", ["mp4", "webm"])
def test_a_clip_is_written_with_its_sound(aitk, clips, tmp_path, ending):
    import av

    status, stdout, stderr = aitk(f"new/clip.{ending}")
    assert (status, stderr) == (0, "")
    assert re.search(rf"clip\.{ending}  64x48  9 frames  9 fps  seed 42  1\.0 s\n$", stdout)
    with av.open(str(tmp_path / "new" / f"clip.{ending}")) as file:
        assert sum(1 for _ in file.decode(file.streams.video[0])) == FRAMES
        file.seek(0)
        heard = [frame.to_ndarray() for frame in file.decode(file.streams.audio[0])]
    assert np.concatenate(heard, axis=-1).std() > 0.2


def test_a_webp_says_that_it_has_no_sound(aitk, clips, tmp_path):
    status, stdout, stderr = aitk("clip.webp")
    assert (status, stderr) == (0, "")
    assert "9 frames  9 fps without its sound" in stdout
    with Image.open(tmp_path / "clip.webp") as image:
        assert image.n_frames == FRAMES  # type: ignore[attr-defined]


def test_a_clip_is_no_picture_and_nothing_is_drawn(aitk, clips, tmp_path):
    for name in ("clip.png", "clip.jpg"):
        status, stdout, stderr = aitk(name)
        assert (status, stdout, stderr.count("\n")) == (2, "", 1)
        assert "9 frames do not fit" in stderr and ".webp, .mp4, .webm" in stderr
    assert clips == [] and list(tmp_path.iterdir()) == []


def test_a_picture_is_no_clip_and_nothing_is_loaded(aitk, monkeypatch, tmp_path):
    monkeypatch.setattr(Engine, "sample", pytest.fail)
    for options in ((), ("--frames", "9")):
        status, stdout, stderr = aitk("picture.mp4", *options)
        assert (status, stdout, stderr.count("\n")) == (2, "", 1)
        assert "picture.mp4: a picture does not fit a .mp4 file; " in stderr
    assert list(tmp_path.iterdir()) == []
