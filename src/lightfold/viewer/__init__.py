"""The live view of a run, a capture or a training: a web page served from this machine, on viser."""
