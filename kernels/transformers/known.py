"""Which code of the transformers package is known here: only that is replaced."""

import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

# The first characters of each file's SHA-256 in the releases that the tests were run against
KNOWN: dict[str, set[str]] = {
    "transformers.loss.loss_for_object_detection": {
        "35a5163d2cd37945",  # 5.15.0 to 5.17.0
        "226bd9e804e466dd",  # 5.18.0 to 5.22.0
        "e8f9379ae857821a",  # 5.23.0
    },
    "transformers.loss.loss_deformable_detr": {
        "7bd25cdcae5f2328",  # 5.15.0 to 5.17.0
        "4bfc1499b608c7cc",  # 5.18.0 to 5.23.0
    },
    "transformers.loss.loss_rt_detr": {
        "01c6fe0bdc5965cc",  # 5.15.0 to 5.17.0
        "ffc1bccd31e4c086",  # 5.18.0 to 5.23.0
    },
    "transformers.loss.loss_d_fine": {
        "5c11bd6c53788dcb",  # 5.15.0 to 5.17.0
        "141cf57f8eef98d1",  # 5.18.0 to 5.23.0
    },
    "transformers.loss.loss_deimv2": {
        "03cdcbabee6def20",  # 5.15.0 to 5.23.0
    },
    "transformers.loss.loss_lw_detr": {
        "c7b271e3011dca50",  # 5.15.0 to 5.17.0
        "501c0ed591391e8d",  # 5.18.0 to 5.23.0
    },
    "transformers.loss.loss_grounding_dino": {
        "4596738d08193db2",  # 5.15.0 to 5.17.0
        "63e0470725cae728",  # 5.18.0 to 5.22.0
        "c4a7c01df01aeb20",  # 5.23.0
    },
    "transformers.models.conditional_detr.modeling_conditional_detr": {
        "c49f0f589bc50c9e",  # 5.15.0 to 5.17.0
        "cd2356c26683f99c",  # 5.18.0 to 5.22.0
        "bfc627c97a3451b9",  # 5.23.0
    },
}


def is_known(module: ModuleType) -> bool:
    """Whether a module's file is one of the above; not, if there is no file to look at."""
    try:
        content = Path(str(module.__file__)).read_bytes()
    except OSError:
        return False
    return hashlib.sha256(content).hexdigest()[:16] in KNOWN.get(module.__name__, set())


def why_unknown(modules: Iterable[ModuleType]) -> str | None:
    """A sentence on those modules that replacements were not tested with; None if there are none."""
    unknown = [module.__name__ for module in modules if not is_known(module)]
    if not unknown:
        return None
    version = sys.modules["transformers"].__version__
    return f"{' and '.join(unknown)} of transformers {version} is none that this was tested with"
