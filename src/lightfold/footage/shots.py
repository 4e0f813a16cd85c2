"""What a pose engine is given: `Footage`, a folder of pictures that can all be solved, and what is known of each.

Photos, video and panoramas become the same thing here, whatever they were: a folder with

    images/NAME           8-bit RGB or grey JPEG or PNG, upright (no EXIF orientation left to apply)
    masks/NAME.png        where a picture has a mask: non-zero pixels count
    light/NAME            the EXR or .hdr files that pictures were made from, with that suffix: what training sees
    footage.json          this module's `Footage`

Whoever gathers footage decides what is usable and says why the rest is not; nothing after it meets a damaged file.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..cameras import Lens
from ..errors import CaptureError
from ..files import whole_file
from ..light import SUFFIXES as LIGHT_SUFFIXES

VERSION = 1
KINDS = ("photos", "video", "panoramas")


@dataclass(frozen=True)
class Shot:
    """One picture.

    name:       relative to images/, with forward slashes; unique; what every later file calls it.
    source:     the file it was made from, as the user knows it.
    width, height: size in pixels of images/NAME.
    camera:     pictures with the same key were taken by one camera at one focal length and size: they share intrinsics.
    lens:       name of the `Lens` to start from.
    focal:      focal length in pixels of images/NAME to start from, or None.
    parameters: intrinsics in the order of `lens` where they are known (a calibration); empty when not.
    time:       seconds: in a video since its start, of photos since the epoch; None when unknown.
    gps:        (latitude degrees, longitude degrees, altitude metres) where the header has them; altitude may be NaN.
    mask:       whether masks/NAME.png exists.
    sharpness:  larger is sharper; comparable within one footage only. NaN when not measured.
    brightness: mean luma in [0, 1]. NaN when not measured.
    """

    name: str
    source: str
    width: int
    height: int
    camera: str = "0"
    lens: str = "SIMPLE_RADIAL"
    focal: float | None = None
    parameters: tuple[float, ...] = ()
    time: float | None = None
    gps: tuple[float, float, float] | None = None
    mask: bool = False
    sharpness: float = math.nan
    brightness: float = math.nan


@dataclass(frozen=True)
class Footage:
    """A folder of pictures fit to be solved.

    root:    the folder that holds images/, masks/ and footage.json.
    kind:    "photos", "video" or "panoramas" (every shot's lens is then EQUIRECTANGULAR).
    ordered: whether neighbours in `shots` were taken one after the other from places nearby (a video, a walk).
    shots:   in the order of taking where that is known, else naturally sorted by name.
    dropped: (source, reason) of what was left out; the reason can follow "left out because".
    notes:   whole sentences for the user.
    """

    root: Path
    kind: str
    ordered: bool
    shots: tuple[Shot, ...]
    dropped: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    def image(self, shot: Shot) -> Path:
        """The picture of a shot."""
        return self.root / "images" / shot.name

    def mask(self, shot: Shot) -> Path | None:
        """The mask of a shot, or None."""
        return self.root / "masks" / f"{shot.name}.png" if shot.mask else None

    def light(self, shot: Shot) -> Path | None:
        """The light of which a shot's picture is a copy in 8 bits, or None where the picture is the photograph."""
        suffix = Path(shot.source).suffix
        return self.root / "light" / Path(shot.name).with_suffix(suffix) if suffix.lower() in LIGHT_SUFFIXES else None

    def save(self) -> None:
        """Write footage.json."""
        content = asdict(self) | {"version": VERSION}
        del content["root"]
        text = json.dumps(without_nan(content), indent=1, ensure_ascii=False, allow_nan=False)
        with whole_file(self.root / "footage.json") as partial:
            partial.write_text(text, encoding="utf-8")


def load_footage(root: Path) -> Footage:
    """Read footage.json back. CaptureError when it is damaged, of another version, or names a file outside."""
    path = root / "footage.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != VERSION:
            raise CaptureError(f"{path} is of version {content['version']}; this program reads {VERSION}. Delete it.")
        footage = Footage(
            root=root,
            kind=str(content["kind"]),
            ordered=bool(content["ordered"]),
            shots=tuple(shot_from(entry) for entry in content["shots"]),
            dropped=tuple((str(name), str(reason)) for name, reason in content["dropped"]),
            notes=tuple(str(note) for note in content["notes"]),
        )
        if footage.kind not in KINDS:
            raise ValueError(f"kind is {footage.kind!r}")
        return footage
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CaptureError(f"{path} cannot be used ({error}). Delete it, and the footage is gathered again.") from error


def shot_from(entry: dict[str, Any]) -> Shot:
    """One entry, checked: numbers are numbers, and the name stays inside images/. ValueError and its like otherwise."""
    name = entry["name"]
    if not isinstance(name, str) or not name or name.startswith(("/", "\\")) or ".." in name.split("/") or ":" in name:
        raise ValueError(f"the name {name!r} leads out of the folder")
    Lens[entry["lens"]]
    gps, focal, time = entry["gps"], entry["focal"], entry["time"]
    return Shot(
        name=name,
        source=str(entry["source"]),
        width=int(entry["width"]),
        height=int(entry["height"]),
        camera=str(entry["camera"]),
        lens=entry["lens"],
        focal=None if focal is None else float(focal),
        parameters=tuple(float(value) for value in entry["parameters"]),
        time=None if time is None else float(time),
        gps=None if gps is None else (float(gps[0]), float(gps[1]), _number(gps[2])),
        mask=bool(entry["mask"]),
        sharpness=_number(entry["sharpness"]),
        brightness=_number(entry["brightness"]),
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def without_nan(value: Any) -> Any:
    """JSON has no NaN: null instead."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return value
