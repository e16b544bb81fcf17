"""The script that runs on a GPU, as far as can be seen without one."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import compile_kernels
import gpu_setup
import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = "benchmarks/gpu_run.sh"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")


def gpu_run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {"PYTHON": sys.executable, **environment}
    command = ["bash", SCRIPT, *arguments]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **own}, capture_output=True, text=True)


def steps() -> dict[str, tuple[str, str]]:
    """The limits of each step, in the quick and the full set."""
    lines = gpu_run("--list").stdout.splitlines()[1:]
    return {name: (quick, full) for name, quick, full, *_ in map(str.split, lines)}


def test_the_quick_set_fits_into_ten_minutes() -> None:
    limits = [int(quick) for quick, _ in steps().values() if quick != "-"]
    assert len(limits) >= 6
    assert sum(limits) <= 560


def test_build_comes_first_then_tests_then_benchmarks() -> None:
    names = list(steps())
    assert names[0] == "build"
    assert names.index("compile_kernels") < names.index("tests") < names.index("attn_bench")


def test_every_command_starts() -> None:
    done = gpu_run("--dry-run")
    assert done.returncode == 0, done.stdout + done.stderr
    summary = done.stdout.partition("== summary")[2]
    for name in steps():
        assert any(line.split()[0] == name and line.endswith(" ok") for line in summary.splitlines() if line), summary


def test_a_failed_step_is_noted_and_the_others_go_on(tmp_path: Path) -> None:
    """A python that fails where it is told to."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\ncase "$*" in *attn_bench*) exit 3;; esac\nexit 0\n')
    python.chmod(0o755)
    done = gpu_run("--dry-run", "--output-dir", str(tmp_path), "matcher_bench", "attn_bench", PYTHON=str(python))
    assert done.returncode == 1
    assert [line.split()[0] for line in done.stdout.splitlines() if "  failed with exit code 3" in line] == [
        "attn_bench"
    ]
    assert "matcher_bench" in done.stdout.partition("== summary")[2]
    assert "== summary" in (tmp_path / "log.txt").read_text()


def test_nothing_runs_after_a_failed_build(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\ncase "$*" in *" build "*) exit 1;; esac\nexit 0\n')
    python.chmod(0o755)
    done = gpu_run("--dry-run", "--output-dir", str(tmp_path), "tests", PYTHON=str(python))
    assert done.returncode == 1
    assert "\n== tests" not in done.stdout


def test_a_step_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\ncase "$*" in *matcher_bench*) sleep 20;; esac\nexit 0\n')
    python.chmod(0o755)
    done = gpu_run("--dry-run", "--limit", "1", "--output-dir", str(tmp_path), "matcher_bench", PYTHON=str(python))
    assert done.returncode == 1
    assert "timed out after 1 s" in done.stdout


@pytest.mark.parametrize("wrong", [["nosuch"], ["--nosuch"], ["--limit"]], ids=str)
def test_wrong_arguments(wrong: list[str]) -> None:
    done = gpu_run(*wrong)
    assert done.returncode == 2
    assert done.stderr


def test_folder_name() -> None:
    assert gpu_setup.folder_name("NVIDIA H100 80GB HBM3") == "nvidia_h100_80gb_hbm3"


def test_what_cannot_be_imported() -> None:
    assert list(gpu_setup.unimportable(("json", "no_such_package", "json.nothing"))) == [
        "no_such_package",
        "json.nothing",
    ]


def test_python_files_are_linked_and_native_ones_kept(tmp_path: Path) -> None:
    source, package = tmp_path / "source", tmp_path / "package"
    (source / "part").mkdir(parents=True)
    (source / "new.py").touch()
    (source / "_C.other.so").touch()
    (package / "part").mkdir(parents=True)
    (package / "_C.own.so").touch()
    (package / "gone.py").touch()
    for _ in range(2):
        gpu_setup.link_python(source, package)
        assert sorted(path.name for path in package.iterdir()) == ["_C.own.so", "new.py", "part"]
        assert (package / "part").resolve() == source / "part"


def test_only_other_sources_are_built_again() -> None:
    assert gpu_setup.sources_key("90") == gpu_setup.sources_key("90")
    assert gpu_setup.sources_key("90") != gpu_setup.sources_key("80")


def test_wheels_that_do_not_fit_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thing-1.0-cp27-cp27m-win32.whl").touch()
    gpu_setup.install_wheels(tmp_path, tmp_path / "into")
    gpu_setup.install_wheels(tmp_path / "nothing", tmp_path / "into")
    said = capsys.readouterr().out
    assert "thing-1.0-cp27-cp27m-win32.whl cannot be installed" in said
    assert "no wheels there" in said


def test_wheels_may_share_a_folder_and_have_pth_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("first", "second"):
        info = f"{name}-1.0.dist-info"
        files = {f"shared/{name}.py": "", f"{name}.pth": f"import sys; sys.{name} = 1\n", f"{info}/RECORD": ""}
        files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        files[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        with zipfile.ZipFile(tmp_path / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            for path, text in files.items():
                wheel.writestr(path, text)
    into = tmp_path / "into"
    assert gpu_setup.install_wheels(tmp_path, into) == 0
    program = "import sys, shared.first, shared.second; print(sys.first + sys.second)"
    environment = {**os.environ, "PYTHONPATH": str(into)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout == "2\n", done.stderr
    capsys.readouterr()
    assert gpu_setup.install_wheels(tmp_path, into) == 0
    assert "of the last time" in capsys.readouterr().out


@pytest.mark.parametrize("value", [0, 1, 16, 17, 1050, 4200, 2**31, 2**31 + 1, 0.125, True, None], ids=str)
def test_typical_values_are_stable_and_of_the_same_kind(value: object) -> None:
    typical = compile_kernels.typical(value)
    assert compile_kernels.typical(typical) == typical
    assert type(typical) is type(value)
    if type(value) is int:
        assert (typical == 1, typical % 16 == 0, typical >= 2**31) == (value == 1, value % 16 == 0, value >= 2**31)


@pytest.mark.parametrize("first", [0, 1, 8])
def test_a_stand_in_is_aligned_as_its_tensor(first: int) -> None:
    tensor = torch.empty(40, dtype=torch.bfloat16)[first:]
    stand_in = compile_kernels.filled_in((compile_kernels.typical(tensor), 16))[0]
    assert stand_in.dtype == tensor.dtype
    assert (stand_in.data_ptr() % 16 == 0) == (tensor.data_ptr() % 16 == 0)
