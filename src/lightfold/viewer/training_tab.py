"""How a training goes, and how much of the computer it leaves to the page."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import viser


@dataclass
class Training:
    """What the page shows of a training, and what it asks of it."""

    step: int = 0
    fraction: float = 0.0
    pausing: bool = False
    share: float = 0.1
    """Share of the time that painting may take while a client looks around."""
    finished: bool = False
    checkpoint_wanted: bool = False
    rows: list[dict[str, Any]] = field(default_factory=list)

    def ask_for_checkpoint(self, patience: float = 20.0) -> None:
        """Have a checkpoint of this moment written, and wait until it is there."""
        if self.finished:
            return
        self.checkpoint_wanted = True
        end = time.perf_counter() + patience
        while self.checkpoint_wanted and not self.finished and time.perf_counter() < end:
            time.sleep(0.05)


class TrainingTab:
    """How the training goes, and how much of the computer it leaves to the page."""

    def __init__(self, client: viser.ClientHandle, training: Training, awake: Callable[[], None]) -> None:
        gui = client.gui
        self._client, self._training, self._awake = client, training, awake
        self.text = gui.add_markdown("Starting.")
        self.bar = gui.add_progress_bar(0.0)
        self.pause = gui.add_button("Pause")
        self.share = gui.add_slider(
            "Share of the picture", 0.02, 0.9, 0.01, training.share, hint="Of the time, while somebody looks."
        )
        self._plots = {title: _empty_plot(gui, title) for title in ("Loss", "Training PSNR", "Held-out PSNR")}
        self.pause.on_click(lambda _: self._toggle())
        self.share.on_update(lambda _: self._set_share())
        self.refresh()

    def _toggle(self) -> None:
        self._training.pausing = not self._training.pausing and not self._training.finished
        self.pause.label = "Go on" if self._training.pausing else "Pause"
        self._awake()

    def _set_share(self) -> None:
        self._training.share = float(self.share.value)

    def refresh(self) -> None:
        """Show the newest state."""
        training, rows = self._training, list(self._training.rows)
        self.bar.value = 100.0 * training.fraction
        state = "Finished" if training.finished else "Paused" if training.pausing else "Training"
        measured = next((row for row in reversed(rows) if "loss" in row), None)
        words = f"**{state}** at step {training.step}"
        if measured is not None:
            seconds = float(measured["seconds"])
            left = seconds * (1 - training.fraction) / max(training.fraction, 1e-6)
            words += f", loss {measured['loss']:.5f}, {measured['rays_per_second'] / 1e3:.0f} k rays/s"
            words += "" if training.finished else f", {left:.0f} s left"
        self.text.content = words
        self.pause.visible = not training.finished
        self.share.visible = not training.finished
        self._plot("Loss", [(row["step"], row["loss"]) for row in rows if "loss" in row])
        self._plot("Training PSNR", [(row["step"], row["train_psnr"]) for row in rows if "train_psnr" in row])
        held_out = [(row["step"], row["held_out_psnr"]) for row in rows if row.get("held_out_psnr") is not None]
        self._plot("Held-out PSNR", held_out)

    def _plot(self, title: str, values: list[tuple[float, float]]) -> None:
        usable = [(x, y) for x, y in values if y is not None and math.isfinite(y)]
        if len(usable) < 2:
            return
        self._plots[title].data = tuple(np.array(column, dtype=np.float64) for column in zip(*usable, strict=True))
        self._plots[title].visible = True


def _empty_plot(gui: viser.GuiApi, title: str) -> viser.GuiUplotHandle:
    """A plot over steps, hidden until there is something to show."""
    series = (viser.uplot.Series(label="step"), viser.uplot.Series(label=title, stroke="#5ab0ff", width=2))
    nothing = np.zeros(2), np.zeros(2)
    scales = {"x": viser.uplot.Scale(time=False)}
    return gui.add_uplot(nothing, series, title=title, scales=scales, aspect=2.0, visible=False)
