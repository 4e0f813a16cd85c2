"""What tells a player that a video is spherical, or for two eyes: boxes of Spherical Video V2 (Google 2016) in an MP4.

    moov/trak/mdia/minf/stbl/stsd/avc1
        st3d            how the eyes' pictures share the frame
        sv3d            only in spherical video
            svhd        who wrote it
            proj
                prhd    direction of the picture's middle: 0, 0, 0
                equi    what an equirectangular picture leaves out at its four sides

An MP4 (ISO/IEC 14496-12) is a row of boxes: size, four letters, content, which may be boxes again. The index, `moov`,
says at which byte each chunk of pictures begins; when it grows in front of them, those numbers grow too.
"""

from __future__ import annotations

import mmap
import os
import shutil
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

LAYOUTS = ("mono", "top-bottom", "side-by-side")
"""In the order of their numbers in st3d. The left eye is above, or on the left."""
WRITER = b"Lightfold"
WAY = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd")
"""The boxes around the sample entries."""
FIELDS = {b"stsd": 8}
"""Bytes between the header of a box and the boxes in it. Sample entries, named after their codec, have 78."""
ENTRY_FIELDS = 78


@dataclass(frozen=True)
class Tags:
    """What a player is told.

    layout: of `LAYOUTS`.
    cut:    None for video that is not spherical. Else the shares of a whole panorama (360 x 180 degrees) that are
            missing at the top, the bottom, the left and the right: (0, 0, 0.25, 0.25) for its front half.
    """

    layout: str = "mono"
    cut: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class _Box:
    """Where a box lies in a file: its first byte, the first byte of its content, and the byte after its last."""

    kind: bytes
    begin: int
    content: int
    end: int


def write_tags(path: Path, tags: Tags) -> None:
    """Put tags into the first video of an MP4. The file is the old one until it is wholly the new one.

    Raises ValueError when it is no MP4 with an index and a video in it, or has such tags; OSError as it comes.
    """
    if tags.layout not in LAYOUTS:
        raise ValueError(f"tags.layout: expected one of {', '.join(LAYOUTS)}, got {tags.layout!r}")
    if read_tags(path) is not None:
        raise ValueError(f"path: expected a video without such tags, got {path}")
    added = _tag_boxes(tags)
    beside = path.with_name(f"{path.name}.tagged")
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            entry, around = _sample_entry(data)
            index = around[0]
            grown = bytearray(data[index.begin : entry.end] + added + data[entry.end : index.end])
            for box in (*around, entry):
                _add(grown, ">I", box.begin - index.begin, len(added))
            for number, code in _chunk_offsets(data, index):
                # Pictures behind the place where the boxes go in move back; those before the index stay.
                if struct.unpack_from(code, data, number)[0] >= entry.end:
                    place = number - index.begin + (len(added) if number >= entry.end else 0)
                    _add(grown, code, place, len(added))
            with beside.open("wb") as new:
                file.seek(0)
                _copy(file, new, index.begin)
                new.write(grown)
                file.seek(index.end)
                shutil.copyfileobj(file, new)
        os.replace(beside, path)
    except struct.error as error:
        raise ValueError(f"path: expected an MP4 whose boxes are whole and below 4 GB, got {path}") from error
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def read_tags(path: Path) -> Tags | None:
    """The tags of an MP4's first video, or None where it has none. Raises ValueError for what is no such file."""
    layout: str | None = None
    cut: tuple[float, float, float, float] | None = None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        entry, _ = _sample_entry(data)
        for box in _boxes(data, entry.content + ENTRY_FIELDS, entry.end):
            if box.kind == b"st3d" and data[box.content + 4] < len(LAYOUTS):
                layout = LAYOUTS[data[box.content + 4]]
            if box.kind == b"sv3d":
                for row in _inside(data, box, (b"proj", b"equi")):
                    top, bottom, left, right = struct.unpack_from(">4I", data, row[-1].content + 4)
                    cut = top / 2**32, bottom / 2**32, left / 2**32, right / 2**32
    return None if layout is None and cut is None else Tags(layout or "mono", cut)


def _tag_boxes(tags: Tags) -> bytes:
    """st3d and, for spherical video, sv3d."""
    boxes = _full_box(b"st3d", struct.pack(">B", LAYOUTS.index(tags.layout)))
    if tags.cut is not None:
        shares = (min(round(share * 2**32), 2**32 - 1) for share in tags.cut)
        projection = _full_box(b"prhd", struct.pack(">3i", 0, 0, 0)) + _full_box(b"equi", struct.pack(">4I", *shares))
        boxes += _box(b"sv3d", _full_box(b"svhd", WRITER + b"\0") + _box(b"proj", projection))
    return boxes


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


def _full_box(kind: bytes, content: bytes) -> bytes:
    """A box that begins with a version and flags, all 0."""
    return _box(kind, bytes(4) + content)


# --- finding boxes --------------------------------------------------------------------------------------------------


def _boxes(data: mmap.mmap, begin: int, end: int) -> Iterator[_Box]:
    """The boxes in a part of a file, one after the other. Raises ValueError where they are no boxes."""
    while begin + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, begin)
        head = 8
        if size == 1 and begin + 16 <= end:
            (size,) = struct.unpack_from(">Q", data, begin + 8)
            head = 16
        elif size == 0:
            size = end - begin
        if not head <= size <= end - begin:
            raise ValueError(f"path: expected an MP4, got a file whose box at byte {begin} has no sensible size")
        yield _Box(kind, begin, begin + head, begin + size)
        begin += size


def _inside(data: mmap.mmap, box: _Box, way: Sequence[bytes]) -> Iterator[tuple[_Box, ...]]:
    """Rows of nested boxes of these kinds in a box, the box itself first."""
    if not way:
        yield (box,)
        return
    for child in _boxes(data, box.content + FIELDS.get(box.kind, 0), box.end):
        if child.kind == way[0]:
            for row in _inside(data, child, way[1:]):
                yield (box, *row)


def _sample_entry(data: mmap.mmap) -> tuple[_Box, tuple[_Box, ...]]:
    """The first sample entry of the first video, and the boxes around it from the index inward."""
    file = _Box(b"", 0, 0, len(data))
    for row in _inside(data, file, WAY):
        media = row[4]
        if not any(box.kind == b"vmhd" for box in _boxes(data, media.content, media.end)):
            continue
        for entry in _boxes(data, row[-1].content + FIELDS[b"stsd"], row[-1].end):
            if entry.end - entry.content >= ENTRY_FIELDS and all(box.content - box.begin == 8 for box in row[1:]):
                return entry, row[1:]
    raise ValueError("path: expected an MP4 with a video in it")


def _chunk_offsets(data: mmap.mmap, index: _Box) -> Iterator[tuple[int, str]]:
    """Where in the file the numbers lie that say where chunks begin, of all tracks, and how they are written."""
    for kind, code, step in ((b"stco", ">I", 4), (b"co64", ">Q", 8)):
        for row in _inside(data, index, (*WAY[1:-1], kind)):
            table = row[-1]
            (count,) = struct.unpack_from(">I", data, table.content + 4)
            for place in range(table.content + 8, min(table.content + 8 + count * step, table.end), step):
                yield place, code


# --- bytes ----------------------------------------------------------------------------------------------------------


def _add(data: bytearray, code: str, place: int, more: int) -> None:
    """Add to a number of which the format is known."""
    (number,) = struct.unpack_from(code, data, place)
    struct.pack_into(code, data, place, number + more)


def _copy(source: IO[bytes], target: IO[bytes], count: int) -> None:
    """The next `count` bytes."""
    while count > 0:
        part = source.read(min(count, 1 << 20))
        if not part:
            raise ValueError("path: expected a file that nobody cuts meanwhile")
        target.write(part)
        count -= len(part)
