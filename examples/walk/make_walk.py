"""Make a walk through rooms as panoramas, with known poses: ray traced, for measuring what finds poses.

A dense walk of 360 degree pictures with exact truth is what no public data set has. This one is a floor of painted
rooms around a corridor, with doorways, pillars and crates. Somebody carries a camera through it on a pole, in loops
that come back to places seen before.

    python make_walk.py OUT                         # 120 panoramas, 2048 x 1024, about two minutes
    python make_walk.py OUT --count 500 --width 4096

writes OUT/images/0000.jpg ... and OUT/transforms.json with the true poses, in metres.

Paint is that of the sample capture beside this folder, laid out once per surface as a texture with smaller copies. A
panorama then is one lookup per pixel. Walls are upright, so which of them a ray meets first depends on its azimuth
alone: between two neighbouring corners, as seen from the camera, it is always the same one. Crates are axis-aligned
boxes (slab test).
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from lightfold.cameras import Camera
from lightfold.capture import Capture, Frame
from lightfold.formats import transforms

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "sample"))
from make_sample import (
    beam_paint,
    brickwork,
    cell_random,
    clamp,
    encode,
    flat,
    fractal,
    inside,
    linear,
    mix,
    palette,
    smoothstep,
    tile_paint,
)

Array = NDArray[np.floating]

# ----------------------------------------------------------------------------------------------------------------------
# The floor: metres, z up, cells of 1 m, '#' is solid; the first line is the north, y grows upwards
# ----------------------------------------------------------------------------------------------------------------------

PLAN = (
    "####################",
    "#......#.....#.....#",
    "#......#...#.#.....#",
    "#......#.....#.....#",
    "#............#.....#",
    "#..................#",
    "#......#...........#",
    "###..####..####..###",
    "#..................#",
    "#.......#..........#",
    "#..................#",
    "####..####..####..##",
    "#......#...........#",
    "#..................#",
    "#............#.....#",
    "#......#.....#.....#",
    "####################",
)
CEILING = 2.7
CRATES = (
    (1.3, 15.4, 0.9), (5.9, 10.6, 0.7), (1.5, 10.4, 1.1), (8.7, 15.3, 0.8), (11.9, 10.5, 0.6), (14.6, 15.3, 1.0),
    (17.9, 10.4, 0.8), (1.4, 8.6, 0.6), (18.4, 6.5, 0.7), (12.3, 8.6, 0.5), (1.5, 1.5, 1.0), (5.8, 4.5, 0.8),
    (9.6, 1.4, 0.9), (12.2, 4.4, 0.6), (15.0, 1.3, 0.8), (18.4, 4.4, 0.9),
)  # fmt: skip
"""(x, y of the middle, side): cubes on the floor."""
ROUTE = (
    (2.0, 7.5), (3.6, 8.2), (4.0, 9.5), (3.4, 11.2), (3.6, 13.6), (5.6, 12.6), (7.5, 12.0), (9.4, 13.0), (11.4, 12.0),
    (13.5, 11.0), (15.2, 13.2), (17.2, 13.0), (16.6, 10.9), (16.0, 9.5), (15.8, 8.0), (13.6, 7.2), (11.2, 7.8),
    (10.1, 9.5), (9.6, 11.4), (7.5, 12.1), (5.2, 11.4), (4.0, 10.2), (4.0, 8.6), (4.8, 6.6), (5.0, 5.5), (3.6, 3.8),
    (4.8, 2.6), (7.5, 2.9), (9.6, 2.4), (11.4, 3.4), (13.5, 4.0), (15.8, 3.2), (17.0, 4.4), (16.9, 5.5), (15.0, 7.6),
    (12.0, 6.9), (11.3, 5.5), (10.0, 4.0), (10.8, 5.5), (9.4, 6.5), (7.2, 6.5), (5.0, 7.3),
)  # fmt: skip
"""Places on the walk, in a loop."""


@dataclass(frozen=True)
class Wall:
    """An upright rectangle on the line axis = place (axis 0: x, 1: y) from low to high along the other axis."""

    axis: int
    place: float
    low: float
    high: float


def solid_cells() -> NDArray[np.bool_]:
    """[rows, columns], row 0 in the south."""
    return np.array([[cell == "#" for cell in line] for line in reversed(PLAN)])


def walls() -> list[Wall]:
    """The borders between solid and free cells, joined where they continue each other and face the same way."""
    solid = solid_cells()
    found = []
    for axis in (0, 1):
        grid = solid.T if axis == 0 else solid
        for place in range(1, grid.shape[0]):
            facing = grid[place].astype(int) - grid[place - 1].astype(int)
            edges = [0, *(np.flatnonzero(np.diff(facing)) + 1).tolist(), facing.size]
            for low, high in zip(edges[:-1], edges[1:], strict=True):
                if facing[low] != 0:
                    found.append(Wall(axis, float(place), float(low), float(high)))
    return found


# ----------------------------------------------------------------------------------------------------------------------
# Paint: every surface once, as linear light [3, N] at its own coordinates
# ----------------------------------------------------------------------------------------------------------------------

TEXEL = 1 / 160
"""Metres per pixel of the largest copy of a texture."""


def wall_paint(u: Array, z: Array, footprint: Array, salt: int) -> Array:
    """Old plaster, bricks where it fell off, a wainscot of coloured panels, and posters. No two places look alike."""
    plane = flat(u, z, 3.0 * salt) + 1.7 * salt
    tone = palette("d9b27c", "a9b7b0", "b7b184", "c98f6c", "9aa7bd", "cdb9a6")[:, [salt % 6]]
    colour = tone * (1.0 + 0.8 * fractal(plane, footprint, 1.9, 7))
    colour = mix(
        colour, brickwork(u, z, footprint, salt % 9), inside(0.08 - fractal(plane + 9, footprint, 1.1, 5), footprint)
    )
    i, j = np.floor(u / 0.31), np.floor(z / 0.31)
    pick = (cell_random(i, j, salt % 50) * 6).astype(int)
    panels = palette("7c2f2a", "2f5d62", "c08a2f", "e6d6ae", "434a6b", "5d7f5a")
    lozenge = np.abs(u / 0.31 - i - 0.5) + np.abs(z / 0.31 - j - 0.5) - 0.2 - 0.25 * cell_random(i, j, salt % 50 + 50)
    wainscot = mix(panels[:, pick], panels[:, (pick + 2) % 6], inside(lozenge, footprint * 3.2))
    wainscot = wainscot * (1.0 + 0.9 * fractal(plane + 4, footprint, 6.0, 4))
    colour = mix(colour, wainscot, inside(z - 0.93, footprint))
    column = np.floor(u / 1.3)
    across = np.abs(u / 1.3 - column - 0.5) * 1.3 - 0.2 - 0.25 * cell_random(column, np.full_like(u, salt), 7)
    along = np.abs(z - 1.62) - 0.25 - 0.2 * cell_random(column, np.full_like(u, salt), 8)
    edge = np.maximum(across, along)
    swirl = plane + 3.1 * column
    level = clamp((fractal(swirl + 0.4 * fractal(swirl, footprint, 2.0, 3), footprint, 3.7, 5) + 0.5) * 8.0, 0.0, 5.999)
    lower = level.astype(int)
    inks = palette("12284c", "2f6c9c", "e9cf8e", "d9622e", "7d1d35", "f3ead0", "173b2f")
    poster = mix(inks[:, lower], inks[:, np.minimum(lower + 1, 6)], smoothstep(0.3, 0.7, level - lower))
    poster = mix(poster, linear("2a1d14"), inside(np.abs(edge + 0.02) - 0.02, footprint))
    return mix(colour, poster, inside(edge, footprint))


def crate_paint(u: Array, v: Array, footprint: Array, salt: int) -> Array:
    """Planks with stencilled marks."""
    plank = np.floor(v / 0.12)
    plane = flat(0.2 * u, v, 5.0 * salt) + 2.3 * salt + 3.0 * cell_random(plank, np.full_like(u, salt), 3)
    wood = mix(linear("5b3a1e"), linear("c79b62"), clamp(0.5 + 1.4 * fractal(plane, footprint, 9.0, 5), 0.0, 1.0))
    wood = wood * (0.7 + 0.6 * cell_random(plank, np.full_like(u, salt), 4))
    gap = (0.5 - np.abs(v / 0.12 - plank - 0.5)) * 0.12 - 0.005
    marks = fractal(flat(u, v, 2.0 * salt) + salt, footprint, 5.0, 3) - 0.16
    ink = palette("1b2a4a", "8c1f1f", "f0ead8", "20482c")[:, [salt % 4]]
    return mix(mix(wood, ink, inside(-marks, footprint)), linear("1d130a"), inside(gap, footprint))


@dataclass(frozen=True)
class Texture:
    """Linear light of a rectangle and its halvings: levels[k] is [3, h, w] at TEXEL * 2^k metres per pixel."""

    levels: list[NDArray[np.float32]]

    def look_up(self, u: Array, v: Array, footprint: Array) -> Array:
        """Light [3, N] at (u, v) [N], in metres from the corner; bilinear, from the level whose pixels are as wide as
        `footprint`."""
        level = clamp(np.rint(np.log2(np.maximum(footprint / TEXEL, 1e-6))), 0, len(self.levels) - 1).astype(int)
        light = np.empty((3, u.size), dtype=np.float32)
        for k in np.unique(level):
            here = np.flatnonzero(level == k)
            light[:, here] = bilinear(self.levels[k], u[here] / (TEXEL * 2**k), v[here] / (TEXEL * 2**k))
        return light


def bilinear(picture: NDArray[np.float32], x: Array, y: Array) -> Array:
    """Values [3, N] of [3, h, w] at pixels (x, y), centres at +0.5."""
    height, width = picture.shape[1:]
    x, y = clamp(x - 0.5, 0.0, width - 1.0), clamp(y - 0.5, 0.0, height - 1.0)
    i, j = np.minimum(x.astype(int), max(width - 2, 0)), np.minimum(y.astype(int), max(height - 2, 0))
    a, b = (x - i).astype(np.float32), (y - j).astype(np.float32)
    flat_picture, first = picture.reshape(3, -1), j * width + i
    right, down = int(width > 1), width * int(height > 1)
    upper = mix(flat_picture[:, first], flat_picture[:, first + right], a)
    return mix(upper, mix(flat_picture[:, first + down], flat_picture[:, first + down + right], a), b)


def bake(kind: str, salt: int, width: float, height: float, light: float) -> Texture:
    """Paint a rectangle of this size in metres."""
    columns, rows = max(1, round(width / TEXEL)), max(1, round(height / TEXEL))
    u = np.tile((np.arange(columns, dtype=np.float32) + 0.5) * TEXEL, rows)
    v = np.repeat((np.arange(rows, dtype=np.float32) + 0.5) * TEXEL, columns)
    footprint = np.full(u.size, TEXEL, dtype=np.float32)
    if kind == "wall":
        colour = wall_paint(u, v, footprint, salt)
    elif kind == "crate":
        colour = crate_paint(u, v, footprint, salt)
    elif kind == "floor":
        colour = tile_paint(np.stack([u, v, np.zeros_like(u)]), footprint)
    else:
        colour = 1.6 * beam_paint(np.stack([u, v, np.zeros_like(u)]), footprint)
    level = clamp(colour * light, 0.0, 1.0).astype(np.float32).reshape(3, rows, columns)
    levels = [level]
    while min(level.shape[1:]) >= 4:
        even = level[:, : level.shape[1] // 2 * 2, : level.shape[2] // 2 * 2]
        level = 0.25 * (even[:, ::2, ::2] + even[:, 1::2, ::2] + even[:, ::2, 1::2] + even[:, 1::2, 1::2])
        levels.append(level)
    return Texture(levels)


# ----------------------------------------------------------------------------------------------------------------------
# Tracing
# ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Floor:
    """Everything there is to see. Surfaces are numbered: floor, ceiling, walls, then five faces per crate."""

    walls: list[Wall]
    textures: list[Texture]


def build(jobs: int) -> Floor:
    """Paint all surfaces."""
    rows, columns = solid_cells().shape
    rng = np.random.default_rng(3)
    todo = [("floor", 0, columns, rows, 1.1), ("ceiling", 0, columns, rows, 1.0)]
    made = walls()
    todo += [("wall", k, w.high - w.low, CEILING, 0.85 + 0.25 * rng.random()) for k, w in enumerate(made)]
    for k, (_, _, side) in enumerate(CRATES):
        todo += [("crate", 5 * k + face, side, side, (0.75, 0.9, 0.85, 0.95, 1.1)[face]) for face in range(5)]
    with ProcessPoolExecutor(max_workers=jobs) as pool:
        return Floor(made, list(pool.map(bake, *zip(*todo, strict=True))))


def trace(floor: Floor, eye: Array, d: Array) -> tuple[NDArray[np.int64], Array, Array, Array, Array]:
    """What rays from eye [3] along unit d [3, N] meet: surface [N], its coordinates u and v, the distance, and the
    cosine between ray and normal."""
    across = np.hypot(d[0], d[1])
    first = first_walls(floor.walls, eye, np.arctan2(d[1], d[0]))
    axis = np.array([w.axis for w in floor.walls])[first]
    place, low = np.array([(w.place, w.low) for w in floor.walls])[first].T
    along = np.where(axis == 0, d[0], d[1])
    t = (place - eye[axis]) / np.where(along == 0, 1e-12, along)
    z = eye[2] + t * d[2]
    side = np.where(axis == 0, eye[1] + t * d[1], eye[0] + t * d[0])
    surface, u, v, cosine = first + 2, side - low, z.copy(), np.abs(along)
    for number, height in ((0, 0.0), (1, CEILING)):
        here = np.flatnonzero((z < height) if number == 0 else (z > height))
        surface[here], cosine[here] = number, np.abs(d[2, here])
        t[here] = (height - eye[2]) / d[2, here]
        u[here], v[here] = eye[0] + t[here] * d[0, here], eye[1] + t[here] * d[1, here]
    for number, crate in enumerate(CRATES):
        meet_crate(eye, d, across, number, crate, len(floor.walls) + 2, surface, u, v, t, cosine)
    return surface, u, v, t, cosine


def first_walls(made: list[Wall], eye: Array, azimuth: Array) -> NDArray[np.int64]:
    """The wall [N] that is met first in each direction: the same between neighbouring corners."""
    ends = np.array([[(w.place, e) if w.axis == 0 else (e, w.place) for e in (w.low, w.high)] for w in made])
    corners = np.unique(np.arctan2(ends[..., 1] - eye[1], ends[..., 0] - eye[0]))
    following = np.append(corners[1:], corners[0] + 2 * math.pi)
    middle = 0.5 * (corners + following)
    d = np.stack([np.cos(middle), np.sin(middle)])
    nearest, first = np.full(middle.size, np.inf), np.zeros(middle.size, dtype=np.int64)
    for number, wall in enumerate(made):
        with np.errstate(divide="ignore"):
            t = (wall.place - eye[wall.axis]) / d[wall.axis]
        side = eye[1 - wall.axis] + t * d[1 - wall.axis]
        closer = (t > 0) & (t < nearest) & (side >= wall.low) & (side <= wall.high)
        nearest[closer], first[closer] = t[closer], number
    return first[np.searchsorted(corners, azimuth) - 1]


def meet_crate(
    eye: Array, d: Array, across: Array, number: int, crate: tuple[float, float, float], base: int,
    surface: Array, u: Array, v: Array, t: Array, cosine: Array,
) -> None:  # fmt: skip
    """Replace what rays meet by a crate where that is nearer (Kay and Kajiya's slabs); only rays towards it are looked
    at."""
    x, y, side = crate
    toward = np.array([x - eye[0], y - eye[1]])
    distance = np.hypot(*toward)
    reach = math.cos(math.asin(min(1.0, side * math.sqrt(0.5) / distance)))
    here = np.flatnonzero(d[0] * toward[0] + d[1] * toward[1] >= reach * distance * across)
    low = np.array([x - side / 2, y - side / 2, 0.0])[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        one, other = (low - eye[:, None]) / d[:, here], (low + side - eye[:, None]) / d[:, here]
    near, far = np.fmin(one, other), np.fmax(one, other)
    axis = near.argmax(axis=0)
    entry = near.max(axis=0)
    hit = (entry > 0) & (entry < far.min(axis=0)) & (entry < t[here])
    here, axis, entry = here[hit], axis[hit], entry[hit]
    p = eye[:, None] + entry * d[:, here] - low
    direction = d[axis, here]
    surface[here] = base + 5 * number + np.where(axis == 2, 4, 2 * axis + (direction < 0))
    u[here], v[here] = np.where(axis == 0, p[1], p[0]), np.where(axis == 2, p[1], p[2])
    t[here], cosine[here] = entry, np.abs(direction)


def shade(floor: Floor, eye: Array, d: Array, spread: float) -> tuple[Array, NDArray[np.int64]]:
    """Light [3, N] and surface [N] along rays; `spread` is the angle between neighbouring rays."""
    surface, u, v, t, cosine = trace(floor, eye, d)
    # A slanted pixel is long one way; the geometric mean keeps detail that the narrow way can show.
    footprint = t * spread / np.sqrt(np.maximum(cosine, 0.02))
    light = np.empty((3, u.size), dtype=np.float32)
    order = np.argsort(surface, kind="stable")
    starts = np.searchsorted(surface[order], np.arange(len(floor.textures) + 1))
    for number, texture in enumerate(floor.textures):
        here = order[starts[number] : starts[number + 1]]
        if here.size:
            light[:, here] = texture.look_up(u[here], v[here], footprint[here])
    return light, surface


def render(floor: Floor, camera: Camera) -> NDArray[np.uint8]:
    """Panorama [H, W, 3]. Pixels beside another surface average four more rays."""
    spread = math.pi / camera.height
    world_from_cam = camera.world_from_cam
    eye = camera.center.numpy()

    def rays(xy: torch.Tensor) -> Array:
        return (world_from_cam[:, :3] @ camera.unproject(xy).mT).numpy()

    grid = camera.pixel_grid()
    light, surface = shade(floor, eye, rays(grid), spread)
    number = surface.reshape(camera.height, camera.width)
    edge = number != np.roll(number, 1, axis=1)
    edge[1:] |= number[1:] != number[:-1]
    edge |= np.roll(edge, -1, axis=1)
    edge[:-1] |= edge[1:]
    here = np.flatnonzero(edge)
    for offset in ((-0.125, -0.375), (0.375, -0.125), (0.125, 0.375), (-0.375, 0.125)):
        light[:, here] += shade(floor, eye, rays(grid[here] + grid.new_tensor(offset)), spread)[0]
    light[:, here] /= 5.0
    return encode(light.T).reshape(camera.height, camera.width, 3)


# ----------------------------------------------------------------------------------------------------------------------
# The walk
# ----------------------------------------------------------------------------------------------------------------------


def path(count: int) -> Array:
    """Places [count, 2], evenly spaced along the closed Catmull-Rom curve through ROUTE."""
    corners = np.array(ROUTE)
    s = np.linspace(0.0, 1.0, 50, endpoint=False)[:, None]
    pieces = []
    for k in range(len(corners)):
        a, b, c, d = corners[[k - 1, k, (k + 1) % len(corners), (k + 2) % len(corners)]]
        pieces.append(0.5 * (2 * b + (c - a) * s + (2 * a - 5 * b + 4 * c - d) * s**2 + (3 * b - a - 3 * c + d) * s**3))
    curve = np.concatenate([*pieces, corners[:1]])
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1))])
    places = np.linspace(0.0, length[-1], count, endpoint=False)
    return np.stack([np.interp(places, length, curve[:, axis]) for axis in (0, 1)], axis=1)


def cameras(count: int, width: int) -> list[Camera]:
    """The camera on its pole: it turns with the walker, later and not quite, sways, and is never quite level."""
    rng = np.random.default_rng(5)
    places = path(count)
    step = np.roll(places, -1, axis=0) - np.roll(places, 1, axis=0)
    heading = np.unwrap(np.arctan2(step[:, 1], step[:, 0]))
    made = []
    for k in range(count):
        yaw = 0.7 * heading[k] + rng.normal(0.0, 0.1)
        roll, pitch = rng.normal(0.0, math.radians(2.5), size=2)
        forward = np.array([math.cos(yaw), math.sin(yaw), 0.0])
        right = np.array([math.sin(yaw), -math.cos(yaw), 0.0])
        level = np.stack([right, [0.0, 0.0, -1.0], forward])
        tilt = np.array([[math.cos(roll), -math.sin(roll), 0], [math.sin(roll), math.cos(roll), 0], [0, 0, 1]])
        nod = np.array([[1, 0, 0], [0, math.cos(pitch), -math.sin(pitch)], [0, math.sin(pitch), math.cos(pitch)]])
        eye = np.array([*places[k], 1.55 + 0.08 * math.sin(0.9 * k) + rng.normal(0.0, 0.02)])
        rotation = torch.from_numpy(tilt @ nod @ level)
        pose = torch.cat([rotation, -(rotation @ torch.from_numpy(eye))[:, None]], dim=1)
        made.append(Camera.panorama(pose, width, width // 2))
    return made


def write(out: Path, count: int, width: int, jobs: int) -> Capture:
    """Render the walk into a folder, and return it as a capture with the true poses."""
    floor = build(jobs)
    frames = []
    (out / "images").mkdir(parents=True, exist_ok=True)

    def one(number: int, camera: Camera) -> Frame:
        file = out / "images" / f"{number:04d}.jpg"
        Image.fromarray(render(floor, camera)).save(file, quality=92, subsampling="4:4:4")
        return Frame(file, camera, f"images/{file.name}")

    # Threads, because numpy lets others run and the textures are large; painting, of many small steps, has processes.
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        for frame in pool.map(one, range(count), cameras(count, width)):
            frames.append(frame)
            print(f"\r{len(frames)} of {count} panoramas", end="", flush=True)
    print()
    capture = Capture(root=out, format="transforms", frames=tuple(frames), up=torch.tensor([0.0, 0.0, 1.0]).double())
    transforms.write(capture, out)
    return capture


def main() -> None:
    parser = argparse.ArgumentParser(description="Render a walk of panoramas with known poses.")
    parser.add_argument("out", type=Path, help="folder to write into")
    parser.add_argument("--count", type=int, default=120, help="number of panoramas")
    parser.add_argument("--width", type=int, default=2048, help="width in pixels; the height is half of it")
    parser.add_argument("--jobs", type=int, default=2, help="how many surfaces and panoramas are made at a time")
    options = parser.parse_args()
    start = time.perf_counter()
    write(options.out, options.count, options.width, options.jobs)
    print(f"{options.out} took {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
