"""Builds the two native modules of ``cond_detr_kernels``; everything else about the package is in pyproject.toml.

``_C``      the torch operators, against the LibTorch stable ABI: one binary for torch >= 2.10, CPU and CUDA builds.
``_numpy``  the assignment solver for NumPy arrays; needs no torch.

The CUDA sources are compiled whenever an nvcc is found, also beside a CPU build of torch, so that the wheel serves a
machine whose torch has CUDA. Environment variables:

COND_DETR_CUDA=0            leave the CUDA sources out; COND_DETR_CUDA=1 makes a missing nvcc an error
COND_DETR_CUDA_ARCHS=90     compile for these compute capabilities only, comma-separated (default: 80,86,90,100,120)
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from setuptools import Extension, setup
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parent
DEFAULT_CUDA_ARCHS = "80,86,90,100,120"
# One translation unit per instruction set, which is chosen at run time
SIMD_SOURCES = [f"csrc/cpu/{name}.cpp" for name in ("simd", "simd_baseline", "simd_avx2", "simd_avx512")]
# No contraction to fused multiply-adds: every instruction set and device computes the same costs
OPTIMISATION = ["-O3", "-ffp-contract=off"]
TORCH_2_10 = "0x020a000000000000"


def find_cuda_home() -> str | None:
    """The CUDA toolkit to compile with, or None to leave the CUDA sources out."""
    wanted = os.environ.get("COND_DETR_CUDA", "auto")
    if wanted not in {"auto", "0", "1"}:
        sys.exit(f"COND_DETR_CUDA must be 0 or 1, got {wanted!r}")
    if wanted == "0":
        return None
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc", path=str(Path(home, "bin")) if home else None)
    if nvcc:
        return toolkit_of(nvcc)
    if wanted == "1":
        sys.exit(f"COND_DETR_CUDA=1 asks for the CUDA sources, but there is no nvcc in {home or 'PATH'}")
    return None


def toolkit_of(nvcc: str) -> str:
    """The toolkit's folder as nvcc itself reports it: the nvcc on PATH may be a link or a wrapper script."""
    report = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True)
    top = re.search(r"^#\$ TOP=(.*)$", report.stderr, re.MULTILINE)
    if not top:
        sys.exit(f"{nvcc} does not say where its toolkit is; set CUDA_HOME. Its output: {report.stderr.strip()}")
    return str(Path(top[1]).resolve())


def cuda_arch_flags(cuda_home: str) -> list[str]:
    """Code for each architecture, and PTX of the last one for GPUs to come."""
    archs = os.environ.get("COND_DETR_CUDA_ARCHS", "").split(",")
    if archs == [""]:
        # of ours, those that this nvcc knows
        known = subprocess.run([Path(cuda_home, "bin", "nvcc"), "--list-gpu-arch"], capture_output=True, text=True)
        archs = [arch for arch in DEFAULT_CUDA_ARCHS.split(",") if f"compute_{arch}" in known.stdout.split()]
        if not archs:
            sys.exit(f"{cuda_home}/bin/nvcc compiles for none of {DEFAULT_CUDA_ARCHS}; set COND_DETR_CUDA_ARCHS")
    flags = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    return [*flags, f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}"]


def headers_digest() -> str:
    """Of all headers. It is in the command for nvcc, which beside a CPU torch nothing else would run again."""
    headers = sorted(path for path in Path(ROOT, "csrc").rglob("*") if path.suffix in {".h", ".cuh"})
    return hashlib.sha256(b"".join(path.read_bytes() for path in headers)).hexdigest()[:16]


def torch_extension(cuda_home: str | None) -> Extension:
    """``CppExtension`` even with CUDA sources: ``CUDAExtension`` refuses to build beside a CPU torch."""
    sources = ["csrc/ops.cpp", "csrc/cpu/assignment_cpu.cpp", *SIMD_SOURCES]
    common = ["-std=c++17", f"-DTORCH_TARGET_VERSION={TORCH_2_10}"]
    private_paths = f"-fmacro-prefix-map={ROOT}/="
    host = ["-fvisibility=hidden", private_paths]
    flags = {"cxx": [*common, *OPTIMISATION, *host, "-Wall", "-Wextra", "-Wno-unused-parameter"]}
    # --no-as-needed: the registration symbols are found through libtorch, which nothing else in the module refers to
    link = ["-Wl,--no-as-needed", "-ltorch"]
    if cuda_home:
        cpp_extension.CUDA_HOME = cuda_home
        sources += ["csrc/cuda/assignment_cuda.cpp", "csrc/cuda/launchers.cu"]
        flags["cxx"].append("-DCOND_DETR_WITH_CUDA")
        flags["nvcc"] = [
            "-std=c++17",
            "-O3",
            "--fmad=false",
            "-Xcompiler=" + ",".join(host),
            "-Xptxas=--warn-on-spills",
            f"-DCOND_DETR_HEADERS={headers_digest()}",
            "--threads=4",  # of the architectures
            *cuda_arch_flags(cuda_home),
        ]
        folders = [Path(cuda_home, name) for name in ("lib64", "lib", "targets/x86_64-linux/lib")]
        link += [
            *(f"-L{folder}" for folder in folders if folder.is_dir()),
            "-lcudart_static",
            "-ldl",
            "-lrt",
            "-lpthread",
        ]
    print(f"cond_detr: CUDA sources {'compiled with ' + cuda_home if cuda_home else 'left out'}")
    extension: Extension = cpp_extension.CppExtension(
        "cond_detr_kernels._C",
        sources,
        extra_compile_args=flags,
        extra_link_args=link,
        include_dirs=[str(ROOT / "csrc")],
    )
    return extension


def numpy_extension() -> Pybind11Extension:
    """The solver for NumPy arrays, with the same sources as the torch operators'."""
    return Pybind11Extension(
        "cond_detr_kernels._numpy",
        ["csrc/numpy_module.cpp", *SIMD_SOURCES],
        include_dirs=[str(ROOT / "csrc")],
        cxx_std=17,
        extra_compile_args=[*OPTIMISATION, f"-fmacro-prefix-map={ROOT}/="],
        extra_link_args=["-pthread"],
    )


def main() -> None:
    """Builds and installs, on Linux."""
    if sys.platform != "linux":
        sys.exit(f"cond-detr builds and runs on Linux only, and this is {sys.platform}")
    setup(
        ext_modules=[torch_extension(find_cuda_home()), numpy_extension()],
        cmdclass={"build_ext": cpp_extension.BuildExtension},
    )


if __name__ == "__main__":
    main()
