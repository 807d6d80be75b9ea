"""Ask a model prompts, greedily: one that lies on this machine, or one that is served.

Importing this needs neither torch nor a client; opening a model imports what it needs.
"""

from mudpuppy.asking.answers import Answer, Answerer
from mudpuppy.asking.ask import ask, open_local, open_served

__all__ = ["Answer", "Answerer", "ask", "open_local", "open_served"]
