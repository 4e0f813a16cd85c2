"""A button with work behind it: at most one job, a bar while it goes on, and its files at the end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import viser

from ..errors import LightfoldError
from .jobs import Job

SENT_AT_ONCE = 256 << 20
"""Bytes of a file beyond which it is not sent to the browser: the page says where it lies instead."""


def one_of(value: str, known: Sequence[str]) -> str:
    """A dropdown's value, if it is one of those that the page offers: a client may send anything, and these become
    words of a command line and names of files."""
    if value not in known:
        raise LightfoldError(f"The page does not offer '{value[:40]}'.")
    return value


class Work:
    """A button, a bar, and at most one job behind them; its files are sent to the browser when it is done."""

    def __init__(self, client: viser.ClientHandle, label: str, begin: Callable[[], Job]) -> None:
        gui = client.gui
        self._client, self._begin, self._label = client, begin, label
        self._job: Job | None = None
        self._gone = False
        self.button = gui.add_button(label)
        self.bar = gui.add_progress_bar(0.0, visible=False)
        self.cancel = gui.add_button("Stop it", visible=False)
        self.text = gui.add_markdown("")
        self.button.on_click(lambda _: self.start())
        self.cancel.on_click(lambda _: self.stop())

    def start(self) -> None:
        """Begin, unless something is at work."""
        if self._job is not None and not self._job.finished:
            return
        try:
            job = self._begin()
        except LightfoldError as error:
            self.text.content = f"**{error}**"
            return
        self._job = job
        self.button.disabled, self.bar.visible, self.cancel.visible = True, True, True
        threading.Thread(target=self._follow, args=(job,), daemon=True).start()

    def stop(self) -> None:
        """End what is at work."""
        if self._job is not None:
            self._job.stop()

    def close(self) -> None:
        """The client has gone: what it has started ends, and nothing is shown any more."""
        self._gone = True
        self.stop()

    def _follow(self, job: Job) -> None:
        job.run(lambda: self._show(job))
        if self._gone:
            return
        self.button.disabled, self.bar.visible, self.cancel.visible = False, False, False
        if job.stopped:
            self.text.content = "Stopped."
        elif job.failure is not None:
            self.text.content = f"**{job.failure}**"
        else:
            self._send(job.files())

    def _show(self, job: Job) -> None:
        if not self._gone:
            self.bar.value = 100.0 * job.done
            self.text.content = f"{job.stage} ..."

    def _send(self, files: Sequence[Path]) -> None:
        lines = []
        for file in files:
            size = file.stat().st_size if file.is_file() else 0
            if file.is_file() and size <= SENT_AT_ONCE:
                self._client.send_file_download(file.name, file.read_bytes())
            lines.append(f"`{file}`")
        self.text.content = "Done: " + ", ".join(lines) if lines else "It left no file."
