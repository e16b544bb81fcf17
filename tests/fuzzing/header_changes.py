"""Changes to the parts that describe the rest: the header of a safetensors file, and the metadata of an ONNX file."""

import json
import random
from typing import Any

from tests.fuzzing.byte_changes import ANY_FILE, MAGIC, Change
from tests.fuzzing.json_changes import JSON, named

DTYPES = ("F16", "BF16", "F64", "I64", "U8", "BOOL", "F8_E4M3", "C64", "F4", "", "f32")


def split(data: bytes) -> tuple[bytes, bytes]:
    """The header of a safetensors file, and what follows it."""
    end = 8 + min(int.from_bytes(data[:8], "little"), len(data))
    return data[8:end], data[end:]


def joined(header: bytes, rest: bytes) -> bytes:
    """A safetensors file."""
    return len(header).to_bytes(8, "little") + header + rest


def in_order(data: bytes) -> bytes:
    """The same file with a header whose entries are in order, which safetensors does not write twice alike."""
    header, rest = split(data)
    return joined(json.dumps(json.loads(header), sort_keys=True).encode(), rest)


def header_length(data: bytes, rng: random.Random) -> bytes:
    """Claims another length of the header."""
    length = rng.choice((*MAGIC, len(data), len(data) - 8, rng.randrange(len(data) + 1))) % 2**64
    return length.to_bytes(8, "little") + data[8:]


def tensor_described_otherwise(data: bytes, rng: random.Random) -> bytes:
    """Gives a tensor another type, shape or place, or another name."""
    header, rest = split(data)
    try:
        described: dict[str, Any] = json.loads(header)
        name = rng.choice([name for name in described if name != "__metadata__"])
        tensor = described[name]
        how = rng.randrange(4)
        if how == 0:
            tensor["dtype"] = rng.choice(DTYPES)
        elif how == 1:
            tensor["shape"] = rng.choice((tensor["shape"][::-1], [*tensor["shape"], 1], [], [rng.choice(MAGIC), 0]))
        elif how == 2:
            tensor["data_offsets"][rng.randrange(2)] = rng.choice((*MAGIC, rng.randrange(len(rest) + 1)))
        else:
            described[rng.choice(("", "a\nb", "x" * 10_000, name + ".weight"))] = described.pop(name)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):  # after an earlier change
        return data
    return joined(json.dumps(described).encode(), rest)


def metadata_value(data: bytes, rng: random.Random) -> bytes:
    """Changes the JSON in one of the texts of the metadata."""
    header, rest = split(data)
    try:
        described: dict[str, Any] = json.loads(header)
        texts = described["__metadata__"]
        name = rng.choice(list(texts))
        texts[name] = rng.choice(JSON)(texts[name].encode(), rng).decode("utf-8", errors="replace")
        written = json.dumps(described, ensure_ascii=bool(rng.randrange(2))).encode(errors="replace")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):  # after an earlier change
        return data
    return joined(written, rest)


def in_the_header(change: Change) -> Change:
    """The change of the header of a safetensors file, whose length is that of the changed one."""

    def changed(data: bytes, rng: random.Random) -> bytes:
        header, rest = split(data)
        return joined(change(header, rng), rest)

    return named(changed, f"{change.__name__} in the header")


SAFETENSORS: tuple[Change, ...] = (
    *(header_length, tensor_described_otherwise, tensor_described_otherwise, metadata_value, metadata_value),
    *map(in_the_header, (*JSON, *ANY_FILE)),
)


def in_metadata(change: Change, key: str) -> Change:
    """The change of a text in the metadata of an ONNX file."""

    def changed(data: bytes, rng: random.Random) -> bytes:
        import onnx

        try:
            model = onnx.load_model_from_string(data)
        except Exception:  # after an earlier change
            return data
        for entry in model.metadata_props:
            if entry.key == key:  # bytes if they are no text after an earlier change
                value = entry.value if isinstance(entry.value, bytes) else entry.value.encode()
                entry.value = change(value, rng).decode("utf-8", errors="replace")
        return bytes(model.SerializeToString())

    return named(changed, f"{change.__name__} in the metadata")
