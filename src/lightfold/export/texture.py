"""A picture around a mesh: charts by xatlas, colours by what the training views see at every texel.

Vertex colours are as fine as the triangles; a texture is as fine as the pictures, on a mesh of few triangles. The views
may hold renderings or the photographs themselves: `observe` looks colours up by position, in whatever size they have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from types import ModuleType

import numpy as np
import torch
from scipy import ndimage

from ..errors import RunError
from .surface import UNSEEN_COLOUR, Mesh
from .views import Progress, Seen, observe

PADDING = 2
"""Texels between charts, which are filled with the nearest colour so that no seam shows when a viewer blends texels."""


def textured(mesh: Mesh, views: Sequence[Seen], size: int, slack: float, progress: Progress | None = None) -> Mesh:
    """The mesh, in the scene frame, cut into charts and painted: `uv` and `texture` [size, size, 3] are set.

    Vertices on a cut are doubled, so their number grows. Raises RunError when xatlas is not installed.
    """
    xatlas = xatlas_module()
    if progress is not None:
        progress("unwrapping", 0, 1)
    atlas = xatlas.Atlas()
    atlas.add_mesh(
        (mesh.vertices - mesh.vertices.mean(axis=0)).astype(np.float32), mesh.faces.astype(np.uint32), mesh.normals
    )
    options = xatlas.PackOptions()
    options.resolution, options.padding, options.bilinear = size, PADDING, True
    atlas.generate(xatlas.ChartOptions(), options)
    vertex, faces, uv = atlas[0]
    faces = faces.astype(np.int64)
    colours = None if mesh.colours is None else mesh.colours[vertex]
    mesh = Mesh(mesh.vertices[vertex], faces, mesh.normals[vertex], colours, uv.astype(np.float32))
    texel, face, share = texels(uv[faces], size)
    corners = faces[face]
    points = torch.from_numpy(np.einsum("nc,ncd->nd", share, mesh.vertices[corners])).float()
    normals = torch.from_numpy(np.einsum("nc,ncd->nd", share, mesh.normals[corners].astype(np.float64))).float()
    rgb = observe(points, torch.nn.functional.normalize(normals, dim=1), views, slack, progress).rgb.numpy()
    picture = np.full((size * size, 3), UNSEEN_COLOUR, dtype=np.uint8)
    known = np.isfinite(rgb).all(axis=1)
    picture[texel[known]] = rgb[known].round().clip(0, 255)
    painted = np.zeros(size * size, dtype=bool)
    painted[texel[known]] = True
    if painted.any():
        nearest = ndimage.distance_transform_edt(
            ~painted.reshape(size, size), return_distances=False, return_indices=True
        )
        picture = picture.reshape(size, size, 3)[nearest[0], nearest[1]]
    return replace(mesh, texture=picture.reshape(size, size, 3))


def xatlas_module() -> ModuleType:
    """The library that cuts a surface into charts; RunError where it is not installed."""
    try:
        return import_module("xatlas")
    except ImportError as error:
        raise RunError(
            'A texture needs the package xatlas: `pip install "lightfold[mesh]"`, or leave --texture away and have '
            "coloured vertices."
        ) from error


def texels(corners: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which texels triangles cover: their numbers [N] (row by row from the top), faces [N], barycentric shares [N, 3].

    corners: [F, 3, 2] in [0, 1], v upward. A texel belongs to a triangle that its middle lies in, or less than a texel
    beside: charts reach a little over their rims. Triangles are taken together by the size of their boxes.
    """
    at = corners.astype(np.float64) * size
    at[..., 1] = size - at[..., 1]
    low = np.floor(at.min(axis=1) - 1).astype(np.int64).clip(0, size - 1)
    high = np.floor(at.max(axis=1) + 1).astype(np.int64).clip(0, size - 1)
    extent = (high - low + 1).max(axis=1)
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
    for side in np.unique(extent):
        step = np.arange(side)
        offset = np.stack(np.meshgrid(step, step), axis=-1).reshape(-1, 2)
        members = np.flatnonzero(extent == side)
        for chunk in np.array_split(members, max(1, len(members) * side * side // (1 << 20))):
            texel = low[chunk, None] + offset
            share = _barycentric(at[chunk], texel + 0.5)
            # How far outside a texel is, in texels: a negative share times the height over the opposite side.
            edge = at[chunk][:, [2, 0, 1]] - at[chunk][:, [1, 2, 0]]
            area = np.abs(_cross(at[chunk, 1] - at[chunk, 0], at[chunk, 2] - at[chunk, 0]))
            height = area[:, None] / np.maximum(np.linalg.norm(edge, axis=2), 1e-12)
            outside = (-share * height[:, None]).max(axis=2)
            inside = (outside < 1.0) & (texel < size).all(axis=2) & (area[:, None] > 1e-9)
            which, where = np.nonzero(inside)
            texel = texel[which, where]
            found.append((texel[:, 1] * size + texel[:, 0], chunk[which], share[which, where], outside[which, where]))
    number, face, share, outside = (np.concatenate(column) for column in zip(*found, strict=True))
    # Where several triangles claim a texel, the one that it lies deepest in has it.
    order = np.lexsort((outside, number))
    number, first = np.unique(number[order], return_index=True)
    chosen = order[first]
    share = share[chosen].clip(0, 1)
    return number, face[chosen], share / share.sum(axis=1, keepdims=True)


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _barycentric(corners: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Shares [F, N, 3] of the corners [F, 3, 2] at points [F, N, 2]; anything for a triangle without area."""
    a, b, c = corners[:, None, 0], corners[:, None, 1], corners[:, None, 2]
    area = _cross(b - a, c - a)
    area = np.where(np.abs(area) < 1e-12, 1e-12, area)
    beta, gamma = _cross(points - a, c - a) / area, _cross(b - a, points - a) / area
    return np.stack([1 - beta - gamma, beta, gamma], axis=-1)
