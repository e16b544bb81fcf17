"""Augmentation: boxes must follow the pixels, whatever is done to them."""

from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from cond_detr import InputError
from cond_detr.config import DataConfig
from cond_detr.data.augment import Annotated, augment, crop, draw_augmentation, draw_crop, flip, scale
from cond_detr.data.images import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    InputSize,
    normalise,
    open_image,
    pixels_of,
    resize,
    resized,
    to_network_input,
)


def painted(width: int, height: int, box: tuple[int, int, int, int]) -> Annotated:
    """A black image with one white rectangle and its box."""
    image = Image.new("RGB", (width, height))
    image.paste((255, 255, 255), box)
    return Annotated(pixels_of(image), np.array([box], np.float32), np.array([4]))


def white_extent(sample: Annotated) -> list[int]:
    bright = sample.pixels.numpy().mean(0) > 127
    rows, cols = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
    return [cols[0], rows[0], cols[-1] + 1, rows[-1] + 1]


def test_flip() -> None:
    flipped = flip(painted(100, 60, (10, 20, 40, 50)))
    assert flipped.boxes[0].tolist() == white_extent(flipped) == [60, 20, 90, 50]


def test_resize() -> None:
    scaled = scale(painted(100, 60, (10, 20, 40, 50)), (200, 120))
    assert scaled.size == (200, 120)
    np.testing.assert_allclose(scaled.boxes[0], white_extent(scaled), atol=1)


def test_crop_clips_and_drops() -> None:
    sample = painted(100, 60, (10, 20, 40, 50))
    inside = crop(sample, (20, 10, 50, 30))
    assert inside.boxes[0].tolist() == white_extent(inside) == [0, 10, 20, 30]
    outside = crop(sample, (45, 0, 50, 60))
    assert outside.boxes.shape == (0, 4)
    assert outside.labels.shape == (0,)


@pytest.mark.parametrize("kind", ["paper", "flip", "none"])
@pytest.mark.parametrize("seed", range(30))
def test_augmented_boxes_follow_the_pixels(seed: int, kind: Literal["paper", "flip", "none"]) -> None:
    sample = painted(160, 120, (30, 40, 110, 90))
    data = DataConfig(image_size=100, max_size=140, augment=kind)
    drawn = draw_augmentation((160, 120), data, np.random.default_rng(seed))
    out = augment(sample, drawn)
    assert out.size == drawn.size
    assert max(out.size) <= 140
    if len(out.boxes):
        np.testing.assert_allclose(out.boxes[0], white_extent(out), atol=1.5)
    else:
        assert out.pixels.max() == 0


def test_the_papers_sizes() -> None:
    """Short side 480..800 in steps of 32, long side at most 1333, with and without a crop."""
    sample = painted(640, 480, (100, 100, 300, 300))
    shorts, cropped = set(), 0
    for seed in range(200):
        out = augment(sample, draw_augmentation((640, 480), DataConfig(), np.random.default_rng(seed)))
        assert max(out.size) <= 1333
        ratio = out.size[0] / out.size[1]
        cropped += abs(ratio - 640 / 480) > 0.01
        if max(out.size) < 1333:
            shorts.add(min(out.size))
    assert shorts == set(range(480, 801, 32))
    assert 60 < cropped < 140


def test_random_crop_sizes() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        left, top, width, height = draw_crop((500, 300), 384, 600, rng)
        assert 384 <= width <= 500 - left
        assert (top, height) == (0, 300)


@pytest.mark.parametrize(
    ("size", "want"),
    [((640, 480), (1066, 800)), ((480, 640), (800, 1066)), ((2000, 500), (1332, 333)), ((800, 800), (800, 800))],
)
def test_evaluation_size(size: tuple[int, int], want: tuple[int, int]) -> None:
    assert resized(size, 800, 1333) == want


@pytest.mark.parametrize("size", [(30, 17), (200, 131), (401, 300), (1066, 800), (64, 300)], ids=str)
def test_scales_as_pillow_does(size: tuple[int, int]) -> None:
    """Of noise, to the last bit or the one before, whatever the strides."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (240, 320, 3), dtype=np.uint8))
    want = np.asarray(image.resize(size, Image.Resampling.BILINEAR)).astype(int)
    pixels = pixels_of(image)
    part = pixels_of(Image.new("RGB", (400, 300)))
    part[:, 20:260, 30:350] = pixels
    for same in (pixels, pixels.permute(1, 2, 0).contiguous().permute(2, 0, 1), part[:, 20:260, 30:350]):
        got = resize(same, size)
        assert got.is_contiguous()
        assert np.abs(got.permute(1, 2, 0).numpy().astype(int) - want).max() <= 1


def test_normalises_as_in_fp64() -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 5, 7), dtype=np.uint8))
    mean, std = (torch.tensor(each, dtype=torch.float64).view(3, 1, 1) for each in (IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(normalise(pixels).double(), (pixels.double() / 255 - mean) / std, rtol=0, atol=1e-6)


def test_network_input() -> None:
    pixels = to_network_input(Image.new("RGB", (64, 48), (255, 0, 128)), 48, 100)
    assert pixels.shape == (3, 48, 64)
    want = [(1 - 0.485) / 0.229, -0.456 / 0.224, (128 / 255 - 0.406) / 0.225]
    np.testing.assert_allclose(pixels[:, 5, 5], want, rtol=1e-5)
    size = InputSize(800, 1333, 32)
    assert open_image(Image.new("RGB", (24, 24)), size=size).size == (24, 24)  # the network gets 800x800
    with pytest.raises(InputError, match="image of 4000x36 pixels is too narrow: the network gets 1333x12, less than"):
        open_image(Image.new("RGB", (4000, 36)), size=size)


@pytest.mark.parametrize("array", [np.zeros((5, 5)), np.zeros((5, 5, 3)), np.zeros((5, 5, 2), np.uint8)], ids=str)
def test_wrong_arrays(array: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"an image array must be .* uint8"):
        open_image(array)
