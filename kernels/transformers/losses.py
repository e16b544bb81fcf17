"""Which losses of the transformers package are replaced, and the functions that take their places.

The package's function of each family stays what it is: it sorts out denoising queries and auxiliary outputs, and weighs
the losses. It is called with another criterion under the name of its own.
"""

import sys
from functools import cache
from types import FunctionType, ModuleType
from typing import Any

from transformers.loss.loss_utils import LOSS_MAPPING

from cond_detr_kernels.transformers import criteria
from cond_detr_kernels.transformers.known import why_unknown

# By the names of the package's criteria
CRITERIA: dict[str, type] = {
    "ImageLoss": criteria.SoftmaxCriterion,
    "DeformableDetrImageLoss": criteria.FocalCriterion,
    "LwDetrImageLoss": criteria.GroupCriterion,
    "GroundingDinoImageLoss": criteria.TokenCriterion,
    "RTDetrLoss": criteria.RTDetrCriterion,
    "DFineLoss": criteria.DFineCriterion,
    "Deimv2Loss": criteria.Deimv2Criterion,
}
# Criteria that stay, and why
LEFT: dict[str, str] = {
    "RfDetrImageLoss": "its costs and losses are taken from masks at random points, in an order of its own",
}
ORIGINAL: dict[str, Any] = dict(LOSS_MAPPING)


def criterion_of(loss: Any) -> str | None:
    """The name of the criterion that a loss function of the package makes, if it is one that is known by name."""
    names = getattr(loss, "__code__", None)
    return next((name for name in names.co_names if name in CRITERIA or name in LEFT), None) if names else None


def why_left(loss_type: str) -> str | None:
    """Why the loss of a type stays as it is; None if it can be replaced."""
    name = criterion_of(ORIGINAL[loss_type])
    if name is None:
        return "it has no criterion that is known here"
    if name in LEFT:
        return LEFT[name]
    return why_unknown(_modules_of(loss_type, name))


def _modules_of(loss_type: str, name: str) -> list[ModuleType]:
    """The modules that the criterion, its bases and the function come from."""
    function = ORIGINAL[loss_type]
    bases = [base.__module__ for base in function.__globals__[name].__mro__]
    names = dict.fromkeys([function.__module__, *bases, "transformers.loss.loss_for_object_detection"])
    return [sys.modules[each] for each in names if each.startswith("transformers.loss.")]


class AcceleratedLoss:
    """The loss function of a type, with the package's arguments and results.

    Args:
        loss_type: a key of the package's ``LOSS_MAPPING``.
    """

    def __init__(self, loss_type: str) -> None:
        self.loss_type = loss_type
        self.function = _with_our_criterion(loss_type)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the package's function."""
        return self.function(*args, **kwargs)

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return AcceleratedLoss, (self.loss_type,)

    def __repr__(self) -> str:
        return f"AcceleratedLoss({self.loss_type!r})"


@cache
def _with_our_criterion(loss_type: str) -> FunctionType:
    theirs = ORIGINAL[loss_type]
    name = str(criterion_of(theirs))
    base = theirs.__globals__[name]
    ours = type(f"Accelerated{name}", (CRITERIA[name], base), {})
    function = FunctionType(
        theirs.__code__, {**theirs.__globals__, name: ours}, theirs.__name__, theirs.__defaults__, theirs.__closure__
    )
    function.__kwdefaults__ = theirs.__kwdefaults__
    return function
