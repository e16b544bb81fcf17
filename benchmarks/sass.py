"""Reads compiled kernels: registers, spills, and how many instructions the inner loop spends."""

import heapq
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
# Tensor core instructions: Hopper's, Blackwell's and the others'
MMA = re.compile(r"\b(HGMMA|UTC\w*MMA|HMMA)\b")
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;")
LABEL = re.compile(r"^(\.L_\w+):")
BRANCH = re.compile(r"\bBRA\b.*`\((\.L_\w+)\)")


class Resources(NamedTuple):
    """Per thread registers and bytes of spilled ones, and per program bytes of shared memory that are not dynamic."""

    registers: int
    spill_bytes: int
    shared_bytes: int


class Loop(NamedTuple):
    """The innermost loop with matrix products.

    Attributes:
        instructions: on the shortest way through it, the one that a tile without masked keys takes.
        mma: the kind of matrix instruction.
    """

    instructions: int
    mma: str


def resources(cubin: bytes) -> Resources:
    """Of a cubin with one kernel."""
    return _resources(_run("cuobjdump", "-res-usage", cubin))


def library_resources(library: Path) -> Iterator[tuple[int, str, Resources]]:
    """(architecture, mangled name, resources) of every CUDA kernel in a shared library; none if it has no CUDA code."""
    command: list[str | Path] = [TOOLS / "cuobjdump", "-res-usage", library]
    arch = 0
    name = ""
    for line in subprocess.run(command, capture_output=True, text=True).stdout.splitlines():
        if match := re.match(r"arch = sm_(\d+)", line):
            arch = int(match[1])
        elif match := re.match(r"\s*Function (\S+):", line):
            name = match[1]
        elif "REG:" in line:
            yield arch, name, _resources(line)


def library_loads(library: Path) -> dict[tuple[int, str], Counter[str]]:
    """How many loads a CUDA kernel in a shared library has of each kind, by (architecture, mangled name).

    LDS are from shared memory, LD from memory of which the compiler does not know where it is.
    """
    loads: dict[tuple[int, str], Counter[str]] = {}
    arch, counts = 0, Counter[str]()
    done = subprocess.run([TOOLS / "cuobjdump", "-sass", library], capture_output=True, text=True)
    for line in done.stdout.splitlines():
        if match := re.search(r"arch = sm_(\d+)", line):
            arch = int(match[1])
        elif match := re.match(r"\s*Function : (\S+)", line):
            counts = loads.setdefault((arch, match[1]), Counter())
        elif match := re.search(r"\s(LDS|LD)(\.\S+)?\s", line):
            counts[match[1]] += 1
    return loads


def _resources(text: str) -> Resources:
    usage = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", text)}
    # kernels have no arrays of their own there: what is on the stack was spilled
    return Resources(usage["REG"], usage["STACK"] + usage["LOCAL"], usage["SHARED"])


def main_loop(cubin: bytes) -> Loop | None:
    """The loop with the most matrix products; None if there is no loop with any."""
    instructions, labels = _disassemble(cubin)
    successors = [_successors(i, text, labels) for i, text in enumerate(instructions)]
    best: tuple[int, Loop] | None = None
    for last, after in enumerate(successors):
        for first in after:
            if first > last:
                continue
            kinds = [match[1] for text in instructions[first : last + 1] if (match := MMA.search(text))]
            length = _shortest(successors, first, last)
            if kinds and length and (best is None or len(kinds) > best[0]):
                best = len(kinds), Loop(length, kinds[0])
    return best[1] if best else None


def _disassemble(cubin: bytes) -> tuple[list[str], dict[str, int]]:
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in _run("nvdisasm", "-c", cubin).splitlines():
        if match := LABEL.match(line):
            labels[match[1]] = len(instructions)
        elif match := INSTRUCTION.match(line):
            instructions.append(match[1])
    return instructions, labels


def _successors(index: int, text: str, labels: dict[str, int]) -> list[int]:
    branch = BRANCH.search(text)
    # predicated by a guard in front, or by a uniform predicate among the operands
    conditional = text.startswith("@") or bool(re.search(r"BRA\S*\s+!?U?P\d", text))
    if branch and branch[1] in labels:
        return [labels[branch[1]], index + 1] if conditional else [labels[branch[1]]]
    if "EXIT" in text and not conditional:
        return []
    return [index + 1]


def _shortest(successors: list[list[int]], first: int, last: int) -> int | None:
    """Instructions on the shortest way from one to another that stays between them."""
    distance = {first: 1}
    queue = [(1, first)]
    while queue:
        steps, here = heapq.heappop(queue)
        if here == last:
            return steps
        for there in successors[here]:
            if first < there <= last and steps + 1 < distance.get(there, steps + 2):
                distance[there] = steps + 1
                heapq.heappush(queue, (steps + 1, there))
    return None


def _run(tool: str, option: str, cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([TOOLS / tool, option, file.name], capture_output=True, text=True, check=True).stdout
