"""The kernels without what only the detector needs."""

import re
import subprocess
import sys
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
NEEDED = {"torch", "numpy"}
IMPORTED_AS = {"pillow": "PIL"}
PROGRAM = """
import sys

sys.modules.update(dict.fromkeys({missing}))
import torch
from cond_detr_kernels import HungarianMatcher, conditional_attention, linear_sum_assignment, match

heads = torch.randn(5, 1, 2, 3, 8)
assert conditional_attention(*heads).shape == (1, 2, 3, 8)
assert linear_sum_assignment(torch.eye(3))[1].shape == (3,)
boxes = torch.rand(1, 5, 4) * 0.2 + 0.4
targets = [{{"labels": torch.zeros(2, dtype=torch.int64), "boxes": boxes[0, :2]}}]
assert len(HungarianMatcher()({{"pred_logits": torch.randn(1, 5, 3), "pred_boxes": boxes}}, targets)) == 1
assert not [name for name in sys.modules if name.split(".")[0] == "cond_detr"]
"""


def test_only_torch_and_numpy_are_needed() -> None:
    """``pip install --no-deps`` is enough for who wants nothing else."""
    listed = re.search(r"^dependencies = \[(.*?)\]", PYPROJECT.read_text(), re.DOTALL | re.MULTILINE)
    assert listed
    names = set(re.findall(r'"([a-z_-]+)', listed[1]))
    assert names >= NEEDED
    # torch itself imports this one
    missing = [IMPORTED_AS.get(name, name) for name in sorted(names - NEEDED - {"typing-extensions"})]
    assert {"matplotlib", "pycocotools", "hotcoco", "PIL", "scipy"} <= set(missing)
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(missing=missing)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
