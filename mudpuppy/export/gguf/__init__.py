"""Write a model as one GGUF file, as llama.cpp's own converter and quantiser would."""

from mudpuppy.export.gguf.export import ExportReport, export_gguf
from mudpuppy.export.gguf.refusals import ExportRefused
from mudpuppy.export.gguf.tensors import QUANTS

__all__ = ["QUANTS", "ExportRefused", "ExportReport", "export_gguf"]
