"""Camera paths: keyframes, a preview, and the video."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import viser
from torch import Tensor

from ..cameras import Lens
from ..errors import LightfoldError
from ..geometry import quaternion_from_rotation
from ..render import OUTPUTS
from .jobs import Job
from .keyframes import Flight, Keyframe, flight_text, moved, read_flight, write_flight
from .subject import Subject
from .view_tab import pose_of
from .work import Work, one_of

LENSES = {
    "perspective": (Lens.PINHOLE, ""),
    "fisheye": (Lens.OPENCV_FISHEYE, ""),
    "360 degrees": (Lens.EQUIRECTANGULAR, ""),
    "360 degrees, two eyes": (Lens.EQUIRECTANGULAR, "omnidirectional"),
    "VR180, two eyes": (Lens.EQUIRECTANGULAR, "vr180"),
}
"""What the video's camera sees: its lens, and for which eyes (see `path_files.TWO_EYES`)."""
SHOWN = (*OUTPUTS, "rgb depth", "rgb normal")
"""What the video shows; two outputs side by side."""


class PathTab:
    """Keyframes, a preview, and the video."""

    def __init__(self, client: viser.ClientHandle, subject: Subject, save: Callable[[], None] | None) -> None:
        gui = client.gui
        self._client, self._subject, self._save = client, subject, save
        self.flight = Flight()
        self._chosen = 0
        self._playing: threading.Event | None = None
        self._drawn: list[Any] = []
        self.add = gui.add_button("Add a keyframe here")
        self.which = gui.add_dropdown("Keyframe", ["none yet"])
        self.edit = gui.add_button_group("It", ["go there", "set here", "remove"])
        self.order = gui.add_button_group("Move it", ["earlier", "later"])
        self.seconds = gui.add_number("Seconds to the next", 2.0, min=0.05, max=600.0, step=0.1)
        self.loop = gui.add_checkbox("Close the loop", False)
        self.play = gui.add_button("Play")
        with gui.add_folder("Video"):
            self.width = gui.add_number("Width", 960, min=2, max=16384, step=2)
            self.height = gui.add_number("Height", 540, min=2, max=16384, step=2)
            self.fps = gui.add_number("Frames per second", 24.0, min=1.0, max=120.0, step=1.0)
            self.lens = gui.add_dropdown("Lens", tuple(LENSES), initial_value="perspective")
            self.shown = gui.add_dropdown("Show", SHOWN, initial_value="rgb")
            self.work = Work(client, "Render the video", self._video)
            self.still_work = Work(client, "Render this view", self._still)
        self.save_path = gui.add_button("Save the path")
        self.load_path = gui.add_upload_button("Load a path", mime_type="application/json")
        self.clear = gui.add_button("Remove all keyframes")
        self.text = gui.add_markdown("")
        self.add.on_click(lambda _: self._add())
        self.which.on_update(lambda _: self._select())
        self.edit.on_click(lambda _: self._edit())
        self.order.on_click(lambda _: self._reorder())
        self.seconds.on_update(lambda _: self._set_seconds())
        for handle in (self.loop, self.width, self.height, self.fps, self.lens):
            handle.on_update(lambda _: self._set_flight())
        self.play.on_click(lambda _: self._play())
        self.save_path.on_click(lambda _: self._send_path())
        self.load_path.on_upload(lambda _: self._load())
        self.clear.on_click(lambda _: self._put((), 0))

    def close(self) -> None:
        """The client has gone."""
        if self._playing is not None:
            self._playing.set()
        self.work.close()
        self.still_work.close()

    # -- keyframes

    def _here(self) -> Keyframe:
        camera = self._client.camera
        return Keyframe(pose_of(camera), float(camera.fov), float(self.seconds.value))

    def _add(self) -> None:
        keys = self.flight.keyframes
        at = self._chosen + 1 if keys else 0
        self._put((*keys[:at], self._here(), *keys[at:]), at)

    def _edit(self) -> None:
        keys, i = self.flight.keyframes, self._chosen
        if not keys:
            return
        if self.edit.value == "go there":
            self._show_pose(keys[i].world_from_cam, keys[i].fov)
        elif self.edit.value == "set here":
            self._put((*keys[:i], replace(self._here(), seconds=keys[i].seconds), *keys[i + 1 :]), i)
        else:
            self._put((*keys[:i], *keys[i + 1 :]), max(0, i - 1))

    def _reorder(self) -> None:
        if self.flight.keyframes:
            by = -1 if self.order.value == "earlier" else 1
            at = min(max(self._chosen + by, 0), len(self.flight.keyframes) - 1)
            self._put(moved(self.flight.keyframes, self._chosen, by), at)

    def _select(self) -> None:
        number = self.which.value.partition(" ")[0]
        if number.isdigit() and int(number) <= len(self.flight.keyframes):
            self._chosen = int(number) - 1
            self.seconds.value = self.flight.keyframes[self._chosen].seconds

    def _set_seconds(self) -> None:
        keys, i = self.flight.keyframes, self._chosen
        if keys and keys[i].seconds != float(self.seconds.value):
            self._put((*keys[:i], replace(keys[i], seconds=float(self.seconds.value)), *keys[i + 1 :]), i)

    def _put(self, keyframes: tuple[Keyframe, ...], chosen: int) -> None:
        self.flight, self._chosen = replace(self.flight, keyframes=keyframes), chosen
        names = [f"{i + 1} of {len(keyframes)}" for i in range(len(keyframes))] or ["none yet"]
        self.which.options = tuple(names)
        self.which.value = names[min(chosen, len(names) - 1)]
        self._set_flight()

    def _set_flight(self) -> None:
        size = int(self.width.value) // 2 * 2, int(self.height.value) // 2 * 2
        (lens, eyes), loop = LENSES[self.lens.value], bool(self.loop.value)
        self.flight = replace(self.flight, loop=loop, fps=float(self.fps.value), size=size, lens=lens, eyes=eyes)
        self.text.content = (
            f"{self.flight.seconds:.1f} seconds, {self.flight.frames} frames." if self.flight.frames else ""
        )
        self._draw()

    def _draw(self) -> None:
        for handle in self._drawn:
            handle.remove()
        self._drawn = []
        scene, (width, height) = self._client.scene, self.flight.size
        for i, key in enumerate(self.flight.keyframes[:200]):
            self._drawn.append(
                scene.add_camera_frustum(
                    f"/path/{i}",
                    fov=key.fov,
                    aspect=width / height,
                    scale=0.06,
                    thickness=2.0,
                    thickness_units="screen",
                    color=(120, 230, 120),
                    wxyz=quaternion_from_rotation(key.world_from_cam[:, :3]).numpy(),
                    position=key.world_from_cam[:, 3].numpy(),
                )
            )
        if len(self.flight.keyframes) > 1:
            seconds = torch.linspace(0, self.flight.seconds, 200, dtype=torch.float64)
            line = self.flight.at(seconds)[0][:, :, 3].numpy()
            pieces = np.stack([line[:-1], line[1:]], axis=1)
            self._drawn.append(
                scene.add_line_segments("/path/line", pieces, (120, 230, 120), thickness=2.0, thickness_units="screen")
            )

    # -- playing

    def _show_pose(self, pose: Tensor, fov: float) -> None:
        camera = self._client.camera
        with self._client.atomic():
            camera.up_direction = (-pose[:, 1]).numpy()
            camera.position = pose[:, 3].numpy()
            camera.look_at = (pose[:, 3] + pose[:, 2]).numpy()
            camera.fov = fov

    def _play(self) -> None:
        if self._playing is not None:
            self._playing.set()
        elif self.flight.keyframes:
            self._playing = threading.Event()
            self.play.label = "Stop"
            threading.Thread(target=self._fly, args=(self._playing,), daemon=True).start()

    def _fly(self, stop: threading.Event) -> None:
        start = time.perf_counter()
        while not stop.wait(1 / 24):
            seconds = time.perf_counter() - start
            if seconds > self.flight.seconds:
                break
            pose, fov = self.flight.at(torch.tensor([seconds], dtype=torch.float64))
            self._show_pose(pose[0], float(fov[0]))
        self._playing = None
        self.play.label = "Play"

    # -- files

    def _send_path(self) -> None:
        if self.flight.keyframes:
            self._client.send_file_download("camera_path.json", flight_text(self.flight, self._subject.info).encode())

    def _load(self) -> None:
        uploaded = self.load_path.value
        try:
            flight = read_flight(uploaded.content, self._subject.info, uploaded.name)
        except LightfoldError as error:
            self.text.content = f"**{error}**"
            return
        self.width.value, self.height.value = flight.size
        self.fps.value, self.loop.value = flight.fps, flight.loop
        self.lens.value = next(name for name, kind in LENSES.items() if kind == (flight.lens, flight.eyes))
        self._put(flight.keyframes, 0)

    def _video(self) -> Job:
        if not self.flight.keyframes:
            raise LightfoldError("Add keyframes first: fly somewhere and press the button above.")
        return self._render(self.flight, "video", [])

    def _still(self) -> Job:
        flight = replace(self.flight, keyframes=(self._here(),), loop=False)
        return self._render(flight, "still", ["--stills"])

    def _render(self, flight: Flight, kind: str, extra: list[str]) -> Job:
        run = self._subject.run
        assert run is not None
        if self._save is not None:
            self._save()
        stem = f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}"
        folder = run.path / "renders" / "viewer"
        write_flight(folder / f"{stem}.json", flight, self._subject.info)
        out = folder / stem if extra else folder / f"{stem}.mp4"
        words = ["render", str(run.path), "--path", str(folder / f"{stem}.json"), "--out", str(out)]
        words += ["--outputs", *one_of(self.shown.value, SHOWN).split(), *extra]
        return Job(words, lambda: sorted(out.glob("*")) if out.is_dir() else [out])
