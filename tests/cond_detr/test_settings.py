"""Settings: each is declared once, and is then an option, a keyword, a line of config.json, and checked everywhere."""

import argparse
import inspect
import json
from dataclasses import asdict, dataclass, field, make_dataclass
from pathlib import Path
from typing import Any, Literal, get_origin

import pytest

from cond_detr import DETR, ConditionalDETR, Detector, InputError, cli
from cond_detr.classes import Classes
from cond_detr.config import Config, RunConfig, TrainConfig, configure, read_dict, to_dict
from cond_detr.errors import shown
from cond_detr.options import add_settings, read_config
from cond_detr.presets import PRESETS, as_detr, configured, preset
from cond_detr.settings import Setting, all_settings, declared, sections_of, setting
from cond_detr.train import __main__ as train

SETTINGS = all_settings(Config)
RUNNING = declared(RunConfig)


def other_value(each: Setting) -> Any:
    """A value that the setting can have and does not have by default."""
    if each.choices and each.default in each.choices:
        return next(choice for choice in each.choices if choice != each.default)
    if bool in each.kinds:
        return not each.default
    if int in each.kinds:
        return each.default + 4 if isinstance(each.default, int) else 3
    if float in each.kinds:
        return each.default / 2 + 0.25
    return "elsewhere"


def as_options(each: Setting, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [each.option if value else each.option.replace("--", "--no-", 1)]
    return [each.option, str(value)]


def test_no_two_sections_have_a_setting_of_the_same_name() -> None:
    count = sum(len(declared(section)) for _, section in [*sections_of(Config), ("", RunConfig)])
    assert len(SETTINGS | RUNNING) == count


@pytest.mark.parametrize("each", SETTINGS.values(), ids=SETTINGS)
def test_is_an_option_a_keyword_and_in_the_file(each: Setting) -> None:
    value = other_value(each)
    parsed = vars(train.parser().parse_args(as_options(each, value)))
    assert parsed == {each.name: value}
    by_option = train.new_config({**parsed, "preset": "r50"})
    by_keyword = configured("r50", {each.name: value})
    assert by_option == by_keyword
    assert to_dict(by_option)[each.section][each.name] == value
    assert read_dict(json.loads(json.dumps(to_dict(by_option)))) == by_option
    assert each.name in inspect.signature(ConditionalDETR.from_preset).parameters


@pytest.mark.parametrize("each", RUNNING.values(), ids=RUNNING)
def test_how_to_run_is_an_option_and_a_keyword(each: Setting) -> None:
    value = other_value(each)
    assert vars(train.parser().parse_args(as_options(each, value))) == {each.name: value}
    assert each.name in inspect.signature(ConditionalDETR.train).parameters


@pytest.mark.parametrize("each", (SETTINGS | RUNNING).values(), ids=SETTINGS | RUNNING)
def test_a_wrong_value_is_named(each: Setting, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (-1, object(), [1], 2.5j):
        with pytest.raises(InputError) as error:
            each.check(wrong)
        assert str(error.value).startswith(f"`{each.name}` must be ")
        assert str(error.value).endswith(f", got {shown(wrong)}")
    if bool in each.kinds or set(each.kinds) & {str, Path}:
        return  # no text can be wrong
    with pytest.raises(SystemExit) as stop:
        train.parser().parse_args([each.option, "nonsense"])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert f"argument {each.option}" in said
    assert "'nonsense'" in said


@pytest.mark.parametrize("each", SETTINGS.values(), ids=SETTINGS)
def test_a_wrong_value_in_a_file_is_named(each: Setting, tmp_path: Path) -> None:
    values = to_dict(preset("shapes"))
    values[each.section][each.name] = [1]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match=rf"config\.json: `{each.name}` must be .*, got \[1\]"):
        read_config(path)


@pytest.mark.parametrize("each", SETTINGS.values(), ids=SETTINGS)
def test_bounds_hold_for_options_and_keywords(each: Setting) -> None:
    if not {int, float} & set(each.kinds):
        return
    least, below = each.about["least"], each.about["below"]
    for bad in [least - 1, float("nan"), True, *([] if below is None else [below])]:
        with pytest.raises(InputError, match=f"`{each.name}` must be"):
            configured("r50", {each.name: bad})
    assert each.check(least) == least


def test_a_new_setting_needs_its_declaration_only(capsys: pytest.CaptureFixture[str]) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Extended(TrainConfig):
        momentum: float = setting(0.9, "of the optimiser", below=1)
        nesterov: bool = setting(False, "look ahead")
        rounding: Literal["up", "down"] = setting("up", "where to")

    config = make_dataclass("Extended", [("train", Extended, field(default_factory=Extended))])
    parser = argparse.ArgumentParser(argument_default=argparse.SUPPRESS)
    add_settings(parser, config)
    parsed = vars(parser.parse_args(["--momentum", "0.5", "--nesterov", "--rounding", "down", "--epochs", "3"]))
    assert parsed == {"momentum": 0.5, "nesterov": True, "rounding": "down", "epochs": 3}
    with pytest.raises(SystemExit):
        parser.parse_args(["--momentum", "1"])
    assert "argument --momentum: expected a number of at least 0 and below 1, got '1'" in capsys.readouterr().err
    assert "of the optimiser" in parser.format_help()


def test_unknown_settings_are_named() -> None:
    with pytest.raises(InputError, match=r"unknown setting 'epohcs' for from_preset; did you mean epochs\?"):
        ConditionalDETR.from_preset("shapes", 3, epohcs=3)  # type: ignore[call-arg]
    model = ConditionalDETR.from_preset("shapes", 3)
    with pytest.raises(InputError, match=r"unknown setting 'epohcs' for train; did you mean epochs\?"):
        model.train(epohcs=3)  # type: ignore[call-arg]
    with pytest.raises(InputError, match="unknown setting 'epohcs'; there are"):
        configure(preset("shapes"), {"epohcs": 3})


def test_what_follows_from_others() -> None:
    assert configured("r50", {"image_size": 400}).data.max_size == 666
    assert configured("r50", {"image_size": 400, "max_size": 500}).data.max_size == 500
    assert configured("r50", {"cuda_graphs": True}).data.size_step == 128
    assert configured("r50", {"cuda_graphs": True, "size_step": 0}).data.size_step == 0
    assert configured("r50", {"cuda_graphs": True, "image_size": 480}).data.size_step == 64
    assert configured("small", {"cuda_graphs": True}).data.size_step == 32
    assert configured("shapes", {"cuda_graphs": True}).data.size_step == 32  # so that nothing is padded
    assert configured("r50", {"kind": "detr"}) == as_detr(preset("r50"))
    assert configured("r50", {"lr_drop": 40}).train.lr_drop == 0.8
    assert configured("r50", {"lr_drop": 80, "epochs": 100}).train.lr_drop == 0.8
    assert configured("r50", {"lr_drop": 0.5, "epochs": 100}).train.lr_drop == 0.5


def test_presets_can_be_written_and_read() -> None:
    for config in PRESETS.values():
        assert read_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_a_runs_settings_start_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(to_dict(configured("shapes", {"epochs": 3, "lr": 0.002}))))
    parsed = vars(train.parser().parse_args(["--config", str(path), "--lr", "0.004"]))
    config = train.new_config(parsed)
    assert (config.preset, config.train.epochs, config.train.lr) == ("shapes", 3, 0.004)
    with pytest.raises(SystemExit) as stop:
        cli.run(train.main, ["--config", str(path), "--preset", "r50", "--device", "cpu"])
    assert stop.value.code == 2
    assert "--config and --preset exclude each other" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "does not exist"),
        ("{", "is not valid JSON"),
        ("[1]", "Config must be settings by name"),
        ('{"model": 3}', "ModelConfig must be settings by name"),
        ('{"model": {"widht": 3}}', "unknown settings for ModelConfig: widht; known are"),
        ('{"preset": 3}', "preset must be text, got 3"),
    ],
)
def test_files_that_hold_no_settings(tmp_path: Path, text: str | None, sentence: str) -> None:
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=sentence) as error:
        read_config(path)
    assert str(path) in str(error.value)


def test_help_groups_the_settings_and_shows_every_one() -> None:
    shown = " ".join(train.parser().format_help().split())
    for title in ("where to start:", "model:", "ablations of the paper", "loss and matching:", "data:", "training:"):
        assert title in shown
    for each in (SETTINGS | RUNNING).values():
        assert each.option in shown
        assert " ".join(str(each.about["help"]).split())[:30] in shown


def test_library_messages_become_options_on_the_command_line() -> None:
    assert cli.in_options("`batch_size` must be 1 or more; see `lr`") == "--batch-size must be 1 or more; see --lr"
    assert cli.in_options("`kind` must be detr") == "--model must be detr"
    for text in ("class 'a`lr`c' of `file name`", "image /tmp/`abc`.png does not exist"):
        assert cli.in_options(text) == text


def test_values_are_what_json_and_torch_can_hold() -> None:
    import numpy as np

    config = configured("shapes", {"lr": np.float32(0.5), "epochs": np.int64(3), "dataset_dir": Path("a/b")})
    assert [type(value) for value in (config.train.lr, config.train.epochs, config.data.dataset_dir)] == [
        float,
        int,
        str,
    ]
    assert asdict(config) == json.loads(json.dumps(asdict(config)))


def test_every_type_is_one_that_the_command_line_can_read() -> None:
    for each in (SETTINGS | RUNNING).values():
        for kind in each.kinds:
            assert kind in (bool, int, float, str, Path, type(None)) or get_origin(kind) is Literal, each.name


def test_settings_have_names() -> None:
    model = ConditionalDETR.from_preset("shapes", 3)
    with pytest.raises(InputError, match=r"train takes settings by name, such as epochs=\.\.\., got 'DIR' without one"):
        model.train("DIR")  # type: ignore[call-arg]
    with pytest.raises(InputError, match=r"from_preset takes settings by name, .* got 3 without one"):
        ConditionalDETR.from_preset("shapes", 2, 3)  # type: ignore[misc]
    assert ConditionalDETR.from_preset(name="shapes", num_classes=2).classes == Classes.numbered(2)  # type: ignore[call-arg]


def test_a_class_holds_its_own_kind_only() -> None:
    with pytest.raises(InputError, match="these settings are of a conditional-detr, and DETR is a detr"):
        DETR.new(preset("shapes"), Classes.numbered(2))
    with pytest.raises(InputError, match="is of a DETR, not of a ConditionalDETR"):
        ConditionalDETR.from_preset("shapes", 2, kind="detr")
    assert isinstance(Detector.from_preset("shapes", 2, kind="detr"), DETR)
    assert isinstance(ConditionalDETR.from_preset("shapes", 2).copy(), ConditionalDETR)
