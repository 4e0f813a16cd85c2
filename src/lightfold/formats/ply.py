"""Point clouds in PLY files (Turk 1994): the vertices' x, y, z, their colours and, where present, an error.

ASCII and both binary byte orders. Elements before the vertices may hold plain numbers; what comes after is not read.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from ..capture import Points
from ..errors import CaptureError
from ..files import whole_file

TYPES = {"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4"}
TYPES |= {"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4", "float32": "f4"}
TYPES |= {"double": "f8", "float64": "f8"}
ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
MAX_HEADER_LINES = 1000


@dataclass
class _Element:
    name: str
    count: int
    properties: list[tuple[str, str]]
    has_list: bool = False


def read_points(path: Path) -> Points:
    """Vertices of a PLY file. Rows whose position is not finite are skipped. Raises CaptureError for a damaged file."""
    try:
        with open(path, "rb") as file:
            order, elements = _read_header(file, path)
            return _points_from(_read_vertices(file, order, elements, path), path)
    except OSError as error:
        raise CaptureError(f"The point cloud {path} cannot be read: {error.strerror}.") from error


def write_points(path: Path, points: Points) -> None:
    """Write a binary PLY, whole or not at all. Positions and errors are doubles; tracks have no place in it.

    Raises RunError when the file cannot be written.
    """
    columns: list[tuple[str, str]] = [(axis, "<f8") for axis in "xyz"]
    columns += [(name, "u1") for name in ("red", "green", "blue")] if points.rgb is not None else []
    columns += [("error", "<f8")] if points.error is not None else []
    rows = np.empty(len(points), dtype=columns)
    for i, axis in enumerate("xyz"):
        rows[axis] = points.xyz[:, i].numpy()
    if points.rgb is not None:
        for i, name in enumerate(("red", "green", "blue")):
            rows[name] = points.rgb[:, i].numpy()
    if points.error is not None:
        rows["error"] = points.error.numpy()
    spelled = {"<f8": "double", "u1": "uchar"}
    properties = "".join(f"property {spelled[kind]} {name}\n" for name, kind in columns)
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(points)}\n{properties}end_header\n"
    with whole_file(path) as partial:
        partial.write_bytes(header.encode("ascii") + rows.tobytes())


def _read_header(file: BinaryIO, path: Path) -> tuple[str, list[_Element]]:
    if file.readline(16).strip() != b"ply":
        raise CaptureError(f"{path} is not a PLY file: its first line is not 'ply'.")
    order: str | None = None
    elements: list[_Element] = []
    for _ in range(MAX_HEADER_LINES):
        words = file.readline(4096).decode("latin-1").split()
        match words:
            case ["end_header"]:
                if order is None:
                    break
                return order, elements
            case ["format", kind, *_] if kind in ORDERS:
                order = ORDERS[kind]
            case ["element", name, count] if count.isascii() and count.isdigit() and len(count) < 16:
                elements.append(_Element(name, int(count), []))
            case ["property", "list", _, _, _] if elements:
                elements[-1].has_list = True
            case ["property", kind, name] if elements and kind in TYPES:
                elements[-1].properties.append((name, TYPES[kind]))
            case ["comment" | "obj_info", *_]:
                pass
            case _:
                raise CaptureError(f"The header of {path} has a line that is not PLY: {' '.join(words)[:80]!r}.")
    raise CaptureError(f"{path} has no complete PLY header.")


def _read_vertices(file: BinaryIO, order: str, elements: list[_Element], path: Path) -> np.ndarray:
    """The vertex rows as a structured array (ASCII: all columns float64)."""
    names = [element.name for element in elements]
    if "vertex" not in names:
        raise CaptureError(f"{path} has no vertices.")
    before, vertex = elements[: names.index("vertex")], elements[names.index("vertex")]
    if vertex.has_list or any(element.has_list for element in before):
        raise CaptureError(
            f"{path} has a list among or before its vertices, which no point cloud needs; write it without."
        )
    columns = [name for name, _ in vertex.properties]
    if not {"x", "y", "z"} <= set(columns) or len(set(columns)) != len(columns):
        raise CaptureError(
            f"The vertices of {path} need one each of x, y, z; their properties are {', '.join(columns)}."
        )
    if order == "":
        return _read_ascii(file, sum(element.count for element in before), vertex, path)
    row = np.dtype([(name, order + kind) for name, kind in vertex.properties])
    skip = sum(element.count * sum(np.dtype(kind).itemsize for _, kind in element.properties) for element in before)
    available = os.fstat(file.fileno()).st_size - file.tell() - skip
    if available < vertex.count * row.itemsize:
        raise CaptureError(
            f"{path} is truncated: {vertex.count} vertices need {vertex.count * row.itemsize} bytes, and "
            f"{max(available, 0)} follow."
        )
    file.seek(skip, os.SEEK_CUR)
    return np.frombuffer(file.read(vertex.count * row.itemsize), dtype=row)


def _read_ascii(file: BinaryIO, skip: int, vertex: _Element, path: Path) -> np.ndarray:
    lines = file.read().splitlines()[skip : skip + vertex.count]
    if len(lines) < vertex.count:
        raise CaptureError(f"{path} is truncated: it promises {vertex.count} vertices and holds {len(lines)}.")
    rows = np.empty(vertex.count, dtype=[(name, "f8") for name, _ in vertex.properties])
    for i, line in enumerate(lines):
        words = line.split()
        try:
            rows[i] = tuple(float(word) for word in words[: len(vertex.properties)])
        except ValueError as error:
            raise CaptureError(
                f"Vertex {i} of {path} is not {len(vertex.properties)} numbers: {line[:60]!r}."
            ) from error
    return rows


def _points_from(rows: np.ndarray, path: Path) -> Points:
    xyz = np.stack([rows[axis].astype(np.float64) for axis in "xyz"], axis=1)
    keep = np.isfinite(xyz).all(axis=1)
    names = rows.dtype.names or ()
    rgb = error = None
    if {"red", "green", "blue"} <= set(names):
        colour = np.stack([rows[name].astype(np.float64) for name in ("red", "green", "blue")], axis=1)
        # Colours are bytes by custom; a few writers store floats in [0, 1] instead. ASCII rows have lost their type.
        is_unit = (
            rows.dtype["red"].kind == "f" and colour.size > 0 and np.nanmax(colour) <= 1 and (colour % 1 != 0).any()
        )
        colour = np.nan_to_num(colour * 255 if is_unit else colour)
        rgb = torch.from_numpy(np.clip(np.round(colour), 0, 255).astype(np.uint8)[keep])
    if "error" in names:
        error = torch.from_numpy(rows["error"].astype(np.float64)[keep])
    return Points(torch.from_numpy(xyz[keep]), rgb, error)
