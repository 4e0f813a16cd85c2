"""What a client can set and do on the page: five tabs, each a class that keeps its handles and answers clicks."""

from __future__ import annotations

from collections.abc import Callable

import viser

from .cameras_tab import CamerasTab
from .export_tab import ExportTab
from .painter import Look
from .path_tab import PathTab
from .subject import Subject
from .training_tab import Training, TrainingTab
from .view_tab import ViewTab


class Panels:
    """All tabs of one client. `changed` is called when something else is to be painted, `awake` when there is news."""

    def __init__(
        self,
        client: viser.ClientHandle,
        subject: Subject,
        training: Training | None,
        changed: Callable[[], None],
        awake: Callable[[], None],
    ) -> None:
        tabs = client.gui.add_tab_group()
        self.view: ViewTab | None = None
        self.path: PathTab | None = None
        self.export: ExportTab | None = None
        self.training: TrainingTab | None = None
        if training is not None:
            with tabs.add_tab("Training"):
                self.training = TrainingTab(client, training, awake)
        if subject.method is not None:
            with tabs.add_tab("View"):
                self.view = ViewTab(client, subject, changed)
        with tabs.add_tab("Cameras"):
            self.cameras = CamerasTab(client, subject, changed)
        if subject.run is not None:
            save = None if training is None else training.ask_for_checkpoint
            with tabs.add_tab("Path"):
                self.path = PathTab(client, subject, save)
            with tabs.add_tab("Export"):
                self.export = ExportTab(client, subject, save)

    def look(self) -> Look | None:
        """What the client sees now; None before it has said where its camera is."""
        return None if self.view is None else self.view.look()

    def most_pixels(self) -> int:
        """Longer side of a sharp picture."""
        return 1024 if self.view is None else int(self.view.resolution.value)

    def follow_training(self) -> None:
        """Show the news of the training."""
        if self.training is not None:
            self.training.refresh()
            self.cameras.follow_training()

    def close(self) -> None:
        """The client has gone: what it has started ends."""
        for tab in (self.path, self.export):
            if tab is not None:
                tab.close()
