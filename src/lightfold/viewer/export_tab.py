"""What `lightfold export` makes, from the page."""

from __future__ import annotations

from collections.abc import Callable

import viser

from .jobs import Job
from .subject import Subject
from .work import Work


class ExportTab:
    """What `lightfold export` makes."""

    def __init__(self, client: viser.ClientHandle, subject: Subject, save: Callable[[], None] | None) -> None:
        gui = client.gui
        self._subject, self._save = subject, save
        self.what = gui.add_dropdown("Export", ("mesh", "points", "cameras", "volume"), initial_value="mesh")
        self.format = gui.add_dropdown("Mesh as", ("glb", "ply", "obj", "stl"), initial_value="glb")
        self.resolution = gui.add_slider("Resolution", 64, 768, 32, 256)
        self.count = gui.add_number("Points", 500_000, min=1000, max=20_000_000, step=1000, visible=False)
        self.cameras_as = gui.add_dropdown(
            "Cameras as", ("transforms", "colmap", "llff", "neus"), initial_value="transforms", visible=False
        )
        self.frame = gui.add_dropdown("Coordinates", ("capture", "scene"), initial_value="capture")
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
        run, what = self._subject.run, self.what.value
        assert run is not None
        if self._save is not None:
            self._save()
        folder = run.path / "exports"
        out = {
            "mesh": folder / f"mesh.{self.format.value}",
            "points": folder / "points.ply",
            "cameras": folder / f"cameras-{self.cameras_as.value}",
            "volume": folder / "volume.npz",
        }[what]
        words = ["export", str(run.path), what, "--out", str(out), "--frame", self.frame.value]
        if what in ("mesh", "volume"):
            words += ["--resolution", str(int(self.resolution.value))]
        if what == "points":
            words += ["--count", str(int(self.count.value))]
        if what == "cameras":
            words += ["--cameras-as", self.cameras_as.value]
        files = [out]
        if what in ("mesh", "points") and self.page.value:
            words.append("--page")
            files.append(out.with_suffix(".html"))
        return Job(words, lambda: [file for file in files if file.exists()])
