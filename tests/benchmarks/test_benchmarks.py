"""The parts of the benchmarks that decide what they report."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import attn_alternatives
import attn_bench
import common
import matcher_bench
import pytest
import sass
import step_bench
import torch

SASS = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], RZ, !UPT ;
        /*0020*/              @!P0 BRA `(.L_x_2) ;
        /*0030*/                   FADD R1, R1, R2 ;
        /*0040*/                   FADD R1, R1, R3 ;
.L_x_2:
        /*0050*/                   MUFU.EX2 R4, R4 ;
        /*0060*/               @P1 BRA `(.L_x_1) ;
        /*0070*/                   EXIT ;
.L_x_3:
        /*0080*/                   BRA `(.L_x_3);
"""


def test_inner_loop_is_counted_along_its_shortest_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sass, "_run", lambda *_: SASS)
    assert sass.main_loop(b"") == sass.Loop(instructions=4, mma="HGMMA")


def test_resources_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    line = " Function f:\n  REG:88 STACK:8 SHARED:16 LOCAL:0 CONSTANT[2]:8 TEXTURE:0"
    monkeypatch.setattr(sass, "_run", lambda *_: line)
    assert sass.resources(b"") == sass.Resources(registers=88, spill_bytes=8, shared_bytes=16)


def test_flop_per_score() -> None:
    """192 forward and 512 backward at the paper's head dims."""
    scores = 2 * attn_bench.HEADS * attn_bench.QUERIES * 1050
    forward = attn_bench.Setting(2, 1050, torch.bfloat16, 0.0, False, backward=False)
    both = attn_bench.Setting(2, 1050, torch.bfloat16, 0.0, False, backward=True)
    assert forward.flop == 192 * scores
    assert both.flop == (192 + 512) * scores


def test_flop_per_score_of_an_encoder() -> None:
    """128 forward and 320 backward: content alone."""
    scores = 2 * attn_bench.HEADS * 1050**2
    forward = attn_bench.Setting(2, 1050, torch.bfloat16, 0.0, True, backward=False, attention="encoder")
    both = attn_bench.Setting(2, 1050, torch.bfloat16, 0.0, True, backward=True, attention="encoder")
    assert forward.flop == 128 * scores
    assert both.flop == (128 + 320) * scores


@pytest.mark.parametrize("attention", ["cross", "encoder"])
@pytest.mark.parametrize("padded", [False, True])
def test_attention_gate_passes_what_is_right_and_stops_what_is_wrong(padded: bool, attention: str) -> None:
    device = torch.device("cpu")
    setting = attn_bench.Setting(2, 70, torch.float32, 0.0, padded, True, attention)
    table = attn_bench.implementations(device)
    for attend in table.values():
        assert attn_bench.largest_error(attend, setting, device) < 1e-5
    halved = lambda *t, **k: 0.5 * table["reference"](*t, **k)  # noqa: E731
    assert attn_bench.largest_error(halved, setting, device) > attn_bench.TOLERANCE[torch.float32]
    not_a_number = lambda *t, **k: torch.nan * table["reference"](*t, **k)  # noqa: E731
    assert attn_bench.largest_error(not_a_number, setting, device) > attn_bench.TOLERANCE[torch.float32]


def test_an_alternative_that_fails_costs_nobody_else_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("no kernel\nand more")

    table = {"fused": attn_alternatives.conditional_attention, "flash4": fails, "wrong": lambda *t, **_: t[0]}
    monkeypatch.setattr(attn_bench, "implementations", lambda *_: table)
    setting = attn_bench.Setting(1, 70, torch.float32, 0.0, True, True, "encoder")
    monkeypatch.setattr(attn_bench, "reason_against", lambda *_: None)
    record = common.Record(None, "attn_bench", "here")
    assert attn_bench.run(torch.device("cpu"), [setting], 0.0, record)
    assert [row["impl"] for row in record.rows] == ["fused"]
    assert record.notes[0].startswith("flash4: RuntimeError no kernel for ")
    assert record.notes[1].startswith("wrong: ")


def test_ours_must_have_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attn_bench, "implementations", lambda *_: {"reference": attn_alternatives.original})
    record = common.Record(None, "attn_bench", "here")
    assert not attn_bench.run(torch.device("cpu"), attn_bench.TINY, 0.0, record)


def test_flash_attention_4_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cutlass", None)
    said: list[str] = []
    table = attn_alternatives.implementations(torch.device("cuda"), said.append)
    assert "flash4" not in table
    assert said[0].startswith("not installed: flash-attn-4")


def test_flash_attention_4_is_called_as_it_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its stand-in has PyTorch's attention behind its own signature."""
    from torch.nn.functional import scaled_dot_product_attention

    def flash_attn_func(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask_mod: Callable[..., bool] | None = None,
        aux_tensors: list[torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, None]:
        seen = None
        if mask_mod:
            assert aux_tensors
            batch, keys = aux_tensors[0].shape
            places = [[mask_mod([b], [0], [0], [s], None, aux_tensors) for s in range(keys)] for b in range(batch)]
            seen = torch.tensor(places)[:, None, None]
        out = scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), attn_mask=seen)
        return out.transpose(1, 2), None

    modules = {name: ModuleType(name) for name in ("cutlass", "cutlass.cute", "flash_attn", "flash_attn.cute")}
    modules["cutlass"].Int32 = int  # type: ignore[attr-defined]
    modules["cutlass"].cute = modules["cutlass.cute"]  # type: ignore[attr-defined]
    modules["cutlass.cute"].jit = lambda function: function  # type: ignore[attr-defined]
    modules["flash_attn.cute"].flash_attn_func = flash_attn_func  # type: ignore[attr-defined]
    modules["flash_attn.cute"].utils = ModuleType("utils")  # type: ignore[attr-defined]
    modules["flash_attn.cute"].utils.scalar_to_ssa = lambda value, kind: kind(value)  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    flash4 = attn_alternatives.make_flash4()
    for attention in ("cross", "encoder"):
        for padded in (True, False):
            setting = attn_bench.Setting(2, 70, torch.float32, 0.0, padded, padded, attention)
            assert attn_bench.largest_error(flash4, setting, torch.device("cpu")) < 1e-5


@pytest.mark.parametrize("kind", matcher_bench.KINDS)
def test_matching_gate(kind: str) -> None:
    problem = matcher_bench.make_problem(kind, 2, 5, ragged=True)
    operands = problem.operands(torch.device("cpu"))
    want = matcher_bench.original_match(*operands[:4], problem.counts.tolist())
    found = matcher_bench.match(*operands)[0]
    matcher_bench.check_match(problem, found, want)
    with pytest.raises(SystemExit):
        matcher_bench.check_match(problem, (found + 1) % matcher_bench.QUERIES, want)


def test_solvers_that_are_wrong_or_fail_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = matcher_bench.solvers

    def with_others(costs: object, device: torch.device) -> dict[str, matcher_bench.Solver]:
        def fails() -> object:
            raise ValueError("no such shape")

        good = ours(costs, device)
        return {"fails": fails, "wrong": lambda: 0 * good["scipy"]()[0] + [[0] * 5] * 6, **good}  # type: ignore[index]

    monkeypatch.setattr(matcher_bench, "solvers", with_others)
    record = common.Record(None, "matcher_bench", "here")
    matcher_bench.run(torch.device("cpu"), matcher_bench.TINY[:1], 0.0, record)
    assert {"scipy", "ours"} <= {row["impl"] for row in record.rows}
    assert not {"fails", "wrong"} & {row["impl"] for row in record.rows}
    assert any("fails raises ValueError no such shape" in sentence for sentence in record.notes)
    assert any(sentence.startswith("wrong ") for sentence in record.notes)


def test_a_benchmark_that_is_stopped_leaves_its_rows(tmp_path: Path) -> None:
    record = common.Record(tmp_path / "rows.json", "attn_bench", "a machine", matmul_precision="high")

    def rows() -> list[common.Row]:
        raise KeyboardInterrupt

    record.add([{"us": 1.5}])
    with pytest.raises(KeyboardInterrupt):
        record.add(rows())
    written = json.loads(record.path.read_text())  # type: ignore[union-attr]
    assert written["rows"] == [{"us": 1.5}]
    assert written["matmul_precision"] == "high"
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]


def test_files_say_where_they_come_from(tmp_path: Path) -> None:
    common.write_json(tmp_path / "deep" / "rows.json", "attn_bench", "a machine", [{"us": 1.5}])
    record = json.loads((tmp_path / "deep" / "rows.json").read_text())
    assert record["rows"] == [{"us": 1.5}]
    assert {"benchmark", "commit", "machine", "command"} < set(record)


def test_pictures() -> None:
    kinds = [(p, d) for p in ("fwd", "fwd_bwd") for d in (0.0, 0.1)]
    rows = [
        {
            "attention": "cross",
            "impl": impl,
            "batch": 1,
            "keys": 70,
            "dtype": "float32",
            "padded": False,
            "times_fused": ratio,
        }
        | {"pass": kind, "dropout": dropout}
        for impl, ratio in (("fused", 1.0), ("reference", 2.0))
        for kind, dropout in kinds
    ]
    assert len(attn_bench.picture(rows, "here").axes) == 4  # type: ignore[attr-defined]
    rows = [
        {"op": op, "kind": "tied", "layers": 6, "batch": 2, "targets": 5, "impl": impl, "times_ours": 3.0}
        for op in ("solve", "match")
        for impl in ("scipy", "ours")
    ]
    assert len(matcher_bench.picture(rows, "here").axes) == 2  # type: ignore[attr-defined]


def test_step_gate_stops_another_loss() -> None:
    rows = {"transformers": {"loss": 2.0}, "ours": {"loss": 2.1}}
    step_bench.check_loss("ours", rows, step_bench.CPU_SETTINGS[0], 0.1)
    with pytest.raises(SystemExit, match=r"finds a loss of .*, transformers"):
        step_bench.check_loss("ours", rows, step_bench.CPU_SETTINGS[0], 1e-4)


@pytest.mark.parametrize("preset", ["shapes", "r50"])
def test_the_transformers_package_has_the_same_sizes(preset: str) -> None:
    """Every tensor of theirs has its place in ours, and the same ones are trained."""
    with torch.device("meta"):
        theirs = step_bench.transformers_model(step_bench.preset(preset))
        ours = step_bench.new_network(step_bench.preset(preset), step_bench.NUM_CLASSES)
    translated = step_bench.to_ours(theirs.state_dict())
    own = ours.state_dict()
    assert {name: tensor.shape for name, tensor in translated.items() if "tracked" not in name} == {
        name: tensor.shape for name, tensor in own.items() if "tracked" not in name
    }
    if preset == "r50":  # batch norm is frozen in both
        trained = [sum(p.numel() for p in model.parameters() if p.requires_grad) for model in (theirs, ours)]
        assert trained[0] == trained[1]
