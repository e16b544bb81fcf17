"""The tensors of a ``torch.save`` file: the storages that hold their bytes, and the views that a file describes.

A file can claim anything about its tensors. Here a storage is never larger than the file, a tensor must lie inside its
storage, without elements that share memory, and all tensors together are not much larger than the file.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cond_detr.errors import InputError

STORAGE_TYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
    # of quantised tensors, which are then not known; but the bytes behind them have to be found
    "QInt8Storage": torch.int8,
    "QUInt8Storage": torch.uint8,
    "QInt32Storage": torch.int32,
}
DTYPES = {str(dtype): dtype for dtype in STORAGE_TYPES.values()}
# Axes of a tensor, and bytes of all tensors for each byte of the file: several may be views of the same storage
MOST_AXES = 16
VIEWED = 4
VIEWED_ANYWAY = 1 << 26


class OddTensorError(InputError):
    """A tensor that no detector has: it becomes an :class:`UnknownTensor`."""


class Unknown:
    """Placeholder for something in a file that was not made, and none of whose code was run.

    Attributes:
        what: what it would have been, for messages.
    """

    def __init__(self, what: str) -> None:
        self.what = what

    def __repr__(self) -> str:
        return f"<{self.what!r}>"


class UnknownTensor(Unknown):
    """Placeholder for a tensor that no detector has."""


def kind_of(value: Any) -> str:
    """What an entry of a file is, for messages."""
    if isinstance(value, Tensor):
        return f"{value.dtype} of {tuple(value.shape)}"
    return value.what if isinstance(value, Unknown) else f"a {type(value).__name__}"


class Storage:
    """A storage as tensors refer to it.

    Attributes:
        dtype: type of its elements.
        data: (bytes,) uint8, shared by all references to the same storage.
        spend: counts the bytes of a view.
    """

    def __init__(self, dtype: torch.dtype, data: Tensor, spend: Callable[[int], None]) -> None:
        self.dtype = dtype
        self.data = data
        self.spend = spend


class Storages:
    """The storages of one file. Together they take no more memory than the file has bytes.

    Args:
        file_size: size of the file in bytes.
        fill: reads the storage of a key into a buffer.

    Attributes:
        by_key: dtype and bytes of every storage that a tensor has referred to so far.
    """

    def __init__(self, file_size: int, fill: Callable[[str, memoryview], None]) -> None:
        self.left = file_size
        self.views_left = VIEWED * file_size + VIEWED_ANYWAY
        self.fill = fill
        self.by_key: dict[str, tuple[torch.dtype, Tensor]] = {}

    def get(self, dtype: torch.dtype, key: str, length: int) -> Storage:
        """The storage of a key, allocated and filled on the first call.

        Args:
            dtype: type of its elements.
            key: its name in the file.
            length: its number of elements.

        Raises:
            InputError: if the storages together would be larger than the file, or the same storage was referred to
                with another dtype.
        """
        if key not in self.by_key:
            size = length * dtype.itemsize
            if not 0 <= size <= self.left:
                raise InputError("its tensors need more memory than it has bytes")
            self.left -= size
            data = torch.empty(size, dtype=torch.uint8)
            self.fill(key, bytes_of(data))
            self.by_key[key] = dtype, data
        elif self.by_key[key][0] != dtype:
            raise InputError(f"its part {key} is of two types")
        return Storage(dtype, self.by_key[key][1], self._spend)

    def _spend(self, size: int) -> None:
        self.views_left -= size
        if self.views_left < 0:
            raise InputError("its tensors would take many times as much memory as it has bytes")


def bytes_of(data: Tensor) -> memoryview:
    """The memory of a uint8 tensor on the CPU, as a writable buffer."""
    array: Any = data.numpy()
    return memoryview(array)


def rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """Replaces ``torch._utils._rebuild_tensor``; see :func:`view`."""
    return view(storage, offset, size, stride, getattr(storage, "dtype", torch.uint8))


def rebuild_tensor_v2(
    storage: Any, offset: Any, size: Any, stride: Any, _requires_grad: Any, _hooks: Any, metadata: Any = None
) -> Tensor:
    """Replaces ``torch._utils._rebuild_tensor_v2``; see :func:`view`.

    Raises:
        InputError: if the tensor is stored conjugated or negated.
    """
    if metadata:
        raise OddTensorError("a tensor that is conjugated or negated only when it is read")
    return view(storage, offset, size, stride, getattr(storage, "dtype", torch.uint8))


def rebuild_tensor_v3(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    _requires_grad: Any,
    _hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> Tensor:
    """Replaces ``torch._utils._rebuild_tensor_v3``, which names the dtype; see :func:`view`.

    Raises:
        InputError: if the dtype is none, or the tensor is stored conjugated or negated.
    """
    if metadata or not isinstance(dtype, torch.dtype):
        raise OddTensorError("a tensor of a type that is not known")
    return view(storage, offset, size, stride, dtype)


def view(storage: Any, offset: Any, size: Any, stride: Any, dtype: torch.dtype) -> Tensor:
    """A strided view of a storage. The arguments come from the file and are checked here.

    Args:
        storage: a :class:`Storage`.
        offset: of the first element, in elements.
        size: shape of the tensor.
        stride: steps between neighbours along each axis, in elements.
        dtype: type of the elements.

    Raises:
        InputError: if the view reaches beyond the storage, or two of its elements would share memory.
    """
    if isinstance(storage, Unknown):
        raise OddTensorError("a tensor of a type that is not known")
    if not isinstance(storage, Storage) or not all(isinstance(value, tuple) for value in (size, stride)):
        raise InputError("a tensor is not made of a part of it")
    if len(size) > MOST_AXES:
        raise OddTensorError(f"a tensor of {len(size)} axes")
    numbers = (offset, *size, *stride) if len(size) == len(stride) else ()
    if not numbers or any(type(number) is not int or number < 0 for number in numbers):
        raise InputError("a tensor's sizes and strides must be whole numbers of at least 0")
    reach = _reach(size, stride)
    if len(storage.data) % dtype.itemsize:
        raise InputError("a tensor's part does not hold whole numbers of its type")
    flat = storage.data.view(dtype)
    if 0 in size:
        return flat.new_empty(size)
    if offset + reach > len(flat):
        raise InputError(f"a tensor reaches beyond its part, which has {len(flat)} elements")
    storage.spend(math.prod(size) * dtype.itemsize)
    return flat.as_strided(size, stride, offset)


def _reach(size: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """How many elements of a storage lie between the first and the last one of a view, both included.

    Raises:
        OddTensorError: if two elements would share memory.
    """
    reach = 1
    for step, length in sorted(zip(stride, size, strict=True)):
        if length > 1:
            if step < reach and 0 not in size:
                raise OddTensorError("a tensor whose elements share memory")
            reach += (length - 1) * step
    return reach
