"""Tuning with a fake clock: the fastest right path wins, is written, and is what a call then takes."""

import contextlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cond_detr_kernels import conditional_attention, tune
from cond_detr_kernels.conditional_attention import functional, measured, target
from cond_detr_kernels.conditional_attention.fallback import BACKENDS
from cond_detr_kernels.conditional_attention.launch import Launch
from cond_detr_kernels.conditional_attention.measured import Measured, Situation, Table, read_table, write_table
from cond_detr_kernels.conditional_attention.tuning import Blocks, Tuning, tuning_for

CPU = torch.device("cpu")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # where kernels run, interpreted or not
TRAINING = Situation("bfloat16", (32, 32, 32), True, True, True, (1, 1, 20, 70))
INFERENCE = Situation("ieee", (16, 0, 16), False, False, False, (1, 1, 20, 70))
STATIC = Tuning(Blocks(64, 128, 4, 2), Blocks(64, 64, 4, 2), Blocks(64, 64, 4, 2), Blocks(64, 64, 4, 2))


class Device:
    """Stands in for a GPU's clock: what a call costs depends on what it launches."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, costs: Callable[[Launch], float], pytorch: float) -> None:
        self.costs = costs
        self.pytorch = pytorch
        self.spent: list[float] = []
        self.timed = 0
        real = Launch.run

        def run(launch: Launch) -> None:
            self.spent.append(self.costs(launch))
            real(launch)

        monkeypatch.setattr(Launch, "run", run)

    def timer(self, call: Callable[[], object]) -> float:
        self.timed += 1
        self.spent.clear()
        call()
        return sum(self.spent) or self.pytorch


def by_tile(launch: Launch) -> float:
    """Cheapest with tiles of 64 queries and 32 keys forward and for queries, in two passes."""
    arguments = launch.arguments
    tile = arguments.get("BLOCK_M"), arguments.get("BLOCK_N")
    name = launch.kernel.fn.__name__
    if name == "forward_kernel":
        return 5.0 if tile == (64, 32) else 20.0
    if name == "backward_queries_kernel":
        return 7.0 if tile == (64, 32) else 30.0
    if name == "backward_keys_kernel":
        return 50.0 if arguments["ADD_QUERIES"] else 8.0 if tile == (32, 64) else 40.0
    return 1.0


def test_the_fastest_configurations_win(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch, by_tile, pytorch=100.0)
    row = tune.measure(TRAINING, DEVICE, device.timer)
    assert row.path == measured.KERNELS
    assert row.tuning is not None
    assert row.tuning.forward[:2] == (64, 32)
    assert row.tuning.splits in (None, 1)
    assert row.tuning.backward_queries == Blocks(64, 32, 4, 4)
    assert row.tuning.backward_keys[:2] == (32, 64)
    assert not row.tuning.one_pass
    assert row.microseconds[measured.KERNELS] == 5.0 + 7.0 + 8.0
    assert {us for name, us in row.microseconds.items() if name != measured.KERNELS} == {100.0}


def test_pytorch_wins_where_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    row = tune.measure(INFERENCE, DEVICE, Device(monkeypatch, by_tile, pytorch=2.0).timer)
    assert row.path in BACKENDS
    assert row.microseconds[row.path] == 2.0


def test_what_is_wrong_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fast configuration whose result is off, and one that does not run."""
    real = Launch.run

    def run(launch: Launch) -> None:
        real(launch)
        if launch.kernel.fn.__name__ == "forward_kernel" and launch.arguments["BLOCK_M"] == 64:
            if launch.arguments["BLOCK_N"] == 32:
                launch.arguments["out"][0].mul_(1.1)
            if launch.arguments["BLOCK_N"] == 64:
                raise RuntimeError("out of resources")

    monkeypatch.setattr(Launch, "run", run)
    row = tune.measure(INFERENCE, DEVICE, Device(monkeypatch, by_tile, pytorch=100.0).timer)
    assert row.tuning is not None
    assert row.tuning.forward[:2] not in {(64, 32), (64, 64)}


def test_kernels_are_compiled_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them once, and those that cannot be are left to the search."""
    problem, _, grad_out = tune.make_problem(TRAINING, CPU)
    search = tune.KernelSearch(problem, grad_out, [], 1.0, lambda _: 0.0, lambda: True)
    launches = list(search.launches(training=True))
    kernels = {launch.kernel.fn.__name__ for launch in launches}
    assert {"forward_kernel", "combine_kernel", "backward_queries_kernel", "backward_keys_kernel"} <= kernels
    forward = [launch.arguments for launch in launches if launch.kernel.fn.__name__ == "forward_kernel"]
    tiles = [tuple(each[name] for name in ("BLOCK_M", "BLOCK_N", "num_warps", "num_stages")) for each in forward]
    assert sorted(set(tiles)) == sorted(tiles)
    assert {tuple(blocks) for blocks in tune.FORWARD} <= set(tiles)
    assert len(list(search.launches(training=False))) < len(launches)

    compiled = []

    def compile_one(launch: Launch) -> None:
        compiled.append(launch)
        raise RuntimeError("out of resources")

    monkeypatch.setattr(Launch, "compile", compile_one)
    monkeypatch.setattr("torch.cuda.device", lambda _: contextlib.nullcontext())
    tune.compile_ahead(launches, CPU, lambda: True)
    assert len(compiled) == len(launches)
    tune.compile_ahead(launches, CPU, lambda: False)
    assert len(compiled) == len(launches)


def test_time_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each situation gets its share; the first candidate of each kernel is always measured."""
    device = Device(monkeypatch, by_tile, pytorch=100.0)
    ticks = itertools.count(step=1.0)
    rows = tune.tune(
        [INFERENCE, INFERENCE], DEVICE, tmp_path / "t.json", timer=device.timer, clock=lambda: next(ticks), seconds=8.0
    )
    few = device.timed
    assert [row.path for row in rows] == [measured.KERNELS] * 2
    assert next(ticks) < 20
    device.timed = 0
    tune.tune([INFERENCE, INFERENCE], DEVICE, tmp_path / "t.json", timer=device.timer, seconds=1e9)
    assert device.timed > 3 * few


def test_the_table_is_written_and_read(tmp_path: Path) -> None:
    rows = (
        Measured(TRAINING, "efficient", STATIC, {"kernels": 3.5, "efficient": 2.0}),
        Measured(INFERENCE, "kernels", None, {}),
    )
    write_table(tmp_path / "new" / "t.json", rows, device="a GPU")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["t.json"]
    table = read_table(tmp_path / "new" / "t.json")
    assert table is not None
    assert table.rows == rows


def with_forward(raw: Any, blocks: list[int]) -> str:
    """The table's text with another configuration."""
    raw["rows"][0]["tuning"]["forward"] = blocks
    return json.dumps(raw)


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: "",
        lambda raw: "[" * 100_000,
        lambda raw: json.dumps([raw]),
        lambda raw: json.dumps({"rows": [1]}),
        lambda raw: json.dumps({"rows": [{**raw["rows"][0], "path": "os.system"}]}),
        lambda raw: json.dumps({"rows": [{**raw["rows"][0], "situation": [1, 2]}]}),
        lambda raw: json.dumps(
            {"rows": [{**raw["rows"][0], "tuning": {**raw["rows"][0]["tuning"], "forward": [63, 1, 4, 2]}}]}
        ),
        lambda raw: json.dumps(
            {"rows": [{**raw["rows"][0], "tuning": {**raw["rows"][0]["tuning"], "forward": [2**20, 64, 4, 2]}}]}
        ),
    ],
)
def test_a_damaged_table_is_none(damage: Callable[[Any], str], tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    write_table(file, [Measured(TRAINING, "kernels", STATIC, {"kernels": 1.0})])
    file.write_text(damage(json.loads(file.read_text())))
    assert read_table(file) is None
    assert read_table(tmp_path / "none.json") is None


def test_similar_sizes_are_served_and_others_not() -> None:
    table = Table(
        tuple(Measured(TRAINING._replace(sizes=(2, 8, 300, keys)), "kernels", None, {}) for keys in (1050, 4200))
    )

    def keys_of(**changes: Any) -> int | None:
        found = table.find(TRAINING._replace(**changes))
        return found and found.situation.sizes[3]

    assert keys_of(sizes=(2, 8, 300, 900)) == 1050
    assert keys_of(sizes=(4, 8, 200, 3000)) == 4200
    assert keys_of(sizes=(2, 8, 300, 50)) is None
    for other in ({"masked": False}, {"dropout": False}, {"training": False}, {"dtype": "tf32"}, {"dims": (32, 0, 32)}):
        assert keys_of(sizes=(2, 8, 300, 1050), **other) is None


def test_the_file_is_of_this_device_and_these_versions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = measured.table_path(CPU)
    assert first.is_relative_to(tmp_path)
    monkeypatch.setattr(torch, "__version__", "9.9")
    second = measured.table_path(CPU)
    monkeypatch.setattr(measured, "_sources", lambda: "changed")
    assert len({first, second, measured.table_path(CPU)}) == 3


def test_calls_take_the_fastest_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is looked up, by whom, is what the situation is."""
    asked: list[Situation] = []
    answers = {True: Measured(TRAINING, "efficient", STATIC, {}), False: Measured(TRAINING, "kernels", STATIC, {})}

    def find(device: torch.device, situation: Situation) -> Measured:
        asked.append(situation)
        return answers[situation.training]

    monkeypatch.setattr(measured, "find", find)
    tensors = tuple(torch.randn(2, 4, n, 8, device="meta").to(torch.bfloat16) for n in (5, 5, 7, 7, 7))
    assert functional._measured_backend(tensors, True, 0.1, None) is None
    tensors[0].requires_grad_()
    assert functional._measured_backend(tensors, True, 0.1, None) == "efficient"
    assert functional._measured_backend(tensors, True, 0.1, True) is None
    with torch.no_grad():
        assert functional._measured_backend(tensors, False, 0.0, None) is None
    assert asked == [
        Situation("bfloat16", (8, 8, 8), True, True, False, (2, 4, 5, 7)),
        Situation("bfloat16", (8, 8, 8), True, True, True, (2, 4, 5, 7)),
        Situation("bfloat16", (8, 8, 8), False, False, False, (2, 4, 5, 7)),
    ]


@pytest.mark.parametrize("backend", ["math", "flash"])
def test_backends_give_the_same(backend: str) -> None:
    tensors = [torch.randn(2, 2, n, 16) for n in (5, 5, 9, 9, 9)]
    want = conditional_attention(*tensors)
    got = functional.pytorch_attention(*tensors, None, 0.0, 32**-0.5, backend)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_without_a_table_the_static_one_serves() -> None:
    problem, _, _ = tune.make_problem(TRAINING, CPU)
    assert target.target_of(problem).tuning == tuning_for(90, problem)


def test_the_command_needs_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert tune.main([]) == 2
    assert "there is no CUDA device" in capsys.readouterr().err


def test_presets_list_what_training_meets() -> None:
    rows = list(tune.situations("dc5-r50", ["bf16", "tf32"], [1, 4]))
    assert len(set(rows)) == len(rows)
    assert {row.dtype for row in rows} == {"bfloat16", "tf32"}
    assert any(row.dims == (32, 0, 32) and row.sizes == (4, 8, 4200, 4200) for row in rows)
