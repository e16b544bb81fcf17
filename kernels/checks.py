"""The one place that words complaints about operands."""

from collections.abc import Sequence

from torch import Tensor


def check_shape(name: str, tensor: Tensor, axes: str, sizes: Sequence[int | None]) -> None:
    """Raises a ValueError unless ``tensor`` has the given sizes.

    Args:
        name: the argument's name, for the message.
        axes: how its shape is documented, such as ``"(B, T, 4)"``.
        sizes: the expected size of each axis, None where any will do.
    """
    fits = tensor.dim() == len(sizes) and all(
        want is None or want == got for want, got in zip(sizes, tensor.shape, strict=True)
    )
    if not fits:
        known = ", ".join("any" if size is None else str(size) for size in sizes)
        raise ValueError(f"{name} must be {axes}, here ({known}), got {tuple(tensor.shape)}")


def check_same(names: Sequence[str], tensors: Sequence[Tensor], what: str) -> None:
    """Raises a ValueError unless all tensors agree in ``what``: an attribute such as ``"dtype"`` or ``"device"``."""
    first = getattr(tensors[0], what)
    for name, tensor in zip(names[1:], tensors[1:], strict=True):
        if getattr(tensor, what) != first:
            raise ValueError(f"{name} must have the {what} of {names[0]}, {first}, got {getattr(tensor, what)}")
