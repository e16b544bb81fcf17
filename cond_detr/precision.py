"""Precision of fp32 matrix products on CUDA devices."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def fp32_products(precision: str, device: torch.device) -> Iterator[None]:
    """Sets the precision of torch, cuDNN and the attention kernels within a block, and restores it afterwards.

    Args:
        precision: "high" rounds factors to TF32, for tensor cores, and accumulates in fp32; "highest" rounds nothing.
        device: device of the tensors; nothing changes unless it is a CUDA device.
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
