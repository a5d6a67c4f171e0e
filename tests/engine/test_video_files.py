"""mp4 and webm: clips that decode to their frames, rate, colours and sound, made as they come."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from ai_toolkit_inference import SampleResult
from ai_toolkit_inference.core.errors import InvalidInputError, MissingDependencyError
from ai_toolkit_inference.engine import video
from ai_toolkit_inference.engine.files import save_sample
from ai_toolkit_inference.engine.video import save_video

CODECS = {"mp4": ("h264", "aac"), "webm": ("vp9", "opus")}

pytestmark = pytest.mark.parametrize("ending", CODECS)


def clip(frames: int = 1, height: int = 48, width: int = 64) -> np.ndarray:
    """Soft moving colours, as video encoders like them."""
    y, x = np.mgrid[0:height, 0:width]
    shots = [
        np.stack([x * 3 + 4 * t, y * 4, np.full_like(x, 9 * t)], axis=-1) for t in range(frames)
    ]
    return np.stack(shots).astype(np.uint8)


def tone(seconds: float = 1.0, rate: int = 44_100, channels: int = 2, start: float = 0.0):
    """440 Hz, silent before `start`."""
    time = np.arange(round(rate * seconds)) / rate
    wave = np.sin(time * 2 * np.pi * 440) * 0.5 * (time >= start)
    return np.stack([wave] * channels).astype(np.float32)


def decoded(path: Path) -> tuple[np.ndarray, av.VideoStream]:
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(stream)]), stream


def heard(path: Path) -> tuple[np.ndarray, int]:
    """The samples (channels, samples), placed as a player does, and their rate."""
    with av.open(str(path)) as file:
        stream = file.streams.audio[0]
        assert stream.codec_context.codec.canonical_name == CODECS[path.suffix[1:]][1]
        frames = list(file.decode(stream))
        rate = stream.rate
    samples = np.concatenate([frame.to_ndarray() for frame in frames], axis=-1)
    first = round((frames[0].time or 0.0) * rate)
    lead = np.zeros((len(samples), max(first, 0)), samples.dtype)
    return np.concatenate([lead, samples[:, max(-first, 0) :]], axis=-1), rate


def duration(path: Path) -> float:
    with av.open(str(path)) as file:
        return (file.duration or 0) / 1e6


# --- pictures --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "height", "width"),
    [(1, 48, 64), (2, 48, 64), (17, 48, 64), (9, 49, 65), (9, 48, 63), (3, 2, 3)],
)
def test_a_clip_decodes_to_its_frames(tmp_path, ending, frames, height, width):
    shots = clip(frames, height, width)
    path = save_sample(SampleResult(shots, 24, {}), tmp_path / f"a.{ending}")
    found, stream = decoded(path)
    assert stream.codec_context.codec.canonical_name == CODECS[ending][0]
    assert stream.codec_context.pix_fmt == "yuv420p"
    assert found.shape == (frames, height - height % 2, width - width % 2, 3)
    cropped = shots[:, : found.shape[1], : found.shape[2]].astype(int)
    assert np.abs(found - cropped).mean() < 12
    with av.open(str(path)) as file:
        assert not file.streams.audio
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("fps", [0.5, 1, 8, 16, 23.976, 24.0, 29.97, 60])
def test_a_clip_keeps_its_rate(tmp_path, ending, fps):
    path = save_sample(SampleResult(clip(12), fps, {}), tmp_path / f"a.{ending}")
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        assert float(stream.average_rate) == pytest.approx(fps, rel=0.01)
        times = [float(frame.pts * stream.time_base) for frame in file.decode(stream)]
    assert np.diff(times) == pytest.approx(1 / fps, abs=0.0011)
    assert duration(path) == pytest.approx(12 / fps, abs=0.06)


def test_colours_are_the_frames_and_named_in_the_file(tmp_path, ending):
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (200, 30, 90)]
    shots = np.stack([np.full((32, 48, 3), colour, np.uint8) for colour in colours])
    path = tmp_path / f"a.{ending}"
    save_video(shots, path, 8, crf=5)
    found, stream = decoded(path)
    assert np.abs(found.astype(int) - shots).max() <= 4
    context = stream.codec_context
    assert (context.colorspace, context.color_range, context.color_primaries) == (6, 1, 1)


def test_tags_and_quality(tmp_path, ending):
    noise = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
    sizes = []
    for crf in (0, 5, 45):
        path = tmp_path / f"{crf}.{ending}"
        save_video(noise, path, 8, crf=crf, metadata={"prompt": '{"é": 1}'})
        sizes.append(path.stat().st_size)
        with av.open(str(path)) as file:
            tags = {key.lower(): value for key, value in file.metadata.items()}
        assert tags["prompt"] == '{"é": 1}'
    assert sizes[0] > sizes[1] > 1.5 * sizes[2]


def test_the_tags_lie_in_front(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    save_video(clip(30), path, 8, metadata={"workflow": "{1234567}"})
    content = path.read_bytes()
    first_picture = content.index({"mp4": b"mdat", "webm": bytes.fromhex("1f43b675")}[ending])
    assert content.index(b"{1234567}") < first_picture


# --- sound -----------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [8_000, 22_050, 24_000, 44_100, 48_000, 96_000, 11_111, 192_000])
def test_a_clip_has_its_sound(tmp_path, ending, channels, rate):
    audio = tone(1.0, rate, channels)
    result = SampleResult(clip(16), 16, {}, audio, rate)
    path = save_sample(result, tmp_path / f"a.{ending}")
    found, found_rate = heard(path)
    assert len(found) == channels
    assert found.shape[1] / found_rate == pytest.approx(
        1.0, abs=0.14
    )  # whole blocks: 1024 at 8 kHz
    middle = found[0, found_rate // 4 : found_rate // 2]
    assert np.sqrt((middle**2).mean()) == pytest.approx(0.5 / np.sqrt(2), rel=0.1)
    spectrum = np.abs(np.fft.rfft(middle))
    assert spectrum.argmax() * found_rate / len(middle) == pytest.approx(440, abs=8)
    assert len(decoded(path)[0]) == 16


def test_channels_stay_apart(tmp_path, ending):
    audio = tone(channels=2)
    audio[1] = 0
    save_video(clip(16), tmp_path / f"a.{ending}", 16, audio, 44_100)
    left, right = np.abs(heard(tmp_path / f"a.{ending}")[0]).mean(axis=1)
    assert left > 0.2 > 0.02 > right


@pytest.mark.parametrize("rate", [24_000, 48_000])
def test_sound_is_heard_when_it_should(tmp_path, ending, rate):
    save_video(clip(48), tmp_path / f"a.{ending}", 24, tone(2.0, rate, 2, start=1.0), rate)
    found, found_rate = heard(tmp_path / f"a.{ending}")
    loud = np.abs(found[0]) > 0.2
    assert loud.argmax() / found_rate == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("seconds", [0.01, 0.5, 3.0])
def test_sound_of_another_length(tmp_path, ending, seconds):
    save_video(clip(16), tmp_path / f"a.{ending}", 16, tone(seconds), 44_100)
    found, rate = heard(tmp_path / f"a.{ending}")
    assert found.shape[1] / rate == pytest.approx(seconds, abs=0.06)
    assert duration(tmp_path / f"a.{ending}") == pytest.approx(max(1.0, seconds), abs=0.08)
    assert len(decoded(tmp_path / f"a.{ending}")[0]) == 16


def test_silence_and_loudness(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    save_video(clip(8), path, 8, np.zeros((1, 48_000), np.float32), 48_000)
    assert np.abs(heard(path)[0]).max() < 1e-3
    save_video(clip(8), path, 8, tone() * 40, 44_100)
    assert np.abs(heard(path)[0]).max() < 1.7  # a square wave's overshoot, not 20


def test_no_samples_are_no_sound(tmp_path, ending):
    save_video(clip(8), tmp_path / f"a.{ending}", 8, np.zeros((2, 0), np.float32), 48_000)
    with av.open(str(tmp_path / f"a.{ending}")) as file:
        assert not file.streams.audio


def test_sound_and_pictures_lie_side_by_side(tmp_path, ending):
    noise = np.random.default_rng(0).integers(0, 256, (240, 32, 32, 3), np.uint8)
    save_video(noise, tmp_path / f"a.{ending}", 8, tone(30.0), 44_100)
    with av.open(str(tmp_path / f"a.{ending}")) as file:
        packets = [packet for packet in file.demux() if packet.dts is not None]
        packets.sort(key=lambda packet: packet.pos)
        times = [(p.stream.type, float((p.dts or 0) * (p.time_base or 0))) for p in packets]
    assert {kind for kind, _ in times} == {"audio", "video"}
    # a player that reads on never waits long for the other stream
    assert max(abs(after - before) for (_, before), (_, after) in pairwise(times)) < 6


# --- while it is made ------------------------------------------------------------------------


class Lazy(Sequence[np.ndarray]):
    """Frames that are made when they are asked for, and counted while they live."""

    def __init__(self, frames: np.ndarray) -> None:
        self.frames, self.most = frames, 0
        self.made: list[weakref.ref] = []

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index) -> Any:
        frame = self.frames[index].copy()
        self.made.append(weakref.ref(frame))
        self.most = max(self.most, sum(made() is not None for made in self.made))
        return frame


def test_frames_are_made_one_by_one(tmp_path, ending):
    frames = Lazy(clip(60))
    told: list[int] = []
    save_video(frames, tmp_path / f"a.{ending}", 8, on_frame=told.append)
    assert frames.most <= 3
    assert told == sorted(told)
    assert (told[-1], len(set(told) - {0})) == (60, 60)


@pytest.mark.parametrize("at", [0, 1, 29, 30])
def test_a_clip_stopped_by_its_listener_leaves_what_was_there(tmp_path, ending, at):
    path = tmp_path / f"a.{ending}"
    path.write_bytes(b"old")

    def stop(done: int) -> None:
        if done == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_video(clip(30), path, 8, tone(), 44_100, on_frame=stop)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"]


# --- what cannot be written ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("audio", "rate", "said"),
    [
        (np.zeros((6, 100)), 48_000, r"shape \[6, 100\]; .* mix it down"),
        (np.zeros(100), 48_000, r"shape \[100\]"),
        (np.zeros((1, 2, 100)), 48_000, r"shape \[1, 2, 100\]"),
        (np.full((2, 100), np.nan), 48_000, "NaN"),
        (np.full((2, 100), np.inf), 48_000, "infinite"),
        (np.zeros((2, 100)), 0, "audio_rate=0"),
        (np.zeros((2, 100)), -8000, "audio_rate=-8000"),
    ],
)
def test_impossible_sounds(tmp_path, ending, audio, rate, said):
    with pytest.raises(InvalidInputError, match=said):
        save_video(clip(3), tmp_path / f"a.{ending}", 8, audio, rate)
    assert not os.listdir(tmp_path)


def test_frames_too_narrow_for_a_video(tmp_path, ending):
    with pytest.raises(InvalidInputError, match="1x48 px"):
        save_video(clip(3, 48, 1), tmp_path / f"a.{ending}", 8)
    assert not os.listdir(tmp_path)


def test_a_pyav_without_the_encoder(tmp_path, ending, monkeypatch):
    for field in ("video", "audio"):
        kind = replace(video.KINDS[f".{ending}"], **{field: "libmissing"})
        with monkeypatch.context() as patch:
            patch.setitem(video.KINDS, f".{ending}", kind)
            with pytest.raises(MissingDependencyError, match="no libmissing encoder"):
                save_video(clip(3), tmp_path / f"a.{ending}", 8, tone(), 44_100)
    assert not os.listdir(tmp_path)
