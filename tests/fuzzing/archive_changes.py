"""Changes to files of ``torch.save``: to the entries of the archive, and to the opcodes of the pickle in it."""

import io
import pickle
import pickletools
import random
import struct
import zipfile

from tests.fuzzing.byte_changes import ANY_FILE, MAGIC, Change
from tests.fuzzing.json_changes import named

Entries = list[tuple[str, bytes]]

CENTRAL, LOCAL = b"PK\x01\x02", b"PK\x03\x04"
# Width in bytes of fields of an entry of the central directory, by their offsets: versions, flags, method, CRC, sizes,
# lengths of name and extra field, attributes, offset of the entry
FIELDS = {6: 2, 8: 2, 10: 2, 16: 4, 20: 4, 24: 4, 28: 2, 30: 2, 38: 4, 42: 4}
NAMES = ("", "/", "../up", "a" * 60000, "archive/data.pkl", "x/y/data.pkl", "data.pkl", "archive/byteorder", "\u00e9")
# Names that a pickle might ask for
GLOBALS = (
    *(b"os\nsystem\n", b"builtins\neval\n", b"builtins\nbytearray\n", b"torch\nFloatStorage\n", b"torch\nload\n"),
    *(b"torch._utils\n_rebuild_tensor_v2\n", b"torch._utils\n_rebuild_parameter\n", b"collections\nOrderedDict\n"),
    *(b"torch._utils\n_rebuild_sparse_tensor\n", b"torch\nSize\n", b"_codecs\nencode\n", b"argparse\nNamespace\n"),
)


def entries(data: bytes) -> Entries | None:
    """Names and contents of an archive; None if it is none any more after an earlier change."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    except Exception:
        return None


def archived(parts: Entries, method: int = zipfile.ZIP_STORED) -> bytes:
    """An archive; names may occur twice."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in parts:
            entry = zipfile.ZipInfo(name)  # the same bytes whenever it is made
            entry.compress_type = method
            archive.writestr(entry, content)
    return file.getvalue()


def entries_changed(data: bytes, rng: random.Random) -> bytes:
    """Renames, removes, doubles, empties or shuffles entries, or compresses them."""
    parts = entries(data)
    if not parts:
        return data
    i, j = rng.randrange(len(parts)), rng.randrange(len(parts))
    how = rng.randrange(7)
    if how == 0:
        parts[i] = rng.choice((*NAMES, parts[j][0])), parts[i][1]
    elif how == 1:
        del parts[i]
    elif how == 2:
        parts.append((parts[i][0], parts[j][1]))
    elif how == 3:
        parts[i] = parts[i][0], rng.choice((b"", bytes(1 << 20), parts[i][1][:-1]))
    elif how == 4:
        rng.shuffle(parts)
    elif how == 5:
        parts[i], parts[j] = (parts[i][0], parts[j][1]), (parts[j][0], parts[i][1])
    return archived(parts, zipfile.ZIP_DEFLATED if how == 6 else zipfile.ZIP_STORED)


def directory_changed(data: bytes, rng: random.Random) -> bytes:
    """Writes a number into a field of the central directory, or into the same field of the entry itself."""
    central = bool(rng.randrange(4))
    found, where = [], data.find(CENTRAL if central else LOCAL)
    while where >= 0:
        found.append(where)
        where = data.find(CENTRAL if central else LOCAL, where + 4)
    if not found:
        return data
    offset = rng.choice(tuple(FIELDS))
    width, where = FIELDS[offset], rng.choice(found) + offset - (0 if central else 2)
    number = rng.choice((*MAGIC, rng.randrange(2**16))) % 256**width
    return data[:where] + number.to_bytes(width, "little") + data[where + width :]


def inside_an_entry(data: bytes, rng: random.Random) -> bytes:
    """Changes bytes of an entry, and leaves the archive whole."""
    parts = entries(data)
    if not parts:
        return data
    i = rng.randrange(len(parts))
    parts[i] = parts[i][0], rng.choice(ANY_FILE)(parts[i][1], rng)
    return archived(parts)


def boundaries(data: bytes) -> list[int]:
    """Where the opcodes of the pickles at the beginning of a file begin."""
    file, found = io.BytesIO(data), list[int]()
    try:
        while file.tell() < len(data):
            begin = file.tell()
            found += [position for _, _, position in pickletools.genops(file) if position is not None]
            if begin == file.tell():
                break
    except Exception:  # where the pickles end
        pass
    return found


def argument(opcode: pickletools.OpcodeInfo, rng: random.Random) -> bytes:
    """What may follow an opcode."""
    if opcode.arg is None:
        return b""
    length = opcode.arg.n
    if length >= 0:
        return rng.choice((bytes(length), b"\xff" * length, rng.randbytes(length), (1).to_bytes(length, "little")))
    if opcode.name in {"GLOBAL", "INST"}:
        return rng.choice(GLOBALS)
    if length == pickletools.UP_TO_NEWLINE:
        return rng.choice((b"0", b"1" * 5000, b"'a'", b"-1", b"nan", b"1e400", b"True")) + b"\n"
    width = {pickletools.TAKEN_FROM_ARGUMENT1: 1, pickletools.TAKEN_FROM_ARGUMENT8U: 8}.get(length, 4)
    claimed = rng.choice((0, 1, 3, 255, rng.choice(MAGIC))) % 256**width
    return claimed.to_bytes(width, "little") + rng.randbytes(min(claimed, 3))


def opcode_inserted(data: bytes, rng: random.Random) -> bytes:
    """Inserts some opcodes, of any kind, with arguments."""
    for _ in range(rng.choice((1, 1, 2, 10))):
        where = rng.choice(boundaries(data) or [0])
        opcode = rng.choice(pickletools.opcodes)
        data = data[:where] + opcode.code.encode("latin-1") + argument(opcode, rng) + data[where:]
    return data


def opcode_removed(data: bytes, rng: random.Random) -> bytes:
    """Removes an opcode with its argument."""
    found = boundaries(data)
    if len(found) < 2:
        return data
    i = rng.randrange(len(found) - 1)
    return data[: found[i]] + data[found[i + 1] :]


def opcode_repeated(data: bytes, rng: random.Random) -> bytes:
    """Repeats some opcodes, up to thousands of times."""
    found = boundaries(data)
    if len(found) < 2:
        return data
    i = rng.randrange(len(found) - 1)
    j = min(len(found) - 1, i + rng.choice((1, 2, 5, 30)))
    return data[: found[j]] + data[found[i] : found[j]] * rng.choice((1, 2, 100, 20_000)) + data[found[j] :]


def opcode_replaced(data: bytes, rng: random.Random) -> bytes:
    """Replaces an opcode with its argument by another one."""
    found = boundaries(data)
    if len(found) < 2:
        return data
    i, opcode = rng.randrange(len(found) - 1), rng.choice(pickletools.opcodes)
    return data[: found[i]] + opcode.code.encode("latin-1") + argument(opcode, rng) + data[found[i + 1] :]


def integer_replaced(data: bytes, rng: random.Random) -> bytes:
    """Replaces a number of a pickle, such as one of a tensor's sizes, strides or offsets."""
    found = boundaries(data)
    numbers = [i for i, where in enumerate(found[:-1]) if data[where : where + 1] in {b"K", b"M", b"J"}]
    if not numbers:
        return data
    i = rng.choice(numbers)
    number = rng.choice((*MAGIC, rng.randrange(300)))
    written = pickle.LONG1 + b"\x09" + number.to_bytes(9, "little", signed=True)
    if -(2**31) <= number < 2**31:
        written = pickle.BININT + struct.pack("<i", number)
    return data[: found[i]] + written + data[found[i + 1] :]


PICKLES: tuple[Change, ...] = (*(opcode_inserted, opcode_removed, opcode_repeated, opcode_replaced, integer_replaced),)


def in_the_pickle(change: Change) -> Change:
    """The change of the pickle in an archive, which stays whole."""

    def changed(data: bytes, rng: random.Random) -> bytes:
        parts = entries(data)
        if not parts:
            return data
        return archived([(name, change(part, rng) if name.endswith("data.pkl") else part) for name, part in parts])

    return named(changed, f"{change.__name__} in data.pkl")


ARCHIVES: tuple[Change, ...] = (
    *(entries_changed, directory_changed, inside_an_entry),
    *map(in_the_pickle, PICKLES),
)
