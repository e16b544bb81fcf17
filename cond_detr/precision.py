"""How a GPU multiplies fp32 matrices."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def fp32_products(precision: str, device: torch.device) -> Iterator[None]:
    """Sets what torch, cuDNN and the attention kernels do on CUDA, and afterwards what was set before.

    Args:
        precision: "high" rounds factors to TF32, for tensor cores, and sums up in fp32; "highest" rounds nothing.
        device: where to run; nothing changes on others than CUDA devices.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    _set(precision, precision == "high")
    try:
        yield
    finally:
        _set(*before)


def _set(products: str, convolutions: bool) -> None:
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = convolutions
