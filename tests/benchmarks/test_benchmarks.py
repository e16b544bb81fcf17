"""The parts of the benchmarks that decide what they report."""

import json
from pathlib import Path

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


@pytest.mark.parametrize("padded", [False, True])
def test_attention_gate_passes_what_is_right_and_stops_what_is_wrong(padded: bool) -> None:
    device = torch.device("cpu")
    setting = attn_bench.Setting(1, 70, torch.float32, 0.0, padded, backward=True)
    table = attn_bench.implementations(device)
    for attend in table.values():
        assert attn_bench.largest_error(attend, setting, device) < 1e-5
    halved = lambda *t, **k: 0.5 * table["reference"](*t, **k)  # noqa: E731
    assert attn_bench.largest_error(halved, setting, device) > attn_bench.TOLERANCE[torch.float32]


@pytest.mark.parametrize("kind", matcher_bench.KINDS)
def test_matching_gate(kind: str) -> None:
    problem = matcher_bench.make_problem(kind, 2, 5, ragged=True)
    operands = problem.operands(torch.device("cpu"))
    want = matcher_bench.original_match(*operands[:4], problem.counts.tolist())
    found = matcher_bench.match(*operands)[0]
    matcher_bench.check_match(problem, found, want)
    with pytest.raises(SystemExit):
        matcher_bench.check_match(problem, (found + 1) % matcher_bench.QUERIES, want)


def test_files_say_where_they_come_from(tmp_path: Path) -> None:
    common.write_json(tmp_path / "deep" / "rows.json", "attn_bench", "a machine", [{"us": 1.5}])
    record = json.loads((tmp_path / "deep" / "rows.json").read_text())
    assert record["rows"] == [{"us": 1.5}]
    assert {"benchmark", "commit", "machine", "command"} < set(record)


def test_pictures() -> None:
    kinds = [(p, d) for p in ("fwd", "fwd_bwd") for d in (0.0, 0.1)]
    rows = [
        {"impl": impl, "batch": 1, "keys": 70, "dtype": "float32", "padded": False, "times_fused": ratio}
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
        ours = step_bench.ConditionalDETR.from_preset(preset, step_bench.NUM_CLASSES)
    translated = step_bench.to_ours(theirs.state_dict())
    own = ours.state_dict()
    assert {name: tensor.shape for name, tensor in translated.items() if "tracked" not in name} == {
        name: tensor.shape for name, tensor in own.items() if "tracked" not in name
    }
    if preset == "r50":  # batch norm is frozen in both
        trained = [sum(p.numel() for p in model.parameters() if p.requires_grad) for model in (theirs, ours)]
        assert trained[0] == trained[1]
