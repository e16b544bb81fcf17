"""Export to files for deployment, and detection with exported files."""

from cond_detr.export.exported import Exported
from cond_detr.export.write import export

__all__ = ["Exported", "export"]
