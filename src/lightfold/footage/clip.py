"""Reading video files with FFmpeg, through PyAV: opening them safely, decoding past damage, finding frames again.

A frame is known by its time stamp. Many phones record at a varying rate, so counting frames and multiplying by a rate
goes wrong, and seeking by such times goes wrong twice.
"""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from ..errors import CaptureError

THREADS = min(8, os.cpu_count() or 1)
"""More decode hardly faster, and each holds frames."""
LONGEST_SKIP = 1.0
"""Seconds that `Beginnings` skips at most: the view must not move on too far."""
SHORTEST_GROUP = 0.25
"""Seconds. Where key frames are closer, as in formats that have no others, several of them are one group."""
NOT_VIDEO = {"concat", "dash", "hls", "image2", "imf", "lavfi", "rtp", "rtsp", "sap", "sdp"}
"""What FFmpeg would open although it names other files or hosts, or"""
NOT_VIDEO |= {"adf", "bin", "ffmetadata", "idf", "rawvideo", "tty", "xbin"}
"""although any text or noise would do."""


@dataclass
class Damage:
    """What could not be decoded.

    errors: that reading or decoding reported. frames: those that the decoder called corrupt, or that build on frames
    lost in an error.
    """

    errors: int = 0
    frames: int = 0


@contextmanager
def opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """A video file and its largest video stream, ready to decode. CaptureError where there is none."""
    if not path.exists():
        raise CaptureError(f"There is nothing at {path}.")
    if not path.is_file():
        raise CaptureError(f"{path} is not a video file.")
    try:
        if path.stat().st_size == 0:
            raise CaptureError(f"{path} is empty; copy it from the camera again.")
        path.open("rb").close()
        container = av.open(str(path), options=_inside_the_file(), metadata_errors="replace")
    except av.FFmpegError as error:
        raise CaptureError(
            f"{path} is not a video that FFmpeg can read, or its recording was cut off ({error.strerror}). Copy it "
            "from the camera again, or convert it to MP4."
        ) from error
    except OSError as error:
        raise CaptureError(f"{path} cannot be read: {error.strerror or error}.") from error
    with container:
        if container.format.name.endswith("_pipe"):
            raise CaptureError(f"{path} is a single picture. Give the folder of photos that it belongs to.")
        # Music carries its cover as a video of one frame.
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            raise CaptureError(f"There are no moving pictures in {path}, only sound or data.")
        decodable = [s for s in streams if s.codec_context is not None]
        if not decodable:
            raise CaptureError(f"{path} is compressed in a way that this FFmpeg cannot decode. Convert it to H.264.")
        stream = max(decodable, key=lambda s: s.codec_context.width * s.codec_context.height)
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = THREADS
        yield container, stream


@functools.cache
def _inside_the_file() -> dict[str, str]:
    """Options that keep FFmpeg inside the file that it is given."""
    return {"format_whitelist": ",".join(sorted(av.formats_available - NOT_VIDEO)), "protocol_whitelist": "file"}


def stamp_of(thing: Packet | VideoFrame) -> int | None:
    """When a frame is shown, in units of the stream's time base; where the format does not say, when it is decoded."""
    return thing.pts if thing.pts is not None else thing.dts


def decode(
    container: InputContainer, stream: VideoStream, damage: Damage, gate: Callable[[Packet], bool]
) -> Iterator[tuple[int, VideoFrame]]:
    """(stamp, frame) from where the file stands to its end. Where there are no time stamps, frames are numbered.

    gate: asked of each packet, in the order of the file, whether to decode it. What follows a refusal must be a key
        frame.
    """
    codec = stream.codec_context
    packets = container.demux(stream)
    feeding, sound, number = True, True, 0
    end = False
    while not end:
        try:
            packet = next(packets, None)
        except av.FFmpegError:
            damage.errors += 1
            packet = None  # The file cannot be read any further.
        end = packet is None or packet.size == 0
        wanted = packet is not None and not end and gate(packet)
        try:
            if wanted and not feeding:
                codec.flush_buffers()
            # None asks the decoder for what it still holds.
            frames = codec.decode(packet) if wanted else codec.decode(None) if feeding else []
        except av.EOFError:
            frames = []
        except av.FFmpegError:
            damage.errors += 1
            frames, sound = [], False
        feeding = wanted
        for frame in frames:
            stamp = stamp_of(frame)
            sound = sound or bool(frame.key_frame)
            if sound and not frame.is_corrupt:
                yield number if stamp is None else stamp, frame
            else:
                damage.frames += 1
            number += 1


class Beginnings:
    """Says which packets of a long video to decode: those at the beginning of each group of pictures.

    A group goes from a key frame to the next and is decoded without the others. share: of all packets, how many to let
    through, as far as LONGEST_SKIP allows. Groups are taken to be as long as the one before.
    """

    def __init__(self, share: float, time_base: float) -> None:
        self._share, self._time_base = share, time_base
        self._start: float | None = None
        self._length = 0.0
        self._open = True

    def __call__(self, packet: Packet) -> bool:
        stamp = stamp_of(packet)
        if self._share >= 1.0 or stamp is None:
            return True
        time = stamp * self._time_base
        if packet.is_keyframe and (self._start is None or time - self._start >= SHORTEST_GROUP):
            self._length = 0.0 if self._start is None else time - self._start
            self._start, self._open = time, True
        elif self._start is not None and self._length > 0.0:
            enough = max(self._share * self._length, self._length - LONGEST_SKIP)
            self._open = self._open and time - self._start < enough
        return self._open


def fetch(path: Path, stamps: Sequence[int], keyframes: NDArray[np.int64]) -> Iterator[tuple[int, VideoFrame]]:
    """(stamp, frame) of the frames with these increasing stamps; those that cannot be found again are missing.

    keyframes: stamps from which decoding can start, sorted. None: the file is decoded from its start. So it is where
    seeking leads astray, as it does in some formats.
    """
    left = deque(stamps)
    if keyframes.size:
        with opened(path) as (container, stream):
            yield from _by_seeking(container, stream, left, keyframes)
    if left:
        with opened(path) as (container, stream):
            for stamp, frame in decode(container, stream, Damage(), lambda packet: True):
                while left and left[0] < stamp:
                    left.popleft()
                if not left:
                    return
                if left[0] == stamp:
                    yield left.popleft(), frame


def _by_seeking(
    container: InputContainer, stream: VideoStream, left: deque[int], keyframes: NDArray[np.int64]
) -> Iterator[tuple[int, VideoFrame]]:
    """As `fetch`, from the nearest key frame before each. What is found leaves `left`; stops at the first failure."""
    codec = stream.codec_context

    def gate(packet: Packet) -> bool:
        # On the way to the next frame, those that no other frame builds on need not be decoded.
        codec.skip_frame = "DEFAULT" if not left or packet.pts is None or packet.pts >= left[0] else "NONREF"
        return True

    here: int | None = None
    frames: Iterator[tuple[int, VideoFrame]] = iter(())
    while left:
        start = int(keyframes[max(0, np.searchsorted(keyframes, left[0], side="right") - 1)])
        if here is None or start > here:
            try:
                container.seek(start, stream=stream)
            except av.FFmpegError:
                return
            frames = decode(container, stream, Damage(), gate)
        found = next(((stamp, frame) for stamp, frame in frames if stamp >= left[0]), None)
        if found is None or found[0] != left[0]:
            return
        here = left.popleft()
        yield found


def seconds_of(container: InputContainer, stream: VideoStream) -> float:
    """How long the video says it is; 0 where it does not."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return float(container.duration or 0) / av.time_base


def axes_of(frame: VideoFrame) -> NDArray[np.int64]:
    """[2, 2] of 0, 1 and -1: how far a step along the stored x and y axes goes along those shown, column by column.

    Phones store what the sensor sees, and a display matrix (in the track header of MP4) that turns, or mirrors, it
    upright. Angles between are rounded to quarter turns.
    """
    data = frame.side_data.get(SideData.DISPLAYMATRIX)  # type: ignore[call-overload]
    if data is None or data.buffer_size < 36:
        return np.eye(2, dtype=np.int64)
    matrix = np.frombuffer(bytes(data)[:36], dtype=np.int32).reshape(3, 3)[:2, :2].T.astype(np.int64)
    straight = abs(matrix[0, 0]) >= abs(matrix[0, 1])
    kept = np.where(np.eye(2, dtype=bool) == straight, np.sign(matrix), 0)
    return kept if abs(np.linalg.det(kept)) > 0.5 else np.eye(2, dtype=np.int64)


def upright(picture: NDArray[np.generic], axes: NDArray[np.int64]) -> NDArray[np.generic]:
    """A stored picture [h, w, ...] as it is to be shown."""
    if axes[0, 0] == 0:
        picture = picture.swapaxes(0, 1)
    return picture[:: int(axes[1].sum()), :: int(axes[0].sum())]


def says_equirectangular(frame: VideoFrame) -> bool:
    """Whether the file says that its frames are equirectangular panoramas (spherical video metadata)."""
    data = frame.side_data.get(SideData.SPHERICAL)  # type: ignore[call-overload]
    return data is not None and bytes(data)[:4] == bytes(4)
