"""The processes of a machine read annotations once, and map the same memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cond_detr.data.annotation_checks import check_annotations
from cond_detr.data.annotations import Annotations
from cond_detr.data.sharing import load, read_once, save
from tests.cond_detr.data.test_coco import content


def same(a: Annotations, b: Annotations) -> bool:
    return a.to_coco() == b.to_coco() and (a.name, a.classes, a.dropped, a.notes) == (
        b.name,
        b.classes,
        b.dropped,
        b.notes,
    )


@pytest.mark.parametrize("raw", [content(), content(annotations=[]), content(images=content()["images"][:1])], ids=len)
@pytest.mark.parametrize("number", [7, 2**80])
def test_what_is_loaded_is_what_was_saved(raw: dict[str, list[dict[str, object]]], number: int, tmp_path: Path) -> None:
    raw["images"][0]["id"] = number
    for annotation in raw["annotations"]:
        annotation["image_id"] = number
    annotations = check_annotations(raw, "raw")
    save(annotations, tmp_path)
    again = load(tmp_path)
    for path in tmp_path.iterdir():
        path.unlink()
    assert same(annotations, again)
    for mine, theirs in zip(annotations.records, again.records, strict=True):
        np.testing.assert_array_equal(mine.boxes, theirs.boxes)
        np.testing.assert_array_equal(mine.labels, theirs.labels)


def test_a_single_process_reads_for_itself() -> None:
    annotations = check_annotations(content(), "raw")
    assert read_once(lambda: annotations) is annotations


ON_EACH_PROCESS = """
import json, os, sys, tempfile
from pathlib import Path
import torch
from cond_detr import InputError, distributed
from cond_detr.config import DataConfig
from cond_detr.data import annotation_file, open_split

reads = []
original = annotation_file.mapped
annotation_file.mapped = lambda path, called: reads.append(path) or original(path, called)
with distributed.processes(torch.device("cpu")):
    try:
        data = open_split(DataConfig(dataset_dir=sys.argv[1], image_size=64, max_size=64), "train", 8)
        found = [float(data[0].boxes.sum()), len(data), len(data.annotations.objects)]
    except InputError as error:
        found = str(error)
    rows = distributed.gather_objects((found, len(reads)))
    if distributed.rank() == 0:
        left = [path.name for path in Path(tempfile.gettempdir()).iterdir()]
        print(json.dumps([rows, left]), flush=True)
"""


def on_two_processes(dataset_dir: Path, tmp_path: Path) -> tuple[list[tuple[object, int]], list[str]]:
    """What each process has found and how many files it has read, and what is left of temporary files."""
    (tmp_path / "each.py").write_text(ON_EACH_PROCESS)
    (tmp_path / "temporary").mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path / "temporary")}
    command += [str(tmp_path / "each.py"), str(dataset_dir)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    rows, left = json.loads(done.stdout.splitlines()[-1])
    return rows, [name for name in left if name.startswith("cond_detr-")]


def test_one_process_reads_for_two(dataset_dir: Path, tmp_path: Path) -> None:
    ((first, first_reads), (second, second_reads)), left = on_two_processes(dataset_dir, tmp_path)
    assert first == second
    assert isinstance(first, list)
    assert first[1] == 24
    assert (first_reads, second_reads) == (1, 0)
    assert not left


def test_both_say_what_is_wrong(dataset_dir: Path, tmp_path: Path) -> None:
    file = dataset_dir / "annotations/instances_train.json"
    file.write_text(file.read_text().replace('"file_name"', '"name"'))
    ((first, _), (second, _)), left = on_two_processes(dataset_dir, tmp_path)
    assert first == second
    assert isinstance(first, str)
    assert "must have text as 'file_name'" in first
    assert not left
