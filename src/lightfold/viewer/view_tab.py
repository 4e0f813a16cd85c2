"""What is painted: outputs, ranges, the crop box, the field of view."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import viser
from torch import Tensor

from .. import pictures
from ..cameras import Camera, Lens
from ..geometry import rotation_from_quaternion
from ..methods.base import HasDensity, HasDistance
from ..rays import Box
from ..render import OUTPUTS
from .painter import PHOTO, Look
from .subject import Subject

RESOLUTIONS = (256, 512, 768, 1024, 1600)
"""Pixels on the longer side of a sharp picture that one can choose from."""


class ViewTab:
    """What is painted: outputs, ranges, the crop box."""

    def __init__(self, client: viser.ClientHandle, subject: Subject, changed: Callable[[], None]) -> None:
        gui = client.gui
        self._client, self._subject, self._changed = client, subject, changed
        outputs = OUTPUTS if subject.scene is None else (*OUTPUTS, PHOTO)
        self.output = gui.add_dropdown("Output", OUTPUTS, initial_value="rgb")
        self.split = gui.add_checkbox("Split the view", False, hint="Two outputs with a divider between them.")
        self.other = gui.add_dropdown("Beside it", outputs, initial_value="depth", visible=False)
        self.divider = gui.add_slider("Divider", 0.0, 1.0, 0.01, 0.5, visible=False)
        self.fov = gui.add_slider("Field of view", 10.0, 120.0, 1.0, 50.0, hint="Vertical, in degrees.")
        self.resolution = gui.add_dropdown("Sharpness", [str(side) for side in RESOLUTIONS], initial_value="1024")
        self._views = ["an average one", *(subject.info.names[i] for i in subject.info.train)]
        self.appearance = gui.add_dropdown("Exposure of", self._views, visible=subject.codes is not None)
        with gui.add_folder("Depth colours", expand_by_default=False):
            self.auto_depth = gui.add_checkbox("Of what is in sight", True)
            self.near = gui.add_number("Nearest", 0.5, min=1e-3, max=1e3, step=0.05, disabled=True)
            self.far = gui.add_number("Farthest", 5.0, min=1e-3, max=1e4, step=0.05, disabled=True)
        with gui.add_folder("Background", expand_by_default=False):
            behind = subject.info.shown(torch.tensor(subject.info.background or (0.0, 0.0, 0.0)))
            red, green, blue = (round(255 * c) for c in behind.tolist())
            self.own_background = gui.add_checkbox("Another colour", False)
            self.colour = gui.add_rgb("Colour", (red, green, blue))
        with gui.add_folder("Crop box", expand_by_default=False):
            self.crop = gui.add_checkbox("Show only what is inside", False)
            self.size = gui.add_vector3("Sides", (2.0, 2.0, 2.0), min=(0.01,) * 3, max=(1000.0,) * 3, step=0.01)
            self.reset_box = gui.add_button("Put it back to the middle")
        self.slice = Slice(client, subject)
        self.upright = gui.add_button("Up is up here", hint="Take this camera's upward direction as the page's.")
        self.reset = gui.add_button("Back to the first view")
        self._gizmo: viser.TransformControlsHandle | None = None
        self._outline: viser.BoxHandle | None = None
        changing = (self.output, self.other, self.divider, self.resolution, self.near, self.far, self.colour)
        for handle in (*changing, self.appearance):
            handle.on_update(lambda _: changed())
        self.own_background.on_update(lambda _: changed())
        self.split.on_update(lambda _: self._split_changed())
        self.auto_depth.on_update(lambda _: self._depth_changed())
        self.fov.on_update(lambda _: self._set_fov())
        self.crop.on_update(lambda _: self._crop_changed())
        self.size.on_update(lambda _: self._crop_changed())
        self.reset_box.on_click(lambda _: self._remove_box())
        self.upright.on_click(lambda _: self._set_up())
        self.reset.on_click(lambda _: fly_to(client, subject.first_camera()))
        client.camera.fov = math.radians(50.0)

    def look(self) -> Look | None:
        """From where the client's camera is, and what the tab says."""
        camera = self._client.camera
        width, height = camera.image_width, camera.image_height
        if width < 2 or height < 2:
            return None
        outputs = [self.output.value] + ([self.other.value] if self.split.value else [])
        near, far = float(self.near.value), float(self.far.value)
        colour = torch.tensor(self.colour.value, dtype=torch.float32) / 255
        return Look(
            world_from_cam=pose_of(camera),
            fov=float(camera.fov),
            width=width,
            height=height,
            outputs=tuple(outputs),
            divider=float(self.divider.value),
            depth_limits=None if self.auto_depth.value or near >= far else (near, far),
            background=colour if self.own_background.value else None,
            crop=self._box(),
            appearance=self._appearance(),
        )

    def _appearance(self) -> int | None:
        chosen = self._views.index(self.appearance.value)
        return None if chosen == 0 else self._subject.info.train[chosen - 1]

    def _box(self) -> Box | None:
        if not self.crop.value or self._gizmo is None:
            return None
        rotation = rotation_from_quaternion(torch.tensor(np.asarray(self._gizmo.wxyz), dtype=torch.float32))
        centre = torch.tensor(np.asarray(self._gizmo.position), dtype=torch.float32)
        return Box.of(centre, rotation, torch.tensor(self.size.value, dtype=torch.float32).clamp(min=1e-3))

    def _crop_changed(self) -> None:
        scene = self._client.scene
        if self.crop.value and self._gizmo is None:
            self._gizmo = scene.add_transform_controls("/crop", scale=0.6, depth_test=False)
            self._gizmo.on_update(lambda _: self._changed())
        if self._outline is not None:
            self._outline.remove()
            self._outline = None
        if self._gizmo is not None:
            self._gizmo.visible = bool(self.crop.value)
            if self.crop.value:
                sides = tuple(float(side) for side in self.size.value)
                self._outline = scene.add_box(
                    "/crop/outline", (255, 200, 60), (sides[0], sides[1], sides[2]), wireframe=True
                )
        self._changed()

    def _remove_box(self) -> None:
        if self._gizmo is not None:
            self._gizmo.position, self._gizmo.wxyz = (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0)
        self.size.value = (2.0, 2.0, 2.0)
        self._crop_changed()

    def _split_changed(self) -> None:
        self.other.visible = self.divider.visible = bool(self.split.value)
        self._changed()

    def _depth_changed(self) -> None:
        self.near.disabled = self.far.disabled = bool(self.auto_depth.value)
        self._changed()

    def _set_fov(self) -> None:
        self._client.camera.fov = math.radians(float(self.fov.value))
        self._changed()

    def _set_up(self) -> None:
        up = -pose_of(self._client.camera)[:, 1]
        self._client.scene.set_up_direction(tuple(up.tolist()))
        self._client.camera.up_direction = up.numpy()


class Slice:
    """A plane through the scene that shows the field itself: its signed distance, or how dense it is.

    Distances are blue outside and orange inside, with the surface between them; densities go from dark to light.
    """

    SIDE = 192
    """Points along a side of the plane."""

    def __init__(self, client: viser.ClientHandle, subject: Subject) -> None:
        self._client, self._method = client, subject.method
        usable = isinstance(subject.method, (HasDistance, HasDensity))
        with client.gui.add_folder("Slice", expand_by_default=False, visible=usable):
            self.show = client.gui.add_checkbox("Show a slice of the field", False)
            self.axis = client.gui.add_dropdown("Across", ("x", "y", "z"), initial_value="z")
            self.place = client.gui.add_slider("At", -1.0, 1.0, 0.01, 0.0)
        self._shown: viser.ImageHandle | None = None
        for handle in (self.show, self.axis, self.place):
            handle.on_update(lambda _: self._draw())

    def _draw(self) -> None:
        if self._shown is not None:
            self._shown.remove()
            self._shown = None
        if not self.show.value:
            return
        axis = "xyz".index(self.axis.value)
        points = plane(axis, float(self.place.value), self.SIDE)
        colours = slice_colours(self._method, points.reshape(-1, 3)).reshape(self.SIDE, self.SIDE, 3)
        position = np.zeros(3)
        position[axis] = float(self.place.value)
        self._shown = self._client.scene.add_image(
            "/slice", colours, 2.0, 2.0, format="png", wxyz=PLANES[axis], position=position
        )


PLANES = ((0.5, 0.5, 0.5, 0.5), (0.5, -0.5, -0.5, -0.5), (1.0, 0.0, 0.0, 0.0))
"""Quaternions that turn the image plane (x right, y down its rows) across the x, y and z axis."""


def plane(axis: int, place: float, side: int) -> Tensor:
    """Points [side, side, 3] of the square [-1, 1]^2 across an axis, as the rows and columns of its picture lie."""
    at = (torch.arange(side) + 0.5) / side * 2 - 1
    rows, columns = torch.meshgrid(at, at, indexing="ij")
    own = torch.stack([columns, rows, torch.zeros_like(rows)], dim=-1)
    rotation = rotation_from_quaternion(torch.tensor(PLANES[axis]))
    return own @ rotation.T + place * torch.eye(3)[axis]


def slice_colours(method: object, points: Tensor) -> np.ndarray:
    """Colours [N, 3] uint8 of the field at points [N, 3]."""
    if isinstance(method, HasDistance):
        share = (0.5 + 2.0 * method.sdf_at(points)).clamp(0, 1)[:, None]
        inside, outside = torch.tensor([0.95, 0.55, 0.2]), torch.tensor([0.15, 0.3, 0.75])
        colours = torch.lerp(inside, outside, share)
        # The surface itself is a light line.
        return pictures.to_uint8(torch.where((share - 0.5).abs() < 0.02, 1.0, colours)[None])[0]
    assert isinstance(method, HasDensity)
    density = method.density_at(points)
    return pictures.colour_map(1 - torch.exp(-0.02 * density)[None])[0]


def pose_of(camera: viser.CameraHandle) -> Tensor:
    """world_from_cam [3, 4] float64 of a client's camera; viser's axes are OpenCV's."""
    rotation = rotation_from_quaternion(torch.tensor(np.asarray(camera.wxyz), dtype=torch.float64))
    return torch.cat([rotation, torch.tensor(np.asarray(camera.position), dtype=torch.float64)[:, None]], dim=1)


def fly_to(client: viser.ClientHandle, camera: Camera) -> None:
    """Put a client's camera where a camera of the scene is, looking the same way."""
    pose = camera.world_from_cam.double()
    eye, down, forward = pose[:, 3], pose[:, 1], pose[:, 2]
    distance = float(np.linalg.norm(np.asarray(client.camera.look_at) - np.asarray(client.camera.position)))
    with client.atomic():
        client.camera.up_direction = (-down).numpy()
        client.camera.position = eye.numpy()
        client.camera.look_at = (eye + min(max(distance, 0.1), 10.0) * forward).numpy()
        if camera.lens is not Lens.EQUIRECTANGULAR:
            client.camera.fov = min(max(float(camera.fov[1]), math.radians(10)), math.radians(120))
