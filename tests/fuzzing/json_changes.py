"""Changes to JSON that leave it JSON, or nearly."""

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from tests.fuzzing.byte_changes import MAGIC_TEXT, Change

# A list or an object, and the index or key of one of its values
Place: TypeAlias = tuple[Any, Any]

# Stands for text that is put in after the rest has been written as JSON
MARK = "\ue000 put here"
LONG = 200_000
OTHERS: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 3.5, 2**31 - 1, 2**62, 2**64, 10**40, -(10**40), 1e308, float("nan"), float("inf")),
    *("", "a", "3", "..", "/etc", "a\nb", "a\0b", "\u202e", "\udce9", "\x1b[2J", "N/A", "\u00e9" * 300),
    *([], {}, [[]], [1, 2, 3, 4], {"a": 1}, [None], "x" * LONG, list(range(1000))),
)


def other(rng: random.Random) -> Any:
    """A value of any type; a copy, for it may be changed in its turn."""
    return copy.deepcopy(rng.choice(OTHERS))


def places(value: Any) -> Iterator[Place]:
    """Every value inside of a list or an object."""
    if isinstance(value, (dict, list)):
        for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
            yield value, key
            yield from places(inner)


def replaced(content: Any, rng: random.Random) -> Any:
    """Replaces a value by one of any type."""
    return at_random(content, rng, lambda _: other(rng))


def removed(content: Any, rng: random.Random) -> Any:
    """Removes a value."""
    found = list(places(content))
    if found:
        container, key = rng.choice(found)
        del container[key]
    return content


def renamed(content: Any, rng: random.Random) -> Any:
    """Renames a key, or moves a value to another place of its list."""
    found = list(places(content))
    if not found:
        return content
    container, key = rng.choice(found)
    value = container[key]
    del container[key]
    if isinstance(container, dict):
        container[rng.choice((key + "s", key.upper(), "", "id", "\udce9", "a\nb", "k" * LONG))] = value
    else:
        container.insert(rng.randint(0, len(container)), value)
    return content


def added(content: Any, rng: random.Random) -> Any:
    """Adds a value of any type."""
    found = [content, *(container[key] for container, key in places(content))]
    container = rng.choice([each for each in found if isinstance(each, (dict, list))] or [None])
    if isinstance(container, dict):
        container[rng.choice(("more", "", "segmentation", "iscrowd", "area"))] = other(rng)
    elif isinstance(container, list):
        container.append(copy.deepcopy(rng.choice(container)) if container and rng.randrange(2) else other(rng))
    return content


def exchanged(content: Any, rng: random.Random) -> Any:
    """Puts a value of the file in the place of another one."""
    found = list(places(content))
    if not found:
        return content
    (source, first), (target, second) = rng.choice(found), rng.choice(found)
    target[second] = copy.deepcopy(source[first])
    return content


def nested(content: Any, rng: random.Random) -> Any:
    """Puts a value into some lists."""

    def inside(value: Any) -> Any:
        for _ in range(rng.choice((1, 2, 50))):
            value = [value] if rng.randrange(2) else {"a": value}
        return value

    return at_random(content, rng, inside)


def at_random(content: Any, rng: random.Random, change: Callable[[Any], Any]) -> Any:
    """Changes a value at a random place, which may be the whole."""
    found = list(places(content))
    if not found or not rng.randrange(50):
        return change(content)
    container, key = rng.choice(found)
    container[key] = change(container[key])
    return content


TREES: tuple[Callable[[Any, random.Random], Any], ...] = (
    *(replaced, replaced, removed, renamed, added, exchanged, nested),
)


def tree_changed(data: bytes, rng: random.Random) -> bytes:
    """Changes values and keys."""
    content = parsed(data)
    if content is None:
        return data
    try:
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            content = rng.choice(TREES)(content, rng)
        # half of it with what UTF-8 cannot encode, as escapes
        return json.dumps(content, ensure_ascii=bool(rng.randrange(2))).encode("utf-8", errors="surrogatepass")
    except RecursionError:  # nested deeply by an earlier change
        return data


def text_put_in(data: bytes, rng: random.Random) -> bytes:
    """Puts in what no value is written as: deep nesting, huge numbers, keys that occur twice."""
    content = parsed(data)
    if content is None:
        return data
    deep = rng.choice((100, 1000, 100_000))
    text = rng.choice((*MAGIC_TEXT, "[" * deep + "]" * deep, '{"a":' * deep + "1" + "}" * deep, '{"a": 1, "a": 2}'))
    try:
        return json.dumps(at_random(content, rng, lambda _: MARK)).replace(json.dumps(MARK), text).encode()
    except RecursionError:
        return data


def written_otherwise(data: bytes, rng: random.Random) -> bytes:
    """Writes the same in another encoding, with a byte order mark, or with comments."""
    text = data.decode("utf-8", errors="replace")
    encodings = ("utf-8-sig", "utf-16", "utf-32", "latin-1")
    return rng.choice((*(text.encode(name, errors="replace") for name in encodings), b"// " + data, b"", b"\0" + data))


def parsed(data: bytes) -> Any:
    """The content of JSON; None if it is none any more after an earlier change."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def in_a_line(change: Change) -> Change:
    """The change of one line of a file of lines."""

    def changed(data: bytes, rng: random.Random) -> bytes:
        lines = data.split(b"\n")
        i = rng.randrange(len(lines))
        lines[i] = change(lines[i], rng)
        return b"\n".join(lines)

    return named(changed, f"{change.__name__} in a line")


def named(change: Change, name: str) -> Change:
    """A change with a name for messages."""
    change.__name__ = name
    return change


JSON: tuple[Change, ...] = (tree_changed, text_put_in, written_otherwise)
