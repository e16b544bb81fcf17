"""How long steps wait for images, and that it is said once."""

import time
from collections.abc import Iterator

import pytest
import torch

from cond_detr.train import pace
from cond_detr.train.pace import Pace

CPU = torch.device("cpu")


def slowly(count: int, seconds: float) -> Iterator[int]:
    for i in range(count):
        time.sleep(seconds)
        yield i


def test_waiting_is_counted_and_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Without the first batch, for which processes have to start."""
    measured = Pace(5, 2)
    for _ in range(2):
        measured.begin_epoch()
        assert list(measured.waited_for(slowly(5, 0.02), CPU)) == list(range(5))
        measured.count_waiting()
        assert 0.08 <= measured.waiting < 0.5
        measured.report_waiting(3)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1
    assert said[0].startswith("waiting     for images ")
    assert said[0].endswith("with 3 loading processes (--workers)")


def test_little_waiting_is_not_worth_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    measured = Pace(3, 1)
    measured.begin_epoch()
    for _ in measured.waited_for(range(3), CPU):
        time.sleep(0.02)
    measured.count_waiting()
    measured.report_waiting(0)
    assert not capsys.readouterr().out


class Moment:
    """An event of a GPU that finishes a step .05 s after it was asked for it."""

    done = 0.0

    def __init__(self, at: float) -> None:
        self.at = at

    def elapsed_time(self, other: "Moment") -> float:
        return 1000 * (other.at - self.at)


def test_what_a_gpu_does_meanwhile_is_not_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host waits .03 s for each batch, while the GPU is busy with the last one."""
    busy_until = 0.0

    def mark(_: torch.device) -> Moment:
        return Moment(max(time.perf_counter(), busy_until))

    monkeypatch.setattr(pace, "_mark", mark)
    measured = Pace(5, 1)
    measured.begin_epoch()
    for _ in measured.waited_for(slowly(5, 0.03), CPU):
        busy_until = max(time.perf_counter(), busy_until) + 0.2
    measured.count_waiting()
    assert measured.waiting < 0.02
