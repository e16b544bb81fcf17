"""An unpickler that makes dictionaries, lists, numbers, text and tensors, whatever a file asks for."""

import pickle
from collections.abc import Callable, Iterable
from typing import IO, Any, ClassVar

import torch

from cond_detr.errors import InputError
from cond_detr.weights.storages import (
    DTYPES,
    STORAGE_TYPES,
    OddTensorError,
    Storages,
    Unknown,
    UnknownTensor,
    rebuild_tensor,
    rebuild_tensor_v2,
    rebuild_tensor_v3,
)

# What a file may ask for: about 20 steps for a tensor, so that there may be 50,000 of them
MOST_STEPS = 1_000_000
# Characters of encoded bytes that count as one of these steps
CHARACTERS_PER_STEP = 64
# Of what makes a tensor
MOST_ARGUMENTS = 16


class _Name:
    """A class or function that a file refers to, and the function called in its place; by default ``Unknown``."""

    def __init__(self, name: str, call: Callable[..., Any] | None = None) -> None:
        self.name = name
        self.call = call

    def __call__(self, *arguments: Any) -> Any:
        try:
            return self.call(*arguments) if self.call else Unknown(f"an object of {self.name:.100}")
        except OddTensorError as error:
            return UnknownTensor(str(error))


def _of_type(rebuild: Any, _kind: Any, arguments: Any, _state: Any) -> Any:
    """Replaces ``torch._tensor._rebuild_from_type_v2``: a tensor with attributes, which are dropped."""
    if rebuild not in TENSORS.values() or not isinstance(arguments, tuple) or len(arguments) > MOST_ARGUMENTS:
        raise OddTensorError("a tensor of a type that is not known")
    return rebuild(*arguments)


TENSORS = {
    "torch._utils._rebuild_tensor": _Name("tensor", rebuild_tensor),
    "torch._utils._rebuild_tensor_v2": _Name("tensor", rebuild_tensor_v2),
    "torch._utils._rebuild_tensor_v3": _Name("tensor", rebuild_tensor_v3),
}
# Those whose work depends on what they are given
DICTIONARY, BYTES = _Name("dictionary"), _Name("bytes")
KNOWN: dict[str, Any] = {
    **TENSORS,
    "torch._utils._rebuild_parameter": _Name("parameter", lambda data, *_: data),
    "torch._utils._rebuild_parameter_with_state": _Name("parameter", lambda data, *_: data),
    "torch._tensor._rebuild_from_type_v2": _Name("tensor", _of_type),
    "torch.Size": _Name("size", lambda sizes: sizes),
    "collections.OrderedDict": DICTIONARY,
    "collections.Counter": DICTIONARY,
    "argparse.Namespace": DICTIONARY,
    "_codecs.encode": BYTES,
    **{f"torch.{name}": dtype for name, dtype in STORAGE_TYPES.items()},
    **{f"torch.storage.{name}": dtype for name, dtype in STORAGE_TYPES.items()},
    **DTYPES,
}


PythonUnpickler: Any = pickle._Unpickler


class Unpickler(PythonUnpickler):
    """Python's unpickler in pure Python, with every opcode replaced that could run code or exhaust memory."""

    dispatch: ClassVar[dict[int, Any]] = {}

    def __init__(self, file: IO[bytes], storages: Storages) -> None:
        super().__init__(file, encoding="utf-8")
        self.storages = storages
        self.left = MOST_STEPS

    def spend(self, steps: int) -> None:
        """Counts steps.

        Raises:
            InputError: if the file asks for more than any file of tensors does.
        """
        self.left -= steps
        if self.left < 0:
            raise InputError(f"it asks for more than {MOST_STEPS} steps")

    def find_class(self, module: str, name: str) -> Any:
        """The entry of :data:`KNOWN` for a name; nothing is imported."""
        full = f"{module[:100]}.{name[:100]}"  # each of them may be long, and be asked for often
        return KNOWN.get(full, _Name(full))

    def persistent_load(self, pid: Any) -> Any:
        """Returns the storage that a persistent id refers to."""
        if not isinstance(pid, tuple) or not pid or type(pid[0]) is not str:
            raise InputError("it refers to a part in a way that is not known")
        if pid[0] == "module" and len(pid) == 4:  # a class with its source, in the older format
            return pid[1]
        if pid[0] != "storage" or not 5 <= len(pid) <= 6 or type(pid[2]) is not str or type(pid[4]) is not int:
            raise InputError("it refers to a part in a way that is not known")
        if pid[5:] not in ((), (None,)):
            raise InputError("it has a part within a part, as only old files of views have")
        _, dtype, key, _, length, *_ = pid
        if not isinstance(dtype, torch.dtype):
            return Unknown("a part of a type that is not known")
        return self.storages.get(dtype, key, length)

    def call(self) -> None:
        """REDUCE and NEWOBJ: calls a :class:`_Name`, nothing else."""
        arguments, function = self.stack.pop(), self.stack.pop()
        if isinstance(function, Unknown):
            self.append(function)
            return
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise InputError("it calls what is no function")
        self.spend(len(arguments))
        if function is DICTIONARY:
            self.append(self.dictionary(*arguments))
        elif function is BYTES:
            self.append(self.encoded(*arguments))
        else:
            self.append(function(*arguments))

    def call_with_keywords(self) -> None:
        """NEWOBJ_EX: calls a :class:`_Name` without its keyword arguments."""
        self.stack.pop()
        self.call()

    def dictionary(self, given: Any = (), *_: Any) -> dict[Any, Any]:
        """Makes a dictionary of nothing, of a dictionary, or of a list of pairs, as Python 2 pickled them."""
        made: dict[Any, Any] = {}
        if not isinstance(given, (dict, list, tuple)):
            return made
        self.spend(len(given))
        items = given.items() if isinstance(given, dict) else given
        if all(isinstance(item, (list, tuple)) and len(item) == 2 for item in items):
            self.insert(made, items)
        return made

    def encoded(self, text: Any = "", encoding: Any = "latin1") -> Any:
        """Makes bytes of text, as protocol 2 writes them."""
        if type(text) is not str or type(encoding) is not str or encoding != "latin1":
            return Unknown("bytes in an encoding that is not known")
        self.spend(len(text) // CHARACTERS_PER_STEP)
        return text.encode("latin1")

    def build(self) -> None:
        """BUILD: sets the entries of an empty dictionary, such as a namespace; other objects get no attributes."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, dict) and isinstance(state, dict) and not target:
            self.spend(len(state))
            self.insert(target, state.items())

    def set_item(self) -> None:
        """SETITEM: sets one item of a dictionary."""
        value, key = self.stack.pop(), self.stack.pop()
        self.insert(self.stack[-1], [(key, value)])

    def set_items(self) -> None:
        """SETITEMS: sets several items of a dictionary."""
        items = self.pop_mark()
        self.insert(self.stack[-1], zip(items[::2], items[1::2], strict=True))

    @staticmethod
    def insert(target: Any, items: Iterable[tuple[Any, Any]]) -> None:
        """Adds items to a dictionary; ignores those of an ``Unknown``, and those under keys of unusual types."""
        if isinstance(target, Unknown):
            return
        if not isinstance(target, dict):
            raise InputError(f"it has items of a {type(target).__name__}")
        for key, value in items:
            # hashing nested tuples can take exponential time
            if isinstance(key, (str, int, float, bytes)) or key is None:
                target[key] = value

    def append_one(self) -> None:
        """APPEND: appends one element to a list."""
        value = self.stack.pop()
        self.extend(self.stack[-1], [value])

    def append_many(self) -> None:
        """APPENDS: appends several elements to a list."""
        items = self.pop_mark()
        self.extend(self.stack[-1], items)

    @staticmethod
    def extend(target: Any, items: list[Any]) -> None:
        """Adds elements to a list; ignores those of an ``Unknown``."""
        if isinstance(target, list):
            target += items
        elif not isinstance(target, Unknown):
            raise InputError(f"it has elements of a {type(target).__name__}")

    def empty_set(self) -> None:
        """EMPTY_SET: a set is nothing that weights need."""
        self.append(Unknown("a set"))

    def add_items(self) -> None:
        """ADDITEMS: drops the elements of a set."""
        self.pop_mark()

    def frozen_set(self) -> None:
        """FROZENSET: drops the elements of a set."""
        self.pop_mark()
        self.append(Unknown("a set"))

    def bytearray8(self) -> None:
        """BYTEARRAY8: reads the bytes that are there, and allocates nothing for others."""
        length = int.from_bytes(self.read(8), "little")
        self.append(self.read(length))


def _number(read: Callable[[Unpickler], None]) -> Callable[[Unpickler], None]:
    """The handler of an opcode for a whole number: one of more than 128 bits is not needed for anything."""

    def handler(unpickler: Unpickler) -> None:
        read(unpickler)
        if not -(2**127) <= unpickler.stack[-1] < 2**127:
            unpickler.stack[-1] = Unknown("a number of more than 128 bits")

    return handler


def _refused(_unpickler: Unpickler) -> None:
    raise InputError("it uses what files of tensors never do")


def _counted(handler: Callable[[Unpickler], None]) -> Callable[[Unpickler], None]:
    def counting(unpickler: Unpickler) -> None:
        unpickler.spend(1)
        handler(unpickler)

    return counting


def _handlers() -> dict[int, Any]:
    """What each opcode does."""
    handlers = dict(PythonUnpickler.dispatch)
    replaced: dict[bytes, Callable[[Unpickler], None]] = {
        pickle.REDUCE + pickle.NEWOBJ: Unpickler.call,
        pickle.NEWOBJ_EX: Unpickler.call_with_keywords,
        pickle.BUILD: Unpickler.build,
        pickle.SETITEM: Unpickler.set_item,
        pickle.SETITEMS: Unpickler.set_items,
        pickle.APPEND: Unpickler.append_one,
        pickle.APPENDS: Unpickler.append_many,
        pickle.EMPTY_SET: Unpickler.empty_set,
        pickle.ADDITEMS: Unpickler.add_items,
        pickle.FROZENSET: Unpickler.frozen_set,
        pickle.BYTEARRAY8: Unpickler.bytearray8,
        pickle.INST + pickle.OBJ + pickle.EXT1 + pickle.EXT2 + pickle.EXT4: _refused,
        pickle.PERSID + pickle.DICT + pickle.NEXT_BUFFER + pickle.READONLY_BUFFER: _refused,
    }
    for opcodes, handler in replaced.items():
        handlers.update(dict.fromkeys(opcodes, handler))
    for opcode in pickle.INT + pickle.LONG + pickle.LONG1 + pickle.LONG4:
        handlers[opcode] = _number(handlers[opcode])
    return {opcode: _counted(handler) for opcode, handler in handlers.items()}


Unpickler.dispatch.update(_handlers())
