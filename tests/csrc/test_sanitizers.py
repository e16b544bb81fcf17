"""The CPU solver built with AddressSanitizer and UndefinedBehaviorSanitizer."""

import os
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.kernels.assignment_cases import agree, cases, scipy_total

ROOT = Path(__file__).parents[2]
SENTENCES = {1: "matrix contains invalid numeric entries", 2: "cost matrix is infeasible"}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("g++")
    assert compiler, "g++ is what builds the extension; it must be there"
    built = tmp_path_factory.mktemp("sanitized") / "solver"
    sources = [Path(__file__).with_name("solver_main.cpp"), *sorted(ROOT.glob("csrc/cpu/simd*.cpp"))]
    flags = ["-std=c++17", "-O1", "-g", "-ffp-contract=off", "-fsanitize=address,undefined", "-fno-sanitize-recover"]
    subprocess.run([compiler, *flags, "-I", ROOT / "csrc", *sources, "-o", built], check=True)
    return built


@pytest.mark.parametrize("simd", ["baseline", "avx2", "avx512"])
def test_clean_and_right(program: Path, simd: str, tmp_path: Path) -> None:
    problems = list(cases(1500, seed=5))
    with (tmp_path / "in").open("wb") as file:
        for cost in problems:
            file.write(struct.pack("<qq", *cost.shape) + cost.tobytes())
    environment = os.environ | {"COND_DETR_SIMD": simd}
    run = subprocess.run([program, tmp_path / "in", tmp_path / "out"], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    answers = np.fromfile(tmp_path / "out", np.int64)
    for cost in problems:
        k = min(cost.shape)
        status, rows, cols = answers[0], answers[1 : k + 1], answers[k + 1 : 2 * k + 1]
        answers = answers[2 * k + 1 :]
        got = SENTENCES.get(int(status)) or float(cost[rows, cols].sum())
        assert agree(got, scipy_total(cost), np.abs(cost[np.isfinite(cost)]).max(initial=0.0))
    assert answers.size == 0
