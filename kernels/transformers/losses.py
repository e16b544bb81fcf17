"""Which losses of the transformers package are replaced, and the functions that take their places.

The package's function of each family stays what it is: it sorts out denoising queries and auxiliary outputs, and weighs
the losses. It is called with another criterion under the name of its own.
"""

import functools
import sys
from types import FunctionType
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
OWN = "somebody has put code of their own there"
PACKAGE, SHARED = "transformers.loss.", "transformers.loss.loss_for_object_detection"
ORIGINAL: dict[str, Any] = dict(LOSS_MAPPING)


def criterion_of(loss: Any) -> str | None:
    """The name of the criterion that a loss function makes, if it is one that is known by name."""
    names = getattr(getattr(loss, "__code__", None), "co_names", ())
    return next((name for name in names if name in CRITERIA or name in LEFT), None)


def is_for_detection(loss_type: str) -> bool:
    """Whether a loss type is one with a criterion that is known, or somebody's who replaced it."""
    loss = ORIGINAL.get(loss_type)
    return loss is not None and (criterion_of(loss) is not None or not _module_of(loss).startswith("transformers."))


def why_left(loss_type: str) -> str | None:
    """Why the loss of a type stays as it is; None if it can be replaced."""
    loss = ORIGINAL[loss_type]
    name = criterion_of(loss)
    if name is None or not _module_of(loss).startswith(PACKAGE):
        return OWN
    if name in LEFT:
        return LEFT[name]
    parts = [loss.__globals__[name], *_matchers(loss)]
    if not all(map(_is_the_packages, parts)):
        return OWN
    modules = [base.__module__ for part in parts for base in part.__mro__ if base.__module__.startswith(PACKAGE)]
    return why_unknown(sys.modules[each] for each in dict.fromkeys([loss.__module__, *modules, SHARED]))


def _module_of(value: Any) -> str:
    return str(getattr(value, "__module__", ""))


def _matchers(loss: Any) -> list[type]:
    """The matchers that a loss function, or the criteria of its module, may make."""
    return [value for name, value in loss.__globals__.items() if name.endswith("HungarianMatcher")]


def _is_the_packages(part: type) -> bool:
    """Whether a class and all its methods are the package's, and none of them was put there by somebody."""
    bases = [base for base in part.__mro__ if not _module_of(base).startswith(("torch.", "builtins"))]
    functions = [value for base in bases for value in vars(base).values() if isinstance(value, FunctionType)]
    return all(_module_of(each).startswith((PACKAGE, "torch.")) for each in (*bases, *functions))


class AcceleratedLoss:
    """The loss function of a type, with the package's arguments and results.

    Args:
        loss_type: a key of the package's ``LOSS_MAPPING``.
    """

    def __init__(self, loss_type: str) -> None:
        self.loss_type = loss_type
        # a pickled model may be opened where the package is another one
        known = why_left(loss_type) is None
        self.function = _with_our_criterion(loss_type) if known else ORIGINAL[loss_type]
        functools.update_wrapper(self, ORIGINAL[loss_type])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the package's function."""
        return self.function(*args, **kwargs)

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return AcceleratedLoss, (self.loss_type,)

    def __repr__(self) -> str:
        return f"AcceleratedLoss({self.loss_type!r})"


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
