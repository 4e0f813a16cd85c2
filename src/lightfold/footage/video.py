"""Video: the frames of a clip that are worth solving become `Footage`.

Two passes. The first looks at the clip once, small and grey, and measures how sharp each frame is and how far the view
has moved (`motion`). `choice` then says which frames to keep. The second decodes those at full size and writes them
upright, with square pixels, as 8-bit sRGB.

Of a long video of large frames the first pass decodes only the beginning of each group of pictures: there are far more
frames than places to fill, and the wait is shorter than the video.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image

from ..cameras import Camera, Lens
from ..errors import CaptureError, ConfigError
from ..files import whole_file
from ..formats.frames import FrameError, Header, Names, fit_camera
from ..formats.lens_file import read_lens_file
from . import choice, gathered, motion, tonemap
from .choice import Choice
from .clip import (
    Beginnings,
    Damage,
    axes_of,
    decode,
    fetch,
    opened,
    says_equirectangular,
    seconds_of,
    stamp_of,
    upright,
)
from .fisheye import Stitch, read_hugin, stitch, stitching
from .sharpness import LONG_SIDE, sharpness
from .sheet import Curves, save_sheet
from .shots import Footage, Shot

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

VERSION = 1
"""Part of the fingerprint: a change of what is chosen or written must raise it."""
SCAN_PIXELS = 3e10
"""Pixels that the first pass decodes at most where the file lets it skip: two minutes of 3840 x 2160."""
SMALLEST_SIDE = 64
"""Pixels. Less holds no features."""
PANORAMA_WIDTH = 1920
"""Frames of 2:1 that are at least this wide are panoramas, also where nothing says so."""
DARK = 16.0
"""Mean grey level below which a corner is one of those around the circles of a dual fisheye."""
UNSPECIFIED, BT601, BT709, BT2020 = 2, 5, 1, 9
"""Matrix coefficients between luma, chroma and RGB, by their numbers in FFmpeg."""
STANDARD_DEFINITION = 576
"""Lines up to which a video that does not say so has the matrix of BT.601, and above which that of BT.709."""
FILM_DIAGONAL_MM = math.hypot(36, 24)
"""To which focal lengths "in 35 mm equivalent" refer."""
JPEG_QUALITY = 95
THUMBNAIL = 240
WRITERS = 2
"""Frames that are converted and compressed side by side; each holds several copies of its pixels."""
SCANNED: dict[str, Any] = {
    "stamps": np.int64, "time": np.float64, "number": np.int64, "sharpness": np.float64, "position": np.float64,
    "keyframes": np.int64,
}  # fmt: skip
"""The arrays of a `_Scan`."""
GAP = 0.25
"""View change between chosen neighbours above which they may share too little to be matched."""


@dataclass(frozen=True)
class VideoConfig:
    """How frames of a video are chosen."""

    frames: int | None = None
    """How many frames to choose. By default 100 to 150, by how much the view changes, and up to 400 for long ways."""
    fps: float | None = None
    """Frames per second of video, instead of a number of frames. They are still spaced by view change, not by time."""
    lens: str = "auto"
    """Lens to start from: auto, or SIMPLE_RADIAL, OPENCV_FISHEYE, EQUIRECTANGULAR and so on. auto is one radial
    coefficient, and EQUIRECTANGULAR for 360 video."""
    calibration: Path | None = None
    """Hugin project (.pto) of a dual-fisheye camera: its frames are stitched to panoramas. Or the calibration of any
    other camera, known and kept unless --refine-known: see --photos.calibration."""


def gather_video(path: Path, out: Path, config: VideoConfig | None = None, progress: Progress | None = None) -> Footage:
    """Make `out` a `Footage` of the frames of one video that are worth solving. See `gather_videos`."""
    return gather_videos([path], out, config, progress)


def gather_videos(
    paths: Sequence[Path], out: Path, config: VideoConfig | None = None, progress: Progress | None = None
) -> Footage:
    """Make `out` a `Footage` of frames of several videos of one place, each with a camera of its own.

    Frames become out/images/frame_000123.jpg, by their number in the video, in a folder for each video where there are
    several; out/frames.jpg shows the choice. Finished work is found again: with the same files and the same
    configuration nothing is decoded; after an interruption, or with another number of frames, the first pass is not
    made again, nor a frame that was written. The videos are only read.

    Raises CaptureError when nothing can be used or `out` holds pictures of someone else, ConfigError for options that
    contradict each other, RunError when `out` cannot be written.
    """
    config = config or VideoConfig()
    _check(config)
    paths, out = [Path(os.path.realpath(Path(path).expanduser())) for path in paths], Path(out).expanduser()
    fingerprint = _fingerprint(paths, config)
    finished = gathered.finished(out, fingerprint)
    if finished is not None:
        return finished
    gathered.refuse_foreign(out, paths)
    scans, dropped = _scan_all(paths, out, config, progress)
    choices = [
        choice.choose(scan.time, scan.sharpness, scan.position, count)
        for scan, count in zip(scans, _counts(scans, config), strict=True)
    ]
    kept = sum(len(chosen.indices) for chosen in choices)
    if kept < 2:
        raise CaptureError(_too_few(scans[0]))
    folders = _folders(scans)
    journal = gathered.Journal(out)
    wanted = [_keys(*of) for of in zip(scans, choices, folders, strict=True)]
    known = {key: made[0] for keys in wanted for key in keys.values() if (made := journal.shot(key)) is not None}
    journal.begin(paths, known)
    for scan in scans:
        scan.save(out)
    shots: list[Shot] = []
    thumbnails: list[tuple[Image.Image, float]] = []
    notes: list[str] = []
    for scan, chosen, folder, keys in zip(scans, choices, folders, wanted, strict=True):
        before = len(shots)
        there = {i: known[key] for i, key in keys.items() if key in known}
        for i, shot, thumbnail in _write(scan, keys, there, out, folder):
            if i not in there:
                journal.add(keys[i], shot)
            shots.append(shot)
            thumbnails.append((thumbnail, shot.time or 0.0))
            if progress is not None:
                progress("writing frames", len(shots), kept)
        lost = len(chosen.indices) - (len(shots) - before)
        dropped += _dropped(scan, chosen, lost, f" of {scan.path.name}" if len(scans) > 1 else "")
        notes += _notes(scan, chosen, config)
    if len(shots) < 2:
        raise CaptureError(f"The frames of {scans[0].path} cannot be decoded a second time. Copy it to another disk.")
    save_sheet(out / "frames.jpg", thumbnails, [_curves(s, c) for s, c in zip(scans, choices, strict=True)])
    kind = "panoramas" if scans[0].look.panorama else "video"
    footage = Footage(out, kind, True, tuple(shots), tuple(dropped), tuple(notes))
    footage.save()
    gathered.mark(out, paths, fingerprint)
    return footage


def _folders(scans: Sequence[_Scan]) -> list[str]:
    """A folder for the frames of each video; none for a single one."""
    names = Names()
    return [names.new(re.sub(r"[\s#:\\]", "_", scan.path.stem)[:60]) if len(scans) > 1 else "" for scan in scans]


def _check(config: VideoConfig) -> None:
    if config.frames is not None and config.fps is not None:
        raise ConfigError("Give a number of frames or frames per second, not both.")
    if config.frames is not None and config.frames < 2:
        raise ConfigError(f"Poses need at least 2 frames, and {config.frames} were asked for.")
    if config.fps is not None and not (math.isfinite(config.fps) and config.fps > 0):
        raise ConfigError(f"Frames per second of video must be more than 0, and {config.fps} was given.")
    if config.lens != "auto" and config.lens not in Lens.__members__:
        raise ConfigError(f"There is no lens called '{config.lens}'. Known are auto, {', '.join(Lens.__members__)}.")
    if config.calibration is None:
        return
    if not _is_hugin(config.calibration):
        if config.lens != "auto":
            raise ConfigError(
                f"A calibration says which lens it is, and {config.lens} was named too; give one of the two."
            )
        read_lens_file(config.calibration)
    elif config.lens not in ("auto", Lens.EQUIRECTANGULAR.value):
        raise ConfigError(f"A calibration makes panoramas, whose lens is not {config.lens}; give one of the two.")
    else:
        read_hugin(config.calibration)


def _is_hugin(calibration: Path) -> bool:
    return calibration.suffix.lower() == ".pto"


# --- the first pass -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Scan:
    """A video after the first pass; arrays [N] over the frames that were measured, in order of time.

    stamps:    time stamps in units of the stream's time base; 0, 1, 2, ... where the file has none.
    time:      seconds since the first of them.
    number:    which frame of the video it is, from 0.
    position:  view change since the first frame.
    keyframes: stamps from which decoding can start, sorted; empty where the file has no time stamps.
    total:     frames in the file.
    dropped:   (how many, why) of frames that were not measured.
    key:       a digest of all that decides what the first pass finds.
    """

    path: Path
    look: _Look
    stamps: NDArray[np.int64]
    time: NDArray[np.float64]
    number: NDArray[np.int64]
    sharpness: NDArray[np.float64]
    position: NDArray[np.float64]
    keyframes: NDArray[np.int64]
    total: int
    dropped: list[tuple[int, str]]
    notes: list[str]
    key: str

    def save(self, out: Path) -> None:
        """Keep what the first pass found, so that it need not be made again."""
        arrays = {name: getattr(self, name) for name in SCANNED}
        told = json.dumps([self.key, self.total, self.dropped, self.notes])
        with whole_file(_scan_file(out, self.path)) as partial, partial.open("wb") as file:
            np.savez_compressed(file, told=np.array(told), **arrays)


def _scan_file(out: Path, path: Path) -> Path:
    return out / f"scan-{gathered.digest(str(path))[:12]}.npz"


def _scan_key(path: Path, config: VideoConfig) -> str:
    return gathered.digest(VERSION, path, SCAN_PIXELS, config.lens, config.calibration)


def _kept(path: Path, out: Path, config: VideoConfig) -> _Scan | None:
    """What an earlier first pass found, if it was of the same file and options."""
    try:
        with np.load(_scan_file(out, path), allow_pickle=False) as file:
            key, total, dropped, notes = json.loads(str(file["told"]))
            arrays: dict[str, Any] = {name: np.asarray(file[name], dtype=kind) for name, kind in SCANNED.items()}
        count = len(arrays["stamps"])
        whole = all(len(arrays[name]) == count for name in SCANNED if name != "keyframes")
        if key != _scan_key(path, config) or count < 2 or not whole:
            return None
        left_out = [(int(number), str(why)) for number, why in dropped]
        with opened(path) as (container, stream):
            _, frame = next(decode(container, stream, Damage(), lambda packet: True))
            look = _Look(path, container, stream, frame, config)
        return _Scan(path, look, **arrays, total=int(total), dropped=left_out, notes=[str(n) for n in notes], key=key)
    except (OSError, ValueError, TypeError, LookupError, EOFError, StopIteration, zipfile.BadZipFile, zlib.error):
        return None


def _scan_all(
    paths: Sequence[Path], out: Path, config: VideoConfig, progress: Progress | None
) -> tuple[list[_Scan], list[tuple[str, str]]]:
    """Every video that can be used, and of the others why not. CaptureError when none can."""
    scans: list[_Scan] = []
    dropped: list[tuple[str, str]] = []
    for path in paths:
        try:
            scans.append(_kept(path, out, config) or _scan(path, config, progress))
        except CaptureError as error:
            if len(paths) == 1:
                raise
            dropped.append((path.name, f"it cannot be used: {error}"))
    if not scans:
        raise CaptureError(" ".join([f"None of {len(paths)} videos can be used.", *(why for _, why in dropped[:1])]))
    if len({scan.look.panorama for scan in scans}) > 1:
        flat = next(scan.path for scan in scans if not scan.look.panorama)
        raise CaptureError(f"{flat} is not a 360 video but others are, and the two cannot be solved together.")
    return scans, dropped


def _scan(path: Path, config: VideoConfig, progress: Progress | None) -> _Scan:
    """Look at a video once. CaptureError when not even two of its frames can be decoded."""
    damage = Damage()
    look: _Look | None = None
    stamps: list[int] = []
    measured: list[tuple[float, float]] = []
    seen: list[int] = []
    keyframes: list[int] = []
    other_size = backwards = 0
    with opened(path) as (container, stream):
        codec = stream.codec_context
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        seconds = seconds_of(container, stream)
        expected = stream.frames or round(seconds * rate)
        share = min(1.0, SCAN_PIXELS / max(1.0, expected * float(codec.width) * codec.height))
        beginnings = Beginnings(share, float(stream.time_base or 1))

        def gate(packet: Packet) -> bool:
            stamp = stamp_of(packet)
            if stamp is not None:
                seen.append(stamp)
                if packet.is_keyframe:
                    keyframes.append(stamp)
                if share < 1.0:
                    codec.skip_frame = "NONREF"
            if progress is not None:
                seen_so_far = len(seen) if stamp is not None else len(stamps)
                progress("choosing frames", min(seen_so_far, expected), expected)
            return beginnings(packet)

        for stamp, frame in decode(container, stream, damage, gate):
            look = look or _Look(path, container, stream, frame, config)
            if (frame.width, frame.height) != look.stored:
                other_size += 1
            elif stamps and stamp <= stamps[-1]:
                backwards += 1
            else:
                stamps.append(stamp)
                measured.append(look.measure(frame))
        unit = float(stream.time_base or 1) if seen else 1.0 / rate
    if look is None or len(stamps) < 2:
        found = "only one frame" if stamps else "no frame"
        raise CaptureError(
            f"{path} has {found} that can be decoded, and poses need many. Copy it from the camera again."
        )
    look.refuse_dual_fisheye(len(stamps))
    order = np.array(stamps, dtype=np.int64)
    time = (order - order[0]) * unit
    every = np.unique(np.array(seen, dtype=np.int64))
    total = max(len(every), len(order))
    notes = look.notes()
    if share < 1.0:
        notes.append(f"{path.name} is long, so {len(order)} of its {total} frames were looked at.")
    if time[-1] < 0.9 * seconds - 1.0:
        notes.append(f"{path.name} should last {seconds:.1f} s, but its frames end at {time[-1]:.1f} s. Is it whole?")
    if not seen:
        notes.append(f"{path.name} has no time stamps; {rate:g} frames per second were assumed.")
    if damage.errors:
        places = "one place" if damage.errors == 1 else f"{damage.errors} places"
        notes.append(f"{path.name} is damaged in {places}; the rest was used.")
    left_out = [
        (damage.frames, "they are damaged"),
        (other_size, "their size is not that of the first frame"),
        (backwards, "their time stamps run backwards"),
    ]
    sharp, moved = np.array(measured, dtype=np.float64).T
    return _Scan(
        path=path,
        look=look,
        stamps=order,
        time=time,
        number=np.searchsorted(every, order) if seen else order,
        sharpness=sharp,
        position=choice.positions(time, moved),
        keyframes=np.unique(np.array(keyframes, dtype=np.int64)),
        total=total,
        dropped=[(count, why) for count, why in left_out if count],
        notes=notes,
        key=_scan_key(path, config),
    )


class _Look:
    """How the frames of a video are to be looked at, and written: all that its header and first frame say.

    stored:   (width, height) as decoded. square: with square pixels. size: as written, upright.
    axes:     see `clip.axes_of`.
    transfer: `tonemap.PQ` or HLG of HDR video, else None.
    panorama: what is written are panoramas. how: with which map, where they are stitched from fisheyes.
    guessed:  that they are panoramas is only the shape's word.
    known:    the camera that a calibration states. lens, focal, parameters: as in `Shot`.
    """

    def __init__(
        self, path: Path, container: InputContainer, stream: VideoStream, frame: VideoFrame, config: VideoConfig
    ) -> None:
        self.path = path
        self.stored = (frame.width, frame.height)
        if min(self.stored) < SMALLEST_SIDE or max(self.stored) > 16 * min(self.stored):
            raise CaptureError(
                f"The frames of {path} have {frame.width} x {frame.height} pixels, which show too little."
            )
        aspect = float(stream.sample_aspect_ratio or 1)
        # The side with fewer samples is stretched, so that none is lost.
        self.square = (round(frame.width * max(aspect, 1.0)), round(frame.height * max(1 / aspect, 1.0)))
        self.axes = axes_of(frame)
        self.size = self.square if self.axes[0, 0] else self.square[::-1]
        self.transfer = int(frame.color_trc) if int(frame.color_trc) in (tonemap.PQ, tonemap.HLG) else None
        self.interlaced = bool(frame.interlaced_frame)
        self.several = len(container.streams.video) > 1
        self.how: Stitch | None = None
        self.guessed = False
        self.known: Camera | None = None
        if config.calibration is not None and not _is_hugin(config.calibration):
            self.known, self.panorama = self._calibrated(config.calibration), False
        elif config.calibration is not None:
            self.how = stitching(read_hugin(config.calibration), self.size, self.size[0] // 2 * 2)
            self.size, self.panorama = (self.how.width, self.how.height), True
        elif config.lens != "auto":
            self.panorama = config.lens == Lens.EQUIRECTANGULAR.value
        else:
            stated = says_equirectangular(frame)
            self.panorama = abs(self.size[0] / self.size[1] - 2) < 0.02 and (stated or self.size[0] >= PANORAMA_WIDTH)
            self.guessed = self.panorama and not stated
        usual = Lens.EQUIRECTANGULAR if self.panorama else Lens.SIMPLE_RADIAL
        self.lens = usual.value if config.lens == "auto" else config.lens
        self.focal = None if self.panorama else _focal({**container.metadata, **stream.metadata}, self.size)
        self.parameters: tuple[float, ...] = ()
        if self.known is not None:
            self.lens, parameters = self.known.to_colmap()
            self.parameters, self.focal = tuple(parameters), float(self.known.intrinsics[:2].mean())
        shrink = min(1.0, LONG_SIDE / max(self.stored))
        self._grey_size = (max(1, round(frame.width * shrink)), max(1, round(frame.height * shrink)))
        self._reduction = max(1, min(round(max(self._grey_size) / motion.SIDE), min(self._grey_size) // motion.WINDOW))
        self._motion = motion.ViewChange(sphere=self.panorama and self.how is None)
        self._sum: NDArray[np.float64] | None = None

    def _calibrated(self, calibration: Path) -> Camera:
        """The calibration for frames of this size. CaptureError when they have another shape."""
        known = read_lens_file(calibration)
        header = Header(*self.size, orientation=1, has_alpha=False, exif={}, xmp=b"")
        try:
            return fit_camera(known, header)[0]
        except FrameError as error:
            raise CaptureError(
                f"The calibration {calibration} is for pictures of {known.width} x {known.height} pixels, and the "
                f"frames of {self.path} have another shape: {self.size[0]} x {self.size[1]}. Video is often cropped: "
                "calibrate with a video."
            ) from error

    def measure(self, frame: VideoFrame) -> tuple[float, float]:
        """Sharpness, and view change since the frame that was measured before this one."""
        grey = frame.reformat(*self._grey_size, "gray", interpolation="AREA").to_ndarray()
        small = np.asarray(Image.fromarray(grey).reduce(self._reduction))
        self._sum = small.astype(np.float64) if self._sum is None else self._sum + small
        return sharpness(grey), self._motion.add(small)

    def refuse_dual_fisheye(self, frames: int) -> None:
        """CaptureError when a panorama was guessed, and all corners of both halves of the frames measured are dark."""
        if not self.guessed or self._sum is None:
            return
        mean = self._sum / frames
        height, width = mean.shape
        n = max(1, height // 16)
        halves = mean[:, : width // 2], mean[:, width // 2 :]
        corners = [
            half[rows, columns]
            for half in halves
            for rows in (slice(n), slice(-n, None))
            for columns in (slice(n), slice(-n, None))
        ]
        if max(corner.mean() for corner in corners) < min(DARK, 0.5 * mean.mean()):
            raise CaptureError(
                f"{self.path} looks like the two circles of a dual-fisheye camera. Give its calibration, or export "
                "equirectangular video from the camera's program; if it is one already, say that the lens is "
                "EQUIRECTANGULAR."
            )

    def notes(self) -> list[str]:
        """What was found and done, for the user."""
        name, made = self.path.name, []
        if self.transfer is not None:
            kind = "HLG" if self.transfer == tonemap.HLG else "PQ"
            made.append(f"{name} is HDR ({kind}); its frames were tone-mapped to 8-bit sRGB.")
        if self.interlaced:
            made.append(f"{name} is interlaced and was left so; edges in motion are combed. Deinterlace it if you can.")
        if self.several:
            made.append(f"{name} holds several video streams; the largest was used.")
        if self.guessed:
            made.append(
                f"The frames of {name} are twice as wide as high and are taken for panoramas of the whole sphere, "
                "although the file does not say so; name another lens if they are not."
            )
        return made

    def srgb(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """The pixels [height, width, 3] that are written of a frame."""
        matrix = None
        if int(frame.colorspace) == UNSPECIFIED and not frame.format.name.startswith("yuvj"):
            matrix = BT709 if min(self.stored) > STANDARD_DEFINITION else BT601
            matrix = matrix if self.transfer is None else BT2020
        deep = "rgb24" if self.transfer is None else "rgb48le"
        pixels: Any = frame.reformat(*self.square, deep, src_colorspace=matrix, interpolation="BICUBIC").to_ndarray()
        if self.transfer is not None:
            pixels = tonemap.srgb_from_hdr(pixels, self.transfer)
        pixels = np.ascontiguousarray(upright(pixels, self.axes))
        return pixels if self.how is None else stitch(pixels, self.how)


def _focal(metadata: dict[str, str], size: tuple[int, int]) -> float | None:
    """Focal length in pixels from an entry like com.apple.quicktime.camera.focal_length.35mm_equivalent."""
    for key, value in metadata.items():
        if key.endswith("focal_length.35mm_equivalent"):
            with suppress(ValueError):
                focal = float(value) / FILM_DIAGONAL_MM * math.hypot(*size)
                return focal if math.isfinite(focal) and focal > 0 else None
    return None


# --- the choice -----------------------------------------------------------------------------------------------------


def _counts(scans: Sequence[_Scan], config: VideoConfig) -> list[int]:
    """How many frames to choose of each video: a number is shared out by how much the view changes in each."""
    if config.fps is not None:
        return [max(2, round(config.fps * float(scan.time[-1]))) for scan in scans]
    changes = np.array([scan.position[-1] for scan in scans])
    total = config.frames or choice.default_count(float(changes.sum()))
    if len(scans) == 1 or changes.sum() <= 0:
        return [max(2, total // len(scans))] * len(scans)
    return [max(2, round(total * share)) for share in changes / changes.sum()]


def _dropped(scan: _Scan, chosen: Choice, lost: int, of: str) -> list[tuple[str, str]]:
    """("212 frames", reason) for every reason."""
    others = len(scan.stamps) - len(chosen.indices) - int(chosen.blurred.sum()) - int(chosen.repeated.sum())
    unseen = scan.total - len(scan.stamps) - sum(count for count, _ in scan.dropped)
    counts = [
        *scan.dropped,
        (unseen, "others of the same moment were looked at instead, the video being long"),
        (int(chosen.blurred.sum()), "they are blurred or show nothing"),
        (int(chosen.repeated.sum()), "they show what a chosen frame shows"),
        (others, "a chosen neighbour was sharper or better spaced"),
        (lost, "they could not be decoded a second time"),
    ]
    return [(f"{n} frame{'s' if n > 1 else ''}{of}", why) for n, why in counts if n > 0]


def _notes(scan: _Scan, chosen: Choice, config: VideoConfig) -> list[str]:
    """Sentences about what was chosen of a video."""
    name, count = scan.path.name, len(chosen.indices)
    notes = [f"{count} of the {scan.total} frames of {name} ({scan.time[-1]:.1f} s) were chosen."]
    if config.frames is not None and count < config.frames and chosen.spacing <= choice.LEAST_CHANGE:
        notes[0] = notes[0][:-1] + "; more would show the same again."
    times, change = scan.time[chosen.indices], np.diff(scan.position[chosen.indices])
    gaps = np.flatnonzero(change > max(GAP, 2.5 * chosen.spacing))
    if gaps.size:
        worst = sorted(gaps[np.argsort(-change[gaps])][:3])
        where = ", ".join(f"{times[i]:.1f} to {times[i + 1]:.1f} s" for i in worst)
        more = f" and {gaps.size - 3} more" if gaps.size > 3 else ""
        notes.append(
            f"The view of {name} moves far without a sharp frame at {where}{more}: the path of the camera may break "
            "there. Move slowly in such places."
        )
    return [*notes, *scan.notes]


def _too_few(scan: _Scan) -> str:
    if not (scan.sharpness > 0).any():
        return f"The frames of {scan.path} show nothing: each is of one colour."
    return (
        f"The view hardly changes in the {scan.time[-1]:.1f} s of {scan.path}, and poses need pictures from different "
        "places. Walk with the camera."
    )


def _curves(scan: _Scan, chosen: Choice) -> Curves:
    relative = choice.relative_sharpness(scan.time, scan.sharpness)
    return Curves(scan.path.name, scan.time, relative, scan.position, chosen.blurred, chosen.indices)


# --- the second pass ------------------------------------------------------------------------------------------------


def _keys(scan: _Scan, chosen: Choice, folder: str) -> dict[int, str]:
    """The chosen frames by index, with a digest of all that decides what each becomes."""
    return {int(i): gathered.digest(scan.key, int(scan.stamps[i]), _name(scan, i, folder)) for i in chosen.indices}


def _name(scan: _Scan, index: int, folder: str) -> str:
    return f"{folder}/" * bool(folder) + f"frame_{scan.number[index]:06d}.jpg"


def _write(
    scan: _Scan, chosen: Iterable[int], there: dict[int, Shot], out: Path, folder: str
) -> Iterator[tuple[int, Shot, Image.Image]]:
    """Write the chosen frames but those that are there: index, shot and a small picture of each, in order of time.

    Those that cannot be decoded again are missing."""
    indices = {int(scan.stamps[i]): i for i in chosen if i not in there}
    before = deque(sorted(there))
    waiting: deque[tuple[int, Future[tuple[Shot, Image.Image]]]] = deque()
    pool = ThreadPoolExecutor(WRITERS, thread_name_prefix="frames")

    def known(end: float) -> Iterator[tuple[int, Shot, Image.Image]]:
        while before and before[0] < end:
            i = before.popleft()
            with Image.open(out / "images" / there[i].name) as picture:
                yield i, there[i], picture.convert("RGB").reduce(max(1, max(picture.size) // THUMBNAIL))

    def made() -> Iterator[tuple[int, Shot, Image.Image]]:
        i, future = waiting.popleft()
        yield from known(i)
        yield i, *future.result()

    try:
        for stamp, frame in fetch(scan.path, sorted(indices), scan.keyframes) if indices else ():
            index = indices[stamp]
            waiting.append((index, pool.submit(_write_frame, scan, index, frame, out, folder)))
            if len(waiting) > WRITERS:
                yield from made()
        while waiting:
            yield from made()
        yield from known(math.inf)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _write_frame(scan: _Scan, index: int, frame: VideoFrame, out: Path, folder: str) -> tuple[Shot, Image.Image]:
    look = scan.look
    pixels = look.srgb(frame)
    name = _name(scan, index, folder)
    picture = Image.fromarray(pixels)
    with whole_file(out / "images" / name) as partial:
        picture.save(partial, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    mask = look.how is not None and bool((look.how.mask == 0).any())
    if mask and look.how is not None:
        with whole_file(out / "masks" / f"{name}.png") as partial:
            Image.fromarray(look.how.mask).save(partial, format="PNG")
    thumbnail = picture.reduce(max(1, max(picture.size) // THUMBNAIL))
    shot = Shot(
        name=name,
        source=str(scan.path),
        width=picture.width,
        height=picture.height,
        camera=folder or "0",
        lens=look.lens,
        focal=look.focal,
        parameters=look.parameters,
        time=float(scan.time[index]),
        mask=mask,
        sharpness=float(scan.sharpness[index]),
        brightness=float(np.asarray(thumbnail.convert("L")).mean()) / 255,
    )
    return shot, thumbnail


# --- finding finished work ------------------------------------------------------------------------------------------


def _fingerprint(paths: Sequence[Path], config: VideoConfig) -> str:
    """A digest of all that decides the outcome: files by path, size and time, and the configuration."""
    digest = hashlib.sha256(repr((VERSION, sorted(asdict(config).items()))).encode())
    for path in (*paths, *([config.calibration] if config.calibration is not None else [])):
        with suppress(OSError):
            status = path.stat()
            entry: Any = (str(path), status.st_size, status.st_mtime_ns)
            digest.update(repr(entry).encode("utf-8", "surrogateescape"))
    return f"video {digest.hexdigest()}"
