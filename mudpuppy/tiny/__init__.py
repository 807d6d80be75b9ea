"""The embedded default model: small, trained here, with knowledge, a voice and an end.

`tiny` stands wherever a model path may stand. Nothing at the top of these modules imports torch.
"""

from mudpuppy.tiny.cache import cache_folder, resolve_model, tiny_path
from mudpuppy.tiny.names import FAMILIES, is_tiny_name

__all__ = [
    "FAMILIES",
    "cache_folder",
    "is_tiny_name",
    "resolve_model",
    "tiny_path",
]
