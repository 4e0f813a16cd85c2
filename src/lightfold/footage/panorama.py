"""Panoramas as perspective pictures: virtual cameras inside the sphere, exact resampling, masks.

A panorama sees every direction from one point, so any perspective picture from that point can be cut out of it without
knowing the scene: turn the pixel's ray into the panorama's axes, and look up its longitude and latitude. Features are
found on such crops, because detectors expect perspective pictures, and methods without spherical rays train on them.

Which directions are cut is a `Layout`. Axes are OpenCV's for crops and panorama alike; yaw turns right, pitch up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..cameras import Camera, Lens
from ..capture import Capture, Frame, Points
from ..errors import CaptureError
from ..files import whole_file
from ..images import UNREADABLE, decode

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class Layout:
    """Square perspective crops of a panorama.

    fov:        angle of view of a crop's side, radians.
    directions: (yaw, pitch) of each crop's axis, radians; yaw to the right, pitch upwards.
    """

    fov: float
    directions: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        if not 0.0 < self.fov < math.radians(170.0):
            raise ValueError(f"fov: expected between 0 and 170 degrees, got {math.degrees(self.fov):.1f}")


def rings(fov: float, *rows: tuple[float, int]) -> Layout:
    """A layout of evenly spaced yaws at each of some pitches: `rows` are (pitch, count). All angles in degrees."""
    directions = [(2 * math.pi * i / count, math.radians(pitch)) for pitch, count in rows for i in range(count)]
    return Layout(math.radians(fov), tuple(directions))


LAYOUTS: dict[str, Layout] = {
    "4": rings(100.0, (0.0, 4)),
    "6": rings(90.0, (0.0, 4), (90.0, 1), (-90.0, 1)),
    "8": rings(120.0, (0.0, 4), (45.0, 2), (-45.0, 2)),
    "14": rings(110.0, (0.0, 6), (45.0, 4), (-45.0, 4)),
}
"""By the number of crops: a belt around the horizon; the faces of a cube, which cover every direction once; and the two
that nerfstudio cuts."""

MAP_BYTES = 256 << 20
"""Memory for maps from crops to a panorama; more crops than fit are cut in several rounds."""
JPEG_QUALITY = 95


def crop_from_pano(yaw: float, pitch: float) -> Tensor:
    """Rotation [3, 3] float64 from the panorama's axes to those of a crop that looks along (yaw, pitch), radians.

    Its rows are the crop's right, down and forward axes. The horizon stays level.
    """
    right = [math.cos(yaw), 0.0, -math.sin(yaw)]
    forward = [math.sin(yaw) * math.cos(pitch), -math.sin(pitch), math.cos(yaw) * math.cos(pitch)]
    axes = torch.tensor([right, forward], dtype=torch.float64)
    return torch.stack([axes[0], torch.linalg.cross(axes[1], axes[0]), axes[1]])


def natural_size(layout: Layout, width: int) -> int:
    """Side in pixels at which a crop's centre has as many pixels per radian as a panorama of this width: no detail is
    lost, and none is invented in the middle."""
    return max(1, round(2.0 * math.tan(0.5 * layout.fov) * width / (2.0 * math.pi)))


def crop_cameras(panorama: Camera, layout: Layout, size: int | None = None) -> list[Camera]:
    """The PINHOLE cameras of a panorama's crops, at the panorama's place.

    Args:
        panorama: a single EQUIRECTANGULAR camera; its pose is that of the crops but for their rotation.
        size: side in pixels; None for `natural_size`.
    """
    if panorama.lens is not Lens.EQUIRECTANGULAR:
        raise ValueError(f"panorama: expected an EQUIRECTANGULAR camera, got {panorama.lens.value}")
    side = natural_size(layout, panorama.width) if size is None else size
    focal = 0.5 * side / math.tan(0.5 * layout.fov)
    intrinsics = panorama.intrinsics.new_tensor([focal, focal, 0.5 * side, 0.5 * side])
    cameras = []
    for yaw, pitch in layout.directions:
        pose = crop_from_pano(yaw, pitch).to(panorama.cam_from_world) @ panorama.cam_from_world
        cameras.append(Camera(pose, intrinsics, intrinsics[:0], side, side, Lens.PINHOLE))
    return cameras


def same_directions(source: Camera, target: Camera, xy: Tensor) -> tuple[Tensor, Tensor]:
    """Where `target` sees what `source` sees at pixels xy, for cameras at one place: a map between their pictures.

    Only the rotations of the two poses are read. Both ways between a crop and its panorama are this function, as is the
    way from a panorama to the fisheyes that it is stitched from.

    Args:
        xy: pixels [..., 2] of source, pixel centres at +0.5.

    Returns:
        pixels [..., 2] of target, and whether [...] both lenses can see in that direction. Equirectangular x is in
        [0, width], so pixels on both sides of a seam are far apart.
    """
    direction, reached = source.unproject_valid(xy.flatten(0, -2))
    target_from_source = target.cam_from_world[:, :3] @ source.cam_from_world[:, :3].mT
    turned = Camera(
        torch.eye(3, 4).to(direction), target.intrinsics, target.distortion, target.width, target.height, target.lens
    )
    pixels, seen = turned.project(direction @ target_from_source.mT)
    return pixels.unflatten(0, xy.shape[:-1]), (reached & seen).unflatten(0, xy.shape[:-1])


# --- resampling ------------------------------------------------------------------------------------------------------


def as_planes(picture: NDArray[np.uint8], panorama: bool) -> Tensor:
    """Bytes [H, W] or [H, W, C] as float32 planes [1, C, H + 2, W + 2] with a border of one pixel, for `resample`.

    Around a panorama the border is what lies beyond: left and right edges continue each other, and over a pole the
    picture goes on at the opposite longitude. Around another picture its edge is repeated.
    """
    channels = np.atleast_3d(picture).transpose(2, 0, 1).astype(np.float32, order="C")
    planes = torch.from_numpy(channels)[None]
    if not panorama:
        return torch.nn.functional.pad(planes, (1, 1, 1, 1), mode="replicate")
    half = planes.shape[-1] // 2
    over_poles = [planes[:, :, :1].roll(half, -1), planes, planes[:, :, -1:].roll(half, -1)]
    return torch.nn.functional.pad(torch.cat(over_poles, dim=2), (1, 1, 0, 0), mode="circular")


def resample(planes: Tensor, xy: Tensor) -> Tensor:
    """Bilinear values [C, h, w] float32 at pixels xy [h, w, 2] of a picture given by `as_planes`."""
    height, width = planes.shape[-2:]
    scale, border = xy.new_tensor([2.0 / width, 2.0 / height]), 1.0
    grid = ((xy + border) * scale - 1.0).to(planes.dtype)[None]
    return torch.nn.functional.grid_sample(planes, grid, mode="bilinear", padding_mode="border", align_corners=False)[0]


def samples_per_side(panorama_width: int, crop: Camera) -> int:
    """How many samples across and down each pixel of a crop must average.

    A panorama's detail is that of its rows, width / 2 pi pixels per radian: near the poles it has more columns but not
    more detail. A crop's density is least at its centre, and there equal to its focal length. So samples that are no
    farther apart than the panorama's pixels in the middle of the crop are dense enough everywhere.
    """
    return max(1, math.ceil(panorama_width / (2.0 * math.pi) / float(crop.intrinsics[0]) - 1e-3))


def crop_map(panorama: Camera, crop: Camera) -> Tensor:
    """Pixels [k h, k w, 2] float32 of the panorama for each sample of the crop, k = `samples_per_side`."""
    k = samples_per_side(panorama.width, crop)
    fine = crop.resized(crop.width * k, crop.height * k)
    result = torch.empty(fine.height, fine.width, 2)
    x = torch.arange(fine.width, dtype=torch.float64) + 0.5
    band = max(1, (1 << 18) // fine.width)  # rows at a time, which bounds the memory of the float64 work
    for first in range(0, fine.height, band):
        y = torch.arange(first, min(first + band, fine.height), dtype=torch.float64) + 0.5
        xy = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
        result[first : first + band] = same_directions(fine, panorama, xy)[0].float()
    return result


def cut(planes: Tensor, where: Tensor, crop: Camera) -> NDArray[np.uint8]:
    """The crop [h, w, C] of a panorama given by `as_planes`, along a `crop_map`; each pixel averages its samples."""
    values = torch.nn.functional.adaptive_avg_pool2d(resample(planes, where), (crop.height, crop.width))
    return values.permute(1, 2, 0).add(0.5).clamp(0, 255).to(torch.uint8).numpy()


# --- pictures for training -------------------------------------------------------------------------------------------


def training_crops(
    capture: Capture,
    out: Path,
    layout: Layout = LAYOUTS["8"],
    size: int | None = None,
    progress: Progress | None = None,
) -> Capture:
    """Posed panoramas as exactly posed perspective pictures.

    Crops are written to out/images and their masks to out/masks. Nothing is estimated: a crop stands where its panorama
    stands, turned. Frames with other lenses stay as they are.

    Args:
        size: side of a crop in pixels; None for `natural_size`, which loses no detail.

    Returns:
        a capture rooted at `out`; points keep their tracks, now to the crops that see them. Panoramas without a pose
        and those that cannot be read are left out, which a note says.

    Raises:
        CaptureError: no panorama could be cut.
    """
    if out.resolve() == capture.root.resolve():
        raise ValueError(f"out: expected another folder than the capture's, got {out}")
    panoramas = [i for i, f in enumerate(capture.frames) if f.camera is None or f.camera.lens is Lens.EQUIRECTANGULAR]
    posed = [i for i in panoramas if capture.frames[i].camera is not None]
    crops: dict[int, list[Frame]] = {}
    unreadable: dict[int, str] = {}
    by_size: dict[tuple[int, int], list[int]] = {}
    for i in posed:
        camera = _camera(capture.frames[i])
        by_size.setdefault((camera.width, camera.height), []).append(i)
    names = _stems([capture.frames[i].name for i in posed])
    done, total = 0, len(posed) * len(layout.directions)
    for indices in by_size.values():
        for first, maps in _rounds(_camera(capture.frames[indices[0]]), layout, size):
            for i in indices:
                try:
                    if i not in unreadable:
                        some = crop_cameras(_camera(capture.frames[i]), layout, size)[first : first + len(maps)]
                        stem = names[capture.frames[i].name]
                        crops.setdefault(i, []).extend(_write_crops(capture.frames[i], out, stem, first, some, maps))
                except UNREADABLE as error:
                    unreadable[i] = f"{capture.frames[i].name} is left out because it cannot be read ({error})."
                done += len(maps)
                if progress is not None:
                    progress("cutting panoramas", done, total)
    if not set(crops) - set(unreadable):
        why = next(iter(unreadable.values()), "It has no panorama with a pose.")
        raise CaptureError(f"No panorama of {capture.root} could be cut into perspective pictures. {why}")

    frames: list[Frame] = []
    parents: list[int] = []
    for i, frame in enumerate(capture.frames):
        kept = crops.get(i, []) if i in panoramas else [frame]
        if i not in unreadable:
            frames += kept
            parents += [i] * len(kept)
    notes = [*capture.notes, *unreadable.values()]
    if len(posed) < len(panoramas):
        notes.append(f"{len(panoramas) - len(posed)} pictures without a pose were not cut.")
    points = None if capture.points is None else _follow(capture, capture.points, frames, parents)
    return replace(capture, root=out, frames=tuple(frames), points=points, notes=tuple(notes))


def _camera(frame: Frame) -> Camera:
    assert frame.camera is not None
    return frame.camera


def _rounds(panorama: Camera, layout: Layout, size: int | None) -> Iterator[tuple[int, list[Tensor]]]:
    """A panorama's crops in rounds whose maps fit into MAP_BYTES: the number of the first, and the maps.

    Maps depend on the panorama's size only, so those of one serve all of that size; where they need several rounds,
    decoding each panorama once per round costs less than computing all maps once per panorama.
    """
    cameras = crop_cameras(panorama, layout, size)
    bytes_each = 8 * (cameras[0].width * samples_per_side(panorama.width, cameras[0])) ** 2
    count = max(1, MAP_BYTES // bytes_each)
    for first in range(0, len(cameras), count):
        yield first, [crop_map(panorama, camera) for camera in cameras[first : first + count]]


def _stems(names: Sequence[str]) -> dict[str, str]:
    """What the crops of each panorama are called, without number and suffix: its name, and never out of the folder."""
    stems: dict[str, str] = {}
    for name in names:
        plain = "/".join(
            part for part in PurePosixPath(name.replace("\\", "/")).parts if part not in ("/", "..", "images")
        )
        stem = str(PurePosixPath(plain).with_suffix(""))
        # a.jpg and a.webp in one folder keep their suffixes.
        stems[name] = stem if stem not in stems.values() else plain
    return stems


def _write_crops(
    frame: Frame, out: Path, stem: str, first: int, cameras: Sequence[Camera], maps: Sequence[Tensor]
) -> list[Frame]:
    """Cut some of a panorama's crops, from number `first` on, and write them. Raises one of UNREADABLE."""
    camera = _camera(frame)
    rgb, alpha = decode(frame.path, frame.exif_rotate)
    if rgb.shape[:2] != (camera.height, camera.width):
        raise ValueError(f"it is {rgb.shape[1]} x {rgb.shape[0]}, but its camera is {camera.width} x {camera.height}")
    counts = None if alpha is None else alpha == 255  # What a stitcher left transparent is not known.
    if frame.mask is not None:
        drawn = read_mask(frame.mask, camera.width, camera.height) != frame.mask_inverted
        counts = drawn if counts is None else counts & drawn
    planes = as_planes(rgb, panorama=True)
    mask_planes = None if counts is None else as_planes(np.where(counts, 255, 0).astype(np.uint8), panorama=True)
    written = []
    for number, (crop, where) in enumerate(zip(cameras, maps, strict=True), start=first):
        name = f"{stem}_{number:02d}{'.png' if frame.path.suffix.lower() == '.png' else '.jpg'}"
        path = out / "images" / name
        _save(Image.fromarray(cut(planes, where, crop)), path)
        mask = None
        if mask_planes is not None:
            mask = out / "masks" / f"{name}.png"
            # A pixel that is only partly valid mixes in what the mask is there to hide.
            _save(
                Image.fromarray(np.where(cut(mask_planes, where, crop)[:, :, 0] == 255, 255, 0).astype(np.uint8)), mask
            )
        of = frame.group or frame.name
        written.append(Frame(path, crop, f"images/{name}", mask=mask, time=frame.time, split=frame.split, group=of))
    return written


def _follow(capture: Capture, points: Points, frames: Sequence[Frame], parents: Sequence[int]) -> Points:
    """Points whose tracks name the crops that see them; frame k comes from frame parents[k] of `capture`."""
    if points.tracks is None:
        return points
    point_index, frame_index = points.tracks
    tracks: list[tuple[Tensor, Tensor]] = []
    for number, (frame, parent) in enumerate(zip(frames, parents, strict=True)):
        seen = point_index[frame_index == parent]
        if frame is not capture.frames[parent]:
            camera = _camera(frame)
            xy, valid = camera.project(points.xyz[seen])
            seen = seen[valid & ((xy >= 0) & (xy < xy.new_tensor([camera.width, camera.height]))).all(-1)]
        tracks.append((seen, torch.full_like(seen, number)))
    return replace(points, tracks=(torch.cat([t[0] for t in tracks]), torch.cat([t[1] for t in tracks])))


def read_mask(path: Path, width: int, height: int) -> NDArray[np.bool_]:
    """Which pixels [height, width] of a mask file count, enlarged or shrunk to that size. Raises one of UNREADABLE."""
    with Image.open(path) as file:
        grey = file if file.mode.startswith("I") else file.convert("L")
        # Enlarging by nearest neighbours keeps a mask a mask.
        levels = np.asarray(grey.resize((width, height), Image.Resampling.NEAREST))
        # Lossy compression leaves noise around zero, so there half the range is the only usable threshold.
        return levels > 127 if file.format == "JPEG" else levels != 0


def _save(picture: Image.Image, path: Path) -> None:
    """Write a PNG or JPEG. A file that is there is replaced, not written into: it may be a link to the user's own."""
    with whole_file(path) as partial:
        if path.suffix == ".png":
            picture.save(partial, format="PNG")
        else:
            picture.save(partial, format="JPEG", quality=JPEG_QUALITY, subsampling="4:4:4")
