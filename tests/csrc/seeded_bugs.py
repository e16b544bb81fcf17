"""Shows that the emulation notices bugs: seeds some, one at a time, into a copy of the kernels, and runs them.

    python tests/csrc/seeded_bugs.py                 all of them; exit status 1 if one is not noticed
    python tests/csrc/seeded_bugs.py barrier votes   those with one of these words in their names

Each program is built and run with AddressSanitizer and UndefinedBehaviorSanitizer, and with ThreadSanitizer, to which
the lanes of a warp are threads that only barriers put in order.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.csrc.emulated import CSRC, SANITIZERS, SHARED_BYTES, Builder, Run, complaint, dense_batches, write_batches


@dataclass(frozen=True)
class Bug:
    file: str  # in csrc
    right: str  # occurs there once
    wrong: str

    def seed(self, csrc: Path) -> None:
        path = csrc / self.file
        text = path.read_text()
        if text.count(self.right) != 1:
            sys.exit(f"{self.file} has {text.count(self.right)} times, not once: {self.right!r}")
        path.write_text(text.replace(self.right, self.wrong))


LANES = "assignment/warp_lanes.cuh"
KERNELS = "cuda/assignment_kernels.cuh"
AUCTION = "cuda/block_auction.cuh"
SEARCH = "cuda/block_search.cuh"
TEAM = "cuda/team.cuh"
LAUNCHERS = "cuda/launchers.cu"

BUGS = {
    "once without its first barrier": Bug(LANES, "    __syncwarp();  // no lane still reads what is replaced\n", ""),
    "once without its last barrier": Bug(
        LANES, "    if (lane() == 0) writes();\n    __syncwarp();", "    if (lane() == 0) writes();"
    ),
    "columns cleared without a barrier": Bug(
        AUCTION, "w.claim[col] = INT32_MAX;\n  }\n  __syncthreads();", "w.claim[col] = INT32_MAX;\n  }"
    ),
    "the last claim instead of the first": Bug(LANES, "atomicMin(to, value)", "*to = value"),
    "claims of another round": Bug(AUCTION, "claim_of(w.bidders[i], round, rows)", "claim_of(w.bidders[i], 1, rows)"),
    "bids settled before all are made": Bug(AUCTION, "padded, w);\n    }\n    __syncthreads();", "padded, w);\n    }"),
    "bids before the last round is settled": Bug(
        AUCTION, "*w.bidder_count = left;\n  }\n  __syncthreads();", "*w.bidder_count = left;\n  }"
    ),
    "bidders replaced while they are read": Bug(
        AUCTION, "    __syncwarp();  // no lane still reads what is replaced\n", ""
    ),
    "a bidder on top of another": Bug(AUCTION, "((1u << WarpLanes::lane()) - 1)", "((1u << WarpLanes::lane()) / 2)"),
    "the first bidders only": Bug(
        AUCTION,
        "for (int32_t first = 0; first < count; first += 32) {",
        "for (int32_t first = 0; first < 32; first += 32) {",
    ),
    "an auction forgotten by the search": Bug(SEARCH, "exists(group) ? w.col_dual[column(group)] : 0.0", "0.0"),
    "ties of a thread in any order": Bug(TEAM, " || (other.bits == bits && other.rank < rank)", ""),
    "ties between threads in any order": Bug(TEAM, "second && rank == least_rank", "second && rank >= least_rank"),
    "lower halves not compared": Bug(TEAM, "first && lower == least;", "first && lower >= least;"),
    "warps do not wait for each other": Bug(
        TEAM, "    meet();\n    const Nearest of_warp", "    const Nearest of_warp"
    ),
    "one sheet for all steps": Bug(TEAM, "    turn_ ^= 1;\n", ""),
    "a path before all of it is written": Bug(SEARCH, "if (detour_) team_.meet();", ""),
    "another thread's column settled": Bug(SEARCH, "if (col != column(group)) continue;", ""),
    "a path without its last predecessor": Bug(SEARCH, "if (has_end_)", "if (threadIdx.x == 0)"),
    "a free row forgotten": Bug(SEARCH, "left; left &= left - 1", "left; left &= left - 2"),
    "lane 0 leaves a vote out": Bug(
        TEAM, "    uint32_t tied = ", "    if (WarpLanes::lane() == 0) return 0;\n    uint32_t tied = "
    ),
    "no barrier after the search": Bug(KERNELS, "return __syncthreads_and(feasible) ?", "return feasible ?"),
    "all warps search": Bug(KERNELS, "if (static_cast<int>(threadIdx.x) >= team.threads()) return true;", ""),
    "all warps search in memory": Bug(KERNELS, "return warp() > 0 || assign_others", "return assign_others"),
    "own vote for all that is valid": Bug(AUCTION, "if (!__syncthreads_and(valid))", "if (!valid)"),
    "own vote for all that is feasible": Bug(AUCTION, "if (!__syncthreads_and(feasible))", "if (!feasible)"),
    "own vote for any that is sanitised": Bug(
        KERNELS, "sanitised = __syncthreads_or(fill_costs", "sanitised = (fill_costs"
    ),
    "no barrier before the costs": Bug(KERNELS, "largest, exp_sum);\n  __syncthreads();", "largest, exp_sum);"),
    "a warp's last pairs left out": Bug(KERNELS, "(pairs + kWarps - 1) / kWarps", "pairs / kWarps"),
    "the cost of another class": Bug(KERNELS, "if (wanted.label != label) {", "if (label == kNone) {"),
    "half of the targets' memory": Bug(
        KERNELS, "all.max_targets * sizeof(Target)", "all.max_targets * sizeof(Target) / 2"
    ),
    "sums overlap maxima": Bug(KERNELS, "largest + problem.queries", "largest + problem.queries / 2"),
    "half of the softmax's memory": Bug(KERNELS, "2 * sizeof(float) * all.queries", "sizeof(float) * all.queries"),
    "padding not written": Bug(KERNELS, "if (col < padded) costs[row * padded + col] = INFINITY;", ""),
    "output not per problem": Bug(KERNELS, "pred_index[p * problems.max_targets + target]", "pred_index[target]"),
    "workspace too small": Bug(
        "assignment/carver.h", "bytes += scratch_bytes<T>(count)", "bytes += scratch_bytes<T>(count) / 2"
    ),
    "global scratch not per problem": Bug(
        "cuda/scratch.cuh", "global + problem * global_bytes", "global + 0 * problem * global_bytes"
    ),
    "global scratch for one problem": Bug(LAUNCHERS, "return problems.count() * ", "return "),
    "always all scratch shared": Bug(
        LAUNCHERS, "scratch.all_shared() ? match_kernel<true> : match_kernel<false>", "match_kernel<true>"
    ),
    "shared memory not asked for": Bug("cuda/launch.cuh", "static_cast<int>(scratch.available)", "48 << 10"),
}


class Workplace:
    """A folder with what the programs share, and problems for them: few for ThreadSanitizer, which takes its time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.builder = Builder(folder)
        self.matches = {"address": 60, "thread": 8}
        for sanitizer, problems in {"address": 600, "thread": 40}.items():
            batches = dense_batches(problems, seed=3, sizes={12: 0.65, 40: 0.25, 160: 0.1})
            write_batches(batches, folder / f"dense-{sanitizer}")

    def run(self, program: Path, sanitizer: str, place: str, garbage: int) -> str | None:
        """The program's complaint, if any, with scratch in one place and full of such bytes."""
        run = Run(SHARED_BYTES[place], garbage, seed=1, match_batches=self.matches[sanitizer], seconds=40)
        answers = self.folder / f"{program.name}-{place}-answers"
        return complaint(run(program, self.folder / f"dense-{sanitizer}", answers))

    def catch(self, name: str, sanitizers: Iterable[str] = tuple(SANITIZERS)) -> dict[str, str | None]:
        """What each sanitizer, or the emulation itself, has to say of a bug; None if nothing."""
        csrc = self.folder / name.replace(" ", "-") / "csrc"
        shutil.copytree(CSRC, csrc)
        BUGS[name].seed(csrc)
        return {sanitizer: self.examine(csrc, sanitizer) for sanitizer in sanitizers}

    def examine(self, csrc: Path, sanitizer: str) -> str | None:
        program = self.builder.program(sanitizer, csrc)
        runs = (("shared", 0xFF), ("global", 0x00))
        complaints = (self.run(program, sanitizer, place, garbage) for place, garbage in runs)
        return next((found for found in complaints if found), None)


def row(name: str, found: dict[str, str | None]) -> str:
    return f"{name:36}" + "".join(f"{found[sanitizer] or '-':60.58}" for sanitizer in SANITIZERS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="of the bugs' names")
    words = parser.parse_args().words
    names = [name for name in BUGS if not words or any(word in name for word in words)]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        workplace = Workplace(Path(folder))
        print(f"{'bug':36}" + "".join(f"{f'{sanitizer} sanitizer':60}" for sanitizer in SANITIZERS), flush=True)
        wrong = {sanitizer: workplace.examine(CSRC, sanitizer) for sanitizer in SANITIZERS}
        print(row("none", wrong), flush=True)
        missed = 0
        for name, found in zip(names, pool.map(workplace.catch, names), strict=True):
            print(row(name, found), flush=True)
            missed += not any(found.values())
    print(f"{len(names) - missed} of {len(names)} bugs noticed")
    if any(wrong.values()):
        sys.exit("there is a complaint without a bug")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
