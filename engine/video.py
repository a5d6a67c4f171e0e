"""mp4 and webm files: frames and sound encoded as they come, so that a clip is never held twice."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import InvalidInputError, MissingDependencyError, OutputError
from ..core.missing import pip_command
from .whole_file import whole_file

DEFAULT_CRF = 19
MIN_FPS, MAX_FPS = 0.01, 1000.0
CHUNK = 4096  # samples encoded at once
RATE = 48_000  # Hz; what sound is resampled to where an encoder does not know its rate
AAC_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 88_200, 96_000)
OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)

# What libswscale makes of RGB by default. Named in the file, it is read back as the same colours:
# players guess a matrix otherwise, and PyAV up to 16, as in older ComfyUI, knows no other.
BT709, BT601, LIMITED_RANGE = 1, 6, 1

# the time in the clip of what was encoded, and the packets that came of it
Timed = tuple[float, Any]


@dataclass(frozen=True)
class _Kind:
    container: str
    video: str
    audio: str
    audio_rates: tuple[int, ...]
    container_options: dict[str, str]
    video_options: dict[str, str]


# faststart and use_metadata_tags: the workflow in front, under its own name, where ComfyUI looks.
# b 0: libvpx then reads crf as quality.
KINDS = {
    ".mp4": _Kind(
        "mp4", "libx264", "aac", AAC_RATES, {"movflags": "use_metadata_tags+faststart"}, {}
    ),
    ".webm": _Kind(
        "webm",
        "libvpx-vp9",
        "libopus",
        OPUS_RATES,
        {},
        {"b": "0", "row-mt": "1", "cpu-used": "4"},
    ),
}


def save_video(
    frames: Sequence[np.ndarray] | np.ndarray,
    path: Path,
    fps: float,
    audio: np.ndarray | None = None,
    audio_rate: int = 0,
    crf: int = DEFAULT_CRF,
    metadata: dict[str, str] | None = None,
    on_frame: Callable[[int], None] = lambda _: None,
) -> None:
    """Writes uint8 (H, W, 3) frames as mp4 (H.264, AAC) or webm (VP9, Opus), by the ending.

    frames: read one at a time, in order. An odd side loses its last pixel.
    audio: float (channels, samples), one or two channels; written to its end, even if that is
    after the last frame. crf: 0 (best) to 51. metadata: tags of the container.
    on_frame: told how many frames are encoded, again and again; it stops the work by raising.
    """
    av, kind = _import_av(), KINDS[path.suffix.lower()]
    height, width = _check_size(frames)
    check_fps(fps)
    audio = _checked_sound(audio, audio_rate)
    with whole_file(path) as temporary, _av_errors(path):
        options = kind.container_options
        with av.open(str(temporary), "w", format=kind.container, options=options) as file:
            file.metadata.update(metadata or {})
            picture = _picture_stream(file, kind, width, height, fps, crf)
            streams = [_picture_packets(picture, frames, fps, on_frame)]
            if audio is not None:
                sound = _sound_stream(file, kind, audio, audio_rate)
                streams.append(_sound_packets(sound, audio, audio_rate))
            for _, packets in heapq.merge(*streams, key=itemgetter(0)):
                file.mux(packets)


def check_fps(fps: float) -> None:
    """Raises InvalidInputError for a rate that files cannot hold."""
    if not MIN_FPS <= fps <= MAX_FPS:
        raise InvalidInputError(f"fps={fps}; it must be from {MIN_FPS} to {MAX_FPS:g}")


def frame_rate(fps: float) -> Fraction:
    """Frames per second as a fraction: 23.976 is 2997/125, and 24 is 24."""
    return Fraction(fps).limit_denominator(1001)


def _check_size(frames: Sequence[np.ndarray] | np.ndarray) -> tuple[int, int]:
    if not len(frames):
        raise InvalidInputError("there are no frames to write; a clip needs at least one")
    height, width = frames[0].shape[:2]
    if min(height, width) < 2:
        raise InvalidInputError(
            f"frames of {width}x{height} px; mp4 and webm need 2 px at least, a webp does not"
        )
    return height, width


def _checked_sound(audio: np.ndarray | None, rate: int) -> np.ndarray | None:
    if audio is None or not audio.size:
        return None
    if audio.ndim != 2 or len(audio) > 2:
        raise InvalidInputError(
            f"audio has the shape {list(audio.shape)}; it must be (channels, samples) with one or "
            "two channels: mix it down first"
        )
    if rate <= 0:
        raise InvalidInputError(f"audio_rate={rate}; it must be the samples per second, above 0")
    if not np.isfinite(audio).all():
        raise InvalidInputError("audio holds NaN or infinite values; mend what made it")
    return np.clip(audio, -1, 1).astype(np.float32)


def _picture_stream(file: Any, kind: _Kind, width: int, height: int, fps: float, crf: int) -> Any:
    stream = _add_stream(file, kind.video, frame_rate(fps))
    # yuv420p needs even sides; an odd one is encoded one pixel smaller
    stream.width, stream.height = width - width % 2, height - height % 2
    stream.pix_fmt = "yuv420p"
    stream.options = {"crf": str(crf), **kind.video_options}
    context = stream.codec_context
    context.colorspace, context.color_range = BT601, LIMITED_RANGE
    context.color_primaries = context.color_trc = BT709
    return stream


def _picture_packets(
    stream: Any,
    frames: Sequence[np.ndarray] | np.ndarray,
    fps: float,
    on_frame: Callable[[int], None],
) -> Iterator[Timed]:
    encoded, time = 0, 0.0
    for index, frame in enumerate(frames):
        time = index / fps
        packets = stream.encode(_picture(frame, stream))
        encoded += len(packets)
        on_frame(encoded)
        yield time, packets
    for packet in stream.codec_context.encode_lazy(None):  # what was kept back to look ahead
        packet.stream = stream
        encoded += 1
        on_frame(encoded)
        yield time, packet


def _picture(frame: np.ndarray, stream: Any) -> Any:
    import av

    cropped = np.ascontiguousarray(frame[: stream.height, : stream.width])
    return av.VideoFrame.from_ndarray(cropped, format="rgb24")


def _sound_stream(file: Any, kind: _Kind, audio: np.ndarray, rate: int) -> Any:
    stream = _add_stream(file, kind.audio, rate if rate in kind.audio_rates else RATE)
    stream.layout = _layout(audio)
    return stream


def _sound_packets(stream: Any, audio: np.ndarray, rate: int) -> Iterator[Timed]:
    import av

    samples = audio.shape[1]
    for start in range(0, samples, CHUNK):
        chunk = np.ascontiguousarray(audio[:, start : start + CHUNK])
        frame = av.AudioFrame.from_ndarray(chunk, format="fltp", layout=_layout(audio))
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), start
        yield start / rate, stream.encode(frame)
    yield samples / rate, stream.encode(None)


def _layout(audio: np.ndarray) -> str:
    return "mono" if len(audio) == 1 else "stereo"


def _add_stream(file: Any, codec: str, rate: Any) -> Any:
    from av.codec.codec import UnknownCodecError

    try:
        return file.add_stream(codec, rate=rate)
    except UnknownCodecError as error:
        raise MissingDependencyError(
            f"the installed PyAV has no {codec} encoder; run "
            f"`{pip_command('--force-reinstall', 'av')}`, or choose another format"
        ) from error


def _import_av() -> Any:
    try:
        import av
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"mp4 and webm need PyAV ({error}); run `{pip_command('av')}`, or write a webp"
        ) from error
    return av


@contextmanager
def _av_errors(path: Path) -> Iterator[None]:
    import av

    try:
        yield
    except av.FFmpegError as error:
        if isinstance(error, OSError):
            raise
        raise OutputError(f"{path} could not be encoded: {error}") from error
