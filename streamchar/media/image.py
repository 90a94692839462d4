"""Load reference images.

Pillow is imported on first use; an engine that is given no image does not need it.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from ..errors import StreamCharError
from .arrays import as_array

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

#: Supported image formats. Some others, such as PostScript, would make Pillow start external programs.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
#: Most pixels of an image, 200 MB of RGB; checked before decoding.
MAX_PIXELS = 2**26
#: Least height and width of a reference image in pixels; smaller faces carry too little detail.
MIN_SIDE = 32
#: RGB colour behind transparent images.
BACKGROUND = (255, 255, 255)


class ImageError(StreamCharError, ValueError):
    """An image cannot be used as a reference; the message says what can."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}; {remedy}")


def load_reference(source: object, height: int, width: int) -> torch.Tensor:
    """Load a reference image: crop it around its centre to the given aspect ratio and resize it.

    The crop is the largest possible one; resizing uses an antialiasing Lanczos filter. Images may be grey,
    palette, RGB, CMYK and similar, with 8 or 16 bits per channel. EXIF rotation is applied, and transparent
    pixels become white.

    Args:
        source: one of: the path of a PNG, JPEG, WebP, BMP, GIF (its first frame) or TIFF file; a Pillow
            image; a uint8 array or tensor [height, width] or [height, width, 1, 3 or 4] with grey, RGB or
            RGBA values from 0 to 255; a floating-point array or tensor [3, height, width] in [-1, 1], as this
            function returns.
        height: height of the result in pixels.
        width: width of the result in pixels.

    Returns:
        [3, height, width] fp32 in [-1, 1], on the CPU.

    Raises:
        ImageError: the file is missing, corrupt or of an unsupported format; the image has a side below
            :data:`MIN_SIDE` or more than :data:`MAX_PIXELS` pixels (checked before decoding); or values are
            not finite or out of range.
    """
    from PIL import Image

    if isinstance(source, (str, os.PathLike)):
        channels = _open(Path(source)).split()
    elif isinstance(source, Image.Image):
        channels = _to_rgb(source, "the image").split()
    elif isinstance(source, (np.ndarray, torch.Tensor)):
        channels = _channels_from_array(as_array(source))
    else:
        remedy = "give a path, a Pillow image, an array or a tensor"
        raise ImageError(f"a reference cannot be loaded from {type(source).__name__}", remedy)
    have_width, have_height = channels[0].size
    _check_size(have_height, have_width, "the image")
    # The edges of the crop may lie between pixels.
    scale = min(have_height / height, have_width / width)
    top, left = (have_height - height * scale) / 2, (have_width - width * scale) / 2
    box = (left, top, left + width * scale, top + height * scale)
    planes = [
        np.asarray(channel.resize((width, height), Image.Resampling.LANCZOS, box), np.float32)
        for channel in channels
    ]
    result = torch.from_numpy(np.stack(planes))
    if channels[0].mode == "L":
        result = result / 127.5 - 1
    # Lanczos overshoots at edges.
    return result.clamp(-1, 1)


def _open(path: Path) -> "PilImage":
    from PIL import Image, UnidentifiedImageError

    kinds = ", ".join(IMAGE_FORMATS)
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            _check_size(image.height, image.width, str(path))
            return _to_rgb(image, str(path))
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{path} is not an image of a supported format", f"give one of {kinds}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            f"{path} is too large: {error}", f"scale it to at most {MAX_PIXELS} pixels"
        ) from error
    except Exception as error:
        # An OSError, or any error of a decoder at a corrupt header.
        raise ImageError(
            f"{path} cannot be read: {error}", f"give a readable image, one of {kinds}"
        ) from error


def _to_rgb(image: "PilImage", what: str) -> "PilImage":
    from PIL import Image, ImageOps

    _check_size(image.height, image.width, what)
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image, np.float32) / 257).round().astype(np.uint8))
        if image.mode in ("I", "F"):
            raise ImageError(f"{what} has mode {image.mode}", "convert it to 8 or 16 bits per channel")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            backdrop = Image.new("RGBA", image.size, (*BACKGROUND, 255))
            image = Image.alpha_composite(backdrop, image)
        return image.convert("RGB")
    except ImageError:
        raise
    except Exception as error:
        # Decoders raise errors of many types at corrupt data, from struct.error to SyntaxError.
        raise ImageError(f"{what} is corrupt: {error}", "save it again as PNG") from error


def _channels_from_array(values: npt.NDArray[Any]) -> "tuple[PilImage, ...]":
    from PIL import Image

    if values.dtype == np.uint8 and (values.ndim == 2 or (values.ndim == 3 and values.shape[2] in (1, 3, 4))):
        flat = values[:, :, 0] if values.ndim == 3 and values.shape[2] == 1 else values
        _check_size(flat.shape[0], flat.shape[1], "the image")
        return _to_rgb(Image.fromarray(np.ascontiguousarray(flat)), "the image").split()
    if values.dtype.kind != "f" or values.ndim != 3 or values.shape[0] != 3:
        remedy = "give uint8 [height, width, 3] or floating point [3, height, width]"
        raise ImageError(f"a reference cannot be {list(values.shape)} {values.dtype}", remedy)
    _check_size(values.shape[1], values.shape[2], "the image")
    if not np.isfinite(values).all():
        raise ImageError(
            f"the image has {(~np.isfinite(values)).sum()} values that are not finite", "replace them"
        )
    if np.abs(values).max() > 1:
        remedy = "scale it to [-1, 1], or give uint8 from 0 to 255"
        raise ImageError(f"the image has values from {values.min():g} to {values.max():g}", remedy)
    return tuple(Image.fromarray(channel.astype(np.float32)) for channel in values)


def _check_size(height: int, width: int, what: str) -> None:
    if height * width > MAX_PIXELS:
        raise ImageError(f"{what} has {width} x {height} pixels", f"scale it to at most {MAX_PIXELS} pixels")
    if min(height, width) < MIN_SIDE:
        remedy = f"give one of at least {MIN_SIDE} x {MIN_SIDE}"
        raise ImageError(f"{what} has {width} x {height} pixels", remedy)
