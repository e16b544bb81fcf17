"""The shape of the code: who may import whom, and how long things may be."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("cond_detr", "kernels")


def modules(package: str) -> Iterator[Path]:
    return (path for path in sorted((ROOT / package).rglob("*.py")))


def length(node: ast.AST) -> int:
    return node.end_lineno - node.lineno + 1  # type: ignore[attr-defined, no-any-return]


def is_jitted(node: ast.FunctionDef) -> bool:
    return any("jit" in ast.unparse(decorator) for decorator in node.decorator_list)


def body_length(node: ast.FunctionDef) -> int:
    """Lines of a function without those of its docstring, which may explain as much as it wants."""
    first = node.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return length(node) - (length(first) if documented else 0)


@pytest.mark.parametrize("package", PACKAGES)
def test_things_fit_on_a_screen(package: str) -> None:
    too_long = []
    for path in modules(package):
        text = path.read_text()
        name = path.relative_to(ROOT)
        if package == "cond_detr" and len(text.splitlines()) > 350:
            too_long.append(f"{name}: {len(text.splitlines())} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef) and length(node) > 250:
                too_long.append(f"{name}: class {node.name} has {length(node)} lines")
            if not isinstance(node, ast.FunctionDef):
                continue
            if is_jitted(node):
                count = len(node.args.args) + len(node.args.kwonlyargs)
                if count > 25:
                    too_long.append(f"{name}: {node.name} has {count} parameters")
            elif body_length(node) > 50:
                too_long.append(f"{name}: {node.name} has {body_length(node)} lines")
    assert not too_long, "\n".join(too_long)


def test_whether_a_file_is_there_is_asked_in_one_place() -> None:
    """Path's methods raise an error for a name that no file can have, which a list or an annotation may say."""
    asked = []
    for path in modules("cond_detr"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in {"exists", "is_file", "is_dir", "isfile", "isdir"}:
                asked.append(f"{path.relative_to(ROOT)} line {node.lineno}: {ast.unparse(node)}")
    assert all(each.startswith("cond_detr/paths.py") for each in asked), "\n".join(asked)


def tracked_files() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name]


def test_nothing_large_and_nothing_foreign_is_kept() -> None:
    """What is committed once is in every clone for ever."""
    paths = [path for path in tracked_files() if path.is_file()]
    foreign = [path.name for path in paths if path.suffix in {".whl", ".so", ".pyc", ".zip", ".gz", ".mp4"}]
    assert not foreign
    assert [path.name for path in paths if path.stat().st_size > 4 << 20] == []


def lint_imports(config: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    program = "import sys; from importlinter.cli import lint_imports_command as run; run()"
    environment = {"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        [sys.executable, "-c", program, "--config", str(config), "--no-cache"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of the two packages, as they are installed."""
    for package, name in (("cond_detr", "cond_detr"), ("kernels", "cond_detr_kernels")):
        for path in modules(package):
            copy = tmp_path / name / path.relative_to(ROOT / package)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    return tmp_path


def test_imports_keep_to_the_floors(house: Path) -> None:
    result = lint_imports(house / "pyproject.toml", house)
    assert result.returncode == 0, result.stdout + result.stderr


def test_an_import_from_models_to_train_is_noticed(house: Path) -> None:
    with (house / "cond_detr/models/mlp.py").open("a") as file:
        file.write("\nimport cond_detr.train.step\n")
    result = lint_imports(house / "pyproject.toml", house)
    assert result.returncode == 1
    assert "cond_detr.models.mlp -> cond_detr.train.step" in result.stdout


def test_a_module_without_a_floor_is_noticed(house: Path) -> None:
    (house / "cond_detr/helpers.py").write_text('"""Whatever."""\n')
    result = lint_imports(house / "pyproject.toml", house)
    assert result.returncode == 1
    assert "helpers" in result.stdout
