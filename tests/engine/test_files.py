"""Files: the bytes Pillow writes by itself, all of it or nothing."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence

from ai_toolkit_inference import SampleResult
from ai_toolkit_inference.core.errors import (
    InvalidInputError,
    MissingDependencyError,
    OutputError,
)
from ai_toolkit_inference.engine.files import (
    check_fit,
    check_format,
    save_animation,
    save_sample,
)


def clip(frames: int = 1, height: int = 48, width: int = 64) -> np.ndarray:
    """Soft moving colours, as video encoders like them."""
    y, x = np.mgrid[0:height, 0:width]
    shots = [
        np.stack([x * 3 + 4 * t, y * 4, np.full_like(x, 9 * t)], axis=-1) for t in range(frames)
    ]
    return np.stack(shots).astype(np.uint8)


def result(frames: np.ndarray, fps: float = 16) -> SampleResult:
    return SampleResult(frames, fps, {})


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


def test_one_frame_and_odd_sides_are_animations_too(tmp_path):
    for frames in (clip(1), clip(3, 49, 65), clip(2, 1, 1)):
        save_animation(frames, tmp_path / "a.webp", 8)
        first, *rest = (Image.fromarray(frame) for frame in frames)
        plain = io.BytesIO()
        first.save(
            plain, "WEBP", append_images=rest, save_all=True, duration=125, loop=0, quality=80
        )
        assert (tmp_path / "a.webp").read_bytes() == plain.getvalue()


def test_an_animation_is_made_frame_by_frame_and_tells(tmp_path):
    made, told = [], []

    class Lazy(Sequence[np.ndarray]):
        def __len__(self):
            return 12

        def __getitem__(self, index) -> Any:
            frame = np.full((32, 48, 3), 20 * index, np.uint8)
            made.append(weakref.ref(frame))
            assert sum(frame() is not None for frame in made) <= 2
            return frame

    save_animation(Lazy(), tmp_path / "a.webp", 8, told.append)
    assert len(made) == 12
    assert told == list(range(1, 13))


@pytest.mark.parametrize("frames", [clip(5), clip(3, 49, 65), clip(1)], ids=len)
def test_texts_leave_the_frames_of_an_animation_as_they_are(tmp_path, frames):
    tags = {"prompt": json.dumps({"1": "a: \\u00fc }"})} | {
        f"tag{index}": "x" for index in range(9)
    }
    for name, texts in (("plain", {}), ("tagged", tags)):
        save_animation(frames, tmp_path / f"{name}.webp", 8, tags=texts)
    plain, tagged = (webp_chunks(tmp_path / f"{name}.webp") for name in ("plain", "tagged"))
    assert [kind for kind, _ in tagged][-1] == b"EXIF"
    frameless = (b"VP8X", b"EXIF")  # the first says that there is EXIF
    assert [c for c in tagged if c[0] not in frameless] == [c for c in plain if c[0] != b"VP8X"]
    with Image.open(tmp_path / "tagged.webp") as image:
        found = dict(text.split(":", 1) for text in image.getexif().values())
    assert found == tags


def webp_chunks(path: Path) -> list[tuple[bytes, bytes]]:
    content, chunks, at = path.read_bytes(), [], 12
    while at < len(content):
        size = int.from_bytes(content[at + 4 : at + 8], "little")
        chunks.append((content[at : at + 4], content[at + 8 : at + 8 + size]))
        at += 8 + size + size % 2
    return chunks


@pytest.mark.parametrize("at", [1, 3, 4])
def test_an_animation_stopped_by_its_listener_leaves_what_was_there(tmp_path, at):
    (tmp_path / "a.webp").write_bytes(b"old")

    def stop(done: int) -> None:
        if done == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_animation(clip(5), tmp_path / "a.webp", 8, stop)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


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


@pytest.mark.parametrize("fps", [0, -1, 1e-9, 1001, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["a.webp", "a.mp4"])
def test_impossible_rates(tmp_path, name, fps):
    with pytest.raises(InvalidInputError, match="fps="):
        save_sample(result(clip(3), fps), tmp_path / name)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "task", "frames", "said"),
    [
        ("a.png", "video", 81, r"81 frames do not fit a \.png file; .*\.webp, \.mp4, \.webm"),
        ("a.JPG", "video", 2, r"2 frames do not fit a \.JPG file"),
        (
            "a.mp4",
            "text-to-image",
            1,
            r"a picture does not fit a \.mp4 file; .*\.png, \.jpg, \.webp",
        ),
        ("a.webm", "edit", 9, r"a picture does not fit a \.webm file"),
        ("a.gif", "video", 81, "unknown format"),
    ],
)
def test_what_a_model_will_draw_has_to_fit(name, task, frames, said):
    with pytest.raises(InvalidInputError, match=said):
        check_fit(Path(name), task, frames)


@pytest.mark.parametrize("name", ["a.webp", "a.mp4", "a.webm"])
def test_clips_fit_clips(name):
    check_fit(Path(name), "video", 81)
    check_fit(Path(name), "video", 1)
    check_fit(Path("a.png"), "video", 1)
    check_fit(Path("a.jpeg"), "edit", 16)  # it draws one, whatever is asked


def test_no_frames(tmp_path):
    for name in ("a.webp", "a.mp4"):
        with pytest.raises(InvalidInputError, match="no frames"):
            save_sample(result(clip(1)[:0]), tmp_path / name)


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
