"""Make the sample capture: a still life in a sunlit loggia, ray traced by this one file.

The pictures that a newcomer trains on first have to be free of other people's rights, small enough for a repository,
pleasant to look at, and known exactly. So this file *is* the scene: a few dozen signed distance functions, some
procedural paint, a sun, and a camera with a mildly distorted lens that walks around the table. Numpy and Pillow are
all it needs.

    python make_sample.py                     # writes images/, transforms.json and truth/ beside this file
    python make_sample.py --only-truth        # depth and normals only
    python make_sample.py --out /tmp/small --views 12 --size 160x120

Conventions. World: metres, z up, the origin on the table top, the floor at z = -0.75. Cameras inside this file are
OpenGL camera-to-world matrices (x right, y up, looking along -z), as they are written to transforms.json. A pixel's
centre lies at +0.5. Depth is the distance along the ray. Vectors inside the renderer are arrays of shape [3, N],
because a contiguous row per axis is what numpy is quick at; the public functions take and return the usual [N, 3].

The method is sphere tracing (J. C. Hart, "Sphere tracing", The Visual Computer 1996) inside a bounding cylinder per
object; the room, the arches and the landscape are intersected in closed form. Sun light is traced with a penumbra
estimate from the nearest miss, sky light is attenuated by ambient occlusion sampled along the normal, and glossy things
trace one reflection.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.floating]

VIEWS = 60
SIZE = (640, 480)
JPEG_QUALITY = 75
"""With chroma at full resolution, as the cloth's strong colours need: truer than 90 with halved chroma, and smaller."""
TRUTH_EVERY = 8
TRUTH_SIZE = (320, 240)
DEPTH_UNIT = 0.001
"""Metres per step of the 16-bit depth pictures; the value 0 means that the ray reaches the sky."""

# ----------------------------------------------------------------------------------------------------------------------
# Small vector algebra on [3, N]
# ----------------------------------------------------------------------------------------------------------------------


def dot(a: Array, b: Array) -> Array:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def length(*parts: Array) -> Array:
    """Euclidean length of a vector given by its components."""
    total = parts[0] * parts[0]
    for part in parts[1:]:
        total = total + part * part
    return np.sqrt(total)


def normalised(v: Array) -> Array:
    return v / np.maximum(length(v[0], v[1], v[2]), 1e-12)


def mix(a: Array | float, b: Array | float, amount: Array | float) -> Array:
    return a + (b - a) * amount


def clamp(x: Array, low: Array | float, high: Array | float) -> Array:
    """np.clip without its Python wrappers, which cost more than the work on short arrays."""
    return np.minimum(np.maximum(x, low), high)


def smoothstep(low: Array | float, high: Array | float, x: Array) -> Array:
    s = clamp((x - low) / (high - low), 0.0, 1.0)
    return s * s * (3.0 - 2.0 * s)


def inside(signed: Array, footprint: Array) -> Array:
    """1 where `signed` is negative, 0 where positive, with an edge as wide as one sample: an antialiased boundary."""
    return clamp(0.5 - signed / np.maximum(footprint, 1e-5), 0.0, 1.0)


def rotation(axis: str, degrees: float) -> NDArray[np.float64]:
    """Matrix that turns vectors by `degrees` about a coordinate axis, counter-clockwise."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    i = "xyz".index(axis)
    j, k = (i + 1) % 3, (i + 2) % 3
    matrix = np.eye(3)
    matrix[j, j], matrix[j, k], matrix[k, j], matrix[k, k] = c, -s, s, c
    return matrix


def decode(srgb_bytes: NDArray[np.uint8]) -> Array:
    """Linear light in [0, 1] of sRGB bytes."""
    srgb = srgb_bytes / 255.0
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def encode(light: Array) -> NDArray[np.uint8]:
    """sRGB bytes of linear light in [0, 1]."""
    srgb = np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.maximum(light, 1e-9) ** (1 / 2.4) - 0.055)
    return clamp(np.rint(srgb * 255.0), 0, 255).astype(np.uint8)


def linear(hex_colour: str) -> NDArray[np.float32]:
    """Linear colour [3, 1] of an sRGB hex string such as "c8563c"."""
    return decode(np.frombuffer(bytes.fromhex(hex_colour), dtype=np.uint8)).astype(np.float32)[:, None]


def palette(*colours: str) -> NDArray[np.float32]:
    """Linear colours [3, K], to be indexed by a random integer per cell."""
    return np.concatenate([linear(c) for c in colours], axis=1)


# ----------------------------------------------------------------------------------------------------------------------
# Randomness of the paint: one fixed lattice of random numbers
# ----------------------------------------------------------------------------------------------------------------------

LATTICE_SIDE = 64
LATTICE = np.random.default_rng(20240607).random(LATTICE_SIDE**3, dtype=np.float32)


def lattice_index(i: Array, j: Array, k: Array) -> NDArray[np.int64]:
    mask = LATTICE_SIDE - 1
    return ((i & mask) * LATTICE_SIDE + (j & mask)) * LATTICE_SIDE + (k & mask)


def cell_random(i: Array, j: Array, salt: int) -> NDArray[np.float32]:
    """A random number in [0, 1) per integer cell (i, j); salts give independent numbers for the same cell."""
    layer = np.full((), salt * 7 + 3)
    return LATTICE[lattice_index(i.astype(np.int64) + 17 * salt, j.astype(np.int64) + 5 * salt, layer)]


def noise(p: Array) -> NDArray[np.float32]:
    """Smooth value noise in [0, 1] at p [3, N], one random number per unit cube."""
    floor = np.floor(p)
    f = (p - floor).astype(np.float32)
    f = f * f * (3.0 - 2.0 * f)
    i = floor.astype(np.int64) & (LATTICE_SIDE - 1)
    i1 = (i + 1) & (LATTICE_SIDE - 1)
    x0, x1 = i[0] * LATTICE_SIDE**2, i1[0] * LATTICE_SIDE**2
    y0, y1 = i[1] * LATTICE_SIDE, i1[1] * LATTICE_SIDE
    a, b, c, d = x0 + y0, x1 + y0, x0 + y1, x1 + y1
    levels = []
    for k in (i[2], i1[2]):
        near = mix(LATTICE[a + k], LATTICE[b + k], f[0])
        levels.append(mix(near, mix(LATTICE[c + k], LATTICE[d + k], f[0]), f[1]))
    return mix(levels[0], levels[1], f[2])


def fractal(p: Array, footprint: Array, frequency: float, octaves: int) -> NDArray[np.float32]:
    """Octaves of noise, about [-0.5, 0.5]; one that is finer than the sample's footprint fades out instead of
    aliasing."""
    total = np.zeros(p.shape[1], dtype=np.float32)
    amplitude = 0.5
    for octave in range(octaves):
        fade = clamp(1.6 - 2.0 * footprint * frequency, 0.0, 1.0)
        if not fade.any():
            break
        total += amplitude * fade * (noise(p * frequency + 11.3 * octave) - 0.5) * 1.8
        amplitude *= 0.55
        frequency *= 2.03
    return total


def flat(u: Array, v: Array, layer: float = 0.0) -> Array:
    """Points [3, N] on the plane number `layer` of the noise, for two-dimensional paint."""
    return np.stack([u, v, np.full_like(u, layer + 0.37)])


# ----------------------------------------------------------------------------------------------------------------------
# Signed distance functions: metres, negative inside, p [3, N] in the object's own frame
# ----------------------------------------------------------------------------------------------------------------------


Triple = tuple[float, float, float]


def rounded_corner(across: Array, along: Array, rounding: float) -> Array:
    """Distance to a quarter plane (both arguments negative inside) whose corner is rounded."""
    outside = length(np.maximum(across, 0.0), np.maximum(along, 0.0))
    return outside + np.minimum(np.maximum(across, along), 0.0) - rounding


def ellipsoid(p: Array, radii: Triple) -> Array:
    """First-order distance to an axis-aligned ellipsoid (exact for a sphere, a close bound otherwise)."""
    a = length(p[0] / radii[0], p[1] / radii[1], p[2] / radii[2])
    b = length(p[0] / radii[0] ** 2, p[1] / radii[1] ** 2, p[2] / radii[2] ** 2)
    return a * (a - 1.0) / np.maximum(b, 1e-6)


def sphere(p: Array, radius: float, centre: Triple = (0.0, 0.0, 0.0)) -> Array:
    return length(p[0] - centre[0], p[1] - centre[1], p[2] - centre[2]) - radius


def tube(p: Array, points: list[tuple[float, float, float, float]], blend: float = 0.0) -> Array:
    """Chain of round cones through points (x, y, z, radius); `blend` rounds the joints."""
    result: Array | None = None
    for (ax, ay, az, ar), (bx, by, bz, br) in zip(points[:-1], points[1:], strict=True):
        ux, uy, uz = bx - ax, by - ay, bz - az
        x, y, z = p[0] - ax, p[1] - ay, p[2] - az
        s = clamp((x * ux + y * uy + z * uz) / (ux * ux + uy * uy + uz * uz), 0.0, 1.0)
        distance = length(x - s * ux, y - s * uy, z - s * uz) - (ar + s * (br - ar))
        result = distance if result is None else smooth_union(result, distance, blend)
    assert result is not None, "a tube needs two points"
    return result


def torus(p: Array, major: float, minor: float, height: float = 0.0) -> Array:
    """Ring around the z axis."""
    return length(length(p[0], p[1]) - major, p[2] - height) - minor


def box(p: Array, half: Triple, rounding: float, centre: Triple = (0, 0, 0)) -> Array:
    q = [np.abs(p[i] - centre[i]) - (half[i] - rounding) for i in range(3)]
    outside = length(*[np.maximum(part, 0.0) for part in q])
    return outside + np.minimum(np.maximum(np.maximum(q[0], q[1]), q[2]), 0.0) - rounding


def disc(p: Array, radius: float, low: float, high: float, rounding: float) -> Array:
    """Upright cylinder with rounded edges."""
    across = length(p[0], p[1]) - (radius - rounding)
    along = np.abs(p[2] - 0.5 * (low + high)) - (0.5 * (high - low) - rounding)
    return rounded_corner(across, along, rounding)


def smooth_union(a: Array, b: Array, width: float) -> Array:
    """Union whose crease is filled over about `width` metres."""
    if width == 0.0:
        return np.minimum(a, b)
    h = np.maximum(width - np.abs(a - b), 0.0) / width
    return np.minimum(a, b) - h * h * (0.25 * width)


# ----------------------------------------------------------------------------------------------------------------------
# What a surface looks like, and what an object is
# ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Paint:
    """Appearance of N surface points."""

    albedo: Array
    """Diffuse reflectance, linear [3, N]."""
    specular: Array | float = 0.03
    """Mirror reflectance at normal incidence, [3, N], [3, 1] or a number."""
    gloss: float = 30.0
    """Exponent of the sun's highlight."""
    mirror: float = 0.0
    """How much of the reflected scene is seen; 0 traces no reflection ray."""


@dataclass(frozen=True)
class Solid:
    """An object: its shape, its paint, its place, and the upright cylinder that encloses it."""

    name: str
    distance: Callable[[Array], Array]
    paint: Callable[[Array, Array], Paint]
    origin: Triple
    local_from_world: NDArray[np.float64] | None
    """Rotation; none when the object stands as it was made."""
    radius: float
    low: float
    high: float
    """The cylinder stands on `origin`: |xy - origin| <= radius, low <= z - origin <= high, in world axes."""
    caution: float = 1.0
    """Factor on each march step, below 1 where `distance` overestimates."""

    def local(self, p: Array) -> Array:
        shifted = p - np.array(self.origin, dtype=p.dtype)[:, None]
        return shifted if self.local_from_world is None else self.local_from_world.astype(p.dtype) @ shifted

    def signed_distance(self, p: Array) -> Array:
        return self.distance(self.local(p)) * self.caution


def solid(
    name: str,
    distance: Callable[[Array], Array],
    paint: Callable[[Array, Array], Paint],
    origin: Triple,
    bound: Triple,
    turn: NDArray[np.float64] | None = None,
    caution: float = 1.0,
) -> Solid:
    """A solid with its bound (radius, low, high); `turn` is world_from_local, a rotation."""
    return Solid(name, distance, paint, origin, None if turn is None else turn.T, *bound, caution)


# ----------------------------------------------------------------------------------------------------------------------
# The table and its patchwork cloth
# ----------------------------------------------------------------------------------------------------------------------

TABLE_RADIUS = 0.60
HEM = -0.27
QUILT = palette("1f3f6b", "efe3c8", "b8472f", "d99a2b", "5d7f5a", "7a2139", "2f6f7c", "e8c7a0", "3b2a4f", "c96f4a")


def cloth_radius(angle: Array, z: Array) -> Array:
    """Radius of the hanging cloth: folds grow from nothing at the edge to several centimetres at the hem."""
    drop = clamp(-z / -HEM, 0.0, 1.1)
    folds = 0.030 * np.sin(9 * angle + 0.6 * np.sin(2 * angle))
    folds = folds + 0.013 * np.sin(17 * angle + 1.3) + 0.010 * np.sin(4 * angle)
    return TABLE_RADIUS + drop * (0.035 + folds * (0.4 + 0.6 * drop))


def cloth_distance(p: Array) -> Array:
    angle = np.arctan2(p[1], p[0])
    rounding = 0.02
    across = length(p[0], p[1]) - cloth_radius(angle, p[2]) + rounding
    along = p[2] + rounding
    shell = rounded_corner(across, along, rounding)
    hem = HEM + 0.012 * np.sin(9 * angle + 2.0)
    return np.maximum(shell, hem - p[2])


def cloth_paint(p: Array, footprint: Array) -> Paint:
    """A patchwork quilt: every patch draws its motif and its two colours at random, so no two places look alike."""
    rho = length(p[0], p[1])
    unrolled = rho + np.maximum(-p[2] - 0.012, 0.0)
    x, y = (p[axis] / np.maximum(rho, 1e-6) * unrolled for axis in (0, 1))
    wobble = flat(x, y)
    x = x + 0.006 * (noise(wobble * 9.0) - 0.5) + 0.003
    y = y + 0.006 * (noise(wobble * 9.0 + 31.0) - 0.5) - 0.021
    side = 0.088
    i, j = np.floor(x / side), np.floor(y / side)
    u, v = x / side - i - 0.5, y / side - j - 0.5
    width = footprint / side
    motif = (cell_random(i, j, 1) * 6).astype(int)
    first = (cell_random(i, j, 2) * 10).astype(int)
    second = (first + 1 + (cell_random(i, j, 3) * 9).astype(int)) % 10
    count = 3.0 + np.floor(cell_random(i, j, 4) * 4)
    r = length(u, v)
    angle = np.arctan2(v, u) + 6.28 * cell_random(i, j, 5)
    triangle_u = np.abs((u + 0.5) * count % 1.0 - 0.5) - 0.25
    triangle_v = np.abs((v + 0.5) * count % 1.0 - 0.5) - 0.25
    stripes = triangle_u / count
    diagonal = (np.abs((u + v + 1.0) * count * 0.7 % 1.0 - 0.5) - 0.25) / count
    checks = np.sign(triangle_u * triangle_v) * np.minimum(np.abs(triangle_u), np.abs(triangle_v)) / count
    rings = (np.abs(r * (count + 1.0) % 1.0 - 0.5) - 0.25) / (count + 1.0)
    star = r - 0.24 - 0.12 * np.cos(angle * (count + 2.0))
    diamonds = np.abs(np.abs(u) + np.abs(v) - 0.32) - 0.09
    signed = np.select([motif == m for m in range(5)], [stripes, diagonal, checks, rings, star], diamonds)
    albedo = mix(QUILT[:, first], QUILT[:, second], inside(signed, width))
    # A small print over each patch, the seams with their stitches, then the weave and the wear of the cloth.
    print_u, print_v = (u + 0.5) * 9.0, (v + 0.5) * 9.0
    dot_radius = 0.13 + 0.22 * cell_random(np.floor(print_u) + 9 * i, np.floor(print_v) + 9 * j, 6)
    dots = length(print_u % 1.0 - 0.5, print_v % 1.0 - 0.5) - dot_radius
    third = (first + 4) % 10
    albedo = mix(albedo, QUILT[:, third], 0.55 * inside(dots, width * 9.0) * (cell_random(i, j, 7) > 0.45))
    edge = np.minimum(0.5 - np.abs(u), 0.5 - np.abs(v))
    stitch = np.abs(edge - 0.055) - 0.012
    dash = np.abs(((u + v) * 14.0) % 1.0 - 0.5) - 0.3
    albedo = mix(albedo, linear("f4ead2"), 0.85 * inside(stitch, width) * inside(dash, width * 14.0))
    albedo = albedo * (1.0 - 0.6 * inside(edge - 0.016, width))
    wear = fractal(flat(x, y, 3.0), footprint, 22.0, 4)
    weave = np.sin(x * 1571.0) * np.sin(y * 1571.0) * clamp(1.6 - footprint * 900.0, 0.0, 1.0)
    return Paint(albedo * (1.0 + 0.7 * wear + 0.08 * weave) * 0.92, specular=0.02, gloss=8.0)


def wood_grain(p: Array, footprint: Array, dark: str, light: str, rings: float = 90.0) -> Array:
    """Growth rings around an axis that leans, broken by fibres: albedo [3, N]."""
    bend = fractal(p, footprint, 5.0, 3)
    radius = length(p[0] + 0.35 + 0.08 * p[2], p[1] * 1.1 + 0.1 * p[2]) + 0.05 * bend
    ring = 0.5 + 0.5 * np.sin(radius * rings * 6.28) * clamp(1.5 - footprint * rings * 2.0, 0.0, 1.0)
    fibre = fractal(p * np.array([[1.0], [1.0], [0.12]], dtype=p.dtype), footprint, 240.0, 3)
    return mix(linear(dark), linear(light), clamp(ring * 0.75 + 0.2 + 0.7 * fibre + 0.5 * bend, 0.0, 1.0))


def pedestal_distance(p: Array) -> Array:
    column = disc(p, 0.055, -0.72, -0.05, 0.01)
    foot = disc(p, 0.30, -0.75, -0.70, 0.015)
    return np.minimum(np.minimum(column, foot), torus(p, 0.06, 0.025, -0.5))


def pedestal_paint(p: Array, footprint: Array) -> Paint:
    return Paint(wood_grain(p, footprint, "3a1d0f", "8a5430", 40.0), specular=0.04, gloss=40.0)


# ----------------------------------------------------------------------------------------------------------------------
# The teapot
# ----------------------------------------------------------------------------------------------------------------------

SPOUT = [(0.075, 0, 0.050, 0.032), (0.130, 0, 0.070, 0.022), (0.165, 0, 0.118, 0.015), (0.198, 0, 0.150, 0.0125)]
HANDLE = [
    (-0.090, 0.0, 0.128, 0.010),
    (-0.140, 0.0, 0.152, 0.0095),
    (-0.178, 0.0, 0.128, 0.0095),
    (-0.180, 0.0, 0.088, 0.0095),
    (-0.148, 0.0, 0.052, 0.0095),
    (-0.098, 0.0, 0.046, 0.010),
]


def teapot_distance(p: Array) -> Array:
    body = ellipsoid(p - np.array([[0.0], [0.0], [0.086]], dtype=p.dtype), (0.120, 0.120, 0.084))
    body = smooth_union(body, torus(p, 0.062, 0.009, 0.009), 0.012)
    lid = smooth_union(torus(p, 0.056, 0.006, 0.160), body, 0.006)
    neck = tube(p, [(0, 0, 0.165, 0.012), (0, 0, 0.185, 0.007)])
    knob = smooth_union(sphere(p, 0.0165, (0.0, 0.0, 0.196)), neck, 0.006)
    spout = np.maximum(tube(p, SPOUT, 0.03), -sphere(p, 0.0085, (0.203, 0.0, 0.160)))
    vessel = smooth_union(smooth_union(lid, knob, 0.006), spout, 0.018)
    return smooth_union(vessel, tube(p, HANDLE, 0.02), 0.012)


def teapot_paint(p: Array, footprint: Array) -> Paint:
    """White glaze with cobalt brushwork: noise contour lines read as vines, its thresholds as leaves and blossoms."""
    glaze = linear("f1efe6") * (1.0 + 0.10 * fractal(p, footprint, 30.0, 3))
    cobalt = mix(linear("16307c"), linear("5f8fd6"), clamp(0.45 + 1.6 * fractal(p, footprint, 70.0, 4), 0.0, 1.0))
    field = fractal(p + 4.0, footprint, 21.0, 2)
    vine = np.abs(field) - 0.022
    leaf = 0.18 - fractal(p + 9.0, footprint, 48.0, 2)
    height = p[2]
    angle = np.arctan2(p[1], p[0])
    waves = np.abs(height - 0.148 - 0.003 * np.sin(angle * 24.0)) - 0.0022
    band = np.minimum(np.abs(height - 0.138) - 0.0015, np.abs(height - 0.028) - 0.003)
    ink = np.maximum(inside(vine, footprint * 22.0), inside(leaf, footprint * 40.0))
    ink = ink * smoothstep(0.026, 0.032, height) * smoothstep(0.140, 0.134, height)
    ink = np.maximum(ink, inside(np.minimum(waves, band), footprint))
    knob = inside(np.abs(height - 0.196) - 0.006, footprint) * inside(length(p[0], p[1]) - 0.03, footprint)
    return Paint(mix(glaze, cobalt, 0.92 * np.maximum(ink, knob)) * 0.82, specular=0.045, gloss=420.0, mirror=1.0)


# ----------------------------------------------------------------------------------------------------------------------
# The vase and its flowers
# ----------------------------------------------------------------------------------------------------------------------

VASE_HEIGHT = 0.235
VASE_PLACE = (-0.185, 0.150, 0.0)


def vase_profile(z: Array) -> Array:
    lip = clamp((z - 0.175) / 0.06, 0.0, 1.0)
    foot = clamp(1.0 - z / 0.02, 0.0, 1.0)
    return 0.030 + 0.040 * np.exp(-(((z - 0.085) / 0.058) ** 2)) + 0.020 * lip * lip + 0.010 * foot * foot


def vase_distance(p: Array) -> Array:
    rho = length(p[0], p[1])
    wall = vase_profile(p[2])
    outer = np.maximum(rho - wall, np.abs(p[2] - 0.5 * VASE_HEIGHT) - 0.5 * VASE_HEIGHT)
    inner = np.maximum(rho - (wall - 0.004), 0.012 - p[2])
    return np.maximum(outer, -inner)


def vase_paint(p: Array, footprint: Array) -> Paint:
    """Bands of slip, scratched and crazed, over a turquoise glaze."""
    drip = 0.016 * fractal(p, footprint, 26.0, 3)
    z = p[2] + drip
    band = np.floor(z * 34.0)
    pick = (cell_random(band, np.zeros_like(band), 9) * 6).astype(int)
    colours = palette("1c6e73", "e5b84b", "0f3d4c", "3fa39b", "c65d33", "efe2bd")
    albedo = colours[:, pick] * (1.0 + 0.9 * fractal(p, footprint, 60.0, 5))
    angle = np.arctan2(p[1], p[0])
    zigzag = np.abs(p[2] - 0.085 - 0.016 * (np.abs((angle * 14 / 6.283) % 1.0 - 0.5) * 4.0 - 1.0)) - 0.0032
    albedo = mix(albedo, linear("f6ecd2"), inside(zigzag, footprint))
    crack = np.abs(fractal(p, footprint, 44.0, 3)) - 0.008
    albedo = mix(albedo, linear("2a1710"), 0.6 * inside(crack, footprint * 30.0))
    return Paint(albedo * 0.9, specular=0.04, gloss=220.0, mirror=0.8)


PETALS = 12


def daisy_distance(p: Array) -> Array:
    """Flower head facing +z: a button, and one petal folded around it (the distance is a bound near the folds)."""
    button = ellipsoid(p - np.array([[0.0], [0.0], [0.004]], dtype=p.dtype), (0.0125, 0.0125, 0.007))
    sector = 2.0 * math.pi / PETALS
    angle = (np.arctan2(p[1], p[0]) + 0.5 * sector) % sector - 0.5 * sector
    rho = length(p[0], p[1])
    x, y = rho * np.cos(angle) - 0.027, rho * np.sin(angle)
    z = p[2] - 0.004 + 9.0 * (rho - 0.022) ** 2
    return np.minimum(button, ellipsoid(np.stack([x, y, z]), (0.018, 0.0078, 0.0026)))


def daisy_paint(colour: str, tip: str) -> Callable[[Array, Array], Array]:
    def paint(p: Array, footprint: Array) -> Array:
        rho, angle = length(p[0], p[1]), np.arctan2(p[1], p[0])
        streak = fractal(np.stack([np.cos(angle), np.sin(angle), rho * 8.0]), footprint * 30.0, 18.0, 3)
        petal = mix(linear(colour), linear(tip), clamp((rho - 0.012) / 0.034 + 1.5 * streak, 0.0, 1.0))
        button = linear("d98a12") * (1.0 + 2.2 * fractal(p, footprint, 420.0, 2))
        return mix(petal, button, inside(rho - 0.0118, footprint))

    return paint


def bud_distance(p: Array) -> Array:
    """Tulip: an egg with three lobes."""
    angle = np.arctan2(p[1], p[0])
    lobed = p * (1.0 + 0.10 * np.cos(3.0 * angle) * smoothstep(-0.01, 0.03, p[2]))
    return ellipsoid(lobed - np.array([[0.0], [0.0], [0.020]], dtype=p.dtype), (0.0205, 0.0205, 0.031))


def bud_paint(colour: str, tip: str) -> Callable[[Array, Array], Array]:
    def paint(p: Array, footprint: Array) -> Array:
        angle = np.arctan2(p[1], p[0])
        streak = fractal(np.stack([np.cos(angle), np.sin(angle), p[2] * 6.0]), footprint * 40.0, 14.0, 4)
        crease = np.abs(np.cos(1.5 * angle + 0.4)) - 0.10
        albedo = mix(linear(colour), linear(tip), clamp(p[2] / 0.05 + 1.6 * streak, 0.0, 1.0))
        return albedo * (1.0 - 0.6 * inside(crease, footprint * 60.0))

    return paint


def globe_flower_distance(p: Array) -> Array:
    """Allium: a ball of florets, as ripples on a sphere."""
    q = normalised(p)
    ripple = np.sin(q[0] * 26.0) * np.sin(q[1] * 26.0 + 1.0) * np.sin(q[2] * 26.0 + 2.0)
    return sphere(p, 0.030) + 0.0035 * ripple


def globe_flower_paint(colour: str, tip: str) -> Callable[[Array, Array], Array]:
    def paint(p: Array, footprint: Array) -> Array:
        return mix(linear(colour), linear(tip), clamp(0.4 + 2.2 * fractal(p, footprint, 160.0, 3), 0.0, 1.0))

    return paint


HEADS = {
    "daisy": (daisy_distance, daisy_paint, 0.050, 0.014),
    "bud": (bud_distance, bud_paint, 0.055, 0.002),
    "globe": (globe_flower_distance, globe_flower_paint, 0.036, 0.030),
}
BOUQUET = [
    # kind, azimuth in degrees, lean in metres, height above the table, colours at the heart and at the rim
    ("daisy", 15.0, 0.130, 0.420, "f4c9d6", "fdf6ee"),
    ("bud", 70.0, 0.085, 0.485, "c4213a", "f0a23c"),
    ("daisy", 128.0, 0.140, 0.385, "f3d24a", "e8761e"),
    ("globe", 185.0, 0.095, 0.465, "5a2a86", "c79be0"),
    ("daisy", 232.0, 0.150, 0.400, "8f1f5e", "e86aa0"),
    ("bud", 290.0, 0.100, 0.445, "e8d9f0", "8a3aa0"),
    ("daisy", 330.0, 0.070, 0.520, "ffffff", "dfe8fb"),
    ("globe", 350.0, 0.160, 0.345, "2b4fa0", "9fc0f2"),
]


def flower(index: int, kind: str, azimuth: float, lean: float, height: float, heart: str, rim: str) -> Solid:
    """One stem out of the vase, its head turned outward and, for every second one, a leaf. Frame: the vase's foot."""
    head_distance, head_paint, head_size, head_drop = HEADS[kind]
    c, s = math.cos(math.radians(azimuth)), math.sin(math.radians(azimuth))
    stem = []
    for k in range(5):
        a = k / 4.0
        out = -0.012 * (1.0 - a) + lean * a**2.2
        stem.append((c * out, s * out, 0.05 + (height - 0.05) * a, 0.0028 - 0.0006 * a))
    tilt = rotation("z", azimuth) @ rotation("y", 22.0 + 220.0 * lean * (kind != "bud"))
    top = np.array(stem[-1][:3]) + tilt @ np.array([0.0, 0.0, 0.6 * head_drop - 0.002])
    leaf_at = np.array(stem[2][:3]) + np.array([c, s, 0.0]) * 0.030 + np.array([0.0, 0.0, 0.02])
    leaf_turn = rotation("z", azimuth) @ rotation("y", -38.0) @ rotation("x", 25.0 * (-1) ** index)
    has_leaf = index % 2 == 0
    heads = head_paint(heart, rim)

    def parts(p: Array) -> tuple[Array, Array]:
        head = tilt.T.astype(p.dtype) @ (p - top.astype(p.dtype)[:, None])
        leaf = leaf_turn.T.astype(p.dtype) @ (p - leaf_at.astype(p.dtype)[:, None])
        return head, leaf

    def distance(p: Array) -> Array:
        head, leaf = parts(p)
        result = np.minimum(tube(p, stem), head_distance(head))
        if has_leaf:
            curl = np.stack([leaf[0], leaf[1], leaf[2] + 5.0 * leaf[0] ** 2 - 6.0 * leaf[1] ** 2])
            result = np.minimum(result, ellipsoid(curl, (0.045, 0.014, 0.0022)))
        return result

    def paint(p: Array, footprint: Array) -> Paint:
        head, leaf = parts(p)
        vein = np.abs(np.abs(leaf[1]) * 180.0 + leaf[0] * 120.0) % 1.0 - 0.16
        green = mix(linear("2f5a22"), linear("86a848"), clamp(0.45 + 1.8 * fractal(p, footprint, 120.0, 3), 0.0, 1.0))
        green = mix(green, linear("b7cf7a"), 0.5 * has_leaf * inside(vein, footprint * 200.0))
        albedo = mix(green, heads(head, footprint), (head_distance(head) < 0.001).astype(np.float32))
        return Paint(albedo, specular=0.03, gloss=25.0)

    middle = (stem[-1][0] * 0.55, stem[-1][1] * 0.55)
    reach = max(math.hypot(x - middle[0], y - middle[1]) for x, y in [(stem[0][0], stem[0][1]), (top[0], top[1])])

    def centred(function: Callable) -> Callable:
        shift = np.array([middle[0], middle[1], 0.0])[:, None]
        return lambda p, *rest: function(p + shift.astype(p.dtype), *rest)

    origin = (VASE_PLACE[0] + middle[0], VASE_PLACE[1] + middle[1], 0.0)
    bound = (reach + head_size + 0.004, 0.04, height + head_size)
    return solid(f"flower {index}", centred(distance), centred(paint), origin, bound, caution=0.85)


# ----------------------------------------------------------------------------------------------------------------------
# The armillary sphere: thin brass rings around a painted globe
# ----------------------------------------------------------------------------------------------------------------------

RINGS_CENTRE = 0.238
POLE = rotation("z", 35.0) @ rotation("y", 34.0)
ECLIPTIC = POLE @ rotation("x", 23.4)


def armillary_distance(p: Array) -> Array:
    q = p - np.array([[0.0], [0.0], [RINGS_CENTRE]], dtype=p.dtype)
    equatorial = POLE.T.astype(p.dtype) @ q
    ecliptic = ECLIPTIC.T.astype(p.dtype) @ q
    upright = np.stack([q[0], q[2], q[1]])
    colure = np.stack([equatorial[2], equatorial[0], equatorial[1]])
    parts = [
        torus(q, 0.158, 0.0042),
        torus(upright, 0.149, 0.0034),
        torus(equatorial, 0.139, 0.0030),
        torus(equatorial, 0.126, 0.0020, 0.058),
        torus(equatorial, 0.126, 0.0020, -0.058),
        torus(ecliptic, 0.131, 0.0030),
        torus(colure, 0.139, 0.0022),
        tube(equatorial, [(0, 0, -0.166, 0.0022), (0, 0, 0.166, 0.0022)]),
        sphere(equatorial, 0.0065, (0, 0, 0.168)),
        sphere(equatorial, 0.0065, (0, 0, -0.168)),
        smooth_union(disc(p, 0.075, 0.0, 0.016, 0.006), tube(p, [(0, 0, 0.01, 0.016), (0, 0, 0.085, 0.0055)]), 0.02),
        torus(p, 0.010, 0.006, 0.052),
    ]
    return np.minimum.reduce(parts)


def armillary_paint(p: Array, footprint: Array) -> Paint:
    """Brass with patina in the noise and with engraved degree marks on the rings."""
    q = p - np.array([[0.0], [0.0], [RINGS_CENTRE]], dtype=p.dtype)
    patina = clamp(0.30 + 1.5 * fractal(p, footprint, 55.0, 4), 0.0, 1.0)
    brass = mix(linear("d8a648"), linear("5b4420"), patina)
    marks = np.abs((np.arctan2(q[1], q[0]) * 36 / 3.1416) % 1.0 - 0.5) - 0.13
    on_horizon = inside(np.abs(q[2]) - 0.006, footprint)
    brass = mix(brass, linear("241a0c"), 0.75 * on_horizon * inside(marks, footprint * 70.0))
    return Paint(brass * 0.55, specular=brass * 0.62, gloss=120.0, mirror=0.75)


def globe_paint(p: Array, footprint: Array) -> Paint:
    """A small painted world: seas, lands of three heights, and a graticule."""
    q = POLE.T.astype(p.dtype) @ p
    land = fractal(p + 2.0, footprint, 26.0, 5)
    sea = mix(linear("12405e"), linear("3f86a3"), clamp(0.5 + 1.5 * fractal(p, footprint, 70.0, 3), 0.0, 1.0))
    earth = mix(linear("6f8a3c"), linear("c9a561"), smoothstep(0.04, 0.20, land))
    albedo = mix(earth, sea, inside(land - 0.02, footprint * 12.0))
    albedo = mix(albedo, linear("3a2413"), inside(np.abs(land - 0.02) - 0.012, footprint * 12.0))
    latitude = np.abs((np.arcsin(clamp(q[2] / 0.047, -1, 1)) * 9 / 3.1416) % 1.0 - 0.5) - 0.035
    longitude = np.abs((np.arctan2(q[1], q[0]) * 9 / 3.1416) % 1.0 - 0.5) - 0.035
    albedo = mix(albedo, linear("f3e2b5"), 0.7 * inside(np.minimum(latitude, longitude), footprint * 50.0))
    return Paint(albedo, specular=0.04, gloss=260.0, mirror=0.8)


# ----------------------------------------------------------------------------------------------------------------------
# The bowl of fruit
# ----------------------------------------------------------------------------------------------------------------------

BOWL_RADIUS = 0.140
BOWL_PLACE = (-0.300, -0.150, 0.0)


def bowl_distance(p: Array) -> Array:
    shell = np.abs(sphere(p, BOWL_RADIUS - 0.004, (0.0, 0.0, BOWL_RADIUS))) - 0.004
    foot = disc(p, 0.055, 0.0, 0.014, 0.004)
    # The rim is a rounded cut: keep what lies below the plane, blended so that it does not show a knife edge.
    return -smooth_union(-np.minimum(shell, foot), 0.088 - p[2], 0.004)


def bowl_paint(p: Array, footprint: Array) -> Paint:
    albedo = wood_grain(p, footprint, "5a2c12", "d39a58", 130.0)
    notch = np.abs(p[2] - 0.070 - 0.0012 * np.sin(np.arctan2(p[1], p[0]) * 60.0)) - 0.0018
    return Paint(mix(albedo, linear("2a120a"), 0.8 * inside(notch, footprint)), specular=0.04, gloss=70.0, mirror=0.25)


def orange_paint(p: Array, footprint: Array) -> Paint:
    pores = fractal(p, footprint, 330.0, 2)
    albedo = mix(linear("d9600a"), linear("f7a01c"), clamp(0.5 + 1.6 * fractal(p, footprint, 24.0, 4), 0.0, 1.0))
    return Paint(albedo * (1.0 + 1.1 * pores), specular=0.035, gloss=45.0, mirror=0.15)


def lemon_distance(p: Array) -> Array:
    tips = np.minimum(sphere(p, 0.010, (0.046, 0.0, 0.0)), sphere(p, 0.008, (-0.047, 0.0, 0.0)))
    return smooth_union(ellipsoid(p, (0.047, 0.035, 0.035)), tips, 0.014)


def lemon_paint(p: Array, footprint: Array) -> Paint:
    albedo = mix(linear("e0a908"), linear("fbe04a"), clamp(0.5 + 1.8 * fractal(p, footprint, 30.0, 4), 0.0, 1.0))
    green = smoothstep(0.036, 0.056, np.abs(p[0]) + 0.02 * fractal(p, footprint, 60.0, 3))
    albedo = mix(albedo, linear("8a9a2c"), 0.7 * green)
    return Paint(albedo * (1.0 + 1.0 * fractal(p, footprint, 330.0, 2)), specular=0.035, gloss=55.0, mirror=0.15)


def apple_distance(p: Array) -> Array:
    rho = length(p[0], p[1])
    flesh = length(rho - 0.0165, p[2] * (1.0 + 2.0 * p[2])) - 0.0285
    stem = tube(p, [(0, 0, 0.010, 0.0022), (0.004, 0, 0.030, 0.0018), (0.011, 0.003, 0.044, 0.0022)])
    return np.minimum(flesh * 0.9, stem)


def apple_paint(p: Array, footprint: Array) -> Paint:
    angle = np.arctan2(p[1], p[0])
    streak = fractal(np.stack([np.cos(angle), np.sin(angle), p[2] * 5.0]), footprint * 25.0, 13.0, 5)
    blush = clamp(0.55 + 1.7 * streak + 0.35 * np.sin(angle + 0.5), 0.0, 1.0)
    albedo = mix(linear("b9b23a"), linear("a3121c"), blush)
    freckle = inside(0.235 - fractal(p + 3.0, footprint, 300.0, 1), footprint * 120.0)
    albedo = mix(albedo, linear("f0dca0"), 0.6 * freckle)
    on_stem = (length(p[0], p[1]) < 0.016) & (p[2] > 0.024)
    return Paint(mix(albedo, linear("3d2814"), on_stem.astype(np.float32)), specular=0.04, gloss=160.0, mirror=0.45)


# ----------------------------------------------------------------------------------------------------------------------
# Books, ring, marble ball, egg, dice
# ----------------------------------------------------------------------------------------------------------------------


def book_distance(half: Triple) -> Callable[[Array], Array]:
    a, b, c = half

    def distance(p: Array) -> Array:
        pages = box(p, (a - 0.005, b - 0.004, c - 0.002), 0.001, (-0.002, 0.0, 0.0))
        covers = box(np.stack([p[0], p[1], np.abs(p[2]) - (c - 0.0015)]), (a, b, 0.0015), 0.0008)
        spine = box(p, (0.0022, b, c), 0.0015, (-a, 0.0, 0.0))
        return np.minimum(np.minimum(pages, covers), spine)

    return distance


def book_paint(half: Triple, cloth: str, gilt: str, salt: float) -> Callable[[Array, Array], Paint]:
    a, b, c = half

    def paint(p: Array, footprint: Array) -> Paint:
        leather = linear(cloth) * (1.0 + 1.3 * fractal(p + salt, footprint, 45.0, 6))
        border = np.minimum(a - np.abs(p[0]), b - np.abs(p[1]))
        frame = np.minimum(np.abs(border - 0.010) - 0.0012, np.abs(border - 0.0145) - 0.0006)
        u, v = p[0] / a, p[1] / b
        r, angle = length(u * 1.25, v), np.arctan2(v, u * 1.25)
        rosette = np.minimum(np.abs(r - 0.42 - 0.07 * np.cos(angle * 8 + salt)) - 0.022, np.abs(r - 0.22) - 0.03)
        scroll = np.maximum(np.abs(fractal(flat(p[0], p[1], salt), footprint, 75.0, 2)) - 0.03, 0.55 - r)
        scroll = np.maximum(scroll, 0.02 - border)
        gold = np.maximum(inside(frame, footprint), inside(np.minimum(rosette, scroll), footprint * 16.0))
        on_cover = np.abs(p[2]) > c - 0.0035
        ribs = np.abs((p[1] / b * 3.0) % 1.0 - 0.5) - 0.08
        gold = np.where(on_cover, gold, inside(ribs, footprint * 3.0 / b))
        bound = mix(leather, linear(gilt), 0.9 * gold)
        sheet = fractal(np.stack([p[0] * 0.02, p[1] * 0.02, p[2]]), footprint, 700.0, 2)
        paper = linear("e6d8b4") * (0.92 + 1.3 * sheet + 0.5 * fractal(p, footprint, 30.0, 4))
        is_paper = (~on_cover & (p[0] > -a + 0.004)).astype(np.float32)
        return Paint(mix(bound, paper, is_paper), specular=0.03, gloss=35.0)

    return paint


def ring_distance(p: Array) -> Array:
    return torus(p, 0.056, 0.0225)


def ring_paint(p: Array, footprint: Array) -> Paint:
    """Checks wound around the ring; each tile has its own tint."""
    around = np.arctan2(p[1], p[0]) * 20 / (2 * math.pi)
    across = (np.arctan2(p[2], length(p[0], p[1]) - 0.056) + 0.25 * np.arctan2(p[1], p[0])) * 8 / (2 * math.pi)
    i, j = np.floor(around), np.floor(across)
    su, sv = np.abs(around - i - 0.5) - 0.5, np.abs(across - j - 0.5) - 0.5
    parity = (i + j) % 2.0
    tint = cell_random(i, j, 12)
    dark = mix(linear("7d1128"), linear("b52f2a"), tint)
    light = mix(linear("f3e6cf"), linear("e3bd7d"), tint)
    albedo = mix(dark, light, parity)
    grout = np.maximum(su, sv) + 0.05
    albedo = mix(albedo, linear("1d1416"), inside(-grout, footprint * 55.0))
    return Paint(albedo * (1.0 + 0.5 * fractal(p, footprint, 90.0, 4)), specular=0.045, gloss=350.0, mirror=0.9)


def marble_paint(p: Array, footprint: Array) -> Paint:
    warp = fractal(p, footprint, 24.0, 5)
    vein = np.abs(np.sin((p[0] + 0.6 * p[1] + 0.3 * p[2]) * 75.0 + 11.0 * warp))
    albedo = mix(linear("1e3b34"), linear("4f8a6c"), clamp(0.5 + 1.6 * fractal(p + 7.0, footprint, 40.0, 5), 0.0, 1.0))
    albedo = mix(linear("eef0e0"), albedo, smoothstep(0.03, 0.30, vein))
    return Paint(albedo, specular=0.05, gloss=500.0, mirror=1.0)


def egg_distance(p: Array) -> Array:
    taper = 1.0 + 2.6 * p[2]
    return ellipsoid(np.stack([p[0] * taper, p[1] * taper, p[2]]), (0.030, 0.030, 0.040))


def egg_paint(p: Array, footprint: Array) -> Paint:
    angle = np.arctan2(p[1], p[0])
    lines = p[2] * 70.0 + 0.35 * np.sin(angle * 6.0)
    band = np.floor(lines)
    colours = palette("f2e9d8", "c3342b", "f2e9d8", "20508c", "e9b73a", "f2e9d8", "2f7a57")
    albedo = colours[:, (cell_random(band, np.ones_like(band), 5) * 7).astype(int)]
    zig = np.abs(lines - band - 0.5 - 0.22 * np.sin(angle * 15.0 + band)) - 0.10
    albedo = mix(albedo, linear("1a1c2b"), inside(zig, footprint * 70.0))
    return Paint(albedo * (1.0 + 0.6 * fractal(p, footprint, 80.0, 4)), specular=0.045, gloss=300.0, mirror=0.8)


DIE_PIPS = {1: [(0, 0)], 2: [(-1, -1), (1, 1)], 3: [(-1, -1), (0, 0), (1, 1)], 4: [(-1, -1), (-1, 1), (1, -1), (1, 1)]}
DIE_PIPS[5] = [*DIE_PIPS[4], (0, 0)]
DIE_PIPS[6] = [*DIE_PIPS[4], (-1, 0), (1, 0)]


def die_distance(p: Array) -> Array:
    return box(p, (0.017, 0.017, 0.017), 0.004)


def die_paint(body: str, pip: str) -> Callable[[Array, Array], Paint]:
    def paint(p: Array, footprint: Array) -> Paint:
        face = np.argmax(np.abs(p), axis=0)
        positive = np.take_along_axis(p, face[None], axis=0)[0] > 0.0
        u = np.choose(face, [p[1], p[2], p[0]]) / 0.0085
        v = np.choose(face, [p[2], p[0], p[1]]) / 0.0085
        nearest = np.full_like(u, 9.0)
        for value, places in DIE_PIPS.items():
            axis, sign = (value - 1) % 3, value <= 3
            where = (face == axis) & (positive == sign)
            for pu, pv in places:
                nearest = np.where(where, np.minimum(nearest, length(u - pu, v - pv)), nearest)
        albedo = linear(body) * (1.0 + 0.8 * fractal(p, footprint, 110.0, 4))
        albedo = mix(albedo, linear(pip), inside(nearest - 0.36, footprint * 118.0))
        return Paint(albedo, specular=0.04, gloss=180.0, mirror=0.5)

    return paint


@lru_cache(maxsize=1)
def solids() -> tuple[Solid, ...]:
    """Every object of the scene, the table first because it ends most rays."""
    lower, upper = (0.118, 0.085, 0.021), (0.102, 0.073, 0.017)
    book_place = (0.285, -0.165)
    stack = 2 * lower[2] + 2 * upper[2]
    fruit_height = BOWL_RADIUS - 0.0636
    bx, by, _ = BOWL_PLACE

    def in_bowl(degrees: float) -> Triple:
        angle = math.radians(degrees)
        return (bx + 0.0636 * math.cos(angle), by + 0.0636 * math.sin(angle), fruit_height)

    def ball(radius: float) -> Callable[[Array], Array]:
        return lambda p: sphere(p, radius)

    armillary_place = (0.245, 0.170, 0.0)
    globe_place = (*armillary_place[:2], RINGS_CENTRE)
    return (
        solid("cloth", cloth_distance, cloth_paint, (0, 0, 0), (0.70, HEM - 0.02, 0.001), caution=0.8),
        solid("pedestal", pedestal_distance, pedestal_paint, (0, 0, 0), (0.31, -0.75, -0.05)),
        solid("teapot", teapot_distance, teapot_paint, (0.01, -0.115, 0), (0.215, 0, 0.216), rotation("z", -28), 0.9),
        solid("vase", vase_distance, vase_paint, VASE_PLACE, (0.075, 0, VASE_HEIGHT + 0.001), caution=0.72),
        *(flower(i, *row) for i, row in enumerate(BOUQUET)),
        solid("armillary", armillary_distance, armillary_paint, armillary_place, (0.178, 0, 0.42)),
        solid("globe", ball(0.047), globe_paint, globe_place, (0.048, -0.048, 0.048)),
        solid("bowl", bowl_distance, bowl_paint, BOWL_PLACE, (0.142, 0, 0.090)),
        solid("orange", ball(0.0415), orange_paint, in_bowl(80), (0.042, -0.042, 0.042)),
        solid("apple", apple_distance, apple_paint, in_bowl(200), (0.048, -0.036, 0.05), rotation("y", -16), 0.9),
        solid("second orange", ball(0.0405), orange_paint, in_bowl(320), (0.041, -0.041, 0.041), rotation("x", 70)),
        solid("lemon", lemon_distance, lemon_paint, (bx, by, 0.126), (0.058, -0.05, 0.05),
              rotation("z", 25) @ rotation("y", -12), 0.9),
        solid("lower book", book_distance(lower), book_paint(lower, "27486b", "d8b256", 1.0), (*book_place, lower[2]),
              (0.148, -0.0215, 0.0215), rotation("z", 24)),
        solid("upper book", book_distance(upper), book_paint(upper, "6d1f2a", "e2c27a", 5.0),
              (book_place[0] - 0.008, book_place[1] + 0.006, 2 * lower[2] + upper[2]),
              (0.13, -0.0175, 0.0175), rotation("z", 58)),
        solid("ring", ring_distance, ring_paint, (0.275, -0.155, stack + 0.0225), (0.080, -0.0226, 0.0226)),
        solid("marble ball", ball(0.034), marble_paint, (0.275, -0.155, stack + 0.0365), (0.035, -0.035, 0.035)),
        solid("egg", egg_distance, egg_paint, (-0.075, -0.350, 0.029), (0.047, -0.035, 0.035),
              rotation("z", 40) @ rotation("y", 84), 0.7),
        solid("die", die_distance, die_paint("f1e7cf", "201a1a"), (0.070, -0.385, 0.017),
              (0.025, -0.018, 0.018), rotation("z", 33)),
        solid("second die", die_distance, die_paint("9c1f2b", "f6efe0"), (0.128, -0.345, 0.017), (0.025, -0.018, 0.018),
              rotation("z", 71) @ rotation("x", 90)),
        solid("marble", ball(0.016), marble_paint, (0.010, 0.300, 0.016), (0.017, -0.017, 0.017)),
        solid("second marble", ball(0.013), globe_paint, (0.050, 0.330, 0.013), (0.014, -0.014, 0.014)),
        solid("tangerine", ball(0.034), orange_paint, (-0.365, 0.050, 0.034),
              (0.035, -0.035, 0.035), rotation("y", 40)),
    )  # fmt: skip


# ----------------------------------------------------------------------------------------------------------------------
# The loggia and the landscape: intersected in closed form
# ----------------------------------------------------------------------------------------------------------------------

ROOM_X, ROOM_Y = 3.7, 3.4
FLOOR, CEILING = -0.75, 2.95
THICKNESS = 0.35
ARCH_CENTRE, ARCH_HALF, ARCH_SPRING = 1.5, 0.9, 1.6
GROUND = -0.85
TREES, HILLS, MOUNTAINS = 9.0, 26.0, 60.0
"""Radii of three upright cylinders around the origin that carry the landscape, cut out along their skylines."""

SKY, WALL, FLOOR_TILES, BEAMS, REVEAL, LAWN, TREE_RING, HILL_RING, MOUNTAIN_RING, FIRST_SOLID = range(10)


def arch_distance(u: Array, z: Array) -> Array:
    """Signed distance to the nearer of a wall's two arches (negative in the opening); u runs along the wall."""
    across = np.abs(np.abs(u) - ARCH_CENTRE)
    return np.where(z > ARCH_SPRING, length(across, np.maximum(z - ARCH_SPRING, 0.0)), across) - ARCH_HALF


def room_exit(o: Array, d: Array) -> tuple[Array, NDArray[np.int64], Array]:
    """Where rays from inside leave the room: distance, axis of the face (0, 1, 2), and its outward sign."""
    with np.errstate(divide="ignore", invalid="ignore"):
        high = np.stack([np.full_like(o[0], ROOM_X), np.full_like(o[0], ROOM_Y), np.full_like(o[0], CEILING)])
        low = np.stack([-high[0], -high[1], np.full_like(o[0], FLOOR)])
        t = np.where(d > 0.0, (high - o) / d, (low - o) / d)
    t = np.where(np.abs(d) < 1e-9, np.inf, t)
    axis = np.argmin(t, axis=0)
    sign = np.sign(np.take_along_axis(d, axis[None], axis=0)[0])
    return np.take_along_axis(t, axis[None], axis=0)[0], axis, sign


def skyline(ring: int, angle: Array, z: Array) -> NDArray[np.bool_]:
    """Whether a landscape cylinder is solid at this azimuth and height."""
    circle = np.stack([np.cos(angle), np.sin(angle), np.zeros_like(angle)])
    zero = np.zeros_like(angle)
    if ring == MOUNTAIN_RING:
        return z < 8.5 + 13.0 * fractal(circle + 3.0, zero, 4.0, 5)
    if ring == HILL_RING:
        return z < 1.2 + 4.0 * fractal(circle + 8.0, zero, 3.0, 3)
    along = angle * TREES
    leaves = 0.35 * fractal(flat(along, z, 4.0), zero, 3.0, 3)
    solid_here = z < -0.15 + 0.8 * fractal(circle + 5.0, zero, 9.0, 3) + leaves
    for offset in (-1.0, 0.0, 1.0):
        cell = np.floor(along / 1.15) + offset
        centre = (cell + 0.25 + 0.5 * cell_random(cell, zero, 21)) * 1.15
        top = 0.6 + 3.3 * cell_random(cell, zero, 22)
        rise = clamp((z - GROUND) / (top - GROUND), 0.0, 1.0)
        half = (0.25 + 0.22 * cell_random(cell, zero, 23)) * np.sqrt(rise + 0.02) * (1.0 - rise**2) + 0.4 * leaves
        solid_here |= (np.abs(along - centre) < half) & (z < top) & (cell_random(cell, zero, 24) > 0.3)
    return solid_here


def trace_outside(o: Array, d: Array) -> tuple[Array, NDArray[np.int64], Array]:
    """Ground, then the three landscape rings, for rays that leave through an arch: distance, surface, normal."""
    count = o.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        ground = np.where(d[2] < -1e-9, (GROUND - o[2]) / d[2], np.inf)
    t, surface = np.full(count, np.inf, dtype=o.dtype), np.full(count, SKY)
    normal = np.zeros_like(o)
    a, b = d[0] ** 2 + d[1] ** 2, o[0] * d[0] + o[1] * d[1]
    open_rays = np.ones(count, dtype=bool)
    for ring, radius in ((TREE_RING, TREES), (HILL_RING, HILLS), (MOUNTAIN_RING, MOUNTAINS)):
        c = o[0] ** 2 + o[1] ** 2 - radius**2
        reach = (-b + np.sqrt(np.maximum(b * b - a * c, 0.0))) / np.maximum(a, 1e-12)
        on_ground = open_rays & (ground <= reach)
        t[on_ground], surface[on_ground] = ground[on_ground], LAWN
        normal[:, on_ground] = np.array([[0.0], [0.0], [1.0]])
        open_rays &= ~on_ground
        x, y, z = (o[k] + d[k] * reach for k in range(3))
        hit = open_rays & (z < 30.0)
        hit[hit] = skyline(ring, np.arctan2(y[hit], x[hit]), z[hit])
        t[hit], surface[hit] = reach[hit], ring
        normal[:, hit] = np.stack([-x[hit] / radius, -y[hit] / radius, np.zeros_like(x[hit])])
        open_rays &= ~hit
    return t, surface, normal


def trace_doorway(o: Array, d: Array) -> tuple[Array, Array]:
    """Rays that start in an arch opening on the inner face, in wall axes (u from the arch's middle, outward w, z): the
    distance to the reveal or the threshold, infinite for rays that pass through, and the normal there in wall axes."""
    tiny = 1e-9
    with np.errstate(divide="ignore", invalid="ignore"):
        leave = THICKNESS / np.maximum(d[1], tiny)
        side = np.where(np.abs(d[0]) > tiny, (np.copysign(ARCH_HALF, d[0]) - o[0]) / d[0], np.inf)
        side = np.where(o[2] + d[2] * side <= ARCH_SPRING, side, np.inf)
        sill = np.where(d[2] < -tiny, (FLOOR - o[2]) / d[2], np.inf)
        z = o[2] - ARCH_SPRING
        a, b, c = d[0] ** 2 + d[2] ** 2, o[0] * d[0] + z * d[2], o[0] ** 2 + z**2 - ARCH_HALF**2
        vault = (-b + np.sqrt(np.maximum(b * b - a * c, 0.0))) / np.maximum(a, tiny)
        vault = np.where(o[2] + d[2] * vault > ARCH_SPRING, vault, np.inf)
    t = np.minimum(np.minimum(side, sill), vault)
    zero = np.zeros_like(t)
    normal = np.where(t == sill, np.stack([zero, zero, zero + 1.0]), np.stack([-np.sign(d[0]), zero, zero]))
    u, height = o[0] + d[0] * vault, z + d[2] * vault
    with np.errstate(invalid="ignore"):
        normal = np.where((t == vault) & (t != side), np.stack([-u / ARCH_HALF, zero, -height / ARCH_HALF]), normal)
    return np.where(t < leave, t, np.inf), normal


def trace_room(o: Array, d: Array) -> tuple[Array, NDArray[np.int64], Array]:
    """Distance, surface and normal of everything but the solids, for rays that start inside the room."""
    t, axis, sign = room_exit(o, d)
    normal = np.zeros_like(o)
    np.put_along_axis(normal, axis[None], -sign[None], axis=0)
    surface = np.where(axis == 2, np.where(sign > 0, BEAMS, FLOOR_TILES), WALL)
    p = o + d * t
    along = np.where(axis == 0, p[1], p[0])
    through = np.flatnonzero((axis != 2) & (arch_distance(along, p[2]) < 0.0))
    if through.size == 0:
        return t, surface, normal
    ax, sg, q, v = axis[through], sign[through], p[:, through], d[:, through]
    # Into wall axes: u along the wall from the arch's middle, w outward, z up.
    u = along[through]
    du = np.where(ax == 0, v[1], v[0])
    dw = np.where(ax == 0, v[0], v[1]) * sg
    start = np.stack([u - np.copysign(ARCH_CENTRE, u), np.zeros_like(u), q[2]])
    more, bent = trace_doorway(start, np.stack([du, dw, v[2]]))
    bent = np.stack([np.where(ax == 0, 0.0, bent[0]), np.where(ax == 0, bent[0], 0.0), bent[2]])
    blocked = np.isfinite(more)
    stop = through[blocked]
    t[stop] += more[blocked]
    surface[stop] = np.where(bent[2, blocked] > 0.99, FLOOR_TILES, REVEAL)
    normal[:, stop] = bent[:, blocked]
    free = through[~blocked]
    beyond, what, facing = trace_outside(p[:, free], d[:, free])
    t[free] += beyond
    surface[free], normal[:, free] = what, facing
    return t, surface, normal


# ----------------------------------------------------------------------------------------------------------------------
# Tracing the solids
# ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Care:
    """How closely a march approaches a surface before it counts as a hit, refined by Newton steps afterwards."""

    steps: int
    tolerance: float
    """Metres; a ray that passes a silhouette at less than this hits it."""
    newton: int
    normal_step: float
    """Half the width of the finite difference that gives the normal, metres."""


FOR_PICTURES = Care(steps=96, tolerance=1.5e-4, newton=1, normal_step=2.5e-4)
FOR_TRUTH = Care(steps=400, tolerance=2e-6, newton=2, normal_step=2e-5)
"""In double precision: depth within a few micrometres, and no skin around silhouettes."""


def bound_interval(thing: Solid, o: Array, d: Array, far: Array) -> tuple[Array, Array]:
    """Entry and exit distance of rays in a solid's bounding cylinder, clipped to [0, far]; entry > exit is a miss."""
    ox, oy, oz = (o[i] - thing.origin[i] for i in range(3))
    a = np.maximum(d[0] * d[0] + d[1] * d[1], 1e-12)
    b = ox * d[0] + oy * d[1]
    square = b * b - a * (ox * ox + oy * oy - thing.radius**2)
    root = np.sqrt(np.maximum(square, 0.0))
    dz = np.where(np.abs(d[2]) < 1e-9, 1e-9, d[2])
    z0, z1 = (thing.low - oz) / dz, (thing.high - oz) / dz
    near = np.maximum(np.maximum((-b - root) / a, np.minimum(z0, z1)), 0.0)
    end = np.minimum(np.minimum((-b + root) / a, np.maximum(z0, z1)), far)
    return near, np.where(square > 0.0, end, -1.0)


def march(thing: Solid, o: Array, d: Array, near: Array, end: Array, care: Care) -> Array:
    """Sphere trace one solid; distance of the first hit or infinity."""
    result = np.full(o.shape[1], np.inf, dtype=o.dtype)
    index = np.arange(o.shape[1])
    t = near
    for _ in range(care.steps):
        distance = thing.signed_distance(o + d * t)
        hit = (distance < care.tolerance) & (t < end)
        result[index[hit]] = t[hit]
        # Dropping finished rays costs a copy, so they are only switched off until there are enough of them.
        going = ~hit & (t + distance < end)
        t = np.where(going, t + distance, t)
        end = np.where(going, end, -np.inf)
        remaining = np.count_nonzero(going)
        if remaining == 0:
            break
        if remaining < 0.8 * going.size:
            index, o, d, t, end = index[going], o[:, going], d[:, going], t[going], end[going]
    return result


def refine(thing: Solid, o: Array, d: Array, t: Array, steps: int) -> Array:
    """Newton steps along the ray from within the tolerance, so that depth is exact far below a millimetre."""
    for _ in range(steps):
        p = o + d * t
        distance = thing.signed_distance(p)
        ahead = thing.signed_distance(p + d * 1e-4)
        slope = np.minimum((ahead - distance) / 1e-4, -0.05)
        t = t + clamp(-distance / slope, -2e-4, 1e-3)
    return t


def solid_normal(thing: Solid, p: Array, step: float) -> Array:
    """Gradient of the distance by four evaluations at the corners of a tetrahedron."""
    total = np.zeros_like(p)
    for corner in ((1, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, 1)):
        e = np.array(corner, dtype=p.dtype)[:, None]
        total += e * thing.signed_distance(p + e * p.dtype.type(step))
    return normalised(total)


def trace(o: Array, d: Array) -> tuple[Array, NDArray[np.int64], Array]:
    """First surface along rays that start inside the room: distance [N] (infinite: sky), surface number [N], normal
    [3, N]."""
    care = FOR_TRUTH if o.dtype == np.float64 else FOR_PICTURES
    t, surface, normal = trace_room(o, d)
    for number, thing in enumerate(solids(), start=FIRST_SOLID):
        near, end = bound_interval(thing, o, d, t)
        candidates = np.flatnonzero(near < end)
        if candidates.size == 0:
            continue
        found = march(thing, o[:, candidates], d[:, candidates], near[candidates], end[candidates], care)
        hit = np.isfinite(found)
        which, found = candidates[hit], found[hit]
        t[which], surface[which] = found, number
    for number, thing in enumerate(solids(), start=FIRST_SOLID):
        which = np.flatnonzero(surface == number)
        if which.size:
            t[which] = refine(thing, o[:, which], d[:, which], t[which], care.newton)
            normal[:, which] = solid_normal(thing, o[:, which] + d[:, which] * t[which], care.normal_step)
    return t, surface, normal


def scene_depth_normal(origin: Array, direction: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Exact geometry along rays that start inside the room.

    Args:
        origin: [N, 3] or [3] metres, world.
        direction: [N, 3], any non-zero length.

    Returns:
        distance along the unit direction [N] in metres (infinite where the ray reaches the sky) and the unit normal
        [N, 3] in world axes (zero at the sky). Paint adds no relief, so these are the normals that the pictures were
        shaded with.
    """
    d = normalised(np.ascontiguousarray(np.asarray(direction, dtype=np.float64).T))
    o = np.ascontiguousarray(np.broadcast_to(np.asarray(origin, dtype=np.float64), d.T.shape).T)
    t, _, normal = trace(o, d)
    return t, np.ascontiguousarray(normal.T)


# ----------------------------------------------------------------------------------------------------------------------
# Paint of the room and of the landscape
# ----------------------------------------------------------------------------------------------------------------------


def brickwork(u: Array, z: Array, footprint: Array, salt: int) -> Array:
    row = np.floor(z / 0.085)
    shifted = u / 0.24 + 0.5 * (row % 2.0) + 0.1 * cell_random(row, np.zeros_like(row), salt)
    column = np.floor(shifted)
    joint = (
        np.minimum((0.5 - np.abs(shifted - column - 0.5)) * 0.24, (0.5 - np.abs(z / 0.085 - row - 0.5)) * 0.085) - 0.006
    )
    tint = cell_random(column, row, salt + 1)
    brick = mix(linear("7d3a26"), linear("c9805a"), tint) * (0.75 + 0.5 * cell_random(column, row, salt + 2))
    brick = brick * (1.0 + 1.1 * fractal(flat(u, z, salt), footprint, 14.0, 5))
    return mix(brick, linear("b9ab94"), inside(joint, footprint))


def picture(u: Array, z: Array, footprint: Array, wall: int) -> tuple[Array, Array]:
    """The framed painting in the middle of a wall: albedo and coverage."""
    x, y = u, z - 0.62
    edge = np.minimum(0.42 - np.abs(x), 0.54 - np.abs(y))
    swirl = fractal(flat(x, y, 7.0 * wall), footprint, 2.6, 4)
    stripe = fractal(flat(x + 0.5 * swirl, y - 0.4 * swirl, 3.0 + 5 * wall), footprint, 4.5, 5)
    ladder = [
        palette("12284c", "2f6c9c", "e9cf8e", "d9622e", "7d1d35", "f3ead0"),
        palette("173b2f", "4f8f5b", "d8d48a", "ecae3c", "a33b24", "f0f0dc"),
        palette("2b163f", "6a3f8f", "c76b98", "f2b88a", "f5e6c0", "31506f"),
        palette("3c1510", "a4402a", "e0a04c", "f2e3ba", "3f7f86", "173347"),
    ][wall]
    level = clamp((stripe + 0.5) * 7.0, 0.0, 4.999)
    lower = level.astype(int)
    albedo = mix(ladder[:, lower], ladder[:, lower + 1], smoothstep(0.35, 0.65, level - lower))
    sun = length(x - 0.12 + 0.08 * wall, y - 0.2 + 0.1 * wall) - 0.11
    albedo = mix(albedo, ladder[:, [5]], 0.9 * inside(np.abs(np.abs(sun) - 0.03) - 0.016, footprint))
    albedo = albedo * (1.0 + 0.8 * fractal(flat(x, y, 2.0), footprint, 40.0, 3))
    gilt = linear("b98a3a") * (
        0.6 + 0.5 * np.sin(edge * 180.0) ** 2 + 0.9 * fractal(flat(x, y, 9.0), footprint, 30.0, 4)
    )
    albedo = mix(albedo, gilt, inside(edge - 0.055, footprint))
    return albedo, inside(-edge, footprint)


def wall_paint(p: Array, normal: Array, footprint: Array) -> Array:
    """Old plaster that has fallen off the bricks in places, stone around the arches, a painted frieze, one picture per
    wall."""
    across_x = np.abs(normal[0]) > 0.5
    u, z = np.where(across_x, p[1], p[0]), p[2]
    albedo = np.zeros_like(p)
    for wall in range(4):
        here = np.flatnonzero((across_x == (wall < 2)) & (np.where(across_x, p[0], p[1]) * (1, -1)[wall % 2] > 0))
        if here.size:
            albedo[:, here] = one_wall(u[here], z[here], footprint[here], wall)
    return albedo


def one_wall(u: Array, z: Array, footprint: Array, wall: int) -> Array:
    tone = linear(("d9b27c", "c98f6c", "b7b184", "d2a88f")[wall])
    plane = flat(u, z, 13.0 * wall)
    stain = fractal(plane, footprint, 1.7, 7)
    plaster = tone * (1.0 + 0.9 * stain + 0.35 * fractal(plane + 5.0, footprint, 30.0, 3))
    albedo = mix(
        plaster,
        brickwork(u, z, footprint, 30 + wall),
        inside(0.10 - fractal(plane + 9.0, footprint, 1.3, 6) + 0.10 * z, footprint * 2.0),
    )
    # A stencilled dado: rows of lozenges whose colours change at random, and a line above it.
    cell_u, cell_z = np.floor(u / 0.16), np.floor(z / 0.16)
    lozenge = np.abs(u / 0.16 - cell_u - 0.5) + np.abs(z / 0.16 - cell_z - 0.5) - 0.42
    inner = np.abs(u / 0.16 - cell_u - 0.5) + np.abs(z / 0.16 - cell_z - 0.5) - 0.20
    colours = palette("7c2f2a", "2f5d62", "c08a2f", "e6d6ae", "434a6b")
    pick = (cell_random(cell_u, cell_z, 40 + wall) * 5).astype(int)
    stencil = mix(
        mix(tone * 0.8, colours[:, pick], inside(lozenge, footprint * 6.0)),
        colours[:, (pick + 2) % 5],
        inside(inner, footprint * 6.0),
    )
    worn = clamp(0.9 + 1.6 * stain, 0.0, 1.0)
    albedo = mix(
        albedo, stencil * (1.0 + 0.7 * stain), worn * inside(z + 0.11, footprint) * inside(-0.69 - z, footprint)
    )
    albedo = mix(albedo, linear("4c2b1e"), inside(np.abs(z + 0.09) - 0.02, footprint))
    painting, covers = picture(u, z, footprint, wall)
    albedo = mix(albedo, painting, covers)
    ring = arch_distance(u, z)
    around = (
        np.where(z > ARCH_SPRING, ARCH_SPRING + 0.9 * np.arctan2(z - ARCH_SPRING, ARCH_CENTRE - np.abs(u)), z) / 0.27
    )
    block = np.floor(around)
    stone = linear("cdbf9f") * (0.75 + 0.5 * cell_random(block, np.sign(u), 50 + wall))
    stone = stone * (1.0 + 0.9 * fractal(plane, footprint, 9.0, 6))
    stone = mix(stone, linear("5d5140"), inside((0.5 - np.abs(around - block - 0.5)) * 0.27 - 0.006, footprint))
    return mix(albedo, stone, inside(ring - 0.17, footprint))


def tile_paint(p: Array, footprint: Array) -> Array:
    """Encaustic tiles with quarter circles in a random turn (Truchet tiles), each fired a little differently."""
    side = 0.26
    i, j = np.floor(p[0] / side), np.floor(p[1] / side)
    u, v = p[0] / side - i, p[1] / side - j
    u = np.where(cell_random(i, j, 60) > 0.5, u, 1.0 - u)
    near, far = length(u, v), length(1.0 - u, 1.0 - v)
    arcs = np.minimum(np.abs(near - 0.5), np.abs(far - 0.5))
    width = footprint / side
    colours = palette("3a4656", "6e3325", "4c5a4a", "5c402b", "4b3a4e")
    ground = palette("b98d63", "ad7a54", "a98f70", "b5805f")
    shade = (cell_random(i, j, 61) * 5).astype(int)
    base = ground[:, (cell_random(i, j, 62) * 4).astype(int)]
    albedo = mix(base, colours[:, shade], inside(arcs - 0.13, width))
    albedo = mix(albedo, ground[:, shade % 4], inside(arcs - 0.035, width))
    corner = np.minimum(near, far)
    albedo = mix(albedo, colours[:, (shade + 2) % 5], inside(corner - 0.17, width))
    grout = 0.5 - np.maximum(np.abs(u - 0.5), np.abs(v - 0.5)) - 0.012
    albedo = mix(albedo, linear("6d6455"), inside(grout, width))
    wear = fractal(flat(p[0], p[1], 5.0), footprint, 3.1, 6)
    return albedo * (0.8 + 0.35 * cell_random(i, j, 63)) * (1.0 + 0.85 * wear)


def beam_paint(p: Array, footprint: Array) -> Array:
    plank = np.floor(p[1] / 0.22)
    grain = np.stack([p[0] * 0.12, p[1] + 3.0 * cell_random(plank, np.zeros_like(plank), 70), p[2]])
    albedo = mix(linear("3b2314"), linear("9a6a3c"), clamp(0.5 + 1.5 * fractal(grain, footprint, 18.0, 5), 0.0, 1.0))
    gap = (0.5 - np.abs(p[1] / 0.22 - plank - 0.5)) * 0.22 - 0.006
    beam = np.abs((p[0] / 1.1) % 1.0 - 0.5) - 0.09
    albedo = albedo * (0.7 + 0.6 * cell_random(plank, np.zeros_like(plank), 71)) * (1.0 - 0.8 * inside(gap, footprint))
    return mix(albedo, linear("2a170c"), 0.8 * inside(beam, footprint))


def lawn_paint(p: Array, footprint: Array) -> Array:
    """Flagstones near the house, then meadow with flowers."""
    plane = flat(p[0], p[1], 2.0)
    grass = mix(linear("56692f"), linear("a39f5a"), clamp(0.5 + 1.5 * fractal(plane, footprint, 0.9, 7), 0.0, 1.0))
    bloom = inside(0.26 - fractal(plane + 4.0, footprint, 9.0, 1), footprint * 9.0)
    grass = mix(grass, linear("e9dcae"), 0.7 * bloom)
    i, j = np.floor(p[0] / 0.55 + 0.3 * noise(plane * 2.0)), np.floor(p[1] / 0.55 + 0.3 * noise(plane * 2.0 + 9.0))
    stone = linear("a8977a") * (0.65 + 0.6 * cell_random(i, j, 80)) * (1.0 + 0.9 * fractal(plane, footprint, 3.0, 6))
    house = np.maximum(np.abs(p[0]), np.abs(p[1]) + 0.3) - 5.6 + 0.5 * fractal(plane, footprint, 1.5, 4)
    return mix(grass, stone, inside(house, footprint))


def ring_scene_paint(surface: int, p: Array, footprint: Array) -> Array:
    angle = np.arctan2(p[1], p[0])
    if surface == TREE_RING:
        plane = flat(angle * TREES, p[2], 4.0)
        leaf = 0.6 * fractal(plane, footprint, 2.2, 3) + fractal(plane, footprint, 9.0, 4)
        return mix(linear("263f1b"), linear("93a857"), clamp(0.45 + 1.3 * leaf, 0.0, 1.0))
    if surface == HILL_RING:
        u, v = angle * HILLS, p[2] * 3.0
        plane = flat(u, v)
        bend = fractal(plane, footprint, 0.2, 3)
        i, j = np.floor(u / 2.3 + 2.0 * bend), np.floor(v / 1.5 + 1.5 * bend)
        fields = palette("8d9a45", "c2a24c", "5d7536", "a97b41", "d6c27a", "43602f")
        albedo = fields[:, (cell_random(i, j, 90) * 6).astype(int)]
        return mix(albedo * (1.0 + 1.4 * fractal(plane, footprint, 1.4, 6)), linear("a9bccb"), 0.22)
    u, v = angle * MOUNTAINS, p[2]
    rock = fractal(flat(u, v + 0.4 * u, 6.0), footprint, 0.22, 7)
    snow = smoothstep(6.5, 9.0, v + 9.0 * rock)
    albedo = mix(linear("55617c") * (1.0 + 1.7 * rock), linear("f2f5fa"), snow)
    return mix(albedo, linear("a9c0da"), 0.35)


def sky_radiance(d: Array) -> Array:
    """Blue above, pale at the horizon, with broken cloud; the far environment depends on direction only."""
    up = clamp(d[2], 0.0, 1.0)
    blue = mix(linear("cfe0ee"), linear("3f7fc8"), np.sqrt(up)) * 1.25
    plane = np.stack([d[0], d[1], d[2]]) / (0.25 + up)
    cloud = smoothstep(-0.02, 0.30, fractal(plane, np.zeros_like(up), 2.1, 6))
    lit = 1.15 + 0.5 * fractal(plane + 2.0, np.zeros_like(up), 5.0, 4)
    return mix(blue, np.array([[1.25], [1.22], [1.2]], dtype=np.float32) * lit, 0.85 * cloud).astype(np.float32)


# ----------------------------------------------------------------------------------------------------------------------
# Light
# ----------------------------------------------------------------------------------------------------------------------

SUN_AZIMUTH, SUN_ELEVATION = math.atan2(ARCH_CENTRE, ROOM_X), math.radians(26.0)
SUN = np.array(
    [
        [math.cos(SUN_ELEVATION) * math.cos(SUN_AZIMUTH)],
        [math.cos(SUN_ELEVATION) * math.sin(SUN_AZIMUTH)],
        [math.sin(SUN_ELEVATION)],
    ],
    dtype=np.float32,
)
SUN_COLOUR = np.array([[3.3], [2.75], [2.05]], dtype=np.float32)
SUN_SOFTNESS = 22.0
"""One over the tangent of the hazy sun's apparent radius."""


def sun_through_arches(p: Array) -> NDArray[np.float32]:
    """Part of the sun that the walls leave at points inside the room: both faces of the wall have to be open."""
    d = np.broadcast_to(SUN.astype(p.dtype), p.shape)
    t, axis, _ = room_exit(p, d)
    outward = np.where(axis == 0, SUN[0, 0], SUN[1, 0])
    visible = np.ones(p.shape[1], dtype=np.float32)
    for extra in (0.0, THICKNESS):
        reach = t + extra / outward
        along = np.where(axis == 0, p[1] + SUN[1, 0] * reach, p[0] + SUN[0, 0] * reach)
        blur = np.maximum(reach / SUN_SOFTNESS, 1e-4)
        gap = arch_distance(along, p[2] + SUN[2, 0] * reach)
        visible = np.minimum(visible, smoothstep(blur, -blur, gap))
    return np.where(axis == 2, 0.0, visible).astype(np.float32)


def sun_past_solids(p: Array) -> NDArray[np.float32]:
    """Soft shadow of the solids: the closest miss, relative to the distance travelled, estimates the uncovered part of
    the sun."""
    visible = np.ones(p.shape[1], dtype=np.float32)
    d = np.broadcast_to(SUN, p.shape)
    far = np.full(p.shape[1], 3.0, dtype=p.dtype)
    for thing in solids():
        margin = replace(thing, radius=thing.radius + 0.02, high=thing.high + 0.02) if thing.name != "cloth" else thing
        near, end = bound_interval(margin, p, d, far)
        index = np.flatnonzero((near < end) & (visible > 0.02))
        if index.size == 0:
            continue
        q, t, stop = p[:, index], np.maximum(near[index], 0.003), end[index]
        for _ in range(40):
            distance = thing.signed_distance(q + SUN * t)
            part = smoothstep(0.0, 1.0, 0.5 + 0.5 * SUN_SOFTNESS * distance / t)
            visible[index] = np.minimum(visible[index], part)
            t = t + clamp(distance, 0.003 + 0.012 * t, 0.08)
            going = (t < stop) & (visible[index] > 0.02)
            if not going.any():
                break
            index, q, t, stop = index[going], q[:, going], t[going], stop[going]
    return visible


def sky_openness(p: Array, normal: Array) -> NDArray[np.float32]:
    """Ambient occlusion by the solids: how much nearer they are, along the normal, than an open surface would have
    them."""
    reaches, weights = (0.150, 0.075, 0.030, 0.010), (0.25, 0.30, 0.25, 0.20)
    count, widest = p.shape[1], reaches[0]
    nearest = np.repeat(np.array(reaches, dtype=np.float32)[:, None], count, axis=1)
    outermost = p + normal * np.float32(widest)
    for thing in solids():
        x, y, z = (outermost[i] - thing.origin[i] for i in range(3))
        limit = thing.radius + widest
        index = np.flatnonzero((x * x + y * y < limit * limit) & (z > thing.low - widest) & (z < thing.high + widest))
        for row, reach in enumerate(reaches):
            if index.size == 0:
                break
            distance = thing.signed_distance(p[:, index] + normal[:, index] * np.float32(reach))
            nearest[row, index] = np.minimum(nearest[row, index], distance)
            # A distance changes by no more than the way walked: what is free here is free at every shorter reach.
            index = index[distance < reach]
    hidden = np.zeros(count, dtype=np.float32)
    for row, (reach, weight) in enumerate(zip(reaches, weights, strict=True)):
        hidden += np.float32(weight) * (1.0 - clamp(nearest[row] / np.float32(reach), 0.0, 1.0))
    return clamp(1.0 - 1.05 * hidden, 0.05, 1.0)


@dataclass(frozen=True)
class LightMap:
    """Light on a level plane, computed once on a grid: most of every picture is table top or floor, and its shadows do
    not move."""

    sun: NDArray[np.float32]
    """[rows, columns], what `sun_past_solids` leaves; row = y, column = x, both from -reach."""
    openness: NDArray[np.float32]
    cell: float
    reach: tuple[float, float]

    def look_up(self, p: Array) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Bilinear reading of both grids at points [3, N]."""
        rows, columns = self.sun.shape
        x = clamp((p[0] + self.reach[0]) / self.cell, 0.0, columns - 1.001)
        y = clamp((p[1] + self.reach[1]) / self.cell, 0.0, rows - 1.001)
        i, j = x.astype(np.int64), y.astype(np.int64)
        fx, fy = x - i, y - j
        corner = j * columns + i
        read = []
        for grid in (self.sun.ravel(), self.openness.ravel()):
            near = mix(grid[corner], grid[corner + 1], fx)
            far = mix(grid[corner + columns], grid[corner + columns + 1], fx)
            read.append(mix(near, far, fy))
        return read[0], read[1]


def bake(height: float, reach: tuple[float, float], cell: float, crowded: bool) -> LightMap:
    columns, rows = (round(2.0 * side / cell) + 1 for side in reach)
    y, x = np.mgrid[:rows, :columns].astype(np.float32) * np.float32(cell)
    p = np.stack([x.ravel() - reach[0], y.ravel() - reach[1], np.full(x.size, height + 0.0012, dtype=np.float32)])
    sun, openness = np.ones(x.size, dtype=np.float32), np.ones(x.size, dtype=np.float32)
    bright = np.flatnonzero(sun_through_arches(p) > 0.0)
    sun[bright] = sun_past_solids(p[:, bright])
    if crowded:
        up = np.zeros_like(p)
        up[2] = 1.0
        openness = sky_openness(p, up)
    return LightMap(sun.reshape(rows, columns), openness.reshape(rows, columns), cell, reach)


@lru_cache(maxsize=1)
def light_maps() -> tuple[LightMap, LightMap]:
    """Of the table top and of the floor."""
    table = bake(0.0, (TABLE_RADIUS, TABLE_RADIUS), 0.0025, crowded=True)
    return table, bake(FLOOR, (ROOM_X, ROOM_Y), 0.02, crowded=False)


def light_on(surface: NDArray[np.int64], p: Array, normal: Array, cosine: Array) -> tuple[Array, Array]:
    """Visible part of the sun and of the ambient light at points inside the room."""
    sun, openness = np.zeros(p.shape[1], dtype=np.float32), room_openness(p)
    start = p + normal * np.float32(0.0012)
    day = np.flatnonzero(cosine > 0.0)
    sun[day] = sun_through_arches(start[:, day])
    mapped = np.zeros(p.shape[1], dtype=bool)
    for table, number, level in zip(light_maps(), (FIRST_SOLID, FLOOR_TILES), (0.0, FLOOR), strict=True):
        here = (surface == number) & (normal[2] > 0.9999) & (np.abs(p[2] - level) < 1e-3)
        seen, clear = table.look_up(p[:, here])
        sun[here] *= seen
        openness[here] *= clear
        mapped |= here
    rest = np.flatnonzero(~mapped & (sun > 0.0))
    sun[rest] *= sun_past_solids(start[:, rest])
    rest = np.flatnonzero(~mapped & (surface >= FIRST_SOLID))
    openness[rest] *= sky_openness(p[:, rest], normal[:, rest])
    return sun, openness


def room_openness(p: Array) -> NDArray[np.float32]:
    """Corners of the room are darker, and so is the floor under the table."""
    gaps = [ROOM_X - np.abs(p[0]), ROOM_Y - np.abs(p[1]), p[2] - FLOOR, CEILING - p[2]]
    # The nearest wall is the one the point lies on; the others shade it.
    shade = np.ones(p.shape[1], dtype=np.float32)
    for gap in gaps:
        shade = shade * np.where(gap < 1e-3, 1.0, 1.0 - 0.40 * np.exp(-np.maximum(gap, 0.0) / 0.35))
    under = np.exp(-np.maximum(length(p[0], p[1]) - 0.35, 0.0) / 0.35) * np.exp(-(p[2] - FLOOR) / 0.5)
    return (shade * (1.0 - 0.75 * under)).astype(np.float32)


def ambient(normal: Array) -> Array:
    """Light from everywhere but the sun: cool from the arches, warm from the sunlit floor and the walls."""
    up = 0.5 + 0.5 * normal[2]
    base = mix(np.array([[0.50], [0.40], [0.29]]), np.array([[0.58], [0.60], [0.63]]), up).astype(np.float32)
    toward = clamp(normal[0] * SUN[0, 0] + normal[1] * SUN[1, 0], -1.0, 1.0)
    return base * (1.0 + 0.28 * toward)


def paint_surface(surface: int, p: Array, normal: Array, footprint: Array) -> Paint:
    if surface >= FIRST_SOLID:
        thing = solids()[surface - FIRST_SOLID]
        return thing.paint(thing.local(p), footprint)
    if surface == WALL:
        return Paint(wall_paint(p, normal, footprint))
    if surface == FLOOR_TILES:
        return Paint(tile_paint(p, footprint), specular=0.03, gloss=40.0)
    if surface == BEAMS:
        return Paint(beam_paint(p, footprint))
    if surface == REVEAL:
        stone = linear("c9b993") * (1.0 + 1.2 * fractal(p, footprint, 5.0, 6))
        course = (0.5 - np.abs((p[2] / 0.27) % 1.0 - 0.5)) * 0.27 - 0.006
        return Paint(mix(stone, linear("5d5140"), inside(course, footprint)))
    if surface == LAWN:
        return Paint(lawn_paint(p, footprint))
    return Paint(ring_scene_paint(surface, p, footprint))


def outdoor_radiance(surface: NDArray[np.int64], albedo: Array, normal: Array) -> Array:
    """The landscape is lit without shadows; its cylinders stand for trees and hills whose slopes face every way."""
    facing = np.where(surface == LAWN, clamp(dot(normal, SUN), 0.0, 1.0), np.float32(0.35))
    sky = np.array([[0.55], [0.62], [0.72]], dtype=np.float32)
    return albedo * (SUN_COLOUR * facing + sky) * np.float32(0.62)


def radiance_along(o: Array, d: Array, spread: Array, start: Array, reflect: bool) -> Array:
    """Radiance [3, N] seen along rays; `spread` is the width of a sample at unit distance, `start` its width at the
    origin.

    All surfaces are painted one by one, then lit and reflected together, because few large arrays are quicker than
    many small ones.
    """
    t, surface, normal = trace(o, d)
    count = t.size
    p = o + d * np.where(np.isfinite(t), t, 0.0).astype(np.float32)
    cosine = dot(normal, d)
    footprint = (start + spread * t) / clamp(-cosine, 0.25, 1.0)
    albedo, specular = np.zeros((3, count), dtype=np.float32), np.zeros((3, count), dtype=np.float32)
    gloss, mirror = np.ones(count, dtype=np.float32), np.zeros(count, dtype=np.float32)
    result = np.zeros((3, count), dtype=np.float32)
    for number in np.unique(surface):
        which = np.flatnonzero(surface == number)
        if number == SKY:
            result[:, which] = sky_radiance(d[:, which])
            continue
        paint = paint_surface(int(number), p[:, which], normal[:, which], footprint[which])
        albedo[:, which], specular[:, which] = clamp(paint.albedo, 0.0, 1.0), paint.specular
        gloss[which], mirror[which] = paint.gloss, paint.mirror
    outdoors = np.flatnonzero((surface >= LAWN) & (surface < FIRST_SOLID))
    result[:, outdoors] = outdoor_radiance(surface[outdoors], albedo[:, outdoors], normal[:, outdoors])
    indoors = np.flatnonzero((surface != SKY) & ((surface < LAWN) | (surface >= FIRST_SOLID)))
    p, d, normal = p[:, indoors], d[:, indoors], normal[:, indoors]
    surface, footprint, gloss, mirror = surface[indoors], footprint[indoors], gloss[indoors], mirror[indoors]
    albedo, specular = albedo[:, indoors], specular[:, indoors]
    toward_sun = clamp(dot(normal, SUN), 0.0, 1.0)
    sun, openness = light_on(surface, p, normal, toward_sun)
    lobe = clamp(dot(normal, normalised(SUN - d)), 0.0, 1.0) ** gloss * (gloss + 8.0) / 25.0
    radiance = (albedo + specular * lobe) * SUN_COLOUR * (toward_sun * sun) + albedo * ambient(normal) * openness
    shiny = np.flatnonzero(mirror > 0.0)
    if reflect and shiny.size:
        n, v = normal[:, shiny], d[:, shiny]
        along = dot(n, v)
        fresnel = specular[:, shiny] + (1.0 - specular[:, shiny]) * (1.0 - clamp(-along, 0.0, 1.0)) ** 5
        width = np.full(shiny.size, 0.012, dtype=np.float32)
        origin = p[:, shiny] + n * np.float32(0.0015)
        seen = radiance_along(origin, v - 2.0 * along * n, width, footprint[shiny], reflect=False)
        radiance[:, shiny] += seen * fresnel * mirror[shiny] * (0.4 + 0.6 * openness[shiny])
    result[:, indoors] = radiance
    return result


def display(radiance: Array) -> Array:
    """Filmic curve (K. Narkowicz's fit of the ACES tone scale); still linear light, in [0, 1]."""
    x = radiance * 0.70
    return clamp(x * (2.51 * x + 0.03) / (x * (2.43 * x + 0.59) + 0.14), 0.0, 1.0)


# ----------------------------------------------------------------------------------------------------------------------
# The camera
# ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Camera:
    """A view: OPENCV lens (Brown and Conrady: k1, k2, p1, p2) and pose."""

    world_from_camera: NDArray[np.float64]
    """[4, 4], OpenGL axes."""
    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    k1: float
    k2: float
    p1: float
    p2: float

    def resized(self, width: int, height: int) -> Camera:
        """The same view on another pixel grid."""
        a, b = width / self.width, height / self.height
        return replace(self, width=width, height=height, fx=self.fx * a, cx=self.cx * a, fy=self.fy * b, cy=self.cy * b)


def distort(camera: Camera, x: Array, y: Array) -> tuple[Array, Array]:
    """OpenCV's lens model on normalised image coordinates (x right, y down)."""
    r2 = x * x + y * y
    radial = 1.0 + r2 * (camera.k1 + r2 * camera.k2)
    return (
        x * radial + 2.0 * camera.p1 * x * y + camera.p2 * (r2 + 2.0 * x * x),
        y * radial + camera.p1 * (r2 + 2.0 * y * y) + 2.0 * camera.p2 * x * y,
    )


def undistort(camera: Camera, xd: Array, yd: Array) -> tuple[Array, Array]:
    """Inverse of `distort` by Newton's method with the analytic Jacobian."""
    x, y = xd.copy(), yd.copy()
    for _ in range(8):
        r2 = x * x + y * y
        radial, slope = 1.0 + r2 * (camera.k1 + r2 * camera.k2), camera.k1 + 2.0 * camera.k2 * r2
        fx, fy = distort(camera, x, y)
        a = radial + 2.0 * x * x * slope + 2.0 * camera.p1 * y + 6.0 * camera.p2 * x
        b = 2.0 * x * y * slope + 2.0 * camera.p1 * x + 2.0 * camera.p2 * y
        d = radial + 2.0 * y * y * slope + 6.0 * camera.p1 * y + 2.0 * camera.p2 * x
        ex, ey, determinant = fx - xd, fy - yd, a * d - b * b
        x, y = x - (d * ex - b * ey) / determinant, y - (a * ey - b * ex) / determinant
    return x, y


def pixel_rays(camera: Camera, xy: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Origin [3] and unit directions [N, 3] in the world for image positions [N, 2] (pixel centres at +0.5)."""
    xy = np.asarray(xy, dtype=np.float64)
    x, y = undistort(camera, (xy[:, 0] - camera.cx) / camera.fx, (xy[:, 1] - camera.cy) / camera.fy)
    in_camera = np.stack([x, -y, -np.ones_like(x)], axis=1)
    direction = in_camera @ camera.world_from_camera[:3, :3].T
    return camera.world_from_camera[:3, 3], direction / np.linalg.norm(direction, axis=1, keepdims=True)


def project(camera: Camera, points: Array) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Image positions [N, 2] of world points [N, 3], and whether they lie in front of the camera and inside the
    picture."""
    in_camera = (points - camera.world_from_camera[:3, 3]) @ camera.world_from_camera[:3, :3]
    depth = -in_camera[:, 2]
    safe = np.where(depth > 1e-6, depth, 1.0)
    x, y = distort(camera, in_camera[:, 0] / safe, -in_camera[:, 1] / safe)
    xy = np.stack([camera.fx * x + camera.cx, camera.fy * y + camera.cy], axis=1)
    seen = (depth > 1e-6) & (xy > 0.0).all(axis=1) & (xy < [camera.width, camera.height]).all(axis=1)
    return xy, seen


def camera_walk(views: int, size: tuple[int, int] = SIZE) -> list[Camera]:
    """Cameras of somebody who walks 1.3 times around the table with the camera in hand: nearer and farther, up and
    down, never quite level, never looking at quite the same point."""
    rng = np.random.default_rng(11)
    cameras = []
    lens = {"fx": 552.3, "fy": 551.6, "cx": 322.4, "cy": 238.1, "k1": -0.062, "k2": 0.021, "p1": 0.0009, "p2": -0.0007}
    base = Camera(np.eye(4), 640, 480, **lens)
    for index in range(views):
        s = index / max(views - 1, 1)
        sway = [math.sin(2 * math.pi * phase) for phase in (2.3 * s + 0.1, 5.1 * s, 1.7 * s + 0.55, 4.4 * s)]
        jitter = rng.normal(size=8)
        angle = math.radians(-75.0 + 468.0 * s + 1.2 * jitter[0])
        distance = 1.16 + 0.20 * sway[0] + 0.10 * sway[1] + 0.02 * jitter[1]
        elevation = math.radians(26.0 + 11.0 * sway[2] + 5.0 * sway[3] + jitter[2])
        across = math.cos(elevation)
        offset = np.array([math.cos(angle) * across, math.sin(angle) * across, math.sin(elevation)])
        target = np.array([0.0, 0.0, 0.125]) + np.array([0.035, 0.035, 0.025]) * jitter[3:6]
        eye = np.array([0.0, 0.0, 0.12]) + clamp(distance, 0.8, 1.5) * offset
        back = (eye - target) / np.linalg.norm(eye - target)
        right = np.cross([0.0, 0.0, 1.0], back)
        right /= np.linalg.norm(right)
        pose = np.eye(4)
        pose[:3, :3] = np.stack([right, np.cross(back, right), back], axis=1) @ rotation("z", 2.2 * jitter[6])
        pose[:3, 3] = eye
        cameras.append(replace(base, world_from_camera=pose).resized(*size))
    return cameras


# ----------------------------------------------------------------------------------------------------------------------
# Rendering a view
# ----------------------------------------------------------------------------------------------------------------------

CHUNK = 200_000
TEXTURE_BLUR = 1.4
"""Width in pixels over which paint is averaged before it is sampled."""
CONTRAST = 0.065
"""A pixel whose first samples differ by more than this, in display units after gamma, gets the second round of
samples."""


def sample_offsets(count: int, rng: np.random.Generator, pixels: int) -> NDArray[np.float64]:
    """Positions [pixels, count, 2] relative to the pixel's corner: the R2 sequence (M. Roberts, 2018), evenly spread
    for any count, moved by a random shift per pixel, then bent into a tent of radius one pixel around the centre: the
    blur that a real lens and sensor have as well."""
    lattice = np.arange(count)[:, None] * np.array([0.7548776662, 0.5698402910])
    even = (lattice + rng.random((pixels, 1, 2))) % 1.0
    tent = np.where(even < 0.5, np.sqrt(2.0 * even) - 1.0, 1.0 - np.sqrt(2.0 - 2.0 * even))
    return 0.5 + tent


def sample_light(camera: Camera, pixel: NDArray[np.int64], offsets: NDArray[np.float64]) -> Array:
    """Display light [pixels, samples, 3] of samples inside the given pixels (row-major numbers)."""
    count = offsets.shape[1]
    xy = np.stack([pixel % camera.width, pixel // camera.width], axis=1)[:, None, :] + offsets
    origin, direction = pixel_rays(camera, xy.reshape(-1, 2))
    d = np.ascontiguousarray(direction.T.astype(np.float32))
    o = np.ascontiguousarray(np.broadcast_to(origin.astype(np.float32)[:, None], d.shape))
    spread = np.full(d.shape[1], TEXTURE_BLUR / camera.fx, dtype=np.float32)
    light = display(radiance_along(o, d, spread, np.zeros_like(spread), reflect=True))
    return np.ascontiguousarray(light.T).reshape(-1, count, 3)


def render(camera: Camera, samples: int = 4, extra: int = 7, seed: int = 0) -> NDArray[np.uint8]:
    """Picture [H, W, 3] uint8 sRGB.

    Every pixel averages `samples` rays; pixels where they disagree, with each other or with their neighbours, get
    `extra` more.
    """
    width, height = camera.width, camera.height
    rng = np.random.default_rng(seed)
    total = np.zeros((height * width, 3), dtype=np.float64)
    low, high = np.ones((height * width, 3)), np.zeros((height * width, 3))
    everything = np.arange(height * width)
    for block in blocks(everything, CHUNK // samples):
        light = sample_light(camera, block, sample_offsets(samples, rng, block.size))
        total[block] = light.sum(axis=1)
        gamma = np.sqrt(light)
        low[block], high[block] = gamma.min(axis=1), gamma.max(axis=1)
    count = np.full(height * width, samples, dtype=np.float64)
    if extra:
        mean = np.sqrt(total / samples).reshape(height, width, 3)
        step = np.zeros((height, width))
        vertical, horizontal = np.abs(np.diff(mean, axis=0)).max(axis=2), np.abs(np.diff(mean, axis=1)).max(axis=2)
        step[1:], step[:, 1:] = vertical, np.maximum(step[:, 1:], horizontal)
        busy = ((high - low).max(axis=1) > 2.0 * CONTRAST) | (step.reshape(-1) > 4.0 * CONTRAST)
        for block in blocks(np.flatnonzero(busy), CHUNK // extra):
            total[block] += sample_light(camera, block, sample_offsets(extra, rng, block.size)).sum(axis=1)
            count[block] += extra
    return encode(soften((total / count[:, None]).reshape(height, width, 3)))


def soften(light: Array) -> Array:
    """Blur of a lens and of a sensor's antialiasing filter: weights 1 6 1 along both axes of [H, W, 3].

    The cloth has more detail than pixels. Cameras blur such detail before they sample it, and so JPEG does not spoil
    it after.
    """
    for axis in (0, 1):
        edge = [(1, 1) if k == axis else (0, 0) for k in range(3)]
        padded = np.moveaxis(np.pad(light, edge, mode="edge"), axis, 0)
        light = np.moveaxis(0.125 * padded[:-2] + 0.75 * padded[1:-1] + 0.125 * padded[2:], 0, axis)
    return light


def blocks(index: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, index.size, max(size, 1)):
        yield index[start : start + max(size, 1)]


def render_truth(camera: Camera) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """Depth [H, W] in steps of DEPTH_UNIT and world normals [H, W, 3] as (n + 1) / 2 * 255, through the pixel
    centres."""
    y, x = np.mgrid[: camera.height, : camera.width]
    origin, direction = pixel_rays(camera, np.stack([x.ravel() + 0.5, y.ravel() + 0.5], axis=1))
    t, normal = scene_depth_normal(origin, direction)
    depth = np.where(np.isfinite(t), np.rint(np.where(np.isfinite(t), t, 0.0) / DEPTH_UNIT), 0.0)
    colour = np.where(np.isfinite(t)[:, None], np.rint((normal + 1.0) * 127.5), 0.0)
    shape = (camera.height, camera.width)
    return clamp(depth, 0, 65535).astype(np.uint16).reshape(shape), colour.astype(np.uint8).reshape(*shape, 3)


# ----------------------------------------------------------------------------------------------------------------------
# Files
# ----------------------------------------------------------------------------------------------------------------------

PIXEL_PITCH_MM = 0.01
"""Of the imagined sensor at 640 pixels: 6.4 mm x 4.8 mm, whose diagonal is 8 mm."""
START = datetime(2024, 6, 7, 17, 32, 8)


def exif(camera: Camera, index: int) -> Image.Exif:
    """What a real camera would have written: maker, lens and time. The 35 mm equivalent follows CIPA: by the
    diagonal."""
    focal = camera.fx * SIZE[0] / camera.width * PIXEL_PITCH_MM
    seconds = 0.9 * index + 0.35 * math.sin(1.7 * index)
    stamp = (START + timedelta(seconds=max(seconds, 0.0))).strftime("%Y:%m:%d %H:%M:%S")
    data = Image.Exif()
    data[0x010F], data[0x0110] = "Lightfold", "Sample ray tracer"
    data[0x0112], data[0x0132] = 1, stamp
    data[0x013B], data[0x8298] = "Lightfold authors", "Lightfold authors, Apache-2.0"
    sub = data.get_ifd(0x8769)
    sub[0x9003] = sub[0x9004] = stamp
    sub[0x920A] = round(focal, 3)
    sub[0xA405] = round(focal * math.hypot(36.0, 24.0) / math.hypot(6.4, 4.8))
    sub[0xA002], sub[0xA003] = camera.width, camera.height
    sub[0x829D], sub[0x8827], sub[0x829A] = 5.6, 100, 1 / 125
    return data


def transforms(cameras: list[Camera]) -> dict:
    """The posed form of the capture, in the format of instant-ngp and nerfstudio."""
    c = cameras[0]
    head = {
        "camera_model": "OPENCV",
        "w": c.width, "h": c.height, "fl_x": c.fx, "fl_y": c.fy, "cx": c.cx, "cy": c.cy,
        "k1": c.k1, "k2": c.k2, "p1": c.p1, "p2": c.p2,
    }  # fmt: skip
    frames = [
        {
            "file_path": f"images/{i + 1:04d}.jpg",
            "transform_matrix": [[round(v, 12) for v in row] for row in c.world_from_camera.tolist()],
        }
        for i, c in enumerate(cameras)
    ]
    return {**head, "frames": frames}


def save_picture(out: Path, picture_array: NDArray[np.uint8], camera: Camera, index: int) -> None:
    """Progressive saves a twentieth of the bytes, and this sample lives in a repository."""
    path = out / "images" / f"{index + 1:04d}.jpg"
    data = exif(camera, index)
    Image.fromarray(picture_array).save(
        path, quality=JPEG_QUALITY, exif=data, optimize=True, progressive=True, subsampling="4:4:4"
    )


def save_truth(out: Path, camera: Camera, index: int) -> None:
    """Depth and normals at half the picture's resolution."""
    scale = TRUTH_SIZE[0] / SIZE[0]
    depth, normal = render_truth(camera.resized(round(camera.width * scale), round(camera.height * scale)))
    Image.fromarray(depth).save(out / "truth" / f"{index + 1:04d}_depth.png", optimize=True)
    Image.fromarray(normal).save(out / "truth" / f"{index + 1:04d}_normal.png", optimize=True)


def write_view(job: tuple[Path, Camera, int, bool]) -> str:
    """Render and write one view; returns its progress line. Runs in a worker process."""
    out, camera, index, only_truth = job
    began = time.perf_counter()
    if not only_truth:
        save_picture(out, render(camera, seed=index), camera, index)
    if index % TRUTH_EVERY == 0:
        save_truth(out, camera, index)
    return f"view {index + 1:04d} took {time.perf_counter() - began:.1f} s"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Render the sample capture.")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent, help="folder to write into")
    parser.add_argument("--views", type=int, default=VIEWS, help="number of pictures on the walk")
    parser.add_argument("--size", default=f"{SIZE[0]}x{SIZE[1]}", help="picture size, WIDTHxHEIGHT, best 4:3")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes")
    parser.add_argument("--only-truth", action="store_true", help="write depth and normals, not pictures")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    width, height = (int(part) for part in options.size.lower().split("x"))
    cameras = camera_walk(options.views, (width, height))
    for folder in ("images", "truth"):
        (options.out / folder).mkdir(parents=True, exist_ok=True)
    jobs = [(options.out, c, i, options.only_truth) for i, c in enumerate(cameras)]
    if options.only_truth:
        jobs = [job for job in jobs if job[2] % TRUTH_EVERY == 0]
    else:
        (options.out / "transforms.json").write_text(json.dumps(transforms(cameras), indent=1) + "\n")
    light_maps()  # before the workers start, so that forked ones inherit it
    with ProcessPoolExecutor(max_workers=max(1, options.jobs)) as pool:
        for line in pool.map(write_view, jobs):
            print(line, flush=True)


if __name__ == "__main__":
    main()
