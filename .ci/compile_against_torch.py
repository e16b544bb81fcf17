"""Compiles every source that includes torch's headers against each supported release: objects only, nothing is linked.

    python .ci/compile_against_torch.py                  the oldest release, those of importance, the newest; but not
                                                         the installed one, with which pip has just compiled them
    python .ci/compile_against_torch.py 2.12.1 installed

The binary works with every torch from 2.10 on, but only if it compiles: a user's machine builds it against the headers
that are there. The kernels are not among these sources, as nvcc sees no header of torch. A release's headers come out
of its aarch64 wheel, which is a small CPU build with the same ones. What cannot be downloaded is a failure, not
something to leave out.
"""

import argparse
import functools
import importlib.util
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import torch
from setuptools import Extension

ROOT = Path(__file__).resolve().parents[1]
# the oldest that pyproject.toml admits, the one of current GPU images, what pip would take
RELEASES = ("2.10.0", "2.11.0", "newest")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("releases", nargs="*", metavar="RELEASE")
    named = parser.parse_args().releases
    failed = []
    with tempfile.TemporaryDirectory() as work, ThreadPoolExecutor(2) as pool:
        folders = pool.map(lambda release: headers_of(release, Path(work)), named or RELEASES)
        headers = {version_in(folder): folder for folder in folders}
        if not named:
            headers.pop(version_in(headers_of("installed", Path(work))), None)
        calls = [call for folder in headers.values() for call in compiler_calls(folder, Path(work))]
        for call, (seconds, output) in zip(calls, pool.map(compile_one, calls), strict=True):
            print(f"{Path(call[-1]).name:40}{'FAILED' if output else 'ok':7}{seconds:5.1f} s", flush=True)
            if output:
                print(output)
                failed.append(call)
    return len(failed) > 0


@functools.cache
def load_setup() -> ModuleType:
    """setup.py, whose flags these are to be."""
    spec = importlib.util.spec_from_file_location("setup_of_this_project", ROOT / "setup.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def headers_of(release: str, work: Path) -> Path:
    """The include folder of a release.

    Raises:
        SystemExit: it cannot be had.
    """
    if release == "installed":
        return Path(torch.__file__).parent / "include"
    folder = work / release
    wanted = "torch" if release == "newest" else f"torch=={release}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--platform", "manylinux_2_28_aarch64", "--python-version", "3.11", "--dest", str(folder), wanted]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        sys.exit(f"the headers of {wanted} cannot be had, so nothing is known about it:\n{done.stderr}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        wheel.extractall(folder, [name for name in wheel.namelist() if name.startswith("torch/include/")])
    wheels[0].unlink()
    return folder / "torch" / "include"


def version_in(headers: Path) -> str:
    """The release as its own headers have it."""
    lines = (headers / "torch" / "headeronly" / "version.h").read_text().splitlines()
    found = {line.split()[1]: line.split()[2] for line in lines if line.startswith("#define TORCH_VERSION_")}
    return ".".join(found[f"TORCH_VERSION_{part}"] for part in ("MAJOR", "MINOR", "PATCH"))


@functools.cache
def torch_extension() -> Extension:
    """The module of the torch operators as setup.py describes it, with the operators on CUDA."""
    setup = load_setup()
    cuda_home = setup.find_cuda_home()
    if cuda_home is None:
        sys.exit("there is no nvcc, so the operators on CUDA are not built")
    extension: Extension = setup.torch_extension(cuda_home)
    return extension


def compiler_calls(headers: Path, work: Path) -> list[list[str]]:
    """A compiler's call for each source that includes torch's headers, with the flags that setup.py gives it."""
    extension = torch_extension()
    include = [
        f"-I{sysconfig.get_path('include')}",
        f"-I{ROOT / 'csrc'}",
        f"-I{headers}",
        f"-I{headers / 'torch/csrc/api/include'}",
    ]
    calls = []
    for source in extension.sources:
        if not source.startswith("csrc/cpu/simd") and not source.endswith(".cu"):  # those know nothing of torch
            target = work / f"torch {version_in(headers)}, {Path(source).name}"
            flags = extension.extra_compile_args["cxx"]
            calls.append(["g++", source, "-c", *flags, *include, "-o", str(target)])
    return calls


def compile_one(call: list[str]) -> tuple[float, str]:
    """Seconds that it took, and what the compiler said if it failed."""
    started = time.perf_counter()
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
    return time.perf_counter() - started, done.stderr.strip() or "no output" if done.returncode else ""


if __name__ == "__main__":
    sys.exit(main())
