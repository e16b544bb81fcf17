"""Image positions against DETR's formulation: counted pixel by pixel, embedded densely."""

import math

import torch
from torch import nn

from cond_detr.models.position_encoding import image_position, point_embedding


def test_dense_embedding_is_that_of_every_pixel() -> None:
    padding = torch.zeros(2, 4, 6, dtype=torch.bool)
    padding[1, 3:], padding[1, :, 4:] = True, True
    dense = image_position(padding, 32).dense().view(2, 4, 6, 32)
    for image, (height, width) in enumerate([(4, 6), (3, 4)]):
        for y in range(height):
            for x in range(width):
                for axis, (place, size) in enumerate([(y, height), (x, width)]):
                    for i in range(8):
                        angle = (place + 1) / (size + 1e-6) * 2 * math.pi / 10000 ** (2 * i / 16)
                        got = dense[image, y, x, axis * 16 + 2 * i : axis * 16 + 2 * i + 2]
                        want = torch.tensor([math.sin(angle), math.cos(angle)])
                        torch.testing.assert_close(got, want, rtol=0, atol=2e-6)


def test_projection_is_that_of_the_dense_embedding() -> None:
    """Output and gradients, on the pixels that are not padded."""
    padding = torch.zeros(2, 5, 7, dtype=torch.bool)
    padding[1, 3:], padding[1, :, 4:] = True, True
    position = image_position(padding, 32)
    linear = nn.Linear(32, 24)
    valid = ~padding.flatten(1)
    got, want = position.project(linear)[valid], linear(position.dense())[valid]
    torch.testing.assert_close(got, want)
    direction = torch.randn_like(want)
    parameters = list(linear.parameters())
    grads = torch.autograd.grad((got * direction).sum(), parameters)
    torch.testing.assert_close(grads, torch.autograd.grad((want * direction).sum(), parameters))


def test_a_point_is_embedded_as_the_pixel_it_lies_on() -> None:
    position = image_position(torch.zeros(1, 4, 5, dtype=torch.bool), 32).dense().view(4, 5, 32)
    torch.testing.assert_close(point_embedding(torch.tensor([3 / 5, 2 / 4]), 32), position[1, 2], rtol=0, atol=1e-5)
