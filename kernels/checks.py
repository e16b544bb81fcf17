"""Checks of arguments, with uniform error messages."""

from collections.abc import Sequence

import torch
from torch import Tensor


def check_tensor(name: str, value: object) -> None:
    """Checks that an argument is a tensor.

    Raises:
        TypeError: if it is not.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")


def check_number(name: str, value: object) -> None:
    """Checks that an argument is a number, of Python, NumPy or torch.

    Raises:
        TypeError: if it is not.
    """
    # while a graph is compiled, a number can be a symbol
    if not torch.compiler.is_compiling() and not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number, got {value!r}")


def check_shape(name: str, tensor: Tensor, axes: str, sizes: Sequence[int | None]) -> None:
    """Checks the shape of a tensor.

    Args:
        name: name of the argument, for the message.
        tensor: the argument.
        axes: its documented shape, such as ``"(B, T, 4)"``.
        sizes: expected size of each axis, None for any size.

    Raises:
        TypeError: if the argument is no tensor.
        ValueError: if the tensor has another shape.
    """
    check_tensor(name, tensor)
    fits = tensor.dim() == len(sizes) and all(
        want is None or want == got for want, got in zip(sizes, tensor.shape, strict=True)
    )
    if not fits:
        known = ", ".join("any" if size is None else str(size) for size in sizes)
        raise ValueError(f"{name} must be {axes}, here ({known}), got {tuple(tensor.shape)}")


def check_same(names: Sequence[str], tensors: Sequence[Tensor], what: str) -> None:
    """Checks that tensors have an attribute in common.

    Args:
        names: names of the arguments, for the message.
        tensors: the arguments.
        what: the attribute, such as ``"dtype"`` or ``"device"``.

    Raises:
        ValueError: if one of them differs from the first.
    """
    first = getattr(tensors[0], what)
    for name, tensor in zip(names[1:], tensors[1:], strict=True):
        if getattr(tensor, what) != first:
            raise ValueError(f"{name} must have the {what} of {names[0]}, {first}, got {getattr(tensor, what)}")
