"""Opening a file or URL of weights as a model."""

from pathlib import Path

from cond_detr.models.model import Model
from cond_detr.weights.foreign import open_checkpoint


def open_model(source: str | Path, *, preset_name: str | None = None) -> Model:
    """Loads the model of a checkpoint, in evaluation mode, with its averaged weights if it has any.

    Args:
        source: path, or URL as a string, of a checkpoint of this package, of the authors' repository, of DETR's
            repository or of the transformers package.
        preset_name: architecture of a checkpoint of another implementation; by default r50 or r101, whichever fits.

    Raises:
        InputError: if the file is missing or damaged, or does not hold a complete detector.
    """
    saved = open_checkpoint(str(source), preset_name=preset_name)
    model = Model.new(saved.config, saved.classes)
    model.trained = saved.trained or {}
    saved.load_into(model.network, average=True)
    model.network.eval()
    return model
