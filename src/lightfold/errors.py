"""The errors a user may see. Each message is a sentence or two: what happened, where, and what to do about it."""

from __future__ import annotations


class LightfoldError(Exception):
    """Something in the user's data or set-up is wrong. The command line prints the message and nothing else."""


class CaptureError(LightfoldError):
    """A capture cannot be read, or holds nothing that can be trained on."""


class RunError(LightfoldError):
    """A run folder is missing, damaged or of another version."""


class ConfigError(LightfoldError):
    """A configuration names something that does not exist, or gives a value of the wrong kind."""


class LostError(LightfoldError):
    """Another of the processes that work together is gone, so this one cannot go on; it is not the cause."""
