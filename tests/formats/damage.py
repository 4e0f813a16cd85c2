"""Ways to damage a file, for tests of readers: whatever is done to it, the answer is a capture or one CaptureError."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightfold.capture import Capture
from lightfold.errors import CaptureError

NASTY = [b"", b"\0", b"\xff\xfe", b"nan", b"1e999", b"-1", b"0", b'"', b"[", b"]}", b"<", b"</", b"null", b"9" * 5000]


def survives_damage(file: Path, read: Callable[[Path], Capture], where: Path, examples: int = 40) -> None:
    """Replace stretches of `file`, which `read(where)` reads, by nasty ones, and cut it short."""
    whole = file.read_bytes()

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(
        start=st.integers(0, len(whole)),
        length=st.integers(0, 40),
        instead=st.sampled_from(NASTY) | st.binary(max_size=20),
        end=st.just(len(whole)) | st.integers(0, len(whole)),
    )
    def damaged(start: int, length: int, instead: bytes, end: int) -> None:
        file.write_bytes((whole[:start] + instead + whole[start + length :])[:end])
        try:
            capture = read(where)
        except CaptureError as error:
            assert "\n" not in str(error)
        else:
            assert len(capture) > 0 and all(frame.camera is not None for frame in capture.frames)

    try:
        damaged()
    finally:
        file.write_bytes(whole)
