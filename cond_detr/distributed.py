"""The few things that many processes have to agree on. All of them work, and cost nothing, with one process."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cond_detr.errors import InputError

T = TypeVar("T")


@contextlib.contextmanager
def processes(device: torch.device) -> Iterator[None]:
    """Within it, this process is one of those that torchrun started, if it did and nobody has joined them yet."""
    joins = {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys() and not dist.is_initialized()
    if joins:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        if joins:
            dist.destroy_process_group()


def restarted() -> bool:
    """Whether torchrun has started this process anew because one failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def local_device(device: torch.device) -> torch.device:
    """The GPU of this process, torchrun gives each its number, which becomes the current one."""
    if device.type != "cuda":
        return device
    if device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    return device


def make_equal(module: nn.Module) -> None:
    """Gives all processes the first one's parameters and buffers."""
    if dist.is_initialized():
        with torch.no_grad():
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, 0)


def sum_over_ranks(tensor: Tensor) -> Tensor:
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """The mean over the processes, in place."""
    return sum_over_ranks(tensor).div_(world_size()) if dist.is_initialized() else tensor


def least_over_ranks(number: int, device: torch.device) -> int:
    """The smallest of the processes' numbers."""
    if not dist.is_initialized():
        return number
    tensor = torch.tensor(number, device=device)
    dist.all_reduce(tensor, dist.ReduceOp.MIN)
    return int(tensor)


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set anywhere, so that all processes act on it together."""
    if not dist.is_initialized():
        return flag
    return bool(sum_over_ranks(torch.tensor(float(flag), device=device)) > 0)


def gather_lists(items: list[Any]) -> list[Any]:
    """The lists of all ranks, one after the other, on every rank."""
    if not dist.is_initialized():
        return items
    lists: list[Any] = [None] * world_size()
    dist.all_gather_object(lists, items)
    return [item for each in lists for item in each]


def from_rank_zero(make: Callable[[], T]) -> T:
    """What ``make`` gives on the first process, on every process; what it raises there is raised everywhere."""
    if not dist.is_initialized():
        return make()
    box: list[Any] = [None, None]
    if rank() == 0:
        try:
            box[0] = make()
        except InputError as error:
            box[1] = error
    dist.broadcast_object_list(box)
    if box[1] is not None:
        raise box[1]
    result: T = box[0]
    return result
