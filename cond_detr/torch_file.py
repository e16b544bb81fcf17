"""Reads files that ``torch.save`` wrote, without running anything and without torch's unpickler.

torch's own loader, restricted as it can be (``weights_only=True``), lets a file call functions that take memory without
end, give tensors attributes that hide their methods, and even move a storage while another still points to it. This one
knows a short list of names. Whatever else a file refers to comes out as :class:`Unknown`, which does nothing, so that
what lies beside the weights does not matter. Tensors are made here, from bytes that are in the file.

Both layouts are read: archives, since torch 1.6, and what was before them.
"""

import pickle
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any, ClassVar

import torch
from torch import Tensor

from cond_detr.errors import InputError

ZIP_MAGIC = b"PK\x03\x04"
# A pickled number that the older layout begins with, and the version of that layout
OLDER_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + b"\x80\x02M\xe9\x03."

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
}
DTYPES = {str(dtype): dtype for dtype in STORAGE_TYPES.values()}


def load(path: Path) -> Any:
    """What a file holds: dictionaries, lists, tuples, text, numbers, tensors on the CPU, and :class:`Unknown`.

    Raises:
        InputError: a part is compressed, or a tensor is not what it claims to be.
        Exception: any, of a damaged file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        magic = file.read(len(OLDER_MAGIC))
        file.seek(0)
        if magic.startswith(ZIP_MAGIC):
            with zipfile.ZipFile(file) as archive:
                return _load_archive(archive, size)
        if magic != OLDER_MAGIC:
            raise InputError("it is no file of torch's")
        return _load_older(file, size)


def _load_archive(archive: zipfile.ZipFile, size: int) -> Any:
    for entry in archive.infolist():
        if entry.compress_type != zipfile.ZIP_STORED:
            raise InputError(f"its part {entry.filename} is compressed, which torch never does")
    (main,) = (name for name in archive.namelist() if name.count("/") <= 1 and name.endswith("data.pkl"))
    root = main.removesuffix("data.pkl")
    if root + "byteorder" in archive.namelist() and archive.read(root + "byteorder") != b"little":
        raise InputError("its numbers are big-endian")

    def fill(key: str, buffer: memoryview) -> None:
        part = archive.getinfo(f"{root}data/{key}")
        if part.file_size != len(buffer):
            raise InputError(f"its part {part.filename} has {part.file_size} bytes, expected {len(buffer)}")
        with archive.open(part) as stream:
            _read_whole(stream, buffer)

    with archive.open(main) as stream:
        return _Unpickler(stream, _Storages(size, fill)).load()


def _load_older(file: IO[bytes], size: int) -> Any:
    file.seek(len(OLDER_MAGIC))
    storages = _Storages(size, lambda key, buffer: None)  # they come behind
    _Unpickler(file, storages).load()  # of the machine that wrote it
    content = _Unpickler(file, storages).load()
    keys = _Unpickler(file, storages).load()
    if not isinstance(keys, list) or set(keys) != set(storages.by_key) or len(keys) != len(storages.by_key):
        raise InputError("its tensors do not use the parts that it lists")
    for key in keys:
        dtype, data = storages.by_key[key]
        if int.from_bytes(file.read(8), "little") * dtype.itemsize != len(data):
            raise InputError(f"its part {key} has another length than its tensors say")
        _read_whole(file, _bytes_of(data))
    return content


def _read_whole(stream: IO[bytes], buffer: memoryview) -> None:
    done = 0
    while done < len(buffer):
        count = stream.readinto(buffer[done:])  # type: ignore[attr-defined]
        if not count:
            raise OSError("it is cut off")
        done += count


class _Storages:
    """The memory of a file's tensors, no more together than the file has."""

    def __init__(self, file_size: int, fill: Callable[[str, memoryview], None]) -> None:
        self.left = file_size
        self.fill = fill
        self.by_key: dict[str, tuple[torch.dtype, Tensor]] = {}

    def get(self, dtype: torch.dtype, key: str, length: int) -> "_Storage":
        if key not in self.by_key:
            size = length * dtype.itemsize
            if not 0 <= size <= self.left:
                raise InputError("its tensors need more memory than it has bytes")
            self.left -= size
            data = torch.empty(size, dtype=torch.uint8)
            self.fill(key, _bytes_of(data))
            self.by_key[key] = dtype, data
        elif self.by_key[key][0] != dtype:
            raise InputError(f"its part {key} is of two types")
        return _Storage(dtype, self.by_key[key][1])


def _bytes_of(data: Tensor) -> memoryview:
    array: Any = data.numpy()
    return memoryview(array)


class _Storage:
    """A part of a file, before a tensor says how it looks at it."""

    def __init__(self, dtype: torch.dtype, data: Tensor) -> None:
        self.dtype = dtype
        self.data = data


class Unknown:
    """Stands for an object of a class, or what a function gives, that is not known here. Nothing of it was run."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<{self.name!r}>"


class _Name:
    """A class or function that a file refers to, and what is done where the file calls it."""

    def __init__(self, name: str, call: Callable[..., Any] | None = None) -> None:
        self.name = name
        self.call = call

    def __call__(self, *arguments: Any) -> Any:
        return self.call(*arguments) if self.call else Unknown(self.name)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    return _view(storage, offset, size, stride, storage.dtype)


def _tensor_with_metadata(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, metadata: Any = None
) -> Tensor:
    if metadata:
        raise InputError("a tensor is conjugated or negated only when it is read")
    return _view(storage, offset, size, stride, storage.dtype)


def _tensor_of_dtype(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, dtype: Any, metadata: Any = None
) -> Tensor:
    if metadata or not isinstance(dtype, torch.dtype):
        raise InputError("a tensor has a type or properties that are not known")
    return _view(storage, offset, size, stride, dtype)


def _view(storage: Any, offset: Any, size: Any, stride: Any, dtype: torch.dtype) -> Tensor:
    """Part of a storage: inside of it, each element in a place of its own."""
    if not isinstance(storage, _Storage) or not all(isinstance(value, tuple) for value in (size, stride)):
        raise InputError("a tensor is not made of a part of it")
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or any(type(number) is not int or number < 0 for number in numbers):
        raise InputError("a tensor's sizes and strides must be whole numbers of at least 0")
    reach = 1
    for step, length in sorted(zip(stride, size, strict=True)):
        if length > 1:
            if step < reach and 0 not in size:
                raise InputError("elements of a tensor share memory")
            reach += (length - 1) * step
    flat = storage.data.view(dtype)
    if 0 in size:
        return flat.new_empty(size)
    if offset + reach > len(flat):
        raise InputError(f"a tensor reaches beyond its part, which has {len(flat)} elements")
    return flat.as_strided(size, stride, offset)


def _of_type(rebuild: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """A tensor with attributes, which are left out."""
    if rebuild not in TENSORS.values() or not isinstance(arguments, tuple):
        raise InputError("a tensor is of a type that is not known")
    return rebuild(*arguments)


def _dictionary(*arguments: Any) -> dict[Any, Any]:
    """Of nothing, of a dictionary, or, as Python 2 wrote it, of a list of pairs."""
    made: dict[Any, Any] = {}
    if arguments:
        given = arguments[0]
        _Unpickler.insert(made, given.items() if isinstance(given, dict) else given)
    return made


def _bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise InputError(f"bytes are encoded as {encoding!r:.20}")
    return text.encode("latin1")


TENSORS = {
    "torch._utils._rebuild_tensor": _Name("tensor", _tensor),
    "torch._utils._rebuild_tensor_v2": _Name("tensor", _tensor_with_metadata),
    "torch._utils._rebuild_tensor_v3": _Name("tensor", _tensor_of_dtype),
}
KNOWN: dict[str, Any] = {
    **TENSORS,
    "torch._utils._rebuild_parameter": _Name("parameter", lambda data, *_: data),
    "torch._utils._rebuild_parameter_with_state": _Name("parameter", lambda data, *_: data),
    "torch._tensor._rebuild_from_type_v2": _Name("tensor", _of_type),
    "torch.Size": _Name("size", lambda sizes: sizes),
    "collections.OrderedDict": _Name("dictionary", _dictionary),
    "collections.Counter": _Name("dictionary", _dictionary),
    "argparse.Namespace": _Name("dictionary", _dictionary),
    "_codecs.encode": _Name("bytes", _bytes),
    **{f"torch.{name}": dtype for name, dtype in STORAGE_TYPES.items()},
    **{f"torch.storage.{name}": dtype for name, dtype in STORAGE_TYPES.items()},
    **DTYPES,
}


_PythonUnpickler: Any = pickle._Unpickler


class _Unpickler(_PythonUnpickler):
    """Python's own unpickler, which keeps its memory in a dictionary, with every opcode that could do harm replaced."""

    dispatch: ClassVar[dict[int, Any]] = dict(_PythonUnpickler.dispatch)

    def __init__(self, file: IO[bytes], storages: _Storages) -> None:
        super().__init__(file, encoding="utf-8")
        self.storages = storages

    def find_class(self, module: str, name: str) -> Any:
        return KNOWN.get(f"{module}.{name}", _Name(f"{module}.{name}"))

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, length, *view = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or type(key) is not str or type(length) is not int:
            raise InputError("it refers to a part in a way that is not known")
        if any(part is not None for part in view):
            raise InputError("it has a part within a part, as only old files of views have")
        return self.storages.get(dtype, key, length)

    def call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise InputError("it calls what is no function")
        self.append(function(*arguments))

    def call_with_keywords(self) -> None:
        self.stack.pop()
        self.call()

    def build(self) -> None:
        """Attributes: a namespace is made of them, everything else does without."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, dict) and isinstance(state, dict) and not target:
            self.insert(target, state.items())

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.insert(self.stack[-1], [(key, value)])

    def set_items(self) -> None:
        items = self.pop_mark()
        self.insert(self.stack[-1], zip(items[::2], items[1::2], strict=True))

    @staticmethod
    def insert(target: Any, items: Iterable[tuple[Any, Any]]) -> None:
        for key, value in items:
            # a tuple of tuples can take for ever to hash
            if not isinstance(key, (str, int, float, bytes)):
                raise InputError(f"a dictionary has a key of type {type(key).__name__}")
            if isinstance(target, dict):
                target[key] = value
            elif not isinstance(target, Unknown):
                raise InputError(f"it has items of a {type(target).__name__}")

    def append_one(self) -> None:
        value = self.stack.pop()
        self.extend(self.stack[-1], [value])

    def append_many(self) -> None:
        items = self.pop_mark()
        self.extend(self.stack[-1], items)

    @staticmethod
    def extend(target: Any, items: list[Any]) -> None:
        if isinstance(target, list):
            target += items
        elif not isinstance(target, Unknown):
            raise InputError(f"it has elements of a {type(target).__name__}")


def _replace(opcodes: bytes, handler: Callable[[_Unpickler], None]) -> None:
    for opcode in opcodes:
        _Unpickler.dispatch[opcode] = handler


def _number_handler(opcode: int) -> Callable[[_Unpickler], None]:
    read = _PythonUnpickler.dispatch[opcode]

    def handler(unpickler: _Unpickler) -> None:
        read(unpickler)
        if not -(2**63) <= unpickler.stack[-1] < 2**64:
            raise InputError("it holds a number of more than 64 bits")

    return handler


def _refused(unpickler: _Unpickler) -> None:
    raise InputError("it uses what files of tensors never do")


_replace(pickle.REDUCE + pickle.NEWOBJ, _Unpickler.call)
_replace(pickle.NEWOBJ_EX, _Unpickler.call_with_keywords)
_replace(pickle.BUILD, _Unpickler.build)
_replace(pickle.SETITEM, _Unpickler.set_item)
_replace(pickle.SETITEMS, _Unpickler.set_items)
_replace(pickle.APPEND, _Unpickler.append_one)
_replace(pickle.APPENDS, _Unpickler.append_many)
_replace(
    pickle.INST + pickle.OBJ + pickle.EXT1 + pickle.EXT2 + pickle.EXT4 + pickle.PERSID + pickle.DICT
    + pickle.EMPTY_SET + pickle.ADDITEMS + pickle.FROZENSET + pickle.BYTEARRAY8 + pickle.NEXT_BUFFER
    + pickle.READONLY_BUFFER,
    _refused,
)  # fmt: skip
for _opcode in pickle.INT + pickle.LONG + pickle.LONG1 + pickle.LONG4:
    _Unpickler.dispatch[_opcode] = _number_handler(_opcode)
