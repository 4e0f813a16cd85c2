from __future__ import annotations

import threading
import time
from pathlib import Path

from lightfold.viewer.jobs import Job


def run(words: list[str]) -> tuple[Job, list[tuple[str, float]]]:
    job = Job(words, lambda: [])
    seen: list[tuple[str, float]] = []
    job.run(lambda: seen.append((job.stage, job.done)))
    return job, seen


def test_what_goes_wrong_is_the_sentence_of_the_command_line(tmp_path: Path) -> None:
    job, _ = run(["render", str(tmp_path / "no run")])
    assert job.finished and job.failure is not None and "There is no run folder at" in job.failure


def test_progress_is_heard(tmp_path: Path, monkeypatch) -> None:
    """Through a program that reports as the command line does."""
    script = "from lightfold.cli import console\nwith console.progress('painting') as report:\n    report(4, 4)\n"
    package = tmp_path / "lightfold_stand_in"
    package.mkdir()
    (package / "__main__.py").write_text(script)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[2] / 'src'}")
    job = Job([], lambda: [])
    import subprocess

    real = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda command, **options: real([command[0], "-m", "lightfold_stand_in"], **options)
    )
    seen: list[tuple[str, float]] = []
    job.run(lambda: seen.append((job.stage, job.done)))
    assert job.failure is None and ("painting", 1.0) in seen


def test_a_job_can_be_stopped(tmp_path: Path) -> None:
    job = Job(["view", "--help"], lambda: [])
    job.stop()
    job.run(lambda: None)
    assert job.finished and job.failure is None
    slow = Job(["doctor"], lambda: [])
    thread = threading.Thread(target=slow.run, args=(lambda: None,))
    thread.start()
    time.sleep(0.2)
    slow.stop()
    thread.join(20)
    assert slow.finished and slow.failure is None and not thread.is_alive()
