"""The README.md beside a checkpoint."""

from cond_detr import ConditionalDETR
from cond_detr.classes import Classes
from cond_detr.evaluate.coco_metrics import Evaluation
from cond_detr.train.model_card import model_card

CURVE = [1.0] * 50 + [0.0] * 51
SCORES = [0.9 - i / 200 for i in range(50)] + [0.0] * 51


def test_a_card() -> None:
    model = ConditionalDETR.from_preset("shapes", 2)
    model.classes = Classes(("red | blue", "[x](http://a) # b"), (1, 2))
    names = model.classes.names
    evaluation = Evaluation(
        {"AP": 0.5, "APS": None},
        {names[0]: {"AP": 0.5, "AP50": 0.75, "AR": 0.6}, names[1]: {"AP": None, "AP50": None, "AR": None}},
        {names[0]: CURVE, names[1]: None},
        {names[0]: SCORES, names[1]: None},
        None,
    )
    trained = {"data": "DIR/a_b.json", "epoch": 3, "date": "2026-01-01", "version": "1"}
    lines = model_card(model, evaluation, trained).splitlines()
    assert lines[:2] == ["---", "library_name: cond-detr"]
    assert "# Conditional DETR, resnet6" in lines
    assert "| data set | DIR/a\\_b.json |" in lines
    assert "| epoch | 3 of 15 |" in lines
    assert "| AP | APS |" in lines
    assert "| 50.0 | - |" in lines
    assert "| red \\| blue | 50.0 | 75.0 | 0.655 |" in lines
    assert "| \\[x\\](http://a) \\# b | - | - | - |" in lines
    assert "Detections of a score of 0.655 or more are shown by default. To use it:" in lines
