"""PLY files (Turk 1994) of meshes and of point clouds with normals, for programs that turn clouds into surfaces."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..files import whole_file


def write_ply(
    path: Path,
    xyz: np.ndarray,
    normals: np.ndarray | None = None,
    colours: np.ndarray | None = None,
    faces: np.ndarray | None = None,
) -> None:
    """Write a binary PLY, whole or not at all.

    xyz [V, 3] float64; normals [V, 3]; colours [V, 3] uint8; faces [F, 3] integers. Positions are floats, as most
    readers expect, unless that would lose what georeferenced coordinates need; then they are doubles. Raises RunError
    when the file cannot be written.
    """
    number = "<f8" if needs_doubles(xyz) else "<f4"
    columns = [(axis, number) for axis in "xyz"]
    columns += [(name, "<f4") for name in ("nx", "ny", "nz")] if normals is not None else []
    columns += [(name, "u1") for name in ("red", "green", "blue")] if colours is not None else []
    rows = np.empty(len(xyz), dtype=columns)
    parts = [part for part in (xyz, normals, colours) if part is not None]
    for (name, _), values in zip(columns, np.concatenate([part.T for part in parts]), strict=True):
        rows[name] = values
    spelled = {"<f8": "double", "<f4": "float", "u1": "uchar"}
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(xyz)}"]
    header += [f"property {spelled[kind]} {name}" for name, kind in columns]
    triangles = b""
    if faces is not None:
        header += [f"element face {len(faces)}", "property list uchar int vertex_indices"]
        packed = np.empty(len(faces), dtype=[("count", "u1"), ("index", "<i4", 3)])
        packed["count"], packed["index"] = 3, faces
        triangles = packed.tobytes()
    text = "\n".join([*header, "end_header", ""])
    with whole_file(path) as partial:
        partial.write_bytes(text.encode("ascii") + rows.tobytes() + triangles)


def needs_doubles(xyz: np.ndarray) -> bool:
    """Whether rounding to float32 would move a point by more than a 100,000th of the whole extent."""
    if len(xyz) == 0:
        return False
    extent = float((xyz.max(axis=0) - xyz.min(axis=0)).max())
    return float(np.abs(xyz).max()) * 2.0**-24 > 1e-5 * extent
