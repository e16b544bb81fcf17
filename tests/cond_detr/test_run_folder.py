"""Where a new run may be."""

import json
from pathlib import Path

import pytest

from cond_detr.errors import InputError
from cond_detr.presets import preset
from cond_detr.train.run_folder import FIRST, LATER, RunFolder


@pytest.mark.parametrize("name", FIRST + LATER)
def test_nothing_of_others_is_replaced(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text('{"architectures": ["a model of another package"]}')
    with pytest.raises(InputError, match=rf"`output_dir` .* has a {name}, which would be replaced; choose another"):
        RunFolder.plan(tmp_path, "shapes")
    folder = RunFolder(tmp_path)
    with pytest.raises(InputError, match="choose another folder"), folder.locked(new=True):
        pytest.fail("it must not begin")
    assert "another package" in path.read_text()
    assert sorted(each.name for each in tmp_path.iterdir()) == [name]


@pytest.mark.parametrize("name", ["best.pt", "README.md"])
def test_results_of_a_run_without_its_state_are_not_replaced(tmp_path: Path, name: str) -> None:
    RunFolder(tmp_path).write_config(preset("shapes"))
    (tmp_path / name).touch()
    with pytest.raises(InputError, match=f"has a {name}, which would be replaced"):
        RunFolder.plan(tmp_path, "shapes")


def test_a_link_to_nowhere_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "metrics.png").symlink_to(tmp_path / "pictures/metrics.png")
    with pytest.raises(InputError, match=r"has a metrics\.png"):
        RunFolder.plan(tmp_path, "shapes")


def test_a_run_killed_before_its_first_checkpoint_may_begin_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_config(preset("shapes"))
    folder.write_log([])
    (tmp_path / "notes.txt").write_text("other files may lie beside it")
    assert RunFolder.plan(tmp_path, "shapes") == folder
    folder.write_log([{"epoch": 1}])
    with pytest.raises(InputError, match=r"has a config\.json"):
        RunFolder.plan(tmp_path, "shapes")
    folder.write_log([])
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["of another version"] = True
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match=r"has a config\.json"):
        RunFolder.plan(tmp_path, "shapes")


def test_settings_written_by_something_else_are_not_replaced(tmp_path: Path) -> None:
    """With all there are: somebody's, perhaps the ones that ``--config`` names."""
    RunFolder(tmp_path).write_config(preset("shapes"))
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match=r"has a config\.json"):
        RunFolder.plan(tmp_path, "shapes")


def test_settings_by_hand_are_not_replaced(tmp_path: Path) -> None:
    """``--config`` may name them."""
    (tmp_path / "config.json").write_text('{"train": {"epochs": 1}}')
    with pytest.raises(InputError, match=r"has a config\.json"):
        RunFolder.plan(tmp_path, "shapes")
