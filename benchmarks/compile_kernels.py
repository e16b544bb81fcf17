"""Compiles the attention kernels that tests and benchmarks launch, in parallel, into Triton's cache.

Triton compiles a kernel when it is first launched, one after the other. Here tests and benchmarks run once with every
launch noted instead of done; then all processors compile what was noted. Without a GPU, too, for ``--arch``.
"""

import argparse
import contextlib
import importlib
import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import first_line

ROOT = Path(__file__).resolve().parent.parent
TESTS = "tests/kernels/test_attention_kernels.py"
# those of them that take long without launching much
LAUNCHING = "not opcheck and not compiles and not philox and not draws"


class TensorLike(NamedTuple):
    """All of a tensor that a compiled kernel depends on."""

    dtype: torch.dtype
    aligned: bool


class Noted(NamedTuple):
    """A launch without its tensors. Launches that need the same compiled kernel are equal."""

    module: str
    kernel: str
    arguments: tuple[tuple[str, Any], ...]


def noted(launch: Any) -> Noted:
    """A launch as a note that can be sent to another process."""
    function = launch.kernel.fn
    return Noted(function.__module__, function.__name__, tuple(map(noted_argument, launch.arguments.items())))


def noted_argument(item: tuple[str, Any]) -> tuple[str, Any]:
    """An argument with its name, as far as the compiled kernel depends on it."""
    name, value = item
    # Triton's constants are written in capitals here; they and the options are compiled in as they are
    return name, value if name.isupper() or name.startswith("num_") else typical(value)


def typical(value: Any) -> Any:
    """A value that stands for all those which Triton compiles the same code for."""
    if isinstance(value, torch.Tensor):
        return TensorLike(value.dtype, value.data_ptr() % 16 == 0)
    if isinstance(value, tuple):
        return tuple(map(typical, value))
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, float):
        return 0.5
    if value == 1:
        return 1
    return (2**33 if value >= 2**31 else 0) + (16 if value % 16 == 0 else 17)


def filled_in(value: Any) -> Any:
    """An argument as a launch takes it."""
    if isinstance(value, TensorLike):
        return torch.empty(32, dtype=value.dtype)[0 if value.aligned else 1 :]
    return tuple(map(filled_in, value)) if isinstance(value, tuple) else value


@contextlib.contextmanager
def noting(tell: Callable[[Noted], object]) -> Iterator[set[Noted]]:
    """Tells of each launch that is new, and collects them. None of them happens."""
    from cond_detr_kernels.conditional_attention.launch import Launch

    found: set[Noted] = set()

    def note(launch: Launch) -> None:
        new = noted(launch)
        if new not in found:
            found.add(new)
            tell(new)

    run = Launch.run
    Launch.run = note  # type: ignore[method-assign, assignment]
    try:
        yield found
    finally:
        Launch.run = run  # type: ignore[method-assign]


class NothingIsRight:
    """A pytest plugin: outputs that no kernel has filled are not to be looked at."""

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Takes the comparison out of every module with tests."""
        for module in {item.module for item in items}:
            module.assert_close = lambda *_: None


def run_tests(only: str) -> None:
    """Runs the tests of the kernels, whatever comes of it."""
    try:
        import pytest
    except ImportError as problem:
        print(f"the tests' kernels are not compiled: {problem}")
        return
    options = ["-p", "no:cacheprovider", "--tb=no", "-k", only, f"--rootdir={ROOT}", str(ROOT / TESTS)]
    with contextlib.redirect_stdout(io.StringIO()):
        pytest.main(options, plugins=[NothingIsRight()])


def run_benchmark(device: torch.device, tiny: bool) -> None:
    """A call, and its gradient, of every problem that the attention benchmark measures."""
    import attn_bench

    from cond_detr_kernels import conditional_attention

    torch.set_float32_matmul_precision("high")
    for setting in attn_bench.TINY if tiny else attn_bench.settings(device, quick=True):
        try:
            attn_bench.make_call(conditional_attention, setting, device)()
        # its row will be absent, with the same reason
        except Exception as problem:
            print(f"{type(problem).__name__} {problem} for {setting}")
    torch.set_float32_matmul_precision("highest")


def compile_one(launch: Noted, arch: int) -> None:
    """Compiles what was noted, in a process of the pool."""
    from kernel_report import NoDevice  # which makes sure that Triton does not interpret
    from triton.runtime import driver

    from cond_detr_kernels.conditional_attention.launch import Launch

    driver.set_active(NoDevice(arch))
    kernel = getattr(importlib.import_module(launch.module), launch.kernel)
    Launch(kernel, (1,), {name: filled_in(value) for name, value in launch.arguments}).compile()


def compile_all(arch: int, device: torch.device, workers: int, tiny: bool) -> tuple[int, list[str]]:
    """Returns how many kernels there are, and a sentence for each that does not compile."""
    started = time.perf_counter()
    futures: dict[Noted, Future[None]] = {}
    complaints = []
    with ProcessPoolExecutor(1 if tiny else workers, mp_context=get_context("spawn")) as pool:

        def compile_soon(launch: Noted) -> None:
            if not (tiny and futures):
                futures[launch] = pool.submit(compile_one, launch, arch)

        with noting(compile_soon) as found:
            run_benchmark(device, tiny)
            run_tests("one_key" if tiny else LAUNCHING)
        print(f"{len(found)} kernels noted in {time.perf_counter() - started:.0f} s", flush=True)
        for launch, future in futures.items():
            try:
                future.result()
            except Exception as problem:
                complaints.append(f"{launch.kernel}: {first_line(problem)}")
    print(f"{len(futures) - len(complaints)} compiled for sm_{arch} in {time.perf_counter() - started:.0f} s")
    return len(futures), complaints


def main() -> int:
    """Notes and compiles; 1 if a kernel does not compile or none was launched."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", type=int, help="compute capability, such as 90 (default: the GPU's)")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--tiny", action="store_true", help="one kernel, to see that it works")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    arch = options.arch
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability()
        arch = arch or 10 * major + minor
    elif arch is None:
        parser.error("there is no GPU; give --arch")
    else:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported; or nothing would be launched on a CPU
    count, complaints = compile_all(arch, device, options.workers, options.tiny)
    if not count:
        complaints.append("nothing was launched")
    print(*complaints, sep="\n", end="\n" if complaints else "", file=sys.stderr)
    return int(bool(complaints))


if __name__ == "__main__":
    sys.exit(main())
