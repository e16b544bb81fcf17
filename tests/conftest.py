"""Fixtures shared by all tests."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # before torch is imported: a process for each core, and no more threads than cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

if not torch.cuda.is_available():
    # before Triton is imported: kernels then run, slowly, on the CPU
    os.environ["TRITON_INTERPRET"] = "1"

from cond_detr.data import shapes


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device that an operator has an implementation for; CUDA is skipped where there is none."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small models are faster without a thread pool, and do not fight with the processes that a test starts."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """A folder of real data sets in COCO layout, named by COND_DETR_DATA."""
    folder = os.environ.get("COND_DETR_DATA")
    if not folder:
        pytest.skip("COND_DETR_DATA names no folder of data sets")
    return Path(folder)


def write_dataset(folder: Path, train: int = 24, val: int = 6) -> Path:
    """A data set folder with a few of the built-in shapes images."""
    (folder / "annotations").mkdir(parents=True)
    for split, count in (("train", train), ("val", val)):
        (folder / split).mkdir()
        annotations, load = shapes.make_split(split, count)
        for record in annotations.records:
            load(record.file_name, record.size).save(folder / split / record.file_name)
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(annotations.to_coco()))
    return folder


@pytest.fixture
def dataset_dir(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "data")
