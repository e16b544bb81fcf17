"""Whatever stops a command, no file is half written, and the last good state is still there."""

import contextlib
import errno
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

from cond_detr import ConditionalDETR, InputError, files
from cond_detr.attention_maps import __main__ as attention
from cond_detr.check_data import __main__ as check_data
from cond_detr.convert import __main__ as convert
from cond_detr.data import open_split
from cond_detr.data.loading import checked, eval_loader
from cond_detr.evaluate import __main__ as evaluate
from cond_detr.export import __main__ as export
from cond_detr.pack import __main__ as pack
from cond_detr.predict import __main__ as predict
from cond_detr.report import __main__ as report
from cond_detr.train import __main__ as train
from cond_detr.weights.checkpoint import Checkpoint
from tests.cond_detr.conftest import SMALL, exit_code
from tests.conftest import write_dataset

pytestmark = pytest.mark.usefixtures("one_thread")


def everything(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# Every command that writes, with {run}, {data} and {out}
ON_CPU = ["--device", "cpu"]
WRITING = {
    "train": (train.main, [*SMALL, "--dataset-dir", "{data}", "--epochs", "1", "--output-dir", "{out}/new"]),
    "train --resume": (train.main, ["--resume", "--epochs", "2", "--output-dir", "{run}", "--workers", "0", *ON_CPU]),
    "evaluate": (evaluate.main, ["--checkpoint", "{run}/best.pt", "--output-dir", "{out}", *ON_CPU]),
    "predict": (predict.main, ["--checkpoint", "{run}/best.pt", "--output-dir", "{out}", *ON_CPU, "{data}/val"]),
    "export onnx": (export.main, ["--checkpoint", "{run}/best.pt", "{out}/x.onnx", *ON_CPU]),
    "export torch": (export.main, ["--checkpoint", "{run}/best.pt", "{out}/x.pt2", *ON_CPU]),
    "convert to .pt": (convert.main, ["{run}/best.pt", "{out}/x.pt"]),
    "convert to .safetensors": (convert.main, ["{run}/best.pt", "{out}/x.safetensors"]),
    "convert to original": (convert.main, ["{run}/best.pt", "{out}/x.pth", "--to", "original"]),
    "convert a backbone": (convert.main, ["{run}/best.pt", "{out}/x.pth", "--to", "torchvision"]),
    "report": (report.main, ["{run}", "--output", "{out}/page.html", "--device", "cpu", "--workers", "0"]),
    "check-data": (check_data.main, ["{data}", "--output-dir", "{out}"]),
    "pack": (pack.main, ["{data}", "{out}/packed"]),
    "attention": (attention.main, ["--checkpoint", "{run}/best.pt", "--output-dir", "{out}", *ON_CPU]),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITING)
def test_s5_a_full_disk(
    name: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    shutil.copytree(finished / "run", tmp_path / "run")
    before = everything(tmp_path / "run")
    (tmp_path / "out").mkdir()
    monkeypatch.setattr("cond_detr.files.os.fsync", full)
    places = {"run": tmp_path / "run", "data": finished / "data", "out": tmp_path / "out"}
    command, arguments = WRITING[name]
    assert exit_code(command, *(each.format(**places) for each in arguments)) == 2
    printed = capsys.readouterr().err.strip().splitlines()
    assert printed[-1].startswith(f"error: {tmp_path}")
    assert printed[-1].endswith("No space left on device")
    assert everything(tmp_path / "run") == before
    assert not everything(tmp_path / "out")


@pytest.mark.parametrize("most", [200, 20_000, 100_000])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".png"])
def test_s5_a_disk_that_is_full_in_the_middle(suffix: str, most: int, finished: Path, tmp_path: Path) -> None:
    """Torch's writer of archives raises an error of its own, with the system's behind it."""
    model = ConditionalDETR.from_checkpoint(finished / "run/best.pt")
    photo = Image.effect_noise((512, 512), 90).convert("RGB")
    save = model.predict(photo).save if suffix == ".png" else model.save
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        with pytest.raises(OSError, match=f"File too large: .*x{suffix}"):
            save(tmp_path / f"x{suffix}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_s5_a_full_disk_in_python(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ConditionalDETR.from_checkpoint(finished / "run/best.pt")
    found = model.predict(next((finished / "data/val").iterdir()))
    monkeypatch.setattr("cond_detr.files.os.fsync", lambda _: os.write(-1, b""))  # EBADF
    for write in (model.save, found.save):
        for suffix in (".pt", ".safetensors") if write == model.save else (".png", ".json", ".jpg"):
            with pytest.raises(OSError, match="x"):
                write(tmp_path / f"x{suffix}")
    assert not list(tmp_path.iterdir())


def test_s5_errors_of_other_files_keep_their_name(tmp_path: Path) -> None:
    """What is written may be made of what is read."""
    with pytest.raises(FileNotFoundError, match="nowhere/input"), files.replacing(tmp_path / "x"):
        open("/nowhere/input")  # noqa: PTH123, SIM115

    def read_damaged() -> None:
        try:
            os.write(-1, b"")
        except OSError:
            raise RuntimeError("the input is damaged") from None

    with pytest.raises(RuntimeError, match="the input is damaged"), files.replacing(tmp_path / "x"):
        read_damaged()

    def lose_a_connection() -> None:
        try:
            raise ConnectionResetError(errno.ECONNRESET, "reset")
        except OSError:
            raise RuntimeError("a bug")  # noqa: B904

    with pytest.raises(RuntimeError, match="a bug"), files.replacing(tmp_path / "x"):
        lose_a_connection()
    with pytest.raises(BrokenPipeError, match=r"^\[Errno 32\] printing$"), files.replacing(tmp_path / "x"):
        raise BrokenPipeError(errno.EPIPE, "printing")
    assert not list(tmp_path.iterdir())


def operations(monkeypatch: pytest.MonkeyPatch, before: Callable[[int], None]) -> None:
    """Calls ``before`` ahead of each file operation, with its number."""
    numbers = itertools.count()

    def counted(operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            before(next(numbers))
            return operation(*arguments, **options)

        return call

    monkeypatch.setattr(files.tempfile, "mkstemp", counted(files.tempfile.mkstemp))
    monkeypatch.setattr(files.os, "fsync", counted(files.os.fsync))
    monkeypatch.setattr(files.Path, "replace", counted(files.Path.replace))


def in_a_fork(call: Callable[[], object]) -> int:
    """The status of a process of its own that does nothing but a call."""
    child = os.fork()
    if child == 0:
        try:
            call()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1]


def killed_before(number: int, call: Callable[[], object]) -> int:
    """The status of a process that makes a call, and is killed before one of its file operations."""

    def kill(now: int) -> None:
        if now == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def do() -> None:
        with pytest.MonkeyPatch.context() as patch:
            operations(patch, kill)
            call()

    return in_a_fork(do)


def states_of(run: Path, kept: Path, call: Callable[[], object]) -> list[Path]:
    """What is in a run's folder before each file operation of a call: what is left if it is killed there.

    The last one is what is there in the end.
    """

    def keep(number: int) -> None:
        shutil.copytree(run, kept / str(number))

    with pytest.MonkeyPatch.context() as patch:
        operations(patch, keep)
        call()
    shutil.copytree(run, kept / "end")
    return sorted(kept.iterdir(), key=lambda path: path.stat().st_ctime_ns)


def content_of(folder: Path) -> set[tuple[str, bytes]]:
    """The files in a folder, whatever the temporary ones are called."""
    files_there = (path for path in folder.rglob("*") if path.is_file())
    return {(path.name if path.suffix != ".part" else "", path.read_bytes()) for path in files_there}


def test_kill_9_at_every_file_operation_of_the_last_epoch(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # curves take most of the time, and what they look like does not matter here
    monkeypatch.setattr("cond_detr.train.run_folder.metrics_figure", lambda _: Figure((1, 1)))

    def resume(run: Path) -> None:
        train.main(["--resume", "--output-dir", str(run), "--epochs", "2", "--workers", "0", "--device", "cpu"])

    run = tmp_path / "run"
    shutil.copytree(finished / "run", run)
    left = states_of(run, tmp_path / "left", lambda: resume(run))
    assert len(left) > 14
    # a real one, to see that nothing else is left
    shutil.rmtree(run)
    shutil.copytree(finished / "run", run)
    assert os.WTERMSIG(killed_before(9, lambda: resume(run))) == signal.SIGKILL
    assert {path.name for path in run.iterdir() if path.suffix != ".part"} == {
        path.name for path in left[9].iterdir() if path.suffix != ".part"
    }
    assert len(list(run.iterdir())) == len(list(left[9].iterdir()))
    known: list[set[tuple[str, bytes]]] = []
    for run in left:
        if (content := content_of(run)) in known:  # forcing to disk changes nothing that others see
            continue
        known.append(content)
        # where the last epoch was complete there is nothing to resume, and that is said
        in_a_fork(lambda run=run: resume(run))  # type: ignore[misc]
        last, best = Checkpoint.load(run / "last.pt"), Checkpoint.load(run / "best.pt")
        assert last.progress is not None
        assert last.progress.epoch == 2
        logged = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        assert [record["epoch"] for record in logged] == [record["epoch"] for record in last.progress.history]
        assert best.trained is not None
        assert json.loads((run / "results.json").read_text())["epoch"] == best.trained["epoch"]


def test_s4_two_writers_and_a_reader(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    contents = [{"who": who, "values": list(range(3000))} for who in range(2)]
    files.write_json(path, contents[0])
    stop = threading.Event()

    def write(content: dict[str, Any]) -> None:
        while not stop.is_set():
            files.write_json(path, content)

    writers = [threading.Thread(target=write, args=(content,)) for content in contents]
    for writer in writers:
        writer.start()
    try:
        for _ in range(200):
            assert json.loads(path.read_text()) in contents
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert list(tmp_path.iterdir()) == [path]


def test_w1_a_batch_that_does_not_arrive(finished: Path) -> None:
    """As in a container with little shared memory: the loading process lives, and its batch is lost on the way."""
    dataset = open_split(Checkpoint.load(finished / "run/best.pt").config.data, "val", 8)

    class Lost:
        def __reduce__(self) -> Any:
            raise OSError(errno.ENOSPC, "no shared memory")

    loader = eval_loader(dataset, 1, 1, False, 0, 1, timeout=2)
    loader.collate_fn = lambda _: Lost()
    with pytest.raises(InputError, match=r"gave nothing for 2 seconds: .* shared memory"):
        list(checked(loader))


@pytest.fixture
def two_processes(tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    started = []

    def start(*options: object) -> "subprocess.Popen[str]":
        data = write_dataset(tmp_path / "data", train=160, val=4)
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        arguments = [*SMALL, "--dataset-dir", data, "--epochs", 1000, "--output-dir", tmp_path / "run", *options]
        process = subprocess.Popen(
            [*torchrun, "-m", "cond_detr.train", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGCONT)
            os.killpg(process.pid, signal.SIGKILL)


def ranks_of(process: "subprocess.Popen[str]") -> list[int]:
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
    return [int(pid) for pid in children.stdout.split()]


def test_processes_leave_together(tmp_path: Path) -> None:
    """One that ends while the first still writes may be aborted at its end, by a thread that holds what was sent."""
    # each into a file of its own: what two processes print into one pipe may be mixed
    (tmp_path / "late.py").write_text(
        "import pathlib, time, torch\n"
        "from cond_detr import distributed\n"
        "here = pathlib.Path(__file__).parent\n"
        "with distributed.processes(torch.device('cpu')):\n"
        "    rank = distributed.rank()\n"
        "    time.sleep(0 if rank else 3)\n"
        "    (here / f'wrote{rank}').write_text(str(time.monotonic()))\n"
        "(here / f'left{rank}').write_text(str(time.monotonic()))\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*torchrun, tmp_path / "late.py"], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    wrote = float((tmp_path / "wrote0").read_text())
    assert min(float((tmp_path / f"left{rank}").read_text()) for rank in (0, 1)) >= wrote


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_s10_a_lost_rank(number: int, two_processes: Callable[..., "subprocess.Popen[str]"], tmp_path: Path) -> None:
    process = two_processes("--timeout", 6)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run/log.jsonl").exists() or not (tmp_path / "run/log.jsonl").read_text():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    lost = ranks_of(process)[1]
    os.kill(lost, number)
    began = time.monotonic()
    if number == signal.SIGSTOP:
        time.sleep(10)
        os.kill(lost, signal.SIGCONT)  # torchrun cannot end what does not run
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - began < 30
    assert "another process of this run is gone, or gave nothing for 6 seconds" in output
    assert "cond_detr/train/loop.py" not in output, "a traceback of ours"
