"""Pictures and clips on disk, encoded as the trainer encodes them, whole or not at all."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..core.errors import InvalidInputError, OutputError
from ..core.requests import FORMATS
from ..core.results import SampleResult
from .video import check_fps, save_video
from .whole_file import whole_file

STILL_FORMATS = ("png", "jpg", "webp")
CLIP_FORMATS = ("webp", "mp4", "webm")
WEBP_QUALITY = 80  # of animations, the trainer's
EXIF_FIELDS = (0x0110, 0x010F, 0x010E, 0x010D)  # model, make, ...: those that ComfyUI takes
PRIVATE_FIELDS = 0xFDE8  # from here on EXIF's fields have no meaning


def save_sample(result: SampleResult, path: str | Path) -> Path:
    """Writes a sample in the format its ending names, as the trainer would. Returns the path.

    png, jpg and webp take one frame with Pillow's defaults; several frames become an animated
    webp, mp4 or webm, the last two with their sound. Raises InvalidInputError for another ending,
    OutputError if writing fails.
    """
    path = Path(path)
    ending = check_format(path)
    if len(result.frames) == 1 and ending in STILL_FORMATS:
        save_image(result.frames[0], path)
    elif ending == "webp":
        save_animation(result.frames, path, result.fps)
    elif ending in CLIP_FORMATS:
        save_video(result.frames, path, result.fps, result.audio, result.audio_rate)
    else:
        raise _misfit(path, f"{len(result.frames)} frames do", CLIP_FORMATS)
    return path


def check_fit(path: Path, task: str, frames: int) -> None:
    """Raises InvalidInputError if what a model is about to draw does not fit the file's ending.

    task: the model's; only "video" draws more than one frame. frames: as many as are asked of it.
    """
    ending = check_format(path)
    if task != "video" and ending not in STILL_FORMATS:
        raise _misfit(path, "a picture does", STILL_FORMATS)
    if task == "video" and frames > 1 and ending not in CLIP_FORMATS:
        raise _misfit(path, f"{frames} frames do", CLIP_FORMATS)


def _misfit(path: Path, what: str, allowed: tuple[str, ...]) -> InvalidInputError:
    return InvalidInputError(
        f"{path.name}: {what} not fit a {path.suffix} file; "
        f"end the name in {', '.join('.' + name for name in allowed)}"
    )


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
    _write_encoded(Image.fromarray(frame), path)


def save_animation(
    frames: Sequence[np.ndarray] | np.ndarray,
    path: Path,
    fps: float,
    on_frame: Callable[[int], None] = lambda _: None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Writes uint8 (H, W, 3) frames as the trainer's animated webp: quality 80, endless.

    frames: read one at a time, in order. A frame lasts 1000 // fps ms. on_frame: told how many
    frames are encoded; it stops the work by raising. tags: ASCII texts that ComfyUI's page looks
    for; they are put behind the frames, whose bytes stay the trainer's. Without any so does the
    whole file.
    Upstream: ostris/ai-toolkit@27a03a91 toolkit/config_modules.py::GenerateImageConfig.save_image
    """
    check_fps(fps)
    if not len(frames):
        raise InvalidInputError("there are no frames to write; a clip needs at least one")
    _write_encoded(
        _Animation(frames, on_frame),
        path,
        save_all=True,
        duration=int(1000 // fps),
        loop=0,
        quality=WEBP_QUALITY,
        **({"exif": _exif(tags)} if tags else {}),
    )
    on_frame(len(frames))


def _exif(tags: Mapping[str, str]) -> bytes:
    # ComfyUI's page reads `name:text` from any field of text
    exif = Image.Exif()
    fields = chain(EXIF_FIELDS, count(PRIVATE_FIELDS))
    for field, (name, text) in zip(fields, tags.items(), strict=False):
        exif[field] = f"{name}:{text}"
    return exif.tobytes()


class _Animation(Image.Image):
    """Frames as one picture of Pillow's, which asks for them one by one while it writes.

    A list of pictures for `append_images` gives the same bytes, but is all in memory, 4 bytes a
    pixel.
    """

    def __init__(
        self, frames: Sequence[np.ndarray] | np.ndarray, on_frame: Callable[[int], None]
    ) -> None:
        super().__init__()
        self.n_frames = len(frames)
        self._frames, self._on_frame = frames, on_frame
        self._show(0)

    def seek(self, frame: int) -> None:
        if frame > self._position:
            self._on_frame(frame)
            self._show(frame)

    def tell(self) -> int:
        return self._position

    def _show(self, index: int) -> None:
        picture = Image.fromarray(self._frames[index])
        self.im, self._mode, self._size = picture.im, picture.mode, picture.size
        self._position = index


def _write_encoded(image: Any, path: Path, **options: Any) -> None:
    # in memory first: Pillow takes no notice when a full disk cuts its last write short
    encoded = io.BytesIO()
    kind = Image.registered_extensions()[path.suffix.lower()]
    try:
        image.save(encoded, format=kind, **options)
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} could not be encoded: {error}; use png or mp4") from error
    with whole_file(path) as temporary, temporary.open("wb") as file:
        file.write(encoded.getbuffer())
