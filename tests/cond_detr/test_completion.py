"""Completion in the shell."""

import shutil
import subprocess
from pathlib import Path

import pytest

from cond_detr import InputError
from cond_detr.cli import COMMANDS
from cond_detr.completion import SHELLS, options_of, script

ASK = """
source {file}
COMP_WORDS=({words})
COMP_CWORD={number}
_cond_detr
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def completed(tmp_path: Path, *words: str) -> list[str]:
    """What bash offers for the last of some words."""
    (tmp_path / "script").write_text(script("bash"))
    quoted = " ".join(f"'{word}'" for word in ("cond-detr", *words))
    program = ASK.format(file=tmp_path / "script", words=quoted, number=len(words))
    return subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True).stdout.split()


def test_in_bash(tmp_path: Path) -> None:
    assert set(completed(tmp_path, "")) >= set(COMMANDS)
    assert completed(tmp_path, "con") == ["convert-data", "convert"]
    assert completed(tmp_path, "train", "--fused") == ["--fused-attn"]
    assert completed(tmp_path, "train", "--preset", "dc5-r") == ["dc5-r50", "dc5-r101"]
    assert "--threshold" in completed(tmp_path, "predict", "--")
    assert completed(tmp_path, "predict", "pho") == []  # a file, which bash completes


@pytest.mark.parametrize("shell", SHELLS)
def test_shells_read_it(shell: str, tmp_path: Path) -> None:
    text = script(shell)
    for name in COMMANDS:
        assert all(option.removeprefix("--") in text for option in options_of(name))
    if shutil.which(shell):
        (tmp_path / "script").write_text(text)
        subprocess.run([shell, "-n", str(tmp_path / "script")], check=True)


def test_another_shell() -> None:
    with pytest.raises(InputError, match="--completion must be bash, zsh or fish, got 'csh'"):
        script("csh")
