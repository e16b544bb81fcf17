"""What benchmarks/gpu_run.sh does before its first step: looks at the machine, installs wheels, builds the extension.

    python3 benchmarks/gpu_setup.py describe            compute capability and a folder's name for the GPU
    python3 benchmarks/gpu_setup.py missing             what cannot be imported
    python3 benchmarks/gpu_setup.py wheels DIR --into FOLDER
    python3 benchmarks/gpu_setup.py build --into FOLDER [--arch 90] [--dry-run]

The folders are kept from call to call, and what is in them already is not made again.
"""

import argparse
import hashlib
import importlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# without these there is neither a build nor a test
NEEDED = (
    *("torch", "triton", "setuptools", "pip", "pybind11", "numpy", "scipy", "pytest", "PIL", "tqdm", "safetensors"),
    *("pycocotools", "hotcoco", "msgspec"),
)
# without one of these, some tests, rows or pictures are absent, or the run is slower
USEFUL = (
    *("ninja", "hypothesis", "xdist", "transformers", "torchvision", "matplotlib"),
    *("lap", "torch_linear_assignment", "flash_attn.cute"),
)
PACKAGES = {"cond_detr": "cond_detr", "cond_detr_kernels": "kernels"}


def describe() -> None:
    """Prints the compute capability and a folder's name for the GPU."""
    import torch

    if not torch.cuda.is_available():
        sys.exit("torch finds no CUDA device")
    major, minor = torch.cuda.get_device_capability()
    print(f"{major}{minor}", folder_name(torch.cuda.get_device_name()))


def folder_name(device: str) -> str:
    """Such as nvidia_h100_80gb_hbm3."""
    return re.sub(r"[^a-z0-9]+", "_", device.lower()).strip("_")


def unimportable(names: tuple[str, ...]) -> Iterator[str]:
    """Those that cannot be imported, with the reason unless they are just not there."""
    for name in names:
        try:
            importlib.import_module(name)
        # a package that is there and broken is as good as none
        except BaseException as problem:
            absent = isinstance(problem, ModuleNotFoundError) and problem.name in (name, name.partition(".")[0])
            yield name if absent else f"{name} ({type(problem).__name__}: {problem})"


def missing() -> None:
    """Prints what cannot be imported."""
    for kind, names in (("needed", NEEDED), ("useful", USEFUL)):
        print(f"{kind}, but cannot be imported: {', '.join(unimportable(names)) or 'nothing'}")


def pip(*options: str) -> list[str]:
    """A call of pip that leaves the network alone."""
    return [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", *options]


def install_wheels(folder: Path, into: Path) -> int:
    """Installs those of the wheels that fit this machine, unless they are there.

    All in one call, for packages may share a folder, and pip replaces folders. PYTHONPATH leads to them, where Python
    does not read the .pth files that some packages need, unless it is told to.
    """
    wheels = sorted(folder.glob("*.whl")) if folder.is_dir() else []
    if not wheels:
        print(f"{folder}: no wheels there")
        return 0
    stamp, names = into / "wheels.txt", "".join(f"{wheel.name} {wheel.stat().st_size}\n" for wheel in wheels)
    if stamp.exists() and stamp.read_text() == names:
        print("the wheels of the last time are installed")
        return 0
    options = ("--no-deps", "--find-links", str(folder))
    fitting = []
    for wheel in wheels:
        tried = subprocess.run(pip(*options, "--dry-run", str(wheel)), capture_output=True, text=True)
        if tried.returncode:
            print(f"{wheel.name} cannot be installed: {tried.stderr.strip().splitlines()[-1]}")
        else:
            fitting.append(str(wheel))
    shutil.rmtree(into, ignore_errors=True)
    if fitting:
        done = subprocess.run(pip(*options, "--target", str(into), *fitting))
        if done.returncode:
            return done.returncode
    into.mkdir(parents=True, exist_ok=True)
    (into / "sitecustomize.py").write_text("import os\nimport site\n\nsite.addsitedir(os.path.dirname(__file__))\n")
    stamp.write_text(names)
    print(f"installed {len(fitting)} wheels")
    return 0


def sources_key(arch: str) -> str:
    """Of everything that the extension module depends on."""
    import torch

    sources = [path for path in sorted((ROOT / "csrc").rglob("*")) if path.is_file()]
    digest = hashlib.sha256()
    for path in [*sources, ROOT / "setup.py", ROOT / "pyproject.toml"]:
        digest.update(f"{path.relative_to(ROOT)} {path.stat().st_size}\n".encode() + path.read_bytes())
    digest.update(f"{torch.__version__} {torch.version.cuda} {sys.version} {arch} {cuda_compiler()}".encode())
    return digest.hexdigest()


def cuda_compiler() -> str:
    """What nvcc says of its version."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc", path=str(Path(home, "bin")) if home else None)
    if nvcc is None:
        return "none"
    return subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout


def build(into: Path, arch: str, dry_run: bool) -> int:
    """Builds the package into a folder, unless what is there is of the same sources; Python files are linked."""
    if dry_run:
        return subprocess.run(build_command(["--dry-run"]), cwd=ROOT).returncode
    key, stamp = sources_key(arch), into / "key.txt"
    if stamp.exists() and stamp.read_text() == key:
        print("the extension module of the last time is of the same sources")
    else:
        fresh = into.with_name(f"{into.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        started = time.perf_counter()
        done = subprocess.run(build_command(["--target", str(fresh)]), cwd=ROOT, env=build_environment(into, arch))
        if done.returncode:
            return done.returncode
        print(f"built in {time.perf_counter() - started:.0f} s")
        (fresh / "key.txt").write_text(key)
        shutil.rmtree(into, ignore_errors=True)
        fresh.rename(into)
    for package, source in PACKAGES.items():
        link_python(ROOT / source, into / package)
    return 0


def build_command(options: list[str]) -> list[str]:
    """The call that builds the package with what is installed here."""
    return pip("--no-build-isolation", "--no-deps", *options, str(ROOT))


def build_environment(into: Path, arch: str) -> dict[str, str]:
    """For one architecture; objects are kept beside the folder, away from those of other builds."""
    objects = into.with_name("objects")
    shutil.rmtree(objects, ignore_errors=True)
    objects.mkdir(parents=True)
    config = objects / "build.cfg"
    config.write_text(f"[build]\nbuild_base = {objects}\n")
    own = {"DIST_EXTRA_CONFIG": str(config)}
    if arch:
        own |= {"COND_DETR_CUDA": "1", "COND_DETR_CUDA_ARCHS": arch}
    return {**os.environ, **own}


def link_python(source: Path, package: Path) -> None:
    """Replaces all of an installed package but its native modules by links to the sources, which may change."""
    for path in package.iterdir():
        if path.is_symlink() or path.is_file():
            if path.is_symlink() or path.suffix != ".so":
                path.unlink()
        else:
            shutil.rmtree(path)
    for path in source.iterdir():
        if path.suffix != ".so" and path.name != "__pycache__":
            (package / path.name).symlink_to(path)


def main() -> int:
    """Does what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("describe")
    commands.add_parser("missing")
    for name in ("wheels", "build"):
        command = commands.add_parser(name)
        command.add_argument("--into", type=Path, required=True, metavar="FOLDER")
        if name == "wheels":
            command.add_argument("folder", type=Path, metavar="DIR")
        else:
            command.add_argument("--arch", default="", help="compute capability, such as 90 (default: setup.py's)")
            command.add_argument("--dry-run", action="store_true", help="only see that the build would start")
    options = parser.parse_args()
    if options.command == "describe":
        describe()
    elif options.command == "missing":
        missing()
    elif options.command == "wheels":
        return install_wheels(options.folder.resolve(), options.into.resolve())
    else:
        return build(options.into.resolve(), options.arch, options.dry_run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
