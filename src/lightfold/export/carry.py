"""Pictures, masks and depth maps carried into a new folder: linked where nothing changes, made anew where it must.

A format says what it can hold (`Holds`): which lenses, which kind of picture, where masks and depths go. A picture is
made anew when its lens has to become a simpler one (resampled with the exact inverse of the lens), when it must be
turned as its EXIF orientation says, and when a format wants PNG or an alpha channel. All other files are hard links,
which take no room, or copies where the disk has no links or the user wants none.
"""

from __future__ import annotations

import functools
import math
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..cameras import Camera, Lens
from ..capture import Capture, Frame
from ..errors import CaptureError
from ..files import whole_file
from ..formats.frames import FrameError, Names, printable, read_header
from ..images import UNREADABLE, Progress, area_resize, decode, mask_counts, read_depth
from ..paths import FISHEYE, PERSPECTIVE

CENTRED = 0.05
"""Pixels by which a principal point may be off the middle, or a focal length off the other at a corner, unnoticed."""
ZOOM = (0.7, 8.0)
"""How much shorter or longer the focal length of a straightened picture may be than its lens's."""
BAND = 1 << 18
"""Pixels that are resampled at a time, which bounds memory."""


@dataclass(frozen=True)
class Holds:
    """What a format can hold, and where.

    lenses:  those that it can say; with `simple`, of those only the ones with one focal length and a centred principal
             point. Other lenses become pinholes.
    picture: name in the new folder without suffix, from {name}, {number} and {split}.
    mode:    None: any file that opens. "RGB", "RGBA": a PNG, for RGBA with an alpha channel.
    mask:    name of a mask with suffix, from {inside} (the picture's name within its top folder), {folder}, {stem} and
             {number}; None: there is no place.
    masks:   what the pixels of such a file say: "valid" or "ignored", or "silhouette", to which masks of any kind and
             the picture's own transparency then turn.
    silhouettes: where a silhouette goes in formats of the first two: "file", or "alpha" of the picture.
    blank:   every picture needs a mask.
    depth:   name of the depth map without suffix, from {inside} and {number}; None: there is no place.
    depths:  suffixes that may be carried as they are; other files become .npy, or stay behind where that is not among
             them.
    depth_scale: the only factor that the format can say; None: any, or one for all with `depths` of pictures only.
    """

    lenses: tuple[Lens, ...]
    picture: str
    simple: bool = False
    mode: str | None = None
    mask: str | None = None
    masks: str = "valid"
    silhouettes: str = "alpha"
    blank: bool = False
    depth: str | None = None
    depths: tuple[str, ...] = ()
    depth_scale: float | None = None


@dataclass
class Remarks:
    """What happened to how many frames, for people."""

    counts: Counter[str] = field(default_factory=Counter)

    def add(self, what: str) -> None:
        self.counts[what] += 1

    def sentences(self, total: int) -> list[str]:
        return [f"{count} of {total} {what}." for what, count in self.counts.items()]


def carry(
    capture: Capture, folder: Path, holds: Holds, copy: bool = False, progress: Progress | None = None
) -> tuple[Capture, list[str]]:
    """The capture with its pictures, masks and depths in `folder`, in the form that a format wants; and sentences on
    what was changed or left behind.

    Frames without a pose stay behind. The folder is new. Raises CaptureError for a lens that no pinhole can stand in
    for and a picture that cannot be read, RunError when a file cannot be written.
    """
    posed = [frame for frame in capture.frames if frame.camera is not None]
    remarks = Remarks()
    names = _picture_names(posed, holds)
    frames = []
    for done, (frame, name) in enumerate(zip(posed, names, strict=True)):
        if progress is not None:
            progress("carrying pictures", done, len(posed))
        try:
            frames.append(_carried(frame, done, name, folder, holds, copy, remarks))
        except (*UNREADABLE, FrameError) as error:
            reason = "its header is damaged" if isinstance(error, FrameError) else str(error).rstrip(".")
            raise CaptureError(f"{printable(frame.name)} cannot be carried over: {reason} ({frame.path}).") from error
    notes = remarks.sentences(len(posed))
    if len(posed) < len(capture.frames):
        count = len(capture.frames) - len(posed)
        notes.insert(0, f"{count} of {len(capture.frames)} pictures have no pose and are left out.")
    return replace(capture, root=folder, frames=tuple(frames)), notes


def smaller_pictures(capture: Capture, folder: Path, factor: int, progress: Progress | None = None) -> None:
    """A folder `images_FACTOR` beside `images`: the pictures divided by a factor, by area averaging, as PNG.

    Sizes are rounded half up. Transparent colours enter an average with the weight of their alpha.
    """
    for done, frame in enumerate(capture.frames):
        if progress is not None:
            progress(f"making images_{factor}", done, len(capture.frames))
        rgb, alpha = decode(frame.path, frame.exif_rotate)
        height, width = (max(1, int(side / factor + 0.5)) for side in rgb.shape[:2])
        inside = PurePosixPath(frame.path.relative_to(folder / "images").as_posix()).with_suffix(".png")
        if alpha is None:
            small = area_resize(rgb, width, height)
        else:
            opacity = alpha.astype(np.float32)[:, :, None] / 255
            share = area_resize(opacity, width, height)
            weighted = area_resize((rgb * opacity).astype(np.float32), width, height)
            small = np.concatenate([weighted / np.maximum(share, np.float32(1e-6)), 255 * share], axis=2)
        save_png(folder / f"images_{factor}" / inside, np.clip(small + 0.5, 0, 255).astype(np.uint8))


# --- cameras --------------------------------------------------------------------------------------------------------


def said_by(camera: Camera, holds: Holds) -> Camera:
    """The camera nearest to this one that a format can say, at the same place; the same object if it is this one.

    Raises CaptureError for a lens that no pinhole can stand in for.
    """
    fx, fy, cx, cy = camera.intrinsics.tolist()
    width, height = camera.width, camera.height
    # What the corner of the picture moves by when the two focal lengths become one.
    square = abs(fx / fy - 1) * 0.5 * max(width, height) <= CENTRED
    centred = abs(cx - 0.5 * width) <= CENTRED and abs(cy - 0.5 * height) <= CENTRED
    if camera.lens in holds.lenses and (not holds.simple or (square and centred)):
        return camera
    if camera.lens in PERSPECTIVE and not bool(camera.distortion.any()) and (not holds.simple or (square and centred)):
        return replace(camera, distortion=camera.distortion.new_zeros(0), lens=Lens.PINHOLE)
    if camera.lens not in PERSPECTIVE + FISHEYE:
        raise CaptureError(
            f"A picture has the lens {camera.lens.value}, which the format cannot say and no pinhole can stand in for; "
            "convert to transforms or to instant-ngp instead."
        )
    distortion = tuple(camera.distortion.tolist())
    straight = _straight(camera.lens, (fx, fy, cx, cy), distortion, width, height, holds.simple)
    values = torch.tensor(straight, dtype=torch.float64)
    return replace(camera, intrinsics=values, distortion=camera.distortion.new_zeros(0), lens=Lens.PINHOLE)


@functools.lru_cache(maxsize=4096)
def _straight(
    lens: Lens,
    intrinsics: tuple[float, float, float, float],
    distortion: tuple[float, ...],
    width: int,
    height: int,
    simple: bool,
) -> tuple[float, float, float, float]:
    """Intrinsics of the pinhole that shows the most of what a lens shows, without a blank border.

    Of a fisheye, no more than the middle 90 degrees. The size of the picture stays.
    """
    pose = torch.eye(3, 4, dtype=torch.float64)
    camera = Camera(pose, pose.new_tensor(intrinsics), pose.new_tensor(distortion), width, height, lens)
    fx, fy, cx, cy = intrinsics
    least, most = ZOOM
    if lens in FISHEYE:
        half = min(0.5 * float(camera.fov[0]), 0.25 * math.pi)
        fx = fy = 0.5 * width / math.tan(half)
        least = 1.0
    if simple:
        fx = fy = math.sqrt(fx * fy)
        cx, cy = 0.5 * width, 0.5 * height
    x, y = (torch.linspace(0.5, side - 0.5, 129, dtype=torch.float64) for side in (width, height))
    left, top = torch.full_like(y, 0.5), torch.full_like(x, 0.5)
    border = torch.cat([torch.stack(side, 1) for side in ((x, top), (x, height - top), (left, y), (width - left, y))])

    def fits(zoom: float) -> bool:
        plane = (border - pose.new_tensor([cx, cy])) / (zoom * pose.new_tensor([fx, fy]))
        xy, valid = camera.project(torch.cat([plane, torch.ones_like(plane[:, :1])], dim=1))
        # A hair inside, so that rounding cannot put a corner outside later.
        inside = (xy >= 1e-6).all(1) & (xy[:, 0] <= width - 1e-6) & (xy[:, 1] <= height - 1e-6)
        return bool((valid & inside).all())

    if not fits(most):
        raise CaptureError(f"A picture's lens ({lens.value}) shows too little for a pinhole to stand in for it.")
    low, high = (least, most)
    if fits(low):
        high = low
    else:
        for _ in range(50):
            middle = math.sqrt(low * high)
            low, high = (low, middle) if fits(middle) else (middle, high)
    return high * fx, high * fy, cx, cy


def resampled(
    planes: NDArray[np.generic], camera: Camera, wanted: Camera, nearest: bool = False
) -> NDArray[np.float32]:
    """Planes [H, W, C] of one camera as another at the same place would have them, [h, w, C] float32; 0 beyond the rim.

    Bilinear between pixel centres, or the nearest pixel for values that must not be mixed.
    """
    source = torch.from_numpy(np.array(planes, dtype=np.float32)).permute(2, 0, 1)[None]
    scale = torch.tensor([planes.shape[1] / camera.width, planes.shape[0] / camera.height], dtype=torch.float64)
    size = torch.tensor([planes.shape[1], planes.shape[0]], dtype=torch.float64)
    same_place = replace(camera, cam_from_world=torch.eye(3, 4, dtype=torch.float64))
    pieces = []
    for xy in wanted.pixel_grid().split(BAND):
        at, valid = same_place.project(wanted.unproject(xy))
        at = at * scale
        inside = valid & (at >= 0).all(1) & (at <= size).all(1)
        grid = (2 * at / size - 1).float()[None, None]
        mode = "nearest" if nearest else "bilinear"
        found = torch.nn.functional.grid_sample(source, grid, mode=mode, padding_mode="border", align_corners=False)
        pieces.append((found[0, :, 0] * inside).T)
    result: Tensor = torch.cat(pieces).reshape(wanted.height, wanted.width, -1)
    return result.numpy()


# --- one frame ------------------------------------------------------------------------------------------------------


def _picture_names(frames: Sequence[Frame], holds: Holds) -> list[str]:
    """The pictures' names in the new folder, without suffix, all different. Folders stay, but for "images" itself."""
    names = Names()
    written = []
    for number, frame in enumerate(frames):
        plain = PurePosixPath(frame.name.removeprefix("images/"))
        stem = str(plain.with_suffix("")) if plain.suffix.lower() == frame.path.suffix.lower() else str(plain)
        split = "test" if frame.split == "test" else "train"
        written.append(names.new(holds.picture.format(name=_flat(stem, holds), number=number, split=split)))
    return written


def _flat(stem: str, holds: Holds) -> str:
    """Formats without folders get one name of them all."""
    return stem.replace("/", "_") if holds.simple else stem


def _carried(frame: Frame, number: int, name: str, folder: Path, holds: Holds, copy: bool, remarks: Remarks) -> Frame:
    camera = frame.camera
    assert camera is not None
    header = read_header(frame.path)
    if header.orientation == 1:
        frame = replace(frame, exif_rotate=False)
    wanted = said_by(camera, holds)
    bent = wanted is not camera and not _same_view(wanted, camera)
    merged = frame.mask is not None and frame.mask_is_alpha and holds.masks != "silhouette"
    merged = merged and holds.silhouettes == "alpha"
    png = frame.path.suffix.lower() == ".png" and (holds.mode != "RGBA" or header.has_alpha)
    target = folder / f"{name}{frame.path.suffix}"
    alpha: NDArray[np.uint8] | None = None
    if bent or frame.exif_rotate or merged or (holds.mode is not None and not png):
        target = folder / f"{name}.png"
        rgb, alpha = decode(frame.path, frame.exif_rotate)
        if merged:
            outline = (255 * mask_counts(frame, rgb.shape[1], rgb.shape[0])).astype(np.uint8)
            alpha = outline if alpha is None else np.minimum(alpha, outline)
            remarks.add("silhouettes are now the alpha channel of their picture")
        if bent:
            rgb, alpha = _resampled_picture(rgb, alpha, camera, wanted)
            straight = camera.lens in PERSPECTIVE and not bool(camera.distortion.any())
            what = "resampled to square pixels and a centred principal point" if straight else "undistorted to pinholes"
            remarks.add(f"pictures are {what}, as the format needs")
        elif frame.exif_rotate:
            remarks.add("pictures are turned as their EXIF orientation says, and saved as PNG")
        elif not merged:
            remarks.add(f"pictures are saved as PNG ({holds.mode}), as the format needs")
        if holds.mode == "RGBA" and alpha is None:
            alpha = np.full(rgb.shape[:2], 255, dtype=np.uint8)
        save_png(target, rgb if alpha is None else np.concatenate([rgb, alpha[:, :, None]], axis=2))
    else:
        place(frame.path, target, copy)
        if holds.masks == "silhouette" and header.has_alpha:
            alpha = decode(frame.path)[1]
    moved = replace(
        frame, path=target, name=target.relative_to(folder).as_posix(), camera=wanted, exif_rotate=False,
        mask=None, mask_inverted=False, mask_is_alpha=False, depth=None, depth_scale=Frame.depth_scale, smaller={},
    )  # fmt: skip
    if not merged:
        moved = _with_mask(moved, frame, alpha, number, bent, folder, holds, copy, remarks)
    return _with_depth(moved, frame, number, bent, folder, holds, copy, remarks)


def _with_mask(
    moved: Frame,
    frame: Frame,
    alpha: NDArray[np.uint8] | None,
    number: int,
    bent: bool,
    folder: Path,
    holds: Holds,
    copy: bool,
    remarks: Remarks,
) -> Frame:
    """`moved` with its mask. alpha: of the new picture, for formats whose masks are silhouettes."""
    silhouette = holds.masks == "silhouette"
    if holds.mask is None:
        if frame.mask is not None:
            remarks.add("masks are left behind: the format has no place for them")
        return moved
    if frame.mask is None and not (silhouette and (alpha is not None or holds.blank)):
        return moved
    picture = PurePosixPath(moved.name)
    above = "" if str(picture.parent) == "." else f"{picture.parent}/"
    name = holds.mask.format(inside=_inside(moved), folder=above, stem=picture.stem, number=number)
    target = folder / name
    ignored = holds.masks == "ignored"
    moved = replace(moved, mask=target, mask_inverted=ignored, mask_is_alpha=silhouette or frame.mask_is_alpha)
    as_it_is = frame.mask is not None and frame.mask_inverted == ignored and frame.mask.suffix.lower() == ".png"
    if frame.mask is not None and as_it_is and alpha is None and not bent and not frame.exif_rotate:
        place(frame.mask, target, copy)
    else:
        assert moved.camera is not None and frame.camera is not None
        width, height = moved.camera.width, moved.camera.height
        plane = np.full((height, width), 255, dtype=np.uint8)
        if frame.mask is not None:
            plane = (255 * mask_counts(frame, frame.camera.width, frame.camera.height)).astype(np.uint8)
            if bent:
                plane = resampled(plane[:, :, None], frame.camera, moved.camera, nearest=True)[:, :, 0].astype(np.uint8)
        if alpha is not None:
            plane = np.minimum(plane, alpha)
        save_png(target, 255 - plane if ignored else plane)
    if silhouette and frame.mask is not None and not frame.mask_is_alpha:
        remarks.add("masks are silhouettes now: the format takes what is outside a mask as empty")
    return moved


def _with_depth(
    moved: Frame, frame: Frame, number: int, bent: bool, folder: Path, holds: Holds, copy: bool, remarks: Remarks
) -> Frame:
    """`moved` with its depth map: the same file, or one in .npy."""
    if frame.depth is None:
        return moved
    suffix = frame.depth.suffix.lower()
    scale_fits = holds.depth_scale is None or holds.depth_scale == frame.depth_scale
    as_it_is = suffix in holds.depths and scale_fits and not bent and not frame.exif_rotate
    if holds.depth is None or not (as_it_is or ".npy" in holds.depths):
        remarks.add("depth maps are left behind: the format has no place for them")
        return moved
    stem = holds.depth.format(inside=_inside(moved), number=number)
    if as_it_is:
        target = folder / f"{stem}{suffix}"
        place(frame.depth, target, copy)
        return replace(moved, depth=target, depth_scale=frame.depth_scale)
    assert moved.camera is not None and frame.camera is not None
    depth = read_depth(frame, frame.camera.width, frame.camera.height).numpy()
    if bent:
        depth = resampled(depth[:, :, None], frame.camera, moved.camera, nearest=True)[:, :, 0]
    scale = 1.0 if holds.depth_scale is None else holds.depth_scale
    target = folder / f"{stem}.npy"
    with whole_file(target) as partial, partial.open("wb") as file:
        np.save(file, (depth / np.float32(scale)).astype(np.float32))
    remarks.add("depth maps are saved as .npy")
    return replace(moved, depth=target, depth_scale=scale)


def _inside(frame: Frame) -> str:
    """A picture's name within its top folder, with suffix."""
    return frame.name.partition("/")[2] or frame.name


def _same_view(a: Camera, b: Camera) -> bool:
    """Whether two cameras show every point at the same pixel, whatever their lenses are called."""
    return bool(torch.equal(a.intrinsics, b.intrinsics)) and not bool(a.distortion.any() or b.distortion.any())


def _resampled_picture(
    rgb: NDArray[np.uint8], alpha: NDArray[np.uint8] | None, camera: Camera, wanted: Camera
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Colours of transparent pixels are arbitrary, so they enter a mixture with the weight of their alpha."""
    if alpha is None:
        return np.clip(resampled(rgb, camera, wanted) + 0.5, 0, 255).astype(np.uint8), None
    weight = alpha.astype(np.float32)[:, :, None] / 255
    planes = resampled(np.concatenate([rgb * weight, weight], axis=2), camera, wanted)
    colour = planes[:, :, :3] / np.maximum(planes[:, :, 3:], 1e-6)
    both = np.concatenate([colour, 255 * planes[:, :, 3:]], axis=2)
    levels = np.clip(both + 0.5, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(levels[:, :, :3]), np.ascontiguousarray(levels[:, :, 3])


# --- files ----------------------------------------------------------------------------------------------------------


def place(source: Path, target: Path, copy: bool) -> None:
    """The same file under another name: a hard link, or a copy where asked for or where there are no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not copy:
        try:
            os.link(os.path.realpath(source), target)
            return
        except OSError:
            pass  # Another disk, or one without links.
    with whole_file(target) as partial:
        shutil.copyfile(source, partial)


def save_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write [H, W], [H, W, 3] or [H, W, 4] as a PNG, whole or not at all."""
    with whole_file(path) as partial:
        # Level 1 is several times faster than the default, for files a tenth larger.
        Image.fromarray(pixels).save(partial, format="PNG", compress_level=1)
