"""Triton's real launcher without a GPU: what each launch of an attention kernel passes to the CUDA driver.

The interpreter that the other tests run kernels with takes any grid and any argument. Here kernels are compiled for an
architecture and launched; a stub stands in for the driver, with a GPU in the machine or without.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import triton

from cond_detr_kernels.conditional_attention import backward, forward, masking
from tests.kernels.launch_main import CASES

ROOT = Path(__file__).parents[2]
ARCHITECTURES = (90,)
WORKERS = 2
MAX_GRID = (2**31 - 1, 65535, 65535)


@pytest.fixture(scope="module")
def stub_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("gcc")
    assert compiler, "gcc is what builds the extension; it must be there"
    folder = tmp_path_factory.mktemp("stub")
    headers = Path(triton.__file__).parent / "backends" / "nvidia" / "include"
    source = Path(__file__).with_name("stub_driver.c")
    name = "libcuda.so.1"
    flags = ["-O1", "-Wall", "-Werror", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-I", headers]
    subprocess.run([compiler, *flags, source, "-o", folder / name], check=True)
    return folder


@pytest.fixture(scope="module", params=ARCHITECTURES, ids=lambda arch: f"sm_{arch}")
def results(request: pytest.FixtureRequest, stub_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What each case's launches passed, by a few processes side by side."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {
        "LD_LIBRARY_PATH": os.pathsep.join([str(stub_folder), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]),
        "TRITON_LIBCUDA_PATH": str(stub_folder),
        # torch is to see no GPU, and not to ask the driver
        "CUDA_VISIBLE_DEVICES": "",
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    }
    found: dict[str, Any] = {}
    processes = []
    for worker in range(WORKERS):
        folder = tmp_path_factory.mktemp("launches")
        command = [sys.executable, "-m", "tests.kernels.launch_main", str(request.param), str(folder / "result")]
        process = subprocess.Popen(
            [*command, *list(CASES)[worker::WORKERS]],
            cwd=ROOT,
            env=environment | {"TRITON_CACHE_DIR": str(folder / "cache")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append((process, folder / "result"))
    try:
        for process, result in processes:
            output, _ = process.communicate(timeout=600)
            assert process.returncode == 0, output
            found |= json.loads(result.read_text())
    finally:
        for process, _ in processes:
            process.kill()
    return found


@pytest.mark.parametrize("case", CASES)
def test_what_arrives_is_what_was_given(results: dict[str, Any], case: str) -> None:
    assert not results[case]["error"], results[case]["error"]
    for record in results[case]["records"]:
        got, want = record["got"], record["want"]
        differences = [
            f"{key}: {got.get(key)}, not {want.get(key)}" for key in want | got if got.get(key) != want.get(key)
        ]
        assert not differences, "\n".join([want["kernel"], *differences])


@pytest.mark.parametrize("case", CASES)
def test_the_hardware_can_do_it(results: dict[str, Any], case: str) -> None:
    assert results[case]["records"]
    for record in results[case]["records"]:
        got = record["got"]
        assert all(0 < size <= limit for size, limit in zip(got["grid"], MAX_GRID, strict=True)), got
        assert got["block"][0] <= 1024
        assert got["shared"] <= results[case]["shared_memory"]


def test_every_kernel_is_launched(results: dict[str, Any]) -> None:
    launched = {record["got"]["kernel"] for result in results.values() for record in result["records"]}
    assert launched == {
        name for module in (forward, backward, masking) for name in vars(module) if name.endswith("_kernel")
    }
