"""A trained model as a folder that scores rows: one compiled graph, and tables that are mapped from files."""

from torchrec_mtl.inference.package.export import export_package
from torchrec_mtl.inference.package.load import Package, load_package

__all__ = ["Package", "export_package", "load_package"]
