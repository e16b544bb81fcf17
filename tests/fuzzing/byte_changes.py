"""Changes to any file: bits, runs and blocks of bytes, numbers in text and in binary."""

import random
import re
import struct
from collections.abc import Callable
from typing import TypeAlias

Change: TypeAlias = Callable[[bytes, random.Random], bytes]

MAGIC = (0, -1, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, -(2**63))
# What text may have in place of a number
MAGIC_TEXT = (*map(str, MAGIC), "NaN", "Infinity", "1e999", "-0.0", "1" * 5000)
NUMBER = re.compile(rb"-?\d+(?:\.\d+)?")
# Bytes at either end of a file, where formats keep what describes the rest
ENDS = 1 << 14
LONGEST_BLOCK = 1 << 12


def place(data: bytes, rng: random.Random) -> int:
    """A position in a file, most often near one of its ends."""
    size = max(1, len(data))
    near = min(size, ENDS)
    return rng.choice((rng.randrange(size), rng.randrange(near), size - 1 - rng.randrange(near)))


def block(data: bytes, rng: random.Random) -> tuple[int, int]:
    """Beginning and end of a block of a file; short ones are as frequent as long ones."""
    begin = place(data, rng)
    return begin, min(len(data), begin + int(LONGEST_BLOCK ** rng.random()))


def bits_flipped(data: bytes, rng: random.Random) -> bytes:
    """Flips 1 to 8 bits."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8) if data else 0):
        changed[place(data, rng)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def run_replaced(data: bytes, rng: random.Random) -> bytes:
    """Replaces a run by zeros, ones or noise."""
    begin, end = block(data, rng)
    filler = rng.choice((b"\0", b"\xff", b" ", None))
    run = rng.randbytes(end - begin) if filler is None else filler * (end - begin)
    return data[:begin] + run + data[end:]


def truncated(data: bytes, rng: random.Random) -> bytes:
    """Cuts the file off."""
    return data[: place(data, rng)]


def prolonged(data: bytes, rng: random.Random) -> bytes:
    """Appends noise, zeros, or the file once more."""
    length = rng.randint(1, LONGEST_BLOCK)
    return data + rng.choice((rng.randbytes(length), bytes(length), data))


def block_duplicated(data: bytes, rng: random.Random) -> bytes:
    """Inserts a block of the file elsewhere."""
    begin, end = block(data, rng)
    where = place(data, rng)
    return data[:where] + data[begin:end] + data[where:]


def block_removed(data: bytes, rng: random.Random) -> bytes:
    """Removes a block."""
    begin, end = block(data, rng)
    return data[:begin] + data[end:]


def blocks_swapped(data: bytes, rng: random.Random) -> bytes:
    """Exchanges two blocks of the same length."""
    (first, end), second = block(data, rng), place(data, rng)
    length = min(end - first, len(data) - second, abs(second - first))
    changed = bytearray(data)
    changed[first : first + length], changed[second : second + length] = (
        data[second : second + length],
        data[first : first + length],
    )
    return bytes(changed)


def magic_in_text(data: bytes, rng: random.Random) -> bytes:
    """Replaces a number that is written in digits."""
    found = list(NUMBER.finditer(data))
    if not found:
        return magic_in_binary(data, rng)
    number = rng.choice(found)
    return data[: number.start()] + rng.choice(MAGIC_TEXT).encode() + data[number.end() :]


def magic_in_binary(data: bytes, rng: random.Random) -> bytes:
    """Overwrites 1, 2, 4 or 8 bytes by a number, or by one that is not a number."""
    where = place(data, rng)
    width, order = rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
    if width >= 4 and not rng.randrange(4):
        kind = {4: "f", 8: "d"}[width]
        written = struct.pack(("<" if order == "little" else ">") + kind, rng.choice((float("nan"), float("inf"))))
    else:
        written = (rng.choice(MAGIC) % 256**width).to_bytes(width, "little" if order == "little" else "big")
    return data[:where] + written + data[where + width :]


ANY_FILE: tuple[Change, ...] = (
    bits_flipped,
    run_replaced,
    truncated,
    prolonged,
    block_duplicated,
    block_removed,
    blocks_swapped,
    magic_in_text,
    magic_in_binary,
)
