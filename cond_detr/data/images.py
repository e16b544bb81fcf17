"""Decoding images, and resizing them for evaluation and prediction."""

import functools
import io
import math
import os
import warnings
from dataclasses import dataclass
from typing import IO, Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from typing_extensions import TypeIs

from cond_detr.data.arrays import from_array, from_tensor
from cond_detr.download import fetch_bytes, is_address
from cond_detr.errors import InputError, printable
from cond_detr.paths import exists, is_file, is_folder

Size: TypeAlias = tuple[int, int]  # width, height
ImageLike: TypeAlias = str | os.PathLike[str] | bytes | bytearray | IO[bytes] | Image.Image | NDArray[np.uint8] | Tensor


class ImageLoader(Protocol):
    """Loads the images of a data set."""

    def __call__(self, file_name: str, size: Size, at_least: Size | None = None, /) -> Image.Image:
        """Loads an image.

        Args:
            file_name: as the annotations say.
            size: (width, height) in pixels, as the annotations say.
            at_least: (width, height) in pixels of which it is needed, as of :func:`decode`.
        """


# What stands where an image has nothing, near the mean of photos
GREY = 114
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Formats that are decoded here; others may start programs, as EPS does
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
# Of an image: more would not fit beside the training
MOST_PIXELS = 1 << 27
# EXIF's tag, and the values that exchange width and height
ORIENTATION, SIDEWAYS = 0x0112, {5, 6, 7, 8}
# JPEGs are decoded at a half, a quarter or an eighth of their size if that is this many times as large as needed. On
# 120 photos that were then scaled to the same size, the median difference was 54 dB, on average .4 of 255
MARGIN = 1.5
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"}


def open_image(source: ImageLike, *, turn: bool = True, size: "InputSize | None" = None) -> Image.Image:
    """Decodes an image to 8-bit RGB.

    Args:
        source: path, https address, bytes or binary file of an image, PIL image, uint8 array (H, W, 3) in the order
            RGB, (H, W, 4) or (H, W), or tensor (3, H, W), (4, H, W), (1, H, W) or (H, W), uint8 or floats in [0, 1].
            Transparency is ignored. Of an animation or several pages, the first picture is taken.
        turn: whether to rotate it as its EXIF tag says.
        size: of the network's input, which the image must not be too narrow for.

    Raises:
        InputError: if the file is missing or is not a readable image, the array is of another shape or dtype, or the
            image is empty or too narrow.
    """
    name = "image"
    if isinstance(source, np.ndarray):
        image = from_array(source)
    elif isinstance(source, Tensor):
        image = from_tensor(source)
    elif isinstance(source, str) and is_address(source):
        name = f"image {printable(source)}"
        image = decode(io.BytesIO(fetch_bytes(source, name)), turn, name).image
    elif isinstance(source, (str, os.PathLike)):
        name = f"image {os.fspath(source)}"
        image = decode(source, turn, name).image
    elif isinstance(source, (bytes, bytearray)):
        image = decode(io.BytesIO(source), turn, name).image
    elif isinstance(source, Image.Image) or hasattr(source, "read"):
        image = decode(source, turn, name).image
    else:
        raise no_image(source)
    if 0 in image.size:
        raise InputError(f"{name} has no pixels: it is {image.width}x{image.height}")
    if size is not None:
        size.check(image.size, name)
    return image


def no_image(source: object) -> InputError:
    """The error about an argument that is no image."""
    return InputError(
        "an image must be a path, an https address, bytes, a binary file, a PIL image, an array or a tensor, "
        f"got {type(source).__name__}"
    )


def image_file(source: "str | os.PathLike[str] | IO[bytes]") -> Image.Image:
    """Opens an image file, of which only the header is read yet."""
    Image.init()  # or formats that are named are not known
    return Image.open(source, formats=FORMATS)


class Decoded(NamedTuple):
    """A decoded image.

    Attributes:
        image: RGB.
        size: (width, height) in pixels that it has in its file.
    """

    image: Image.Image
    size: Size


def decode(
    source: "str | os.PathLike[str] | IO[bytes] | Image.Image", turn: bool, name: str, at_least: Size | None = None
) -> Decoded:
    """Decodes an image to 8-bit RGB.

    Args:
        source: path or binary file of an image, or PIL image.
        turn: whether to rotate it as its EXIF tag says.
        name: what messages call it.
        at_least: (width, height) in pixels of which it is needed; a JPEG much larger is decoded at a fraction of its
            size. By default at its own.

    Raises:
        InputError: if the file is missing or is not a readable image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is odd about a file that can be read
            if isinstance(source, Image.Image):
                image = _upright(source.copy(), turn)
                return Decoded(image, image.size)
            if isinstance(source, (str, os.PathLike)) and exists(source) and not is_file(source):
                raise InputError("it is a folder" if is_folder(source) else "it is no regular file")
            with image_file(source) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise InputError(f"it has {image.width}x{image.height} pixels, more than {MOST_PIXELS}")
                whole = _draft(image, turn, at_least) if at_least and image.format in {"JPEG", "MPO"} else None
                upright = _upright(image, turn)
                return Decoded(upright, whole or upright.size)
    except FileNotFoundError:
        raise InputError(f"{name} does not exist") from None
    except UnidentifiedImageError:
        raise InputError(f"{name} cannot be read: it is no image in a format of {', '.join(FORMATS)}") from None
    except Exception as error:  # a damaged file can raise anything
        raise InputError(f"{name} cannot be read: {str(error) or type(error).__name__}") from None


def _draft(image: Image.Image, turn: bool, at_least: Size) -> Size:
    """Has a JPEG decoded at a fraction of its size, if it is large enough; returns its (width, height) as a whole."""
    whole = image.size
    sideways = turn and image.getexif().get(ORIENTATION) in SIDEWAYS
    width, height = at_least[::-1] if sideways else at_least
    image.draft("RGB", (math.ceil(MARGIN * width), math.ceil(MARGIN * height)))
    return whole[::-1] if sideways else whole


def _upright(image: Image.Image, turn: bool) -> Image.Image:
    """Converts to 8-bit RGB, rotated by the EXIF tag if wanted, and drops the metadata, so that this happens once.

    The image may be changed, and is what is returned if it is RGB already.
    """
    if turn and image.getexif().get(ORIENTATION, 1) != 1:  # or it is copied
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        pixels = np.asarray(image)
        # cameras and scanners store 10, 12 or 14 bits in 16
        bits = next(bits for bits in (8, 10, 12, 14, 16) if int(pixels.max(initial=0)) < 1 << bits)
        image = Image.fromarray((pixels >> (bits - 8)).astype(np.uint8))
    elif image.mode in {"I", "F"}:
        raise ValueError(f"its pixels have 32 bits (mode {image.mode}), expected 8 or 16")
    image.load()  # before its file is closed
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    rgb.getexif().clear()
    rgb.info = {}
    return rgb


def is_one(images: Any) -> TypeIs[ImageLike]:
    """Whether the argument is a single image rather than a sequence of images."""
    if isinstance(images, (np.ndarray, Tensor)):
        return images.ndim < 4  # those of four dimensions are sequences
    return isinstance(images, (str, os.PathLike, bytes, bytearray, Image.Image)) or hasattr(images, "read")


def resized(size: Size, short: int, longest: int) -> Size:
    """Scales a size, keeping its aspect ratio.

    Args:
        size: (width, height) in pixels.
        short: new length of the short side.
        longest: longest long side allowed; the short side is less than ``short`` where it would be exceeded.
    """
    width, height = size
    if max(size) / min(size) * short > longest:
        short = round(longest * min(size) / max(size))
    if width < height:
        return max(1, short), max(1, int(short * height / width))
    return max(1, int(short * width / height)), max(1, short)


def pixels_of(image: Image.Image) -> Tensor:
    """The pixels of an RGB image, (3, H, W) uint8; not to be written to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # NumPy's array of them is read-only
        return torch.from_numpy(np.asarray(image)).permute(2, 0, 1)


def resize(pixels: Tensor, size: Size) -> Tensor:
    """Scales pixels as Pillow's bilinear filter does, to the last bit or the one before, in a third of its time.

    Args:
        pixels: (3, H, W) uint8.
        size: new (width, height).
    """
    width, height = size
    if pixels.shape[1:] == (height, width):
        return pixels
    return F.interpolate(pixels[None], size=(height, width), mode="bilinear", antialias=True)[0]


def normalise(pixels: Tensor) -> Tensor:
    """Converts pixels to the network's input, on their device and without a host-device synchronisation.

    Args:
        pixels: (..., 3, H, W) uint8 RGB.

    Returns:
        (..., 3, H, W) fp32, normalised by ImageNet's mean and standard deviation.
    """
    mean, std = _statistics(pixels.device)
    return pixels.float().div_(255).sub_(mean).div_(std)


@functools.cache
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """ImageNet's mean and standard deviation, (3, 1, 1) each; copied to a device once."""
    with torch.inference_mode(False):
        mean, std = (torch.tensor(values).view(3, 1, 1).to(device) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return mean, std


def fitted(image: Image.Image, short: int, longest: int) -> Tensor:
    """The pixels of an RGB image as in evaluation, (3, H, W) uint8: resized as :func:`resized`."""
    return resize(pixels_of(image), resized(image.size, short, longest))


def to_network_input(image: Image.Image, short: int, longest: int) -> Tensor:
    """Prepares an RGB image for the network as in evaluation: (3, H, W) fp32, resized and normalised."""
    return normalise(fitted(image, short, longest))


@dataclass(frozen=True)
class InputSize:
    """How large images are for a network.

    Attributes:
        short: length of the short side, in pixels.
        longest: longest long side allowed.
        stride: stride of the network, in pixels.
    """

    short: int
    longest: int
    stride: int

    def of(self, size: Size) -> Size:
        """The (width, height) in pixels that an image of a size has for the network."""
        return resized(size, self.short, self.longest)

    def check(self, size: Size, name: str) -> None:
        """Checks that an image is not too narrow to be seen.

        Args:
            size: its (width, height) in pixels.
            name: what messages call it.

        Raises:
            InputError: if a side is shorter than the network's stride where the network gets it.
        """
        width, height = self.of(size)
        if min(width, height) < self.stride:
            raise InputError(
                f"{name} of {size[0]}x{size[1]} pixels is too narrow: the network gets {width}x{height}, "
                f"less than its stride of {self.stride}"
            )
