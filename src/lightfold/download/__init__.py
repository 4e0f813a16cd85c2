"""Public data sets: which there are (`catalogue`), what a request needs (`planning`), how files come here (`fetch`) and
out of archives (`unpack`).

Only the standard library is used, and nothing here knows what a capture is. The list of data sets is one data file,
sources.json, and whoever adds one edits that alone.
"""

from .catalogue import Source, sources
from .fetch import DownloadError
from .planning import Plan, carry_out, plan

__all__ = ["DownloadError", "Plan", "Source", "carry_out", "plan", "sources"]
