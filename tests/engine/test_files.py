"""Files: the bytes Pillow writes by itself, clips that decode again, all of it or nothing."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence

from ai_toolkit_inference import SampleResult
from ai_toolkit_inference.core.errors import (
    InvalidInputError,
    MissingDependencyError,
    OutputError,
)
from ai_toolkit_inference.engine.files import check_format, save_sample, save_video

RATE = 44_100


def clip(frames: int = 1, height: int = 48, width: int = 64) -> np.ndarray:
    """Soft moving colours, as video encoders like them."""
    y, x = np.mgrid[0:height, 0:width]
    shots = [
        np.stack([x * 3 + 4 * t, y * 4, np.full_like(x, 9 * t)], axis=-1) for t in range(frames)
    ]
    return np.stack(shots).astype(np.uint8)


def result(frames: np.ndarray, fps: float = 16, audio: np.ndarray | None = None) -> SampleResult:
    return SampleResult(frames, fps, {}, audio, RATE if audio is not None else 0)


def sound(channels: int = 2, seconds: float = 1.0) -> np.ndarray:
    wave = np.sin(np.arange(int(RATE * seconds)) * 2 * np.pi * 440 / RATE) * 0.5
    return np.stack([wave] * channels).astype(np.float32)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.jpeg", "a.webp", "A.PNG", "a.b.png"])
def test_a_picture_is_what_pillow_writes_by_default(tmp_path, name):
    frames = np.random.default_rng(0).integers(0, 256, (1, 40, 72, 3), np.uint8)
    path = save_sample(result(frames), tmp_path / "new" / "folders" / name)
    plain = io.BytesIO()
    kind = path.suffix.lower().removeprefix(".").replace("jpg", "jpeg")
    Image.fromarray(frames[0]).save(plain, format=kind)
    assert path.read_bytes() == plain.getvalue()
    if kind == "jpeg":
        assert Image.open(path).quantization == _tables(quality=75)
    assert os.listdir(path.parent) == [name]


def _tables(quality: int) -> dict[int, list[int]]:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, format="jpeg", quality=quality)
    return Image.open(buffer).quantization


@pytest.mark.parametrize("fps", [1, 7, 16, 24.0, 23.976, 1000])
def test_an_animation_is_what_the_trainers_call_writes(tmp_path, fps):
    frames = clip(5)
    path = save_sample(result(frames, fps), tmp_path / "a.webp")
    first, *rest = (Image.fromarray(frame) for frame in frames)
    plain = io.BytesIO()
    duration = int(1000 // fps)
    first.save(
        plain, "WEBP", append_images=rest, save_all=True, duration=duration, loop=0, quality=80
    )
    assert path.read_bytes() == plain.getvalue()
    with Image.open(path) as image:
        assert (image.n_frames, image.size, image.info["loop"]) == (5, (64, 48), 0)
        shots = ImageSequence.all_frames(image)  # loaded, which tells their durations
        assert {shot.info["duration"] for shot in shots} == {duration}


# --- video -----------------------------------------------------------------------------------

CODECS = {"mp4": ("h264", "aac"), "webm": ("vp9", "opus")}


def decoded(path: Path) -> tuple[list[np.ndarray], av.VideoStream]:
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(stream)]
    return frames, stream


@pytest.mark.parametrize("ending", CODECS)
@pytest.mark.parametrize(
    ("frames", "height", "width"),
    [(1, 48, 64), (2, 48, 64), (17, 48, 64), (9, 49, 65), (9, 48, 63)],
)
def test_a_clip_decodes_to_its_frames(tmp_path, ending, frames, height, width):
    shots = clip(frames, height, width)
    path = save_sample(result(shots, 24), tmp_path / f"a.{ending}")
    found, stream = decoded(path)
    assert stream.codec_context.codec.canonical_name == CODECS[ending][0]
    assert stream.codec_context.pix_fmt == "yuv420p"
    assert len(found) == frames
    assert {shot.shape for shot in found} == {(height - height % 2, width - width % 2, 3)}
    cropped = shots[:, : found[0].shape[0], : found[0].shape[1]].astype(int)
    assert np.abs(np.stack(found) - cropped).mean() < 12
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("ending", CODECS)
@pytest.mark.parametrize("fps", [1, 8, 16, 23.976, 24.0, 29.97, 60])
def test_a_clip_keeps_its_rate(tmp_path, ending, fps):
    path = save_sample(result(clip(12), fps), tmp_path / f"a.{ending}")
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        assert float(stream.average_rate) == pytest.approx(fps, rel=0.01)
        times = [float(frame.pts * stream.time_base) for frame in file.decode(stream)]
    assert np.diff(times) == pytest.approx(1 / fps, abs=0.0011)


@pytest.mark.parametrize("ending", CODECS)
@pytest.mark.parametrize("channels", [1, 2])
def test_a_clip_has_its_sound(tmp_path, ending, channels):
    audio = sound(channels)
    path = save_sample(result(clip(16), 16, audio), tmp_path / f"a.{ending}")
    with av.open(str(path)) as file:
        stream = file.streams.audio[0]
        assert stream.codec_context.codec.canonical_name == CODECS[ending][1]
        assert stream.codec_context.layout.nb_channels == channels
        found = np.concatenate([frame.to_ndarray() for frame in file.decode(stream)], axis=-1)
        rate = stream.rate
    assert found.shape[1] / rate == pytest.approx(1.0, abs=0.06)
    middle = found[0, rate // 4 : rate // 2]
    assert np.sqrt((middle**2).mean()) == pytest.approx(0.5 / np.sqrt(2), rel=0.1)
    spectrum = np.abs(np.fft.rfft(middle))
    assert spectrum.argmax() * rate / len(middle) == pytest.approx(440, abs=8)
    assert len(decoded(path)[0]) == 16


@pytest.mark.parametrize("ending", CODECS)
def test_tags_quality_and_progress(tmp_path, ending):
    noise = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
    told, sizes = [], []
    for crf in (5, 45):
        path = tmp_path / f"{crf}.{ending}"
        save_video(noise, path, 8, crf=crf, metadata={"comment": "{}"}, on_frame=told.append)
        sizes.append(path.stat().st_size)
        with av.open(str(path)) as file:
            tags = {key.lower(): value for key, value in file.metadata.items()}
        assert tags["comment"] == "{}"
    assert told == [1, 2, 3, 4] * 2
    assert sizes[0] > 1.5 * sizes[1]


# --- what cannot be written ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "a.gif", "a.png.txt", "png", "a.", ".png", "a.tiff"])
def test_unknown_endings(tmp_path, name):
    with pytest.raises(InvalidInputError, match=r"unknown format .*\.png, \.jpg, \.webp"):
        save_sample(result(clip()), tmp_path / name)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_several_frames_are_no_picture(tmp_path, name):
    with pytest.raises(InvalidInputError, match="3 frames do not fit"):
        save_sample(result(clip(3)), tmp_path / name)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["a.webp", "a.mp4"])
def test_impossible_rates(tmp_path, name, fps):
    with pytest.raises(InvalidInputError, match="fps="):
        save_sample(result(clip(3), fps), tmp_path / name)
    assert not os.listdir(tmp_path)


ALL = {"a.png": 1, "a.jpg": 1, "a.webp": 1, "b.webp": 3, "a.mp4": 3, "a.webm": 3}


@pytest.mark.parametrize("name", ALL)
def test_a_file_in_place_of_the_folder(tmp_path, name):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "sub", tmp_path / ("x" * 300)):
        with pytest.raises(OutputError, match="could not be written"):
            save_sample(result(clip(ALL[name])), folder / name)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "mine")]


@pytest.mark.parametrize("name", ALL)
def test_a_folder_in_place_of_the_file(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(OutputError, match="could not be written"):
        save_sample(result(clip(ALL[name])), tmp_path / name)
    assert os.listdir(tmp_path) == [name]


@contextmanager
def file_size_limit(size: int):
    """What a full disk does, for this process: writing past `size` bytes of a file fails."""
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
@pytest.mark.parametrize("name", ALL)
def test_a_full_disk_leaves_what_was_there(tmp_path, name):
    frames = np.random.default_rng(0).integers(0, 256, (ALL[name], 96, 96, 3), np.uint8)
    for limit in (100, 3000):
        (tmp_path / name).write_bytes(b"old")
        with file_size_limit(limit), pytest.raises(OutputError, match=name):
            save_sample(result(frames), tmp_path / name)
        assert os.listdir(tmp_path) == [name]
        assert (tmp_path / name).read_bytes() == b"old"


def test_a_picture_too_large_for_its_format(tmp_path):
    with pytest.raises(OutputError, match="could not be encoded"):
        save_sample(result(clip(1, 1, 16384)), tmp_path / "a.webp")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("name", ALL)
def test_an_interrupted_write_leaves_nothing(tmp_path, name):
    frames = clip(ALL[name])

    class Interrupted(list):
        def __iter__(self):
            yield frames[0]
            raise KeyboardInterrupt

        def __getitem__(self, index):  # type: ignore[override]
            if name.endswith((".mp4", ".webm")):
                return frames[index]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_sample(result(Interrupted(frames)), tmp_path / name)
    assert not os.listdir(tmp_path)


def test_a_long_name_fits_as_long_as_it_is_legal(tmp_path):
    save_sample(result(clip()), tmp_path / ("x" * 251 + ".png"))
    with pytest.raises(OutputError):
        save_sample(result(clip()), tmp_path / ("x" * 252 + ".png"))
    assert len(os.listdir(tmp_path)) == 1


def test_without_pyav_only_clips_fail(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    save_sample(result(clip(2)), tmp_path / "a.webp")
    with pytest.raises(MissingDependencyError, match="pip install av"):
        save_sample(result(clip(2)), tmp_path / "a.mp4")
    assert os.listdir(tmp_path) == ["a.webp"]


def test_formats_are_known_without_torch():
    code = (
        "import sys; from pathlib import Path; "
        "from ai_toolkit_inference.core.requests import FORMATS; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert check_format(Path("a.JPEG")) == "jpg"
