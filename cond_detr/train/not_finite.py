"""Numbers that are not finite: the error about them, and the first module that gives them."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from cond_detr.errors import InputError
from cond_detr.paths import exists
from cond_detr.train.run_folder import RunFolder


def not_finite(loss: float, epoch: int, step: int, folder: RunFolder) -> InputError:
    """The error about a loss that is not finite, in an epoch counted from 0, by a step counted from 1."""
    state = folder.not_finite if exists(folder.not_finite) else folder.last
    return InputError(
        f"the loss is {loss} in epoch {epoch + 1}, by step {step}; lower `lr` or use `amp` off. The last good state is "
        f"{folder.last}; what is not finite first, cond-detr replay {state} says"
    )


class Guard:
    """Sees a loss that is not finite before the weights do, where looking at it costs nothing.

    Args:
        network: what is trained.
        active: whether to look.
    """

    def __init__(self, network: nn.Module, *, active: bool) -> None:
        self.buffers = list(network.buffers()) if active else []
        self.active = active
        self.before: list[Tensor] = []

    def before_step(self) -> None:
        """Keeps what a forward pass changes, the statistics of batch normalisation."""
        self.before = [buffer.clone() for buffer in self.buffers]

    def is_broken(self, losses: Tensor) -> bool:
        """Whether a loss is not finite; the network is then as before the step."""
        if not self.active or all(map(math.isfinite, losses.tolist())):
            return False
        for buffer, before in zip(self.buffers, self.before, strict=True):
            buffer.copy_(before)
        return True


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The floating point tensors in what modules take and give: tensors, tuples, lists and dictionaries of them."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from tensors_in(each)
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from tensors_in(each)


def all_finite(value: Any) -> bool:
    """Whether all numbers in it are."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors_in(value))


def first_not_finite(network: nn.Module, call: Callable[[], object]) -> str | None:
    """The first module, as they are run, whose output is not finite though its inputs are, in words.

    Args:
        network: the module to watch, with all in it.
        call: runs it.

    Returns:
        None if all outputs are finite.
    """
    found: list[str] = []
    hooks = []

    def watch(name: str) -> Callable[..., None]:
        def look(module: nn.Module, inputs: Any, keywords: Any, output: Any) -> None:
            if not found and not all_finite(output) and all_finite((inputs, keywords)):
                found.append(f"{name or 'the network'} ({type(module).__name__})")

        return look

    for name, module in network.named_modules():
        hooks.append(module.register_forward_hook(watch(name), with_kwargs=True))
    try:
        call()
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def names_of_not_finite(named: Iterator[tuple[str, Tensor | None]]) -> list[str]:
    """The names of tensors with numbers that are not finite."""
    return [name for name, tensor in named if tensor is not None and not bool(torch.isfinite(tensor).all())]
