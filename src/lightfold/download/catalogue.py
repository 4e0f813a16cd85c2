"""The list of public data sets, sources.json: one entry each, with where its facts come from.

name, title, about, licence, home, source   words; `name` is what one types
captures    {name: overrides}; a capture is one folder that `lightfold run` takes
ask         true when captures have to be chosen, because all of them would be too much
note        something to know before, or null
and one of
archives    {"urls", "inside", "bytes", "about_bytes", "sha256", "md5"}: zip or tar, with {capture} in urls and
            inside (the folder of the archive that becomes the capture); captures may override any of these
whole       beside `archives`: one archive with all captures, taken when all are asked for
files       {"url": with {file}, "list": {path: [bytes, sha256]}}: single files
bucket      {"url", "prefix", "sizes": {name: {"folder", "suffix"}}, "default", "beside"}: a store that lists itself
by_hand     sentences: what to do where a program may not download
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class Source:
    """A public data set. Fields as in sources.json; what an entry does not have is empty."""

    name: str
    title: str
    about: str
    licence: str
    home: str
    source: str
    captures: Mapping[str, Mapping[str, Any]]
    ask: bool = False
    note: str | None = None
    archives: Mapping[str, Any] | None = None
    whole: Mapping[str, Any] | None = None
    files: Mapping[str, Any] | None = None
    bucket: Mapping[str, Any] | None = None
    by_hand: str | None = None

    def archive(self, capture: str) -> dict[str, Any]:
        """What `archives` says about one capture, with its name filled in."""
        return filled({**(self.archives or {}), **self.captures[capture]}, capture)

    def size(self) -> int | None:
        """Bytes of all captures as far as they are known; None when nothing is."""
        if self.whole:
            return stated_size(self.whole)
        if self.files:
            return sum(size for size, _ in self.files["list"].values())
        entries = [self.archive(name) if self.archives else dict(about) for name, about in self.captures.items()]
        # Captures in one archive share its bytes.
        sizes = {tuple(e.get("urls", [i])): stated_size(e, self.bucket) for i, e in enumerate(entries)}
        known = [size for size in sizes.values() if size is not None]
        return sum(known) if known else None


def filled(entry: dict[str, Any], capture: str) -> dict[str, Any]:
    """An entry with {capture} replaced by a name."""
    urls = [url.replace("{capture}", capture) for url in entry.get("urls", [])]
    return entry | {"urls": urls, "inside": entry.get("inside", "").replace("{capture}", capture)}


def stated_size(entry: Mapping[str, Any], bucket: Mapping[str, Any] | None = None) -> int | None:
    """Exact bytes where an entry has them, else about how many, else None. bucket: sizes there depend on the pictures'
    size, and its default counts."""
    about = entry.get("about_bytes")
    if isinstance(about, Mapping) and bucket is not None:
        about = about.get(bucket["default"])
    exact = entry.get("bytes")
    return exact if isinstance(exact, int) else about if isinstance(about, int) else None


@cache
def sources() -> dict[str, Source]:
    """All public data sets by name, in the order of the file."""
    entries = json.loads(files("lightfold").joinpath("sources.json").read_text(encoding="utf-8"))
    return {entry["name"]: Source(**entry) for entry in entries}
