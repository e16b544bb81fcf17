"""Communication between the processes of a distributed run. With a single process every function is a no-op."""

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cond_detr.errors import InputError

T = TypeVar("T")

# Seconds. One process may write a checkpoint, or download weights, while the others wait
PATIENCE = 600
# In messages of torch's backends about a process that is gone or silent
LOST = ("gloo", "NCCL", "nccl", "Connection closed by peer", "Timed out waiting")


@contextlib.contextmanager
def processes(device: torch.device, timeout: int | None = None) -> Iterator[None]:
    """Joins torchrun's process group for the length of a block.

    Does nothing if torchrun did not start this process, or a process group exists already.

    Args:
        device: device of this process.
        timeout: seconds of silence after which another process is lost; by default :data:`PATIENCE`.

    Raises:
        InputError: if another process is gone or silent.
    """
    joins = {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys() and not dist.is_initialized()
    if not joins:
        yield
        return
    patience = timeout or PATIENCE
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(seconds=patience))
    lost = False
    leaving = torch.zeros((), device=device)  # kept until the group is gone: its threads are not the last that have it
    try:
        yield
        # Together. What a thread of the group still holds when Python ends, it cannot give back: that is an abort
        dist.all_reduce(leaving)
    except RuntimeError as error:
        lost = any(word in str(error) for word in LOST)
        if not lost:
            raise
        raise InputError(
            f"another process of this run is gone, or gave nothing for {patience} seconds: what it printed says why; "
            "`resume` continues from the last saved state"
        ) from None
    finally:
        if not lost:  # that would wait for the lost process
            dist.destroy_process_group()


def restarted() -> bool:
    """Whether torchrun restarted this process after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def rank() -> int:
    """Rank of this process; 0 for a single process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_device(device: torch.device) -> torch.device:
    """Returns the device of this process, and makes it current if it is a GPU.

    Args:
        device: a CUDA device without an index becomes the one of torchrun's ``LOCAL_RANK``; others stay as they are.
    """
    if device.type != "cuda":
        return device
    if device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    return device


def make_equal(module: nn.Module) -> None:
    """Broadcasts the parameters and buffers of rank 0 to all processes."""
    if dist.is_initialized():
        with torch.no_grad():
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, 0)


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Sums a tensor over all processes, in place; no gradients flow through it."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """Averages a tensor over all processes, in place; no gradients flow through it."""
    return sum_over_ranks(tensor).div_(world_size()) if dist.is_initialized() else tensor


def least_over_ranks(number: int, device: torch.device) -> int:
    """The smallest of the numbers that the processes pass; ``device`` carries the exchange."""
    if not dist.is_initialized():
        return number
    tensor = torch.tensor(number, device=device)
    dist.all_reduce(tensor, dist.ReduceOp.MIN)
    return int(tensor)


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether any process passes True, so that all of them can act on it; ``device`` carries the exchange."""
    if not dist.is_initialized():
        return flag
    return bool(sum_over_ranks(torch.tensor(float(flag), device=device)) > 0)


def processes_here() -> int:
    """Number of processes of the run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if dist.is_initialized() else 1


def gather_objects(each: T) -> list[T]:
    """The objects that the processes pass, in the order of the ranks; waits for all of them."""
    if not dist.is_initialized():
        return [each]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, each)
    return found


def gather_rows(rows: Tensor, device: torch.device) -> Tensor:
    """Concatenates the rows of all processes, in the order of the ranks; every process gets the result.

    Args:
        rows: (n, ...) tensor on the CPU, whose n may differ between processes.
        device: carries the exchange.
    """
    if not dist.is_initialized():
        return rows
    count = torch.tensor(len(rows), device=device)
    counts = [torch.empty_like(count) for _ in range(world_size())]
    dist.all_gather(counts, count)
    padded = rows.new_zeros(int(max(counts)), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded, device=device) for _ in counts]
    dist.all_gather(parts, padded.to(device))
    return torch.cat([part[: int(number)].cpu() for part, number in zip(parts, counts, strict=True)])


def from_rank_zero(make: Callable[[], T]) -> T:
    """Calls a function on rank 0 and returns its result on every rank.

    Raises:
        InputError: on every rank, if ``make`` raised it on rank 0; on the others also if it raised anything else.
    """
    if not dist.is_initialized():
        return make()
    box: list[Any] = [None, None]
    failure: Exception | None = None
    if rank() == 0:
        try:
            box[0] = make()
        except Exception as error:
            failure = error
            unknown = InputError("the first process of this run has failed: what it printed says why")
            box[1] = error if isinstance(error, InputError) else unknown
    dist.broadcast_object_list(box)
    if failure or box[1]:
        raise failure or box[1]
    result: T = box[0]
    return result
