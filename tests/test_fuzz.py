"""Some seconds of fuzzing pass, and what an opener may do wrong is noticed."""

import os
import signal
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from cond_detr.errors import InputError
from tests import fuzz
from tests.fuzzing.byte_changes import ANY_FILE
from tests.fuzzing.cases import Case, Judge, make_case
from tests.fuzzing.child import Child, Opener
from tests.fuzzing.specimens import KINDS, Specimen, make, missing, specimen


def test_ten_seconds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz.main(["--seconds", "10", "--keep", str(tmp_path / "kept")]) == 0
    assert not (tmp_path / "kept").exists()
    printed = capsys.readouterr().out
    assert all(kind in printed for kind in KINDS)


def test_a_case_is_the_same_again(tmp_path: Path) -> None:
    kinds = tuple(kind for kind in KINDS if not missing(kind))
    first, second = (make(tmp_path / name, kinds) for name in ("a", "b"))
    for number in range(60):
        if "metadata" in first or fuzz.kind_of(number) != "metadata":
            one, other = (make_case(each, 7, number) for each in (first, second))
            assert (one.data, one.changes) == (other.data, other.changes)


def good(path: Path) -> list[str]:
    return [f"{path} is good"]


def refusing(path: Path) -> list[str]:
    raise InputError(f"{path} is bad")


def raising(path: Path) -> list[str]:
    raise KeyError("names")


def leaving(path: Path) -> list[str]:
    raise SystemExit(2)


def naming_nothing(path: Path) -> list[str]:
    raise InputError("it is damaged")


def speaking_in_lines(path: Path) -> list[str]:
    raise InputError(f"{path}\nis damaged")


def warning(path: Path) -> list[str]:
    warnings.warn("odd", stacklevel=1)
    return []


def crashing(path: Path) -> list[str]:
    os.kill(os.getpid(), signal.SIGSEGV)
    return []


def sleeping(path: Path) -> list[str]:
    time.sleep(60)
    return []


def slow(path: Path) -> list[str]:
    time.sleep(1.1)
    return []


def growing(path: Path) -> list[str]:
    return [str(len(b"x" * (110 << 20)))]


def changing_another(path: Path) -> list[str]:
    path.with_name("other").write_text("changed")
    return []


def changing_it(path: Path) -> list[str]:
    path.write_text("changed")
    return []


def making(path: Path) -> list[str]:
    path.with_name("new").write_text("")
    return []


def leaving_behind(path: Path) -> list[str]:
    tempfile.mkstemp()
    return []


def removing(path: Path) -> list[str]:
    path.with_name("other").unlink()
    return []


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Specimen:
    folder = tmp_path_factory.mktemp("files")
    (folder / "files").mkdir()
    (folder / "files" / "other").write_text("kept")
    return specimen("config", folder / "files", "a.json", b"{}", good, ANY_FILE)


@pytest.fixture(scope="module")
def judge(valid: Specimen) -> Iterator[Judge]:
    judge = Judge(Child(valid.folder, valid.folder.parent / "tmp", patience=5), 1.0)
    judge.open(Case(0, valid, b"{}", ()))  # only a child that has started is impatient
    yield judge
    judge.child.close()


@pytest.mark.parametrize(
    ("opener", "wrong"),
    [
        (good, ""),
        (refusing, ""),
        (raising, "KeyError: 'names'"),
        (leaving, "SystemExit: 2"),
        (naming_nothing, "does not name the file"),
        (speaking_in_lines, "is no sentence"),
        (warning, "a warning is shown"),
        (slow, "took 1.1 s"),
        (growing, " MB of memory"),
        (changing_another, "changed, made or removed files/other"),
        (changing_it, "changed, made or removed files/a.json"),
        (making, "changed, made or removed files/new"),
        (leaving_behind, "tmp/tmp"),
        (removing, "changed, made or removed files/other"),
        (sleeping, "took more than 5 s"),
        (crashing, "ended with signal 11"),
    ],
)
def test_broken_openers_are_noticed(
    opener: Opener, wrong: str, valid: Specimen, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a tenth of what is allowed, as a busy machine takes its time for a gigabyte
    monkeypatch.setattr("tests.fuzzing.cases.MOST_GROWTH", 100 << 20)
    _, found = judge.open(Case(0, valid._replace(opener=opener), b"{1}", ()))
    assert bool(found) == bool(wrong)
    assert wrong in found
    assert valid.path.read_bytes() == b"{}"
    assert valid.path.with_name("other").read_text() == "kept"
    assert sorted(path.name for path in valid.folder.iterdir()) == ["a.json", "other"]


def test_a_failure_ends_in_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(folder: Path, kinds: tuple[str, ...]) -> dict[str, list[Specimen]]:
        return {"config": [specimen("config", folder, "a.json", b"{}", opens_valid_only)]}

    monkeypatch.setattr(fuzz, "make", broken)
    monkeypatch.setattr(fuzz, "KINDS", ("config",))
    arguments = ["--seed", "3", "--only", "config", "--cases", "3", "--seconds", "60", "--keep", str(tmp_path / "kept")]
    assert fuzz.main(arguments) == 1
    printed = capsys.readouterr().out
    kept = sorted((tmp_path / "kept").iterdir())
    assert kept
    for path in kept:
        assert f"saved as {path}" in printed
        assert f"FAILED --seed 3 --case {path.name.split('-')[2]}: a.json: " in printed


def opens_valid_only(path: Path) -> list[str]:
    if path.read_bytes() != b"{}":
        raise KeyError("names")
    return []
