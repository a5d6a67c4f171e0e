"""Control images: read as the trainer reads them, and checked before anything is loaded."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..core.errors import InvalidInputError

MODES = ("RGB", "RGBA")
MAX_PIXELS = 64_000_000  # of one picture; no model takes more than a few millions of them
FEWER_PIXELS = (
    f"at most {MAX_PIXELS // 10**6} million pixels are taken: make it smaller, the models see a "
    "few millions at most"
)
INPAINT = ".inpaint."  # in a file's name: its alpha tells what to paint
SENT_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # Pillow runs programs for some others


def read_control_image(path: str | Path) -> Any:
    """A picture file as an RGB image of PIL; RGBA if `.inpaint.` is in its name.

    Orientation tags are not followed and alpha is dropped, not blended, as in the trainer.
    Raises InvalidInputError if it is missing, no picture, cut off or too large.
    Upstream: ostris/ai-toolkit@27a03a91 toolkit/models/base_model.py::BaseModel.generate_images
    """
    from PIL import Image

    path = Path(path)
    with _refusal_of(path.name, path), Image.open(path) as image:
        _check_size(path.name, *image.size)
        if INPAINT not in path.name:
            return image.convert("RGB")
        if image.mode != "RGBA":
            raise InvalidInputError(
                f"{path.name} has no alpha channel (it is {image.mode}); a file named "
                f"*{INPAINT}* needs one, transparent where to paint"
            )
        image.load()
        return image.copy()


def decode_control_image(data: bytes, name: str, keep_alpha: bool = False) -> Any:
    """What read_control_image gives, of a picture that was sent: png, jpg, webp, gif, bmp or tiff.

    name: what messages call it. keep_alpha: one that is RGBA stays so.
    """
    from PIL import Image

    with _refusal_of(name), Image.open(io.BytesIO(data), formats=SENT_FORMATS) as image:
        _check_size(name, *image.size)
        return image.convert("RGBA" if keep_alpha and image.mode == "RGBA" else "RGB")


def check_control_images(images: Sequence[Any]) -> None:
    """Raises InvalidInputError unless all are PIL images, RGB or RGBA, of a sane size."""
    from PIL import Image

    for number, image in enumerate(images, 1):
        name = f"control image {number}"
        if not isinstance(image, Image.Image) or image.mode not in MODES:
            kind = image.mode if isinstance(image, Image.Image) else type(image).__name__
            raise InvalidInputError(
                f"{name} is {kind}; it must be a PIL image, {' or '.join(MODES)}: "
                "read_control_image gives one from a file"
            )
        _check_size(name, *image.size)


def describe_control_image(image: Any) -> dict[str, Any]:
    """What a record says of a picture: size, mode, and a digest of its pixels."""
    digest = hashlib.sha256(image.tobytes()).hexdigest()
    return {"width": image.width, "height": image.height, "mode": image.mode, "sha256": digest}


def _check_size(name: str, width: int, height: int) -> None:
    if not 0 < width * height <= MAX_PIXELS:
        raise InvalidInputError(f"{name} is {width}x{height} px; {FEWER_PIXELS}")


@contextmanager
def _refusal_of(name: str, path: Path | None = None) -> Iterator[None]:
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            # our own limit is the stricter one
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    except UnidentifiedImageError:
        raise InvalidInputError(
            f"{name} is no picture that can be read; give a png, jpg or webp file"
        ) from None
    except Image.DecompressionBombError:
        raise InvalidInputError(f"{name} is too large; {FEWER_PIXELS}") from None
    except IsADirectoryError:
        raise InvalidInputError(f"{name} is a folder; give a picture in it") from None
    except FileNotFoundError:
        raise InvalidInputError(f"no control image {path}; check the path") from None
    except (OSError, ValueError, SyntaxError) as error:  # cut off, or damaged
        raise InvalidInputError(f"{name} could not be read: {error}; save it anew as png") from None
