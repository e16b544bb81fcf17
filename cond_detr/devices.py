"""Choice of the device and of the number of CPU threads."""

import os

import torch

from cond_detr.errors import InputError, shown


def device_named(name: str | None) -> torch.device:
    """Returns the device of the setting ``device``.

    Args:
        name: "cpu", "cuda", "cuda:1" and so on, or "auto" for "cuda" if there is a CUDA device, else "cpu".

    Raises:
        InputError: if the name is not one of these, or there is no such device.
    """
    if name is None or name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device: torch.device | None = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in {"cpu", "cuda"} or (device.type == "cpu" and device.index):
        raise InputError(f"`device` must be cpu, cuda or cuda:N, got {shown(name)}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"`device` {name}: this torch ({torch.__version__}) sees no CUDA device")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"`device` {name}: there are {torch.cuda.device_count()} CUDA devices")
    return device


def use_threads(count: int | None) -> None:
    """Sets the number of CPU threads of torch, of the matcher and, before the first one, of the evaluation.

    None changes nothing.
    """
    if count is not None:
        torch.set_num_threads(count)
        os.environ["RAYON_NUM_THREADS"] = str(count)  # hotcoco's
