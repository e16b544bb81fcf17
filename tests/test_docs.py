"""What the documentation says can be done, is done here: Python runs, commands parse, links lead somewhere."""

import argparse
import importlib
import json
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from nbclient import NotebookClient

from cond_detr import ConditionalDETR, cli
from cond_detr.weights.checkpoint import Checkpoint
from cond_detr_kernels.transformers import restore
from tests.conftest import write_dataset

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = ROOT / "examples"
SHELL = {"$W": "resnet50.pth"}
# as written, but sooner done
SHORTER = {"epochs=80": "epochs=1"}


def named(paths: list[Path]) -> list[object]:
    return [pytest.param(path, id=path.name) for path in paths]


def commands(text: str) -> list[list[str]]:
    """The commands in indented blocks, and in the examples below a command's options, as a shell splits them."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    found = []
    for line in lines:
        if re.match(r" {2,}(python|cond-detr|torchrun) ", line):
            for variable, value in SHELL.items():
                line = line.replace(variable, value)
            found.append(shlex.split(line, comments=True))
    return found


def parser_of(package: str) -> argparse.ArgumentParser:
    """What the command of a package understands."""
    parser: argparse.ArgumentParser = importlib.import_module(f"cond_detr.{package}.__main__").parser()
    return parser


def options(package: str) -> list[str]:
    return [option for action in parser_of(package)._actions for option in action.option_strings]


def check(command: list[str]) -> None:
    """Raises if our part of a command line would not be understood."""
    if command[0] == "cond-detr":
        package, arguments = cli.PACKAGES.get(command[1], command[1]), command[2:]
        assert command[1] in cli.COMMANDS or command[1] in {"NAME", "COMMAND"}
    elif "-m" in command and command[command.index("-m") + 1].startswith("cond_detr."):
        position = command.index("-m") + 1
        package, arguments = command[position].removeprefix("cond_detr."), command[position + 1 :]
    else:
        script = next((part for part in command if part.endswith(".py")), None)
        assert script is None or (ROOT / script).exists(), command
        return
    parser_of(package).parse_args(arguments)


@pytest.mark.parametrize("page", named(PAGES))
def test_commands_parse(page: Path) -> None:
    for command in commands(page.read_text()):
        check(command)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_shows_commands_that_parse(command: str) -> None:
    parser = parser_of(cli.PACKAGES.get(command, command))
    examples = commands(parser.format_help())
    assert examples
    for example in examples:
        assert example[1] == command
        check(example)
    undescribed = [action.dest for action in parser._actions if not action.help]
    assert undescribed == []


# Options whose use is not plain from their description, by the command whose help must show them in an example
SHOWN = {
    "train": "--val-fraction --colour --zoom --mosaic --patience --weights --amp --wandb --tensorboard --csv --mlflow "
    "--query-groups --queries --denoising --classification --freeze --checkpointing --config --resume -q",
    "predict": "--tile --tile-overlap --classes --annotations --batch-size --threshold --no-labels",
    "export": "--half --format",
    "convert-data": "--val-fraction",
    "replay": "--steps",
}


@pytest.mark.parametrize("command", SHOWN)
def test_help_has_examples_of_options(command: str) -> None:
    examples = commands(parser_of(cli.PACKAGES.get(command, command)).format_help())
    assert set(SHOWN[command].split()) - {word for example in examples for word in example} == set()


def test_options_exist() -> None:
    """Those that the text mentions are of some command, script or the script of the GPU machine."""
    known = {o for c in cli.COMMANDS for o in options(cli.PACKAGES.get(c, c))}
    files = [path for folder in (ROOT / "benchmarks", EXAMPLES) for path in folder.iterdir()]
    scripts = "".join(path.read_text() for path in files if path.suffix in {".py", ".sh"})
    theirs = {"--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint", "--max-restarts"}  # torchrun
    theirs |= {"--no-build-isolation", "--no-deps", "--check", "--dry-run", "--Werror"}  # pip, ruff, clang-format
    theirs |= {"--onnx", "--saveEngine", "--minShapes", "--optShapes", "--maxShapes"}  # TensorRT's trtexec
    for page in PAGES:
        for option in re.findall(r"(?<![-\w])--[a-z][-a-zA-Z]+", page.read_text()):
            assert option in known | theirs or f'"{option}"' in scripts or f"{option})" in scripts, (page.name, option)


@pytest.mark.parametrize("page", named([*PAGES, ROOT / "CHANGELOG.md"]))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a data set, a picture and a run, named as in the pages."""
    write_dataset(tmp_path / "DIR", train=16, val=2)
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    shutil.copy(EXAMPLES / "shapes.jpg", tmp_path / "photo.jpg")
    model = ConditionalDETR.from_preset("shapes", 6)
    (tmp_path / "runs/shapes").mkdir(parents=True)
    Checkpoint(tmp_path / "runs/shapes/best.pt", model.config, model.classes, model.network.state_dict()).save()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def kernel_arguments() -> dict[str, object]:
    """What the README's lines about the kernels leave to the reader."""
    heads = {name: torch.randn(2, 4, 5, 8) for name in ("q_content", "q_spatial")}
    heads |= {name: torch.randn(2, 4, 7, 8) for name in ("k_content", "k_spatial", "value")}
    targets = {"target_labels": torch.zeros(2, 3, dtype=torch.int64), "target_boxes": torch.rand(2, 3, 4)}
    return {
        **heads,
        "padding": torch.zeros(2, 7, dtype=torch.bool),
        "cost": torch.rand(2, 3, 4),
        "logits": torch.randn(6, 2, 10, 3),
        "boxes": torch.rand(6, 2, 10, 4),
        **targets,
        "target_count": torch.tensor([3, 0]),
    }


@pytest.mark.usefixtures("one_thread", "workplace")
@pytest.mark.parametrize("page", named([page for page in PAGES if "```python" in page.read_text()]))
def test_python_runs(page: Path) -> None:
    """All blocks of a page, one after the other."""
    known = kernel_arguments() if page.name == "README.md" else {}
    try:
        for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
            for written, shorter in SHORTER.items():
                block = block.replace(written, shorter)
            exec(compile(block, str(page), "exec"), known)
    finally:
        restore()


def run_example(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


@pytest.mark.usefixtures("one_thread")
def test_train_and_predict(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_example(monkeypatch, "train_and_predict.py", "DIR", "photo.jpg", "--preset", "shapes", "--epochs", "1")
    assert all((workplace / name).exists() for name in ("runs/shapes-2/best.pt", "detections.png", "model.onnx"))


@pytest.mark.usefixtures("one_thread")
def test_own_loop(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run_example(monkeypatch, "own_loop.py", "--steps", "60")
    losses = [float(value) for value in re.findall(r"loss ([\d.]+)", capsys.readouterr().out)]
    assert len(losses) == 3
    assert losses[-1] < losses[0]


def tiny_detector(folder: Path) -> None:
    """A Conditional DETR of the transformers package with random weights, as its hub has them."""
    from transformers import (
        ConditionalDetrConfig,
        ConditionalDetrForObjectDetection,
        ConditionalDetrImageProcessorPil,
        ResNetConfig,
    )

    backbone: Any = {"embedding_size": 16, "depths": [1] * 4, "hidden_sizes": [16, 32, 48, 64]}
    settings: Any = {
        "backbone_config": ResNetConfig(**backbone, out_features=["stage4"]),
        "backbone": None,
        "use_timm_backbone": False,
        "use_pretrained_backbone": False,
        "d_model": 64,
        "encoder_layers": 1,
        "decoder_layers": 3,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "num_queries": 20,
        "auxiliary_loss": True,
        "dropout": 0.0,
    }
    ConditionalDetrForObjectDetection(ConditionalDetrConfig(**settings)).save_pretrained(folder)
    ConditionalDetrImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)


@pytest.mark.usefixtures("one_thread", "workplace")
def test_transformers_trainer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The same loss in each of 50 steps, with and without our losses and attention."""
    tiny_detector(Path("detector"))
    curves = []
    for name, more in (("with", []), ("without", ["--plain"])):
        arguments = ["--dataset-dir", "DIR", "--model", "detector", "--steps", "50", "--output-dir", name, *more]
        try:
            run_example(monkeypatch, "transformers_trainer.py", *arguments)
        finally:
            restored = restore()
        assert bool(restored) == (name == "with")
        history = json.loads(Path(name, "checkpoint-50/trainer_state.json").read_text())["log_history"]
        curves.append([record["loss"] for record in history if "loss" in record])
    assert "replaced: " in capsys.readouterr().out
    assert len(curves[0]) == 50
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


@pytest.mark.usefixtures("workplace")
def test_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a kernel, with a small data set and for one epoch; outputs are as kept in the file, but for their values."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)
    nbformat.validate(notebook)
    kept = [kinds(cell) for cell in notebook.cells]
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    for written, shorter in {"DATA = None": 'DATA = "DIR"', "EPOCHS = 15": "EPOCHS = 1"}.items():
        assert written in first.source
        first.source = first.source.replace(written, shorter)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    assert [kinds(cell) for cell in notebook.cells] == kept
    assert Path("runs/notebook/best.onnx").exists()


def kinds(cell: Any) -> set[str]:
    """What a cell of a notebook shows: what it prints, and its last line, which is text or a picture as well."""
    shown = {kind for output in cell.get("outputs", []) for kind in output.get("data", ["printed"])}
    return {kind.partition("/")[0] for kind in shown}


def test_every_example_is_run() -> None:
    tested = Path(__file__).read_text()
    examples = [path for path in EXAMPLES.iterdir() if path.suffix in {".py", ".ipynb"}]
    assert len(examples) >= 4
    assert all(f'"{path.name}"' in tested for path in examples)
