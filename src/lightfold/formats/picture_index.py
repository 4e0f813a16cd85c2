"""Finding the pictures that another program knows by a label: a path on somebody's disk, a file name, or less."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from pathlib import Path

from .frames import PICTURE_SUFFIXES, FrameError
from .photos import NOT_PHOTOS


class PictureIndex:
    """The pictures in a folder and the folders inside it, by name.

    Nothing outside the folder can be found, whatever a label says. Folders of masks, depths and smaller copies are
    passed over, and so are hidden ones; links to folders are not followed.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._taken: set[tuple[str, ...]] = set()
        self._by_name: dict[str, list[tuple[str, ...]]] = defaultdict(list)
        for folder, inside, files in os.walk(root):
            inside[:] = sorted(name for name in inside if not name.startswith(".") and name.lower() not in NOT_PHOTOS)
            above = Path(folder).relative_to(root).parts
            for name in sorted(files):
                stem, suffix = os.path.splitext(name)
                if suffix.lower() in PICTURE_SUFFIXES and not name.startswith("."):
                    for key in {name.casefold(), stem.casefold()}:
                        self._by_name[key].append((*above, name))

    def take(self, label: str) -> tuple[Path, str]:
        """The picture that a label means, and its path relative to the folder with forward slashes.

        The file name decides, without its suffix if need be; of several, the one whose folders agree with the most of
        the label's. Raises FrameError when there is none, when two agree equally well, and when it was taken before.
        """
        parts = [part.casefold() for part in re.split(r"[/\\]+", label) if part not in ("", ".", "..")]
        name = parts[-1] if parts else ""
        candidates = self._by_name.get(name) or self._by_name.get(os.path.splitext(name)[0]) or []
        if not candidates:
            raise FrameError("were left out because the picture is not on disk")
        agreement = [_common_end([part.casefold() for part in found[:-1]], parts[:-1]) for found in candidates]
        best = max(agreement)
        if agreement.count(best) > 1:
            raise FrameError("were left out because more than one picture has their name")
        found = candidates[agreement.index(best)]
        if found in self._taken:
            raise FrameError("were left out because the same picture is listed before")
        self._taken.add(found)
        return self.root.joinpath(*found), "/".join(found)


def _common_end(a: list[str], b: list[str]) -> int:
    count = 0
    while count < min(len(a), len(b)) and a[-1 - count] == b[-1 - count]:
        count += 1
    return count
