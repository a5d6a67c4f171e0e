"""How a rendered sample differs from the file the trainer wrote, in numbers and pictures."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import InvalidInputError, MissingDependencyError
from ..core.missing import pip_command
from ..core.results import SampleResult
from ..engine.files import save_sample

HEAT = 16  # levels off that the heatmap shows at full strength
GAP = 4  # px between pictures side by side


@dataclass(frozen=True)
class Difference:
    """Two clips or pictures, compared after the same encoding.

    most, mean: levels off (0 to 255). psnr: dB, infinite if equal. ssim: 0 to 1, None without
    scikit-image. same_file: even the files are equal. same_size: else all is counted as off.
    """

    same_file: bool
    same_size: bool
    most: int
    mean: float
    psnr: float
    ssim: float | None

    @property
    def identical(self) -> bool:
        return self.same_size and self.most == 0


@dataclass(frozen=True)
class Pair:
    """Our rendering and the trainer's file as decoded frames, uint8 (F, H, W, 3)."""

    ours: np.ndarray
    theirs: np.ndarray
    same_file: bool

    @property
    def same_size(self) -> bool:
        return self.ours.shape == self.theirs.shape

    @property
    def shown(self) -> int:
        """The frame to look at: the one that differs most, or the first."""
        if not self.same_size:
            return 0
        off = np.abs(self.ours.astype(np.int16) - self.theirs)
        return int(off.reshape(len(off), -1).mean(axis=1).argmax())


def load_pair(result: SampleResult, path: Path) -> Pair:
    """A rendering beside a sample of the trainer's.

    Ours is written in the file's format with the trainer's settings and read back, so that what a
    lossy format loses is lost in both. Raises InvalidInputError if the file cannot be read.
    """
    with tempfile.TemporaryDirectory() as folder:
        written = save_sample(result, Path(folder) / f"ours{path.suffix.lower()}")
        same_file = written.read_bytes() == path.read_bytes()
        return Pair(read_frames(written), read_frames(path), same_file)


def compare(pair: Pair) -> Difference:
    """The numbers of a pair."""
    ours, theirs = pair.ours, pair.theirs
    if not pair.same_size:
        return Difference(False, False, 255, 255.0, 0.0, 0.0)
    off = np.abs(ours.astype(np.int16) - theirs)
    square = float((off.astype(np.float64) ** 2).mean())
    psnr = 10 * math.log10(255**2 / square) if square else math.inf
    most, mean = int(off.max()), float(off.mean())
    return Difference(pair.same_file, True, most, mean, psnr, _ssim(ours, theirs))


def read_frames(path: Path) -> np.ndarray:
    """A picture's or clip's frames, uint8 (F, H, W, 3)."""
    from PIL import Image, ImageSequence, UnidentifiedImageError

    if path.suffix.lower() == ".mp4":
        return _video_frames(path)
    try:
        with Image.open(path) as image:
            frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    return np.stack(frames)


def heatmap(pair: Pair) -> np.ndarray:
    """Where the shown frames differ, uint8 (H, W, 3): black is equal, white HEAT levels or more.

    All white if the sizes differ.
    """
    ours, theirs = pair.ours[pair.shown], pair.theirs[pair.shown]
    if not pair.same_size:
        return np.full_like(theirs, 255)
    off = np.abs(ours.astype(np.int16) - theirs).max(axis=2)
    heat = np.clip(off / HEAT, 0, 1)[..., None]
    # black, red, yellow, white
    return (np.clip(heat * 3 - np.arange(3), 0, 1) * 255).round().astype(np.uint8)


def side_by_side(pair: Pair) -> np.ndarray:
    """The trainer's shown frame, ours, and the heatmap in a row, uint8 (H, W, 3)."""
    pictures = [pair.theirs[pair.shown], pair.ours[pair.shown], heatmap(pair)]
    height = max(len(picture) for picture in pictures)
    width = sum(picture.shape[1] for picture in pictures) + GAP * (len(pictures) - 1)
    sheet = np.full((height, width, 3), 128, np.uint8)
    left = 0
    for picture in pictures:
        sheet[: len(picture), left : left + picture.shape[1]] = picture
        left += picture.shape[1] + GAP
    return sheet


def _ssim(ours: np.ndarray, theirs: np.ndarray) -> float | None:
    try:
        from skimage.metrics import structural_similarity
    except ModuleNotFoundError:
        return None
    window = min(7, *ours.shape[1:3])
    window -= 1 - window % 2  # it has to be odd
    values: list[Any] = [
        structural_similarity(a, b, channel_axis=2, win_size=window)
        for a, b in zip(ours, theirs, strict=True)
    ]
    return float(np.mean(values))


def _video_frames(path: Path) -> np.ndarray:
    try:
        import av
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"{path.name} needs PyAV ({error}); run `{pip_command('av')}`"
        ) from error
    try:
        with av.open(str(path)) as file:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
    except (av.FFmpegError, ValueError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> InvalidInputError:
    return InvalidInputError(
        f"the sample {path.name} could not be read ({error}); take it out of {path.parent.name}/, "
        "or leave its number out"
    )
