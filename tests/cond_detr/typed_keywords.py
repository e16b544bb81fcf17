"""What a type checker says of keywords: mypy complains about an ignored line that has no error, so this is a test."""

from pathlib import Path

from typing_extensions import assert_type

from cond_detr import ConditionalDETR, Detections


def wrong_settings_are_found_before_anything_runs(model: ConditionalDETR) -> None:
    model.train(epohcs=3)  # type: ignore[call-arg]
    model.train(epochs="3")  # type: ignore[arg-type]
    model.train(schedule="cosine")  # type: ignore[arg-type]
    model.train(num_queries=3)  # type: ignore[call-arg]
    ConditionalDETR.from_preset("r50", epohcs=3)  # type: ignore[call-arg]
    ConditionalDETR.from_preset("r50", "20")  # type: ignore[arg-type]


def right_ones_are_known(model: ConditionalDETR) -> None:
    assert_type(model.train(dataset_dir=Path("data"), epochs=3, batch_size="auto", workers=2), ConditionalDETR)
    assert_type(ConditionalDETR.from_preset("r50", 20, fused_attn=True, lr=1e-3), ConditionalDETR)
    assert_type(model.predict("photo.jpg"), Detections)
    assert_type(model.predict(["photo.jpg"]), list[Detections])
