"""``python -m cond_detr_kernels.tune``: measures on your GPU which attention is fastest, and with which tiles.

For each situation of a preset, or one that is given, it times the kernels' configurations and PyTorch's own attention,
forward and backward, each only after its result agreed with the formula in fp64. The fastest is written to the user's
cache folder, and ``conditional_attention`` uses it from then on.
"""

import argparse
import contextlib
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from cond_detr_kernels.conditional_attention.fallback import BACKENDS, pytorch_attention
from cond_detr_kernels.conditional_attention.launch import Launch
from cond_detr_kernels.conditional_attention.measured import (
    KERNELS,
    Measured,
    Situation,
    device_name,
    table_path,
    write_table,
)
from cond_detr_kernels.conditional_attention.problem import Problem
from cond_detr_kernels.conditional_attention.reference import attention_weights, dropped_reference, head_thresholds
from cond_detr_kernels.conditional_attention.target import target_of
from cond_detr_kernels.conditional_attention.torch_operator import run_backward, run_forward
from cond_detr_kernels.conditional_attention.tuning import Blocks, Tuning

Timer = Callable[[Callable[[], object]], float]

HEADS, QUERIES, HEAD_DIM, DROPOUT = 8, 300, 32, 0.1
# Positions of an 800 x 1333 image, by the stride of the backbone
PRESETS = {"r50": 1050, "r101": 1050, "dc5-r50": 4200, "dc5-r101": 4200}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "fp32": torch.float32}
TOLERANCE = {"bfloat16": 2e-2, "float16": 4e-3, "tf32": 2e-3, "ieee": 1e-5}
SEED = 20211

FORWARD = [
    Blocks(*sizes)
    for sizes in ((64, 64, 4, 3), (64, 128, 4, 3), (64, 128, 4, 2), (64, 32, 4, 3), (64, 32, 4, 2), (128, 128, 8, 2))
]
QUERIES_BLOCKS = [Blocks(*sizes) for sizes in ((64, 64, 4, 3), (64, 128, 4, 3), (64, 64, 4, 2), (64, 32, 4, 4))]
KEYS_BLOCKS = [Blocks(*sizes) for sizes in ((32, 64, 4, 3), (64, 64, 4, 2), (64, 128, 8, 2), (32, 128, 4, 2))]
ONE_PASS_BLOCKS = [Blocks(*sizes) for sizes in ((64, 64, 4, 3), (64, 64, 4, 2), (32, 64, 4, 3), (64, 128, 8, 2))]

# The backward kernels of either implementation, and the configurations to try
Changes = list[tuple[Callable[[Tuning, Blocks], Tuning], list[Blocks]]]
DETERMINISTIC: Changes = [
    (lambda tuning, blocks: replace(tuning, backward_queries=blocks), QUERIES_BLOCKS),
    (lambda tuning, blocks: replace(tuning, backward_keys=blocks), KEYS_BLOCKS),
]
ONE_PASS: Changes = [(lambda tuning, blocks: replace(tuning, backward=blocks), ONE_PASS_BLOCKS)]


def situations(preset: str, dtypes: Sequence[str], batches: Sequence[int]) -> Iterator[Situation]:
    """Yields the situations of training (padded, with dropout) and prediction with a preset.

    Args:
        preset: a key of :data:`PRESETS`.
        dtypes: keys of :data:`DTYPES`.
        batches: batch sizes; unpadded for single images in prediction.
    """
    keys = PRESETS[preset]
    dims = (HEAD_DIM, HEAD_DIM, HEAD_DIM)
    for name in dtypes:
        dtype = situation_dtype(name)
        for batch in batches:
            sizes = (batch, HEADS, QUERIES, keys)
            yield Situation(dtype, dims, True, True, True, sizes)
            yield Situation(dtype, dims, batch > 1, False, False, sizes)
            if batch > 1:  # the encoder's self-attention
                yield Situation(dtype, (HEAD_DIM, 0, HEAD_DIM), True, True, True, (batch, HEADS, keys, keys))


def situation_dtype(name: str) -> str:
    """The ``dtype`` of a situation for a key of :data:`DTYPES`."""
    return {"tf32": "tf32", "fp32": "ieee"}.get(name, str(DTYPES[name]).removeprefix("torch."))


def make_problem(situation: Situation, device: torch.device) -> tuple[Problem, Tensor | None, Tensor]:
    """Draws random operands for a situation, the same ones each time.

    Returns:
        The problem; the (B, S) bool mask, True for the last tenth of the keys, or None; and a gradient of the output.
    """
    batch, heads, queries, keys = situation.sizes
    content, spatial, value = situation.dims
    dtype = getattr(torch, situation.dtype, torch.float32)
    generator = torch.Generator(device).manual_seed(SEED)

    def random(length: int, dim: int) -> Tensor:
        shape = batch, length, heads, dim
        return torch.randn(shape, device=device, generator=generator).to(dtype).transpose(1, 2)

    sizes = [(queries, content), (queries, spatial), (keys, content), (keys, spatial), (keys, value)]
    operands = [random(length, dim) for length, dim in sizes]
    padding = prepared = None
    if situation.masked:
        padding = (torch.arange(keys, device=device) >= keys - keys // 10).expand(batch, keys)
        prepared = torch.ops.cond_detr.prepare_key_mask(padding)
    seed = torch.tensor([SEED], device=device) if situation.dropout else None
    scale = (content + spatial) ** -0.5
    problem = Problem(*operands, prepared, seed, DROPOUT if situation.dropout else 0.0, scale)  # type: ignore[call-arg, arg-type]
    return problem, padding, random(queries, value)


def checked_part(tensor: Tensor) -> Tensor:
    """The part of a tensor that is compared: two heads of the first image, as all would not fit into memory in fp64."""
    return tensor[:1, :2]


def exact(problem: Problem, padding: Tensor | None, grad_out: Tensor) -> list[Tensor]:
    """Output and gradients of all operands by the formula in fp64, of the part of :func:`checked_part`.

    Args:
        problem: the arguments of the call.
        padding: (B, S) bool mask, or None.
        grad_out: (B, H, N, Dv) gradient of the output.
    """
    operands = [checked_part(tensor).detach().double().requires_grad_() for tensor in problem[:5]]
    mask = None if padding is None else padding[:1]
    weights = attention_weights(*operands[:4], key_padding_mask=mask, scale=problem.scale)
    if problem.dropout_p:
        heads, queries, keys = weights.shape[1:]
        kept = ~dropped_reference(SEED, heads, queries, keys, problem.dropout_p, weights.device)
        weights = weights * kept * 256 / (256 - head_thresholds(SEED, heads, problem.dropout_p, weights.device))
    out = weights @ operands[4]
    return [out.detach(), *torch.autograd.grad(out, operands, checked_part(grad_out).double())]


def agrees(got: Sequence[Tensor], want: Sequence[Tensor], tolerance: float) -> bool:
    """Whether each tensor agrees with :func:`exact` up to a relative tolerance, in the norm."""
    pairs = ((checked_part(a).double(), b) for a, b in zip(got, want, strict=True))
    return all(bool((a - b).norm() <= tolerance * b.norm().clamp(min=1)) for a, b in pairs)


class KernelSearch:
    """Search for the fastest configurations of the kernels in one situation.

    Args:
        problem: the arguments of the call.
        grad_out: (B, H, N, Dv) gradient of the output.
        want: expected output and gradients, as of :func:`exact`.
        tolerance: relative tolerance of results.
        timer: measures a call in microseconds.
        in_time: whether there is time for more candidates; the first of each kernel is always tried.
    """

    def __init__(
        self,
        problem: Problem,
        grad_out: Tensor,
        want: list[Tensor],
        tolerance: float,
        timer: Timer,
        in_time: Callable[[], bool],
    ) -> None:
        self.problem = problem
        self.grad_out = grad_out
        self.want = want
        self.tolerance = tolerance
        self.timer = timer
        self.in_time = in_time
        self.static, self.multiprocessors = target_of(problem)

    def run(self, *, training: bool) -> tuple[Tuning, float, float] | None:
        """Runs the search.

        Args:
            training: whether to search for backward configurations as well.

        Returns:
            The fastest configurations, and the microseconds of forward and backward; None if no configuration gave
            right results.
        """
        forward = self._fastest(self._forward_candidates(), self._forward)
        if forward is None:
            return None
        tuning, forward_us = forward
        if not training:
            return tuning, forward_us, 0.0
        deterministic = self._backward_search(replace(tuning, one_pass=False), DETERMINISTIC)
        one_pass = self._backward_search(replace((deterministic or forward)[0], one_pass=True), ONE_PASS)
        found = min(filter(None, (deterministic, one_pass)), key=lambda pair: pair[1], default=None)
        if found is None:
            return None
        # the faster of both; the configurations of the other are kept for calls that ask for it
        return replace((one_pass or found)[0], one_pass=found[0].one_pass), forward_us, found[1]

    def _forward_candidates(self) -> Iterator[Tuning]:
        yield self.static
        for blocks in FORWARD:
            for splits in (None, 1, 2, 4):
                yield replace(self.static, forward=blocks, splits=splits)

    def _backward_search(self, tuning: Tuning, changes: Changes) -> tuple[Tuning, float] | None:
        """Tunes the backward kernels one after the other, as they are independent; returns the total time as well."""
        found = None
        for change, candidates in changes:
            found = self._fastest([tuning, *(change(tuning, blocks) for blocks in candidates)], self._backward)
            if found is None:
                return None
            tuning = found[0]
        return found

    def _fastest(
        self, candidates: Iterable[Tuning], measure: Callable[[Tuning], float | None]
    ) -> tuple[Tuning, float] | None:
        best: tuple[Tuning, float] | None = None
        for number, candidate in enumerate(candidates):
            if number and not self.in_time():
                break
            try:
                microseconds = measure(candidate)
            # it wants too much shared memory, or this Triton cannot compile it: whatever it is, it is not the fastest
            except Exception:
                continue
            if microseconds is not None and (best is None or microseconds < best[1]):
                best = candidate, microseconds
        return best

    def _forward(self, tuning: Tuning) -> float | None:
        def call() -> tuple[Tensor, Tensor]:
            return run_forward(self.problem, tuning, self.multiprocessors)

        return self.timer(call) if agrees(call()[:1], self.want[:1], self.tolerance) else None

    def _backward(self, tuning: Tuning) -> float | None:
        out, lse = run_forward(self.problem, tuning, self.multiprocessors)

        def call() -> tuple[Tensor, ...]:
            return run_backward(self.problem, out, lse, self.grad_out, tuning, not tuning.one_pass)

        return self.timer(call) if agrees(call(), self.want[1:], self.tolerance) else None

    def launches(self, *, training: bool) -> Iterator[Launch]:
        """Yields a launch of every kernel that the search may try, each once."""
        seen = set()
        for launch in self._all_launches(training):
            options = tuple(sorted((k, v) for k, v in launch.arguments.items() if k.isupper() or k.startswith("num_")))
            if (launch.kernel, options) not in seen:
                seen.add((launch.kernel, options))
                yield launch

    def _all_launches(self, training: bool) -> Iterator[Launch]:
        # here, as they import Triton, which may be missing
        from cond_detr_kernels.conditional_attention.backward import backward_launches
        from cond_detr_kernels.conditional_attention.forward import forward_launches

        for tuning in self._forward_candidates():
            launches, out, lse = forward_launches(self.problem, tuning, self.multiprocessors)
            yield from launches
        if not training:
            return
        for changes, deterministic in ((DETERMINISTIC, True), (ONE_PASS, False)):
            for change, candidates in changes:
                for tuning in (self.static, *(change(self.static, blocks) for blocks in candidates)):
                    yield from backward_launches(self.problem, out, lse, self.grad_out, tuning, deterministic)[0]


def compile_ahead(launches: Iterable[Launch], device: torch.device, in_time: Callable[[], bool]) -> None:
    """Compiles kernels on all processors, so that measuring does not wait for one after the other.

    Args:
        launches: of the kernels.
        device: the CUDA device.
        in_time: whether there is time for more.
    """

    def compile_one(launch: Launch) -> None:
        # what cannot be compiled is not measured either
        with contextlib.suppress(Exception), torch.cuda.device(device):
            if in_time():
                launch.compile()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, launches))


def pytorch_times(
    problem: Problem,
    padding: Tensor | None,
    grad_out: Tensor,
    situation: Situation,
    timer: Timer,
) -> dict[str, float]:
    """Times the backends of PyTorch's attention that support a situation and give right results.

    Args:
        problem: the arguments of the call.
        padding: (B, S) bool mask, or None.
        grad_out: (B, H, N, Dv) gradient of the output.
        situation: the situation of the call.
        timer: measures a call in microseconds.

    Returns:
        Microseconds by backend, backward included in training.
    """
    plain = problem._replace(seed=None, dropout_p=0.0)  # torch draws its own
    want = exact(plain, padding, grad_out)
    times = {}
    for name in BACKENDS:
        operands = [tensor.detach().requires_grad_(situation.training) for tensor in problem[:5]]

        def step(dropout_p: float, operands: list[Tensor] = operands, name: str = name) -> list[Tensor]:
            out = pytorch_attention(*operands, padding, dropout_p, problem.scale, name)  # type: ignore[call-arg, arg-type]
            return [out, *torch.autograd.grad(out, operands, grad_out)] if situation.training else [out]

        with warnings.catch_warnings(), contextlib.suppress(RuntimeError):
            # a backend that does not do that raises an error, after a warning about each of the others
            warnings.simplefilter("ignore")
            got = step(0.0)
            if agrees(got, want[: len(got)], TOLERANCE[situation.dtype]):
                times[name] = timer(lambda step=step: step(problem.dropout_p))  # type: ignore[misc]
    return times


def measure(
    situation: Situation, device: torch.device, timer: Timer, in_time: Callable[[], bool] = lambda: True
) -> Measured:
    """Measures which implementation is the fastest in a situation.

    Args:
        situation: the situation.
        device: the CUDA device.
        timer: measures a call in microseconds.
        in_time: whether there is time for more candidates.
    """
    tf32 = situation.dtype == "tf32"
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        problem, padding, grad_out = make_problem(situation, device)
        times = pytorch_times(problem, padding, grad_out, situation, timer)
        want = exact(problem, padding, grad_out)
        search = KernelSearch(problem, grad_out, want, TOLERANCE[situation.dtype], timer, in_time)
        if device.type == "cuda":
            compile_ahead(search.launches(training=situation.training), device, in_time)
        found = search.run(training=situation.training)
    finally:
        torch.set_float32_matmul_precision(before)
    if found:
        times[KERNELS] = found[1] + found[2]
    fastest = min(times, key=lambda name: times[name], default=KERNELS)
    return Measured(situation, fastest, found[0] if found else None, times)


def cuda_timer(call: Callable[[], object], repeats: int = 10, rounds: int = 5) -> float:
    """Measures a call on the current CUDA device in microseconds, by replays of a CUDA graph without launch overhead.

    Args:
        call: the call.
        repeats: calls in the graph.
        rounds: timed replays; the result is their median.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            call()
    graph.replay()
    times = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1e3 * start.elapsed_time(end) / repeats)
    return statistics.median(times)


def tune(
    wanted: Sequence[Situation],
    device: torch.device,
    target: Path,
    *,
    timer: Timer = cuda_timer,
    clock: Callable[[], float] = time.monotonic,
    seconds: float = 110.0,
) -> list[Measured]:
    """Measures situations within a time limit, and writes the table after each.

    Args:
        wanted: the situations.
        device: the CUDA device.
        target: file of the table.
        timer: measures a call in microseconds.
        clock: returns the time in seconds.
        seconds: time limit. Each situation has an equal share; what it leaves goes to the next.

    Returns:
        The measurements.
    """
    rows: list[Measured] = []
    begin = clock()
    for number, situation in enumerate(tqdm(wanted, "tune", unit="situation", disable=None)):
        until = begin + seconds * (number + 1) / len(wanted)
        rows.append(measure(situation, device, timer, lambda until=until: clock() < until))  # type: ignore[misc]
        write_table(target, rows, device=device_name(device), torch=torch.__version__)
    return rows


def describe(row: Measured) -> str:
    """Formats a measurement as a line of text."""
    situation = row.situation
    kind = f"{situation.dtype}, {'/'.join(map(str, situation.dims))}, {'x'.join(map(str, situation.sizes))}"
    flags = [name for name in ("masked", "dropout", "training") if getattr(situation, name)]
    others = ", ".join(f"{name} {us:.1f}" for name, us in sorted(row.microseconds.items(), key=lambda item: item[1]))
    return f"{kind} {' '.join(flags) or 'plain'}: {row.path} (us: {others or 'nothing ran'})"


def parser() -> argparse.ArgumentParser:
    """Builds the argument parser of ``python -m cond_detr_kernels.tune``."""
    p = argparse.ArgumentParser(prog="python -m cond_detr_kernels.tune", description=__doc__.partition(": ")[2])
    p.add_argument("--preset", choices=PRESETS, default="r50", help="whose shapes to measure (default: r50)")
    p.add_argument("--dtype", choices=DTYPES, action="append", help="default: bf16 and tf32")
    p.add_argument("--batch-size", type=int, action="append", metavar="N", help="images at once (default: 1, 2 and 8)")
    p.add_argument("--keys", type=int, metavar="N", help="image positions instead of the preset's")
    p.add_argument("--seconds", type=float, default=110.0, metavar="S", help="time to take (default: %(default)s)")
    p.add_argument("--device", default="cuda", metavar="D", help="cuda or cuda:N")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Measures on a GPU and writes its table; see :func:`parser` for the arguments.

    Returns:
        The exit code: 0, or 2 if there is no CUDA device.
    """
    options = parser().parse_args(argv)
    if not torch.cuda.is_available():
        print("error: there is no CUDA device, and on a CPU there is nothing to choose", file=sys.stderr)
        return 2
    device = torch.device(options.device)
    device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
    target = table_path(device)
    wanted = list(situations(options.preset, options.dtype or ["bf16", "tf32"], options.batch_size or [1, 2, 8]))
    if options.keys:
        wanted = [row._replace(sizes=(*row.sizes[:3], options.keys)) for row in wanted if row.dims[1]]
    target.unlink(missing_ok=True)  # while measuring, nothing that was measured before decides
    with torch.cuda.device(device):
        rows = tune(wanted, device, target, seconds=options.seconds)
    print("\n".join(map(describe, rows)))
    print(f"wrote {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
