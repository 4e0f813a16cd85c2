"""Cameras as the files of those who go on with them, in every format that is written here.

`TARGETS` is the table: what a format can hold, what it leaves out, and which writer of `formats` makes its files.
`lightfold export RUN cameras` writes the cameras of a run, whose pictures stay where they are; `lightfold convert`
first carries the pictures into a new folder (`carry`), in the form that the format wants, and then writes by the same
table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..cameras import Lens
from ..capture import Capture, Frame, Points
from ..errors import RunError
from ..formats import blender, colmap, instant_ngp, llff, neus, sdfstudio, transforms
from ..geometry import Similarity
from .carry import Holds, said_by
from .region import Sphere

if TYPE_CHECKING:
    from ..scene import SceneInfo

PINHOLES = (Lens.SIMPLE_PINHOLE, Lens.PINHOLE)
EVERY_LENS = tuple(Lens)


@dataclass(frozen=True)
class Target:
    """A format that is written.

    write: makes its files in a folder, from a capture, and the sphere of interest where `needs` says so.
    holds: which lenses, pictures, masks and depths it has a place for.
    loses: which facts about a capture it has no place for: keys of FACTS.
    needs: "sphere": of interest; "depths": between which the content lies, from points where nothing states them.
    frame: "capture": the capture's own; "original": the one before it was normalised, as the unit sphere's world;
           "sphere": the one in which the sphere of interest is the unit sphere.
    """

    write: Callable[[Capture, Path, Sphere | None], None]
    holds: Holds
    loses: tuple[str, ...] = ()
    needs: str | None = None
    frame: str = "capture"


FACTS: dict[str, tuple[str, Callable[[Capture], bool]]] = {
    "points": ("the 3-D points", lambda c: c.points is not None),
    "tracks": ("which pictures saw which 3-D point", lambda c: c.points is not None and c.points.tracks is not None),
    "split": ("the lists of training and test views", lambda c: any(f.split is not None for f in c.frames)),
    "time": ("the times of the frames", lambda c: any(f.time is not None for f in c.frames)),
    "bounds": ("the box that holds the scene", lambda c: c.bounds is not None),
    "depths": ("the depths between which all content lies", lambda c: c.near is not None or c.far is not None),
    "up": ("which way is up", lambda c: c.up is not None),
    "metric": ("that a unit is a metre", lambda c: c.metric),
    "background": ("the colour behind transparent pixels", lambda c: c.background is not None),
    "crop": ("the radius of the fisheye's disc", lambda c: c.fisheye_crop_radius is not None),
    "orientation": ("how the scene is to be oriented", lambda c: c.orientation is not None),
    "colour": ("that the pictures hold light, or need white balance", lambda c: any(_of_light(f) for f in c.frames)),
    "original": ("the frame from before it was normalised", lambda c: not _is_identity(c.original_from_capture)),
}
"""What a capture may know beside its pictures and cameras: the words for it, and whether a capture does."""


def _of_light(frame: Frame) -> bool:
    return frame.colour is not None or frame.white_balance is not None


def _is_identity(b_from_a: Similarity) -> bool:
    still = torch.equal(b_from_a.rotation, torch.eye(3, dtype=torch.float64)) and not bool(b_from_a.translation.any())
    return b_from_a.scale == 1.0 and still


def _transforms(capture: Capture, folder: Path, sphere: Sphere | None) -> None:
    transforms.write(capture, folder)


def _instant_ngp(capture: Capture, folder: Path, sphere: Sphere | None) -> None:
    assert sphere is not None
    instant_ngp.write(capture, folder, sphere.centre, sphere.camera_distance)


def _blender(capture: Capture, folder: Path, sphere: Sphere | None) -> None:
    blender.write(capture, folder)


def _llff(capture: Capture, folder: Path, sphere: Sphere | None) -> None:
    llff.write(capture, folder)


def _neus(capture: Capture, folder: Path, sphere: Sphere | None) -> None:
    assert sphere is not None
    neus.write(capture, folder, sphere.world_from_sphere)


def _colmap(capture: Capture, folder: Path, sphere: Sphere | None) -> None:
    colmap.write(capture, folder / "sparse" / "0")


def _colmap_text(capture: Capture, folder: Path, sphere: Sphere | None) -> None:
    colmap.write(capture, folder / "sparse" / "0", binary=False)


def _sdfstudio(capture: Capture, folder: Path, sphere: Sphere | None) -> None:
    sdfstudio.write(capture, folder)


_COLMAP_LENSES = tuple(lens for lens in EVERY_LENS if lens is not Lens.ORTHOGRAPHIC)
_COLMAP = Holds(
    _COLMAP_LENSES, "images/{name}", mask="masks/{inside}.png", depth="depths/{inside}", depths=(".png", ".npy"),
    depth_scale=Frame.depth_scale,
)  # fmt: skip
_COLMAP_LOSES = ("split", "time", "bounds", "depths", "up", "metric", "background", "crop", "orientation", "original")
TARGETS: dict[str, Target] = {
    "transforms": Target(
        _transforms,
        Holds(
            EVERY_LENS, "images/{name}", mask="masks/{inside}.png", silhouettes="file", depth="depths/{inside}",
            depths=(".png", ".npy", ".exr", ".tif", ".tiff"),
        ),
        loses=("tracks", "colour"),
    ),
    "instant-ngp": Target(
        _instant_ngp,
        Holds(
            instant_ngp.LENSES, "images/{name}", mask="{folder}dynamic_mask_{stem}.png", masks="ignored",
            depth="depths/{inside}", depths=(".png",),
        ),
        loses=("points", "split", "crop", "colour"),
        needs="sphere",
    ),
    "blender": Target(
        _blender, Holds(PINHOLES, "{split}/{name}", simple=True, mode="RGBA"), loses=("points", "crop", "colour")
    ),
    "llff": Target(
        _llff,
        Holds(PINHOLES, "images/{name}", simple=True),
        loses=("points", "split", "time", "bounds", "up", "metric", "background", "crop", "orientation", "original",
               "colour"),
        needs="depths",
    ),
    "neus": Target(
        _neus,
        Holds(
            PINHOLES, "image/{number:06d}", mode="RGB", mask="mask/{number:03d}.png", masks="silhouette", blank=True
        ),
        loses=("points", "split", "time", "depths", "up", "metric", "background", "crop", "orientation", "colour"),
        needs="sphere",
        frame="original",
    ),
    "colmap": Target(_colmap, _COLMAP, _COLMAP_LOSES),
    "colmap-text": Target(_colmap_text, _COLMAP, _COLMAP_LOSES),
    "sdfstudio": Target(
        _sdfstudio,
        Holds(
            PINHOLES, "{number:06d}_rgb", mode="RGB", mask="{number:06d}_foreground_mask.png", masks="silhouette",
            depth="{number:06d}_sensor_depth", depths=(".npy",), depth_scale=1.0,
        ),
        loses=("points", "split", "time", "up", "metric", "background", "crop", "orientation", "colour"),
        needs="sphere",
        frame="sphere",
    ),
}  # fmt: skip


def in_frame(capture: Capture, b_from_capture: Similarity) -> Capture:
    """The same capture in another frame. A box is replaced by the one along the new axes that holds it."""
    scale, rotation = b_from_capture.scale, b_from_capture.rotation
    frames = tuple(
        replace(
            frame,
            camera=None if frame.camera is None else frame.camera.transformed(b_from_capture),
            depth_scale=frame.depth_scale if frame.depth is None else frame.depth_scale * scale,
        )
        for frame in capture.frames
    )
    bounds = None
    if capture.bounds is not None:
        corners = b_from_capture.apply(torch.cartesian_prod(*capture.bounds.T))
        bounds = torch.stack([corners.amin(0), corners.amax(0)])
    points = capture.points
    return replace(
        capture,
        frames=frames,
        points=None if points is None else replace(points, xyz=b_from_capture.apply(points.xyz)),
        bounds=bounds,
        up=None if capture.up is None else rotation @ capture.up,
        metric=capture.metric and abs(scale - 1) < 1e-9,
        near=None if capture.near is None else capture.near * scale,
        far=None if capture.far is None else capture.far * scale,
        original_from_capture=capture.original_from_capture @ b_from_capture.inverse(),
    )


def placed(capture: Capture, format: str, sphere: Sphere | None) -> tuple[Capture, Sphere | None]:
    """A capture and its sphere of interest in the frame that the format is written in, by `Target.frame`."""
    frame = TARGETS[format].frame
    if frame == "capture" or sphere is None:
        return capture, sphere
    b_from_capture = capture.original_from_capture if frame == "original" else sphere.world_from_sphere.inverse()
    return in_frame(capture, b_from_capture), sphere.moved(b_from_capture)


def lost(capture: Capture, format: str) -> list[str]:
    """One sentence on what the format has no place for; none when it keeps all."""
    words = [FACTS[name][0] for name in TARGETS[format].loses if FACTS[name][1](capture)]
    if not words:
        return []
    listed = words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
    return [f"Left behind, since {format} has no place for it: {listed}."]


def capture_of(info: SceneInfo, b_from_scene: Similarity, pictures: Capture | None = None) -> Capture:
    """A capture with the cameras of a run, in the frame that `b_from_scene` leads to.

    pictures: the capture that the run was trained on, where it is still there. Cameras then have the size of the
    pictures on disk, and masks, depths and times come along; without it they have the size of the training pictures,
    and a frame's path is its name.
    """
    known = {} if pictures is None else {frame.name: frame for frame in pictures.frames}
    capture_from_scene = info.scene_from_capture.inverse()
    frames = []
    for index, (name, camera) in enumerate(zip(info.names, info.cameras, strict=True)):
        moved = camera.to(torch.float64).transformed(b_from_scene)
        both = index in info.train and index in info.test
        split = None if both else "test" if index in info.test else "train"
        frame = known.get(name)
        if frame is None:
            frames.append(Frame(Path(name), moved, name, split=split))
            continue
        if frame.camera is not None:
            moved = moved.resized(frame.camera.width, frame.camera.height)
        # Depth files keep their numbers, so the unit goes into the factor.
        depth_scale = frame.depth_scale * b_from_scene.scale / capture_from_scene.scale
        frames.append(replace(frame, camera=moved, split=split, depth_scale=depth_scale))
    points = None if info.points is None else Points(b_from_scene.apply(info.points.double()))
    box = None
    if info.bounded:
        corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 3)
        moved_corners = b_from_scene.apply(corners)
        box = torch.stack([moved_corners.amin(0), moved_corners.amax(0)])
    return Capture(
        root=Path() if pictures is None else pictures.root,
        format="transforms" if pictures is None else pictures.format,
        frames=tuple(frames),
        points=points,
        bounds=box,
        up=b_from_scene.rotation[:, 2].clone(),
        near=info.near * b_from_scene.scale,
        # Where content goes on, the far plane is a number that stands for infinity, and no fact about the capture.
        far=info.far * b_from_scene.scale if info.bounded else None,
        fisheye_crop_radius=None if pictures is None else pictures.fisheye_crop_radius,
        original_from_capture=Similarity.identity()
        if pictures is None
        else pictures.original_from_capture @ capture_from_scene @ b_from_scene.inverse(),
    )


def sphere_of_scene(info: SceneInfo, b_from_scene: Similarity) -> Sphere:
    """The sphere that holds a run's scene, in the frame that `b_from_scene` leads to.

    A bounded scene fills the cube, and the ball around that is larger; elsewhere the region is the unit ball itself.
    """
    centre = b_from_scene.translation
    radius = b_from_scene.scale * (3**0.5 if info.bounded else 1.0)
    away = [float((b_from_scene.apply(camera.center.double()) - centre).norm()) for camera in info.cameras]
    return Sphere(centre, radius, sorted(away)[len(away) // 2], "the scene of the run")


def write_cameras(capture: Capture, format: str, folder: Path, sphere: Sphere | None = None) -> list[str]:
    """Write a capture's posed frames as one of TARGETS into a folder; returns sentences on what the format cannot say.

    The pictures stay where they are, but for LLFF's, which are linked beside the file. sphere: of interest, in the
    capture's frame; for formats that need one. The capture is written in the frame that it has. Raises RunError or
    CaptureError when the format cannot hold these lenses, or a file cannot be written; ValueError for another format.
    """
    if format not in TARGETS:
        raise ValueError(f"format: expected one of {', '.join(TARGETS)}, got {format!r}")
    target = TARGETS[format]
    if format == "llff":
        missing = [frame.name for frame in capture.frames if not frame.path.is_file()]
        if missing:
            raise RunError(
                f"LLFF matches cameras to the pictures beside them, and {missing[0]} is not there; say where the "
                "capture is with --capture."
            )
    cameras = [frame.camera for frame in capture.frames if frame.camera is not None]
    target.write(capture, folder, sphere)
    # LLFF's writer says so itself.
    bent = 0 if format == "llff" else sum(said_by(camera, target.holds) is not camera for camera in cameras)
    if not bent:
        return []
    what = "distortion, oblong pixels or a principal point off the middle" if target.holds.simple else "distortion"
    return [
        f"{bent} of {len(cameras)} lenses have {what}, which {format} cannot say: `lightfold convert` writes it with "
        "pictures that have none."
    ]
