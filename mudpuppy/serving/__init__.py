"""Serving: llama.cpp's OpenAI-compatible server, from the `xllamacpp` wheel, in a child process.

Importing this starts nothing and needs no native code.
"""

from mudpuppy.serving.server import Server, serving

__all__ = ["Server", "serving"]
