"""What tests of several commands share: how they are run, and a run that others look at."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cond_detr import cli
from cond_detr.train import __main__ as train
from tests.conftest import write_dataset

SMALL = ["--preset", "shapes", "--num-queries", "20", "--decoder-layers", "1", "--encoder-layers", "1"]
SMALL += ["--batch-size", "4", "--workers", "0", "--device", "cpu"]


def exit_code(command: Callable[[Any], int], *arguments: object) -> int:
    """Runs a command in this process."""
    with pytest.raises(SystemExit) as stop:
        cli.run(command, [str(each) for each in arguments])
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set, and a run of one epoch, which has learnt nothing."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("finished")
    write_dataset(root / "data", train=8, val=3)
    options = [*SMALL, "--dataset-dir", root / "data", "--epochs", 1, "--output-dir", root / "run"]
    assert exit_code(train.main, *options) == 0
    return root
