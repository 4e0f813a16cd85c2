"""Where the photographs were taken, what they show, and how well the field shows the same."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

import numpy as np
import torch
import viser

from .. import pictures
from ..cameras import Lens
from ..geometry import quaternion_from_rotation
from .subject import Subject
from .view_tab import fly_to


class CamerasTab:
    """Where the photographs were taken, what they show, and how well the field shows the same."""

    COLOURS = ("split", "held-out error", "none")

    def __init__(self, client: viser.ClientHandle, subject: Subject, changed: Callable[[], None]) -> None:
        gui, info = client.gui, subject.info
        self._client, self._subject, self._changed = client, subject, changed
        self._scores = subject.scores()
        self._frustums: dict[int, viser.CameraFrustumHandle] = {}
        self.show = gui.add_checkbox("Show cameras", subject.method is None)
        self.size = gui.add_slider("Their size", 0.01, 0.5, 0.01, 0.05)
        self.colour = gui.add_dropdown("Their colour", self.COLOURS, initial_value="split")
        self.points = gui.add_checkbox("Show sparse points", subject.method is None and info.points is not None)
        self.points.visible = info.points is not None
        self._names = [f"{i}: {name}" for i, name in enumerate(info.names)]
        self.view = gui.add_dropdown("View", self._names)
        self.step = gui.add_button_group("Go to", ["previous", "this one", "next"])
        self.compare = gui.add_button("Compare with the photograph", visible=subject.scene is not None)
        self.compare.visible = subject.scene is not None and subject.method is not None
        self.text = gui.add_markdown(self._summary())
        self._image = gui.add_image(np.zeros((2, 2, 3), dtype=np.uint8), visible=False)
        self._cloud: viser.PointCloudHandle | None = None
        self._comparing = threading.Lock()
        self.show.on_update(lambda _: self._draw())
        self.size.on_update(lambda _: self._resize())
        self.colour.on_update(lambda _: self._draw(anew=True))
        self.points.on_update(lambda _: self._draw_points())
        self.step.on_click(lambda _: self._step())
        self.view.on_update(lambda _: self._fly())
        self.compare.on_click(lambda _: self._compare())
        self._draw()
        self._draw_points()

    def _summary(self) -> str:
        info = self._subject.info
        lines = [f"{len(info.cameras)} cameras: {len(info.train)} to train on, {len(info.test)} held out."]
        if self._scores:
            mean = sum(self._scores.values()) / len(self._scores)
            lines.append(f"Held-out PSNR {mean:.2f} dB over {len(self._scores)} views.")
        missing = self._subject.missing
        if missing:
            shown = ", ".join(f"`{name}`" for name in missing[:30])
            more = f" and {len(missing) - 30} more" if len(missing) > 30 else ""
            lines.append(f"**{len(missing)} pictures have no pose:** {shown}{more}.")
        lines += list(self._subject.notes)
        return "\n\n".join(lines)

    def _draw(self, anew: bool = False) -> None:
        if anew:
            for handle in self._frustums.values():
                handle.remove()
            self._frustums.clear()
        if not self.show.value:
            for handle in self._frustums.values():
                handle.visible = False
            return
        for index in self._subject.shown_views():
            if index in self._frustums:
                self._frustums[index].visible = True
            else:
                self._frustums[index] = self._frustum(index)

    def follow_training(self) -> None:
        """Show where training has moved the cameras by now."""
        if not self.show.value or not self._subject.moving:
            return
        cameras = self._subject.cameras()
        with self._client.atomic():
            for index, handle in self._frustums.items():
                pose = cameras[index].world_from_cam.double()
                handle.wxyz = quaternion_from_rotation(pose[:, :3]).numpy()
                handle.position = pose[:, 3].numpy()

    def _frustum(self, index: int) -> viser.CameraFrustumHandle:
        camera = self._subject.cameras()[index]
        pose = camera.world_from_cam.double()
        fov = math.radians(60) if camera.lens is Lens.EQUIRECTANGULAR else min(float(camera.fov[1]), math.radians(120))
        handle = self._client.scene.add_camera_frustum(
            f"/cameras/{index}",
            fov=fov,
            aspect=camera.width / camera.height,
            scale=float(self.size.value),
            thickness=1.5,
            thickness_units="screen",
            color=self._colour_of(index),
            image=self._subject.thumbnail(index),
            jpeg_quality=75,
            wxyz=quaternion_from_rotation(pose[:, :3]).numpy(),
            position=pose[:, 3].numpy(),
        )
        handle.on_click(lambda _: self._choose(index))
        return handle

    def _colour_of(self, index: int) -> tuple[int, int, int]:
        info = self._subject.info
        if self.colour.value == "none":
            return (150, 150, 150)
        if self.colour.value == "held-out error":
            score = self._scores.get(info.names[index])
            if score is None or not self._scores:
                return (90, 90, 90)
            worst, best = min(self._scores.values()), max(self._scores.values())
            share = (best - score) / max(best - worst, 1e-6)
            table = pictures.colour_table()[round(60 + 190 * share)]
            return (int(table[0]), int(table[1]), int(table[2]))
        return (255, 140, 60) if index in set(info.test) else (80, 170, 255)

    def _resize(self) -> None:
        for handle in self._frustums.values():
            handle.scale = float(self.size.value)

    def _draw_points(self) -> None:
        points = self._subject.info.points
        if points is None:
            return
        if self._cloud is None and self.points.value:
            self._cloud = self._client.scene.add_point_cloud(
                "/points", points.numpy(), (190, 190, 190), point_size=0.006, point_shape="circle"
            )
        if self._cloud is not None:
            self._cloud.visible = bool(self.points.value)

    def _index(self) -> int:
        return self._names.index(self.view.value)

    def _choose(self, index: int) -> None:
        if self._index() == index:
            self._fly()
        else:
            self.view.value = self._names[index]  # which flies there

    def _step(self) -> None:
        by = {"previous": -1, "this one": 0, "next": 1}[self.step.value]
        self._choose((self._index() + by) % len(self._names))

    def _fly(self) -> None:
        """Go to where the chosen photograph was taken, whose own frustum would be in the way there."""
        for index, handle in self._frustums.items():
            handle.visible = bool(self.show.value) and index != self._index()
        fly_to(self._client, self._subject.cameras()[self._index()])

    def _compare(self) -> None:
        """Photograph, rendering and error of the chosen view, beneath the button."""
        if not self._comparing.acquire(blocking=False):
            return
        try:
            index, subject = self._index(), self._subject
            photo = subject.photo(index)
            if photo is None or subject.method is None:
                return
            camera = subject.cameras()[index]
            shrink = min(1.0, 400 / max(camera.width, camera.height))
            small = camera.resized(max(1, round(camera.width * shrink)), max(1, round(camera.height * shrink)))
            truth = torch.nn.functional.interpolate(
                photo.permute(2, 0, 1)[None], (small.height, small.width), mode="area"
            )[0].permute(1, 2, 0)
            rgb = subject.info.shown(subject.method.render(small).rgb)
            error = float((rgb - truth).square().mean())
            shown = [pictures.to_uint8(truth), pictures.to_uint8(rgb), pictures.error_colours(rgb, truth)]
            picture = np.concatenate(shown, axis=0 if camera.width >= camera.height else 1)
            score = f"{-10 * math.log10(max(error, 1e-10)):.2f} dB at {small.width} x {small.height}"
            self._image.image, self._image.label = picture, f"Photograph, rendering, error: {score}"
            self._image.visible = True
        finally:
            self._comparing.release()
