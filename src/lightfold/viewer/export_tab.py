"""What `lightfold export` makes, from the page."""

from __future__ import annotations

from collections.abc import Callable

import viser

from ..export.cameras import TARGETS
from .jobs import Job
from .subject import Subject
from .work import Work, one_of

WHATS = ("mesh", "points", "cameras", "volume")
MESHES = ("glb", "ply", "obj", "stl")
CAMERAS = tuple(TARGETS)
FRAMES = ("capture", "scene")


class ExportTab:
    """What `lightfold export` makes."""

    def __init__(self, client: viser.ClientHandle, subject: Subject, save: Callable[[], None] | None) -> None:
        gui = client.gui
        self._subject, self._save = subject, save
        self.what = gui.add_dropdown("Export", WHATS, initial_value="mesh")
        self.format = gui.add_dropdown("Mesh as", MESHES, initial_value="glb")
        self.resolution = gui.add_slider("Resolution", 64, 768, 32, 256)
        self.count = gui.add_number("Points", 500_000, min=1000, max=20_000_000, step=1000, visible=False)
        self.cameras_as = gui.add_dropdown("Cameras as", CAMERAS, initial_value="transforms", visible=False)
        self.frame = gui.add_dropdown("Coordinates", FRAMES, initial_value="capture")
        self.page = gui.add_checkbox("Also one page to send to a friend", False)
        self.work = Work(client, "Export", self._begin)
        self.what.on_update(lambda _: self._chosen())

    def close(self) -> None:
        """The client has gone."""
        self.work.close()

    def _chosen(self) -> None:
        what = self.what.value
        self.format.visible = what == "mesh"
        self.resolution.visible = what in ("mesh", "volume")
        self.count.visible = what == "points"
        self.cameras_as.visible = what == "cameras"
        self.page.visible = what in ("mesh", "points")

    def _begin(self) -> Job:
        run, what = self._subject.run, one_of(self.what.value, WHATS)
        mesh, cameras = one_of(self.format.value, MESHES), one_of(self.cameras_as.value, CAMERAS)
        frame = one_of(self.frame.value, FRAMES)
        assert run is not None
        if self._save is not None:
            self._save()
        folder = run.path / "exports"
        out = {
            "mesh": folder / f"mesh.{mesh}",
            "points": folder / "points.ply",
            "cameras": folder / f"cameras-{cameras}",
            "volume": folder / "volume.npz",
        }[what]
        words = ["export", str(run.path), what, "--out", str(out), "--frame", frame]
        if what in ("mesh", "volume"):
            words += ["--resolution", str(int(self.resolution.value))]
        if what == "points":
            words += ["--count", str(int(self.count.value))]
        if what == "cameras":
            words += ["--cameras-as", cameras]
        files = [out]
        if what in ("mesh", "points") and self.page.value:
            words.append("--page")
            files.append(out.with_suffix(".html"))
        return Job(words, lambda: [file for file in files if file.exists()])
