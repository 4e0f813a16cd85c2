"""The cameras of a run, as the files of those who go on with them: transforms.json, COLMAP, LLFF, NeuS."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..cameras import Camera, Lens
from ..capture import Capture, Frame, Points
from ..errors import RunError
from ..files import whole_file
from ..formats import colmap, llff, transforms
from ..geometry import Similarity

if TYPE_CHECKING:
    from ..scene import SceneInfo

FORMATS = ("transforms", "colmap", "llff", "neus")


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


def write_cameras(capture: Capture, info: SceneInfo, b_from_scene: Similarity, format: str, folder: Path) -> list[str]:
    """Write the cameras of a run as one of `FORMATS` into a folder; returns sentences on what the format cannot say.

    transforms: transforms.json with its points. colmap: sparse/0 in binary form. llff: poses_bounds.npy with its
    pictures. neus: cameras_sphere.npz. Raises RunError or CaptureError when the format cannot hold these lenses, or a
    file cannot be written.
    """
    if format == "transforms":
        transforms.write(capture, folder)
    elif format == "colmap":
        colmap.write(capture, folder / "sparse" / "0")
    elif format == "llff":
        missing = [frame.name for frame in capture.frames if not frame.path.is_file()]
        if missing:
            raise RunError(
                f"LLFF matches cameras to the pictures beside them, and {missing[0]} is not there; say where the "
                "capture is with --capture."
            )
        llff.write(capture, folder)
    elif format == "neus":
        return write_neus(capture, info, b_from_scene, folder / "cameras_sphere.npz")
    else:
        raise ValueError(f"format: expected one of {', '.join(FORMATS)}, got {format!r}")
    return []


def write_neus(capture: Capture, info: SceneInfo, b_from_scene: Similarity, path: Path) -> list[str]:
    """Write cameras_sphere.npz, as NeuS and its followers read it (formats of IDR, Yariv et al. 2020).

    world_mat_i [4, 4] is K [R | t] in the capture's frame, with pixel centres at whole numbers; scale_mat_i leads from
    the unit ball, which holds the scene's region of interest, to that frame. Frames count in the capture's order.
    Raises RunError for lenses that are no pinholes at all.
    """
    # A bounded scene fills the cube, and the ball around that is larger; elsewhere the region is the unit ball itself.
    radius = b_from_scene.scale * (3**0.5 if info.bounded else 1.0)
    scale_mat = np.diag([radius, radius, radius, 1.0])
    scale_mat[:3, 3] = b_from_scene.translation.numpy()
    matrices: dict[str, np.ndarray] = {}
    bent = 0
    for i, frame in enumerate(capture.frames):
        camera = frame.camera
        assert camera is not None
        bent += _is_bent(camera)
        fx, fy, cx, cy = camera.intrinsics.tolist()
        intrinsics = np.eye(4)
        intrinsics[:2, :3] = [[fx, 0, cx - 0.5], [0, fy, cy - 0.5]]
        pose = np.eye(4)
        pose[:3] = camera.cam_from_world.numpy()
        world_mat = intrinsics @ pose
        matrices |= {f"world_mat_{i}": world_mat, f"world_mat_inv_{i}": np.linalg.inv(world_mat)}
        matrices |= {f"scale_mat_{i}": scale_mat, f"scale_mat_inv_{i}": np.linalg.inv(scale_mat)}
    with whole_file(path) as partial, partial.open("wb") as file:
        np.savez(file, **matrices)  # type: ignore[arg-type]
    if not bent:
        return []
    return [
        f"{bent} of {len(capture.frames)} lenses have distortion, which NeuS's file cannot say: undistort the pictures."
    ]


def _is_bent(camera: Camera) -> bool:
    """Whether a perspective lens has distortion. Raises RunError for a lens that no straight projection describes."""
    perspective = (Lens.SIMPLE_PINHOLE, Lens.PINHOLE, Lens.SIMPLE_RADIAL, Lens.RADIAL, Lens.OPENCV, Lens.FULL_OPENCV)
    if camera.lens not in perspective:
        raise RunError(
            f"NeuS's camera file knows pinholes only, and a lens is {camera.lens.value}; use --cameras-as transforms."
        )
    return bool(camera.distortion.abs().sum() > 0)
