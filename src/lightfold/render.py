"""Videos and stills from a method and a list of cameras.

Everything that can be shown of a picture has a name in `OUTPUTS`: its colour, its depth (mean or median), surface
normal and opacity. Frames are written as they are rendered and files appear under their final names only when they are
whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import exr, pictures
from .cameras import Camera
from .errors import RunError
from .spherical_video import Tags, write_tags
from .stereo import MONO, Viewing, eyes

if TYPE_CHECKING:
    from av import VideoStream
    from av.container import OutputContainer

    from .distributed import World
    from .methods.base import Image, Method

OUTPUTS = ("rgb", "depth", "median_depth", "normal", "alpha")
DEPTHS = {"depth", "median_depth"}
PREVIEW_SIDE = 96
PREVIEW_FRAMES = 6

Progress = Callable[[int, int], None]
"""Called with (frames done, frames in all) after every frame."""


@dataclass(frozen=True)
class Rendering:
    """What a call of `render_path` or `render_stills` left on disk."""

    files: tuple[Path, ...]
    frames: int
    notes: tuple[str, ...] = ()
    """What is worth telling the user: an encoder that was missing, normals that were taken from depth."""


def render_path(
    method: Method,
    cameras: Camera | Sequence[Camera],
    out: Path | str,
    fps: float = 24.0,
    outputs: Sequence[str] = ("rgb",),
    progress: Progress | None = None,
    *,
    separate: bool = False,
    background: Tensor | None = None,
    crf: int = 18,
    viewing: Viewing = MONO,
    world: World | None = None,
) -> Rendering:
    """Render every camera into an MP4 (H.264, yuv420p, BT.709, so that browsers and phones play it).

    cameras: a batch or a list of one size, in scene coordinates, of any lens. `out` ends in .mp4.
    outputs: of `OUTPUTS`, side by side in that order, or each in its own file (`separate`: out_rgb.mp4, ...).
    viewing: for two eyes, and for how much of a panorama. Players are told of this and of panoramas, unless several
    outputs share a frame.
    crf: 0 (largest) to 51 (worst); 18 is visually close to lossless. Odd sizes grow by one repeated row or column.
    world: several processes that call this together. Each renders every so-manieth frame; the first writes them all.
    An interruption at any moment leaves nothing, or an older video, under the final name.
    """
    out = Path(out)
    frames = list_cameras(cameras)
    _check_outputs(outputs)
    if out.suffix.lower() != ".mp4":
        raise ValueError(f"out: expected a name that ends in .mp4, got {out.name!r}")
    if not 0 <= crf <= 51:
        raise ValueError(f"crf: expected 0 to 51, got {crf}")
    if not fps > 0:
        raise ValueError(f"fps: expected a positive rate, got {fps}")
    sizes = {(camera.width, camera.height) for camera in frames}
    if len(sizes) > 1:
        raise ValueError(f"cameras: expected one size for a video, got {sorted(sizes)}")
    limits = path_depth_range(method, frames) if DEPTHS.intersection(outputs) else None
    targets = [out.with_name(f"{out.stem}_{name}.mp4") for name in outputs] if separate else [out]
    tags = viewing.tags(frames[0]) if separate or len(outputs) == 1 else None
    writes = world is None or world.is_first
    writers = [VideoWriter(target, fps, crf, tags) for target in targets] if writes else []
    notes: list[str] = []
    background = None if background is None else method.info.coded(background)

    def shown(camera: Camera) -> np.ndarray:
        """All outputs of a frame, [outputs, H, W, 3]."""
        seen = eyes(method, camera, viewing, background)
        return np.stack([
            viewing.packed([shown_output(_shown(method, image), eye, name, limits, notes) for image, eye in seen])
            for name in outputs
        ])  # fmt: skip

    try:
        for done, frame in enumerate(_in_order(world, frames, shown), start=1):
            parts = list(frame) if separate else [np.hstack(list(frame))]
            for writer, picture in zip(writers, parts, strict=True):
                writer.add(picture)
            if progress is not None:
                progress(done, len(frames))
        for writer in writers:
            writer.finish()
    finally:
        for writer in writers:
            writer.discard()
    notes += [writer.note for writer in writers[:1] if writer.note]
    return Rendering(tuple(targets), len(frames), tuple(_told_by_all(world, notes)))


def render_stills(
    method: Method,
    cameras: Camera | Sequence[Camera],
    folder: Path | str,
    names: Sequence[str] | None = None,
    outputs: Sequence[str] = ("rgb",),
    progress: Progress | None = None,
    *,
    background: Tensor | None = None,
    depth_as: str = "colour",
    depth_unit: float = 0.001,
    suffix: str = ".png",
    viewing: Viewing = MONO,
    hdr: bool = False,
    world: World | None = None,
) -> Rendering:
    """Render every camera into pictures folder/NAME_rgb.png, NAME_depth.png, ...; sizes may differ.

    names: one per camera (folders in them become underscores), or None for 0000, 0001, ...
    depth_as: "colour" (one scale for all), "png16" (uint16 in steps of `depth_unit` capture units, 0 empty, at most
    65535 steps) or "npy" (float32 in capture units). Depth is the distance along the ray, not z.
    hdr: colours as linear light in NAME_rgb.exr, half precision, sRGB primaries, in the units of the pictures that were
    trained on (1 is white where those were sRGB); needs the library OpenEXR.
    world: several processes that call this together. Each renders and writes every so-manieth picture.
    """
    folder = Path(folder)
    frames = list_cameras(cameras)
    _check_outputs(outputs)
    if depth_as not in ("colour", "png16", "npy"):
        raise ValueError(f"depth_as: expected colour, png16 or npy, got {depth_as!r}")
    if suffix not in (".png", ".jpg"):
        raise ValueError(f"suffix: expected .png or .jpg, got {suffix!r}")
    if names is not None and len(names) != len(frames):
        raise ValueError(f"names: expected {len(frames)}, one per camera, got {len(names)}")
    stems = [f"{i:04d}" for i in range(len(frames))] if names is None else unique_stems(names)
    coloured = depth_as == "colour" and bool(DEPTHS.intersection(outputs))
    limits = path_depth_range(method, frames) if coloured else None
    capture_per_scene = 1.0 / method.info.scene_from_capture.scale
    files = [folder / f"{stem}_{name}{_suffix(name, suffix, depth_as, hdr)}" for stem in stems for name in outputs]
    notes: list[str] = []
    saturated = 0
    background = None if background is None else method.info.coded(background)
    rank, size = (0, 1) if world is None else (world.rank, world.size)
    for i in range(rank, len(frames), size):
        camera = frames[i]
        seen = eyes(method, camera, viewing, background)
        for name, file in zip(outputs, files[i * len(outputs) : (i + 1) * len(outputs)], strict=True):
            if name in DEPTHS and depth_as != "colour":
                # Where most of the ray went through, a depth means nothing; 0 says so.
                depths = [
                    torch.where(image.alpha > 0.5, depth_of(image, name, notes), 0.0) * capture_per_scene
                    for image, _ in seen
                ]
                depth = torch.from_numpy(viewing.packed([depth.numpy() for depth in depths]))
                saturated += pictures.save_depth(file, depth, depth_unit)
            elif name == "rgb" and hdr:
                exr.write_rgb(file, viewing.packed([method.info.light(image.rgb).numpy() for image, _ in seen]))
            else:
                shown = [shown_output(_shown(method, image), eye, name, limits, notes) for image, eye in seen]
                pictures.save_picture(file, viewing.packed(shown))
        if progress is not None:
            progress(min(i + size, len(frames)), len(frames))
    if world is not None:
        saturated = int(world.sum([saturated])[0])
        notes = _told_by_all(world, notes)
    if saturated:
        most = f"{65535 * depth_unit:g} capture units"
        notes.append(f"{saturated} depth pixels lie beyond {most}, the most that a 16-bit file holds.")
    return Rendering(tuple(files), len(frames), tuple(notes))


def _suffix(output: str, suffix: str, depth_as: str, hdr: bool) -> str:
    """How the file of an output ends."""
    if output in DEPTHS and depth_as != "colour":
        return ".npy" if depth_as == "npy" else ".png"
    return ".exr" if output == "rgb" and hdr else suffix


def _in_order(
    world: World | None, frames: Sequence[Camera], make: Callable[[Camera], np.ndarray]
) -> Iterator[np.ndarray]:
    """The pictures that `make` makes of all frames, in order. Of several processes each makes every so-manieth, and the
    first alone gets them."""
    if world is None:
        yield from map(make, frames)
        return
    mine = np.zeros(0)
    for begin in range(0, len(frames), world.size):
        count = min(world.size, len(frames) - begin)
        # At the end some have no frame left. What they send instead, which nobody looks at, must have the same shape.
        if world.rank < count or not mine.size:
            mine = make(frames[min(begin + world.rank, len(frames) - 1)])
        for picture in world.collect(torch.from_numpy(mine))[:count]:
            yield picture.numpy()


def _told_by_all(world: World | None, notes: list[str]) -> list[str]:
    """The notes of all processes, each sentence once."""
    if world is None:
        return notes
    return list(dict.fromkeys(note for told in world.gather(json.dumps(notes)) for note in json.loads(told)))


def _shown(method: Method, image: Image) -> Image:
    """The picture with its colours as sRGB."""
    return image if method.info.hdr_exposure is None else replace(image, rgb=method.info.shown(image.rgb))


# --- what a picture shows -------------------------------------------------------------------------------------------


def shown_output(
    image: Image, camera: Camera, name: str, limits: tuple[float, float] | None, notes: list[str] | None = None
) -> np.ndarray:
    """One of `OUTPUTS` as colours [H, W, 3] uint8. Normals are in world axes, from depth if the method has none."""
    if name == "rgb":
        return pictures.to_uint8(image.rgb)
    if name in DEPTHS:
        return pictures.depth_colours(depth_of(image, name, notes), image.alpha, limits)
    if name == "alpha":
        return pictures.alpha_colours(image.alpha)
    if name != "normal":
        raise ValueError(f"name: expected one of {', '.join(OUTPUTS)}, got {name!r}")
    if image.normal is None:
        _tell(notes, "The method gives no normals; those shown are the slopes of its depth.")
    return pictures.normal_colours(normals_of(image, camera), image.alpha)


def depth_of(image: Image, name: str, notes: list[str] | None = None) -> Tensor:
    """The one of `DEPTHS` [H, W]: the mean, or the median if the method has one."""
    if name == "depth":
        return image.depth
    if image.median_depth is None:
        _tell(notes, "The method gives no median depth; the mean is shown instead.")
        return image.depth
    return image.median_depth


def _tell(notes: list[str] | None, sentence: str) -> None:
    if notes is not None and sentence not in notes:
        notes.append(sentence)


def normals_of(image: Image, camera: Camera) -> Tensor:
    """[H, W, 3] the method's own normals, or those of the surface that its depth describes: the median one, if there
    is one, which jumps at edges instead of bridging them."""
    if image.normal is not None:
        return image.normal
    return normals_from_depth(camera, depth_of(image, "median_depth"), image.alpha)


def normals_from_depth(camera: Camera, depth: Tensor, alpha: Tensor) -> Tensor:
    """Unit normals [H, W, 3] in world axes of the surface that depth [H, W] (along the ray) describes, for any lens.

    In a window of 7 x 7 pixels the points are fitted, by least squares, as linear functions of column and row; the two
    slopes lie in the surface, exactly if it is a plane, and their cross product is its normal, turned towards the
    camera. Neighbours whose depth differs so much that the surface would be seen at a grazing angle belong to another
    one and are left out. 0 where alpha is at most a half, and where too few neighbours are known.
    """
    rays = camera.rays(camera.pixel_grid())
    height, width = depth.shape
    depth, alpha = depth.to(rays.direction), alpha.to(rays.direction)
    known = (alpha > 0.5) & (depth > 0)
    points = rays.origin + rays.direction * depth.reshape(-1, 1)
    points = points.where(known.reshape(-1, 1), 0.0).reshape(height, width, 3).movedim(-1, 0)
    pixel = _to_neighbour(rays.origin.reshape(height, width, 3))
    pixel = pixel + depth * _to_neighbour(rays.direction.reshape(height, width, 3))
    steepest = (STEEPEST * pixel).nan_to_num(0.0)
    side = (WINDOW,) * 4
    points, far, seen = (F.pad(plane, side) for plane in (points, depth[None], known[None].to(depth)))
    normal = depth.new_zeros(3, height, width)
    rows = max(BAND // max(width, 1), 1)
    for top in range(0, height, rows):
        band = slice(top, min(top + rows, height))
        inside = slice(top, band.stop + 2 * WINDOW)
        normal[:, band] = _fitted_normals(points[:, inside], far[0, inside], seen[0, inside], steepest[band])
    normal = normal.movedim(0, -1)
    towards = -(normal * rays.direction.reshape(normal.shape).nan_to_num(0.0)).sum(dim=-1, keepdim=True)
    normal = normal * torch.where(towards < 0, -1.0, 1.0).to(normal.dtype)
    return torch.where(known[..., None], normal, torch.zeros_like(normal))


WINDOW = 3
"""Pixels to each side of a normal's window. Of a trained field's depth, wider ones are hardly truer and rounder."""
STEEPEST = 5.0
"""Depth per width of a pixel by which neighbours on one surface may differ: a surface seen at 79 degrees."""
BAND = 1 << 20
"""Pixels whose normals are fitted at once: bounds the memory."""


def _to_neighbour(values: Tensor) -> Tensor:
    """[H, W] distance of values [H, W, 3] from those of the next pixel along the row or the column, the larger one."""
    found = values.new_zeros(values.shape[:2])
    right, below = values.diff(dim=1).norm(dim=-1), values.diff(dim=0).norm(dim=-1)
    # The last of a row takes its distance from the one before.
    for part, step in ((found[:, :-1], right), (found[:, 1:], right), (found[:-1], below), (found[1:], below)):
        part.copy_(torch.fmax(part, step))
    return found


def _fitted_normals(points: Tensor, depth: Tensor, known: Tensor, steepest: Tensor) -> Tensor:
    """[3, H, W] unit normals of either sign, 0 where they are not determined. points [3, H', W'], depth and known
    [H', W'], which is 1 or 0, reach WINDOW pixels beyond the picture on each side; steepest [H, W]."""
    height, width = steepest.shape
    rows, columns = slice(WINDOW, WINDOW + height), slice(WINDOW, WINDOW + width)
    centre, middle = points[:, rows, columns], depth[rows, columns]
    # Sums of weight, column, row and their products, and of the points times each.
    count, x, y, xx, xy, yy = (torch.zeros_like(steepest) for _ in range(6))
    p, px, py = (torch.zeros_like(centre) for _ in range(3))
    for row in range(-WINDOW, WINDOW + 1):
        for column in range(-WINDOW, WINDOW + 1):
            rows = slice(WINDOW + row, WINDOW + row + height)
            columns = slice(WINDOW + column, WINDOW + column + width)
            near = (depth[rows, columns] - middle).abs() <= max(abs(row), abs(column)) * steepest
            weight = known[rows, columns] * near
            moved = weight * (points[:, rows, columns] - centre)
            count, x, y = count + weight, x + column * weight, y + row * weight
            xx, xy, yy = xx + column**2 * weight, xy + column * row * weight, yy + row**2 * weight
            p, px, py = p + moved, px + column * moved, py + row * moved
    share = 1.0 / count.clamp(min=1.0)
    xx, xy, yy = xx - x * x * share, xy - x * y * share, yy - y * y * share
    px, py = px - x * share * p, py - y * share * p
    along_x, along_y = yy * px - xy * py, xx * py - xy * px
    normal = F.normalize(torch.linalg.cross(along_y, along_x, dim=0), dim=0)
    # Of neighbours on one line, or none, no plane is known.
    return torch.where(xx * yy - xy * xy > 0.5, normal, torch.zeros_like(normal))


def path_depth_range(method: Method, cameras: Sequence[Camera]) -> tuple[float, float]:
    """Nearest and farthest depth of a whole path, from a few small frames of it.

    A video needs one scale for all its frames, or its colours flicker.
    """
    chosen = sorted({round(i) for i in np.linspace(0, len(cameras) - 1, PREVIEW_FRAMES)})
    limits = []
    for i in chosen:
        camera = cameras[i]
        shrink = min(1.0, PREVIEW_SIDE / max(camera.width, camera.height))
        small = camera.resized(max(1, round(camera.width * shrink)), max(1, round(camera.height * shrink)))
        image = method.render(small, None)
        limits.append(pictures.depth_range(image.depth, image.alpha))
    seen = [pair for pair in limits if pair[0] > 0]
    return (min(near for near, _ in seen), max(far for _, far in seen)) if seen else (0.0, 0.0)


def as_panorama(cameras: Camera, height: int = 1024) -> Camera:
    """The same poses with a full 360 x 180 degree equirectangular lens of size 2 height x height."""
    if height < 1:
        raise ValueError(f"height: expected at least 1 pixel, got {height}")
    return Camera.panorama(cameras.cam_from_world, 2 * height, height)


def list_cameras(cameras: Camera | Sequence[Camera]) -> list[Camera]:
    """Single cameras, from a batch [n], one camera, or a list that may mix lenses."""
    if isinstance(cameras, Camera):
        frames = [cameras[i] for i in range(len(cameras))] if cameras.shape else [cameras]
    else:
        frames = list(cameras)
    if not frames:
        raise ValueError("cameras: expected at least one, got none")
    return frames


def unique_stems(names: Sequence[str]) -> list[str]:
    """File names without suffix for view names: safe on any system, and different where the names differ."""
    stems = [pictures.safe_name(name) for name in names]
    taken = {stem.lower() for stem in stems}
    alike = len(taken) < len(stems)
    return [f"{i:04d}_{stem}" for i, stem in enumerate(stems)] if alike else stems


def _check_outputs(outputs: Sequence[str]) -> None:
    unknown = [name for name in outputs if name not in OUTPUTS]
    if unknown or not outputs or len(set(outputs)) < len(outputs):
        raise ValueError(f"outputs: expected different names among {', '.join(OUTPUTS)}, got {list(outputs)}")


# --- the video file -------------------------------------------------------------------------------------------------


class VideoWriter:
    """An MP4 that comes into being frame by frame beside its final name and takes that name in `finish`.

    `discard` removes what is not finished and does nothing after `finish`; call it in a `finally`, or use `with`.
    """

    def __init__(self, path: Path, fps: float, crf: int = 18, tags: Tags | None = None) -> None:
        self.path = path
        self.tags = tags
        self.note = ""
        """One sentence when the encoder that was wanted is missing."""
        self._partial = path.with_name(f".{path.name}.partial")
        self._fps = Fraction(fps).limit_denominator(1001)
        self._crf = crf
        self._container: OutputContainer | None = None
        self._stream: VideoStream | None = None
        self._size = (0, 0)

    def add(self, picture: np.ndarray) -> None:
        """Append a frame [H, W, 3] uint8; all frames have the size of the first."""
        import av

        height, width = picture.shape[:2]
        even = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        try:
            container, stream = self._open(even.shape[1], even.shape[0])
            if (even.shape[1], even.shape[0]) != self._size:
                raise ValueError(f"picture: expected {self._size[0]} x {self._size[1]}, got {width} x {height}")
            # Players guess the colour matrix of untagged video by its height, which shifts colours; so it is tagged.
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24").reformat(
                format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG"
            )
            container.mux(stream.encode(frame))
        except (av.FFmpegError, OSError) as error:
            raise self._failure(error) from error

    def finish(self) -> None:
        """Write what the encoder still holds, and give the file its name."""
        import av

        if self._container is None or self._stream is None:
            return
        try:
            self._container.mux(self._stream.encode())
            self._container.close()
            self._container = None
            if self.tags is not None:
                write_tags(self._partial, self.tags)
            os.replace(self._partial, self.path)
        except (av.FFmpegError, OSError) as error:
            raise self._failure(error) from error

    def discard(self) -> None:
        """Drop an unfinished file."""
        import av

        if self._container is None:
            return
        try:
            self._container.close()
        except (av.FFmpegError, OSError):
            self.note = "The unfinished video could not be closed."
        self._container = None
        self._partial.unlink(missing_ok=True)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        self.discard()

    def _open(self, width: int, height: int) -> tuple[OutputContainer, VideoStream]:
        """The file and its stream, made at the first frame, whose size is the video's."""
        if self._container is not None and self._stream is not None:
            return self._container, self._stream
        import av
        from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

        self.path.parent.mkdir(parents=True, exist_ok=True)
        # The index at the front lets a browser start before the file has arrived.
        self._container = av.open(str(self._partial), "w", format="mp4", options={"movflags": "+faststart"})
        codec, options = _encoder(self._crf)
        if codec != "libx264":
            self.note = "PyAV has no H.264 encoder here, so the video is MPEG-4 part 2, which some browsers refuse."
        stream = cast("VideoStream", self._container.add_stream(codec, rate=self._fps, options=options))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.color_range = ColorRange.MPEG
        stream.codec_context.colorspace = Colorspace.ITU709
        stream.codec_context.color_primaries = ColorPrimaries.BT709
        stream.codec_context.color_trc = ColorTrc.BT709
        self._stream = stream
        self._size = (width, height)
        return self._container, stream

    def _failure(self, error: Exception) -> RunError:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return RunError(f"The video {self.path} could not be written: {reason}.")


def _encoder(crf: int) -> tuple[str, dict[str, str]]:
    """Name and options of the best encoder in this build of PyAV."""
    import av

    if "libx264" in av.codecs_available:
        return "libx264", {"crf": str(crf), "preset": "medium"}
    # MPEG-4's quantiser runs from 1 to 31; crf 18 becomes 3.
    return "mpeg4", {"qscale": str(max(1, round(crf / 6)))}
