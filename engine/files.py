"""Pictures and clips on disk, encoded as the trainer encodes them, whole or not at all."""

from __future__ import annotations

import io
import math
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import InvalidInputError, MissingDependencyError, OutputError
from ..core.requests import FORMATS
from ..core.results import SampleResult

STILL_FORMATS = ("png", "jpg", "webp")
WEBP_QUALITY = 80  # of animations, the trainer's
DEFAULT_CRF = 19


def save_sample(result: SampleResult, path: str | Path) -> Path:
    """Writes a sample in the format its ending names, as the trainer would. Returns the path.

    png, jpg and webp take one frame with Pillow's defaults; several frames become an animated
    webp, mp4 or webm. Raises InvalidInputError for another ending, OutputError if writing fails.
    """
    path = Path(path)
    ending = check_format(path)
    if len(result.frames) == 1 and ending in STILL_FORMATS:
        save_image(result.frames[0], path)
    elif ending == "webp":
        save_animation(result.frames, path, result.fps)
    elif ending in ("mp4", "webm"):
        save_video(result.frames, path, result.fps, result.audio, result.audio_rate)
    else:
        raise InvalidInputError(
            f"{path.name}: {len(result.frames)} frames do not fit a {ending} file; "
            "use webp, mp4 or webm"
        )
    return path


def check_format(path: Path) -> str:
    """The file's ending, without dot. Raises InvalidInputError if it is no format we write."""
    ending = path.suffix.lower().removeprefix(".")
    ending = "jpg" if ending == "jpeg" else ending
    if ending not in FORMATS:
        raise InvalidInputError(
            f"{path.name}: unknown format {path.suffix or '(none)'!r}; "
            f"end the name in {', '.join('.' + name for name in FORMATS)}"
        )
    return ending


def save_image(frame: np.ndarray, path: Path) -> None:
    """Writes a uint8 (H, W, 3) frame with Pillow's defaults, which are the trainer's.

    Upstream: ostris/ai-toolkit@27a03a91 toolkit/config_modules.py::GenerateImageConfig.save_image
    """
    from PIL import Image

    _write_encoded(Image.fromarray(frame), path)


def save_animation(frames: np.ndarray, path: Path, fps: float) -> None:
    """Writes uint8 (F, H, W, 3) frames as the trainer's animated webp: quality 80, endless.

    fps: above 0; a frame lasts 1000 // fps ms. No metadata is added: the bytes are the trainer's.
    Upstream: ostris/ai-toolkit@27a03a91 toolkit/config_modules.py::GenerateImageConfig.save_image
    """
    from PIL import Image

    _check_fps(fps)
    first, *rest = [Image.fromarray(frame) for frame in frames]
    _write_encoded(
        first,
        path,
        append_images=rest,
        save_all=True,
        duration=int(1000 // fps),
        loop=0,
        quality=WEBP_QUALITY,
    )


def save_video(
    frames: Any,
    path: Path,
    fps: float,
    audio: np.ndarray | None = None,
    audio_rate: int = 0,
    crf: int = DEFAULT_CRF,
    metadata: dict[str, str] | None = None,
    on_frame: Callable[[int], None] = lambda _: None,
) -> None:
    """Writes uint8 (H, W, 3) frames as mp4 (H.264, AAC) or webm (VP9, Opus), by the ending.

    frames: a sequence or array, encoded one at a time. audio: float (channels, samples).
    crf: 0 (best) to 51. metadata: tags for the container. on_frame: told of each frame written.
    """
    av = _import_av()
    _check_fps(fps)
    webm = path.suffix.lower() == ".webm"
    codec, pixels = ("libvpx-vp9", "yuv420p") if webm else ("libx264", "yuv420p")
    options = {} if webm else {"movflags": "use_metadata_tags+faststart"}
    height, width = frames[0].shape[:2]
    with (
        whole_file(path) as temporary,
        _av_errors(path),
        av.open(str(temporary), "w", format="webm" if webm else "mp4", options=options) as file,
    ):
        file.metadata.update(metadata or {})
        stream: Any = file.add_stream(codec, rate=_rate(fps))
        # yuv420p needs even sides; an odd one is encoded one pixel smaller
        stream.width, stream.height = width - width % 2, height - height % 2
        stream.pix_fmt = pixels
        stream.options = {"crf": str(crf), **({"b": "0"} if webm else {})}
        sound = _audio_stream(file, audio, audio_rate, webm)
        for index, frame in enumerate(frames):
            cropped = np.ascontiguousarray(frame[: stream.height, : stream.width])
            file.mux(stream.encode(av.VideoFrame.from_ndarray(cropped, format="rgb24")))
            on_frame(index + 1)
        file.mux(stream.encode(None))
        if sound is not None and audio is not None:
            _encode_audio(file, sound, audio, audio_rate)


def _write_encoded(image: Any, path: Path, **options: Any) -> None:
    # in memory first: Pillow takes no notice when a full disk cuts its last write short
    from PIL import Image

    encoded = io.BytesIO()
    kind = Image.registered_extensions()[path.suffix.lower()]
    try:
        image.save(encoded, format=kind, **options)
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} could not be encoded: {error}; use png or mp4") from error
    with whole_file(path) as temporary:
        temporary.write_bytes(encoded.getbuffer())


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well.

    Raises OutputError if the file cannot be written; nothing half-written stays behind.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(
            f"{path} could not be written: {error.strerror or error}; check the folder and "
            "the free space, then save again"
        ) from error
    finally:
        if os.path.lexists(temporary):  # Path.unlink raises where a parent is no folder
            temporary.unlink()


def _import_av() -> Any:
    try:
        import av
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"mp4 and webm need PyAV ({error}); pip install av, or write a webp"
        ) from error
    return av


def _check_fps(fps: float) -> None:
    if not 0 < fps < math.inf:
        raise InvalidInputError(f"fps={fps}; it must be above 0 and finite")


@contextmanager
def _av_errors(path: Path) -> Iterator[None]:
    import av

    try:
        yield
    except av.FFmpegError as error:
        if isinstance(error, OSError):
            raise
        raise OutputError(f"{path} could not be encoded: {error}") from error


def _rate(fps: float) -> Any:
    from fractions import Fraction

    return Fraction(fps).limit_denominator(1001)


def _audio_stream(file: Any, audio: np.ndarray | None, rate: int, webm: bool) -> Any:
    if audio is None:
        return None
    # Opus knows no other rate
    stream = file.add_stream("libopus" if webm else "aac", rate=48_000 if webm else rate)
    stream.layout = "mono" if len(audio) == 1 else "stereo"
    return stream


def _encode_audio(file: Any, stream: Any, audio: np.ndarray, rate: int) -> None:
    import av

    samples = np.ascontiguousarray(audio[:2], dtype=np.float32)
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=stream.layout.name)
    frame.sample_rate = rate
    resampler = av.AudioResampler(
        format=stream.format.name, layout=stream.layout.name, rate=stream.rate
    )
    for converted in [*resampler.resample(frame), *resampler.resample(None)]:
        converted.pts = None
        file.mux(stream.encode(converted))
    file.mux(stream.encode(None))
