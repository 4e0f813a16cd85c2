"""Agisoft Metashape's (PhotoScan's) cameras: File > Export > Export Cameras, as Agisoft XML.

    document / chunk / sensors / sensor      type frame, fisheye or spherical; resolution; calibration
    document / chunk / components            with transforms to the world; older files have one at chunk / transform
    document / chunk / cameras / camera      label, sensor, component, transform; or in groups of cameras

A camera's transform [4, 4] is **camera to component** with OpenCV axes. A component's takes it to the world by a
rotation, a translation and a scale: local metres, or Earth-centred ones where there is GPS. The capture's frame is that
of the largest component, and `original_from_capture` is its transform, so metres are one step away.

Pixels count from the picture's corner, cx and cy from its middle. With x, y on the plane z = 1 (frame), or the angle
from the axis in their direction (fisheye), and r^2 = x^2 + y^2 (user manual, appendix "Camera models"):

    x' = x (1 + k1 r^2 + k2 r^4 + k3 r^6 + k4 r^8) + p1 (r^2 + 2 x^2) + 2 p2 x y
    y' = y (1 + k1 r^2 + k2 r^4 + k3 r^6 + k4 r^8) + p2 (r^2 + 2 y^2) + 2 p1 x y
    u = w / 2 + cx + x' f + x' b1 + y' b2,   v = h / 2 + cy + y' f

p1 and p2 are OpenCV's p2 and p1. Labels are file names, often without suffix: the pictures are looked for by name.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np
import torch
from torch import Tensor

from ..cameras import Camera, Lens
from ..capture import Capture, Frame
from ..errors import CaptureError
from ..geometry import Similarity
from .calibration import (
    VISIBLE_ERROR,
    brown_lens,
    calibrated,
    camera_files,
    geocentric_up,
    one_camera_file,
    read_bytes,
    similarity,
)
from .frames import FrameError, Names, Tally, cam_from_world, fit_camera, read_header, require_frames
from .picture_index import PictureIndex

LOOKS_FOR = "an .xml file of cameras exported by Metashape, beside its pictures or in a folder above them"
LARGEST_FILE = 256 * 2**20
DEEPEST = 64


def sniff(path: Path) -> bool:
    """True for such a file, and for a folder that holds one. Looks at the first bytes of .xml files."""
    return bool(camera_files(path, ".xml", _is_camera_file))


def read(path: Path) -> Capture:
    """Read the cameras that have a pose; the pictures are looked for beside the file and in folders below it.

    Raises CaptureError.
    """
    file = one_camera_file(path, camera_files(path, ".xml", _is_camera_file), LOOKS_FOR)
    chunk = _chunk(_parse(file), file)
    sensors = {sensor.get("id"): sensor for sensor in chunk.iterfind("sensors/sensor")}
    cameras = list(chunk.iterfind("cameras/camera"))
    groups = {id(camera): group.get("label", "") for group in chunk.iterfind("cameras/group") for camera in group}
    cameras += chunk.iterfind("cameras/group/camera")
    index = PictureIndex(file.parent)
    tally, names = Tally(), Names()
    found: list[tuple[str | None, Frame]] = []
    for camera in cameras:
        label = camera.get("label", "")
        try:
            frame = _frame(camera, f"{groups.get(id(camera), '')}/{label}", sensors, index, tally, names)
            found.append((camera.get("component_id"), frame))
        except FrameError as reason:
            tally.add(str(reason), label)
    frames, world_from_capture = _joined(found, chunk, tally)
    notes = tally.notes(len(cameras), "cameras")
    require_frames(frames, len(cameras), file, notes)
    return Capture(
        root=file.parent,
        format="metashape",
        frames=tuple(frames),
        up=_up(frames, chunk, world_from_capture),
        original_from_capture=world_from_capture or Similarity.identity(),
        notes=notes,
    )


# --- XML ------------------------------------------------------------------------------------------------------------


def _is_camera_file(head: bytes) -> bool:
    return b"<document" in head and b"<chunk" in head


def _parse(file: Path) -> Element:
    """The root element. A document type is refused: it is where entities that explode or read files are declared."""
    builder = TreeBuilder()
    depth = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > DEEPEST:
            raise CaptureError(f"{file} is nested deeper than {DEEPEST} elements; no camera file is.")
        builder.start(name, attributes)

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(name)

    def refuse(*_: object) -> None:
        raise CaptureError(f"{file} declares a document type, which no camera file needs and a harmful one may use.")

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(read_bytes(file, LARGEST_FILE), True)
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise CaptureError(f"{file} is not valid XML: {error}.") from error
    root: Element = builder.close()
    return root


def _chunk(document: Element, file: Path) -> Element:
    """The chunk with the most cameras; an export holds one as a rule."""
    chunks = list(document.iter("chunk"))
    if not chunks:
        raise CaptureError(f"{file} has no chunk; it is not a camera file of Metashape.")
    return max(chunks, key=lambda chunk: sum(1 for _ in chunk.iter("camera")))


def _numbers(element: Element | None, count: int) -> list[float] | None:
    """So many finite numbers from an element's text; None without the element. Raises FrameError for anything else."""
    if element is None:
        return None
    try:
        numbers = [float(word) for word in (element.text or "").split()]
    except ValueError as error:
        raise FrameError(f"were left out because a {element.tag} is not made of numbers") from error
    if len(numbers) != count or not all(math.isfinite(number) for number in numbers):
        raise FrameError(f"were left out because a {element.tag} is not {count} finite numbers")
    return numbers


# --- frames ---------------------------------------------------------------------------------------------------------


def _frame(
    camera: Element, label: str, sensors: dict[str | None, Element], index: PictureIndex, tally: Tally, names: Names
) -> Frame:
    """The frame of a camera in the axes of its component."""
    if camera.get("enabled", "1").lower() in ("0", "false"):
        raise FrameError("were left out because they are disabled")
    transform = _numbers(camera.find("transform"), 16)
    if transform is None:
        kind = "stand in a rig, whose other cameras have the pose" if camera.get("master_id") else "have no pose"
        raise FrameError(f"were left out because they {kind}")
    path, written = index.take(label)
    sensor = sensors.get(camera.get("sensor_id"))
    if sensor is None:
        raise FrameError("were left out because their sensor is not in the file")
    pose = cam_from_world(np.array(transform).reshape(4, 4))
    fitted, rotate = fit_camera(_camera(sensor, pose, written, tally), read_header(path))
    return Frame(path=path, camera=fitted, name=names.new(written), exif_rotate=rotate)


def _camera(sensor: Element, pose: Tensor, written: str, tally: Tally) -> Camera:
    width, height = _resolution(sensor.find("resolution"))
    kind = sensor.get("type", "frame")
    if kind == "spherical":
        intrinsics = (width / (2 * math.pi), height / math.pi, width / 2, height / 2)
        return calibrated(Lens.EQUIRECTANGULAR, intrinsics, (), width, height, pose)
    if kind not in ("frame", "fisheye"):
        raise FrameError(f"were left out because a sensor of type {kind[:40]} has no counterpart here")
    # The initial calibration stands beside the adjusted one, which belongs to the poses.
    calibrations = sensor.findall("calibration")
    calibration = next(
        (c for c in calibrations if c.get("class") == "adjusted"), calibrations[0] if calibrations else None
    )
    if calibration is None:
        raise FrameError("were left out because their sensor has no calibration")
    if calibration.find("f") is None:
        raise FrameError(
            "were left out because their sensor has no focal length f (export with Metashape 1.2 or later)"
        )
    if calibration.find("resolution") is not None:
        width, height = _resolution(calibration.find("resolution"))

    def value(name: str) -> float:
        return (_numbers(calibration.find(name), 1) or [0.0])[0]

    f, b1, b2, p1, p2 = (value(name) for name in ("f", "b1", "b2", "p1", "p2"))
    radial = [value(name) for name in ("k1", "k2", "k3", "k4")]
    intrinsics = (f + b1, f, width / 2 + value("cx"), height / 2 + value("cy"))
    if abs(b2) * height > 2 * VISIBLE_ERROR * abs(f):
        tally.add("have pixel axes that are not at right angles (b2), which is ignored", written)
    if value("p3") or value("p4"):
        tally.add("have tangential terms beyond p2, which are ignored", written)
    if kind == "frame":
        lens, distortion, error = brown_lens(radial, p2, p1, f, width, height)
        if error > VISIBLE_ERROR:
            tally.add("have a lens with a term in r^8, which is fitted and up to a few pixels off", written)
    elif p1 or p2:
        lens, distortion = Lens.THIN_PRISM_FISHEYE, [radial[0], radial[1], p2, p1, radial[2], radial[3], 0.0, 0.0]
    else:
        lens, distortion = Lens.OPENCV_FISHEYE, radial
    return calibrated(lens, intrinsics, distortion, width, height, pose)


def _resolution(element: Element | None) -> tuple[float, float]:
    try:
        return (
            (float(element.get("width", "")), float(element.get("height", ""))) if element is not None else (0.0, 0.0)
        )
    except ValueError as error:
        raise FrameError("were left out because the resolution of their sensor is not two numbers") from error


# --- components -----------------------------------------------------------------------------------------------------


def _joined(
    found: list[tuple[str | None, Frame]], chunk: Element, tally: Tally
) -> tuple[list[Frame], Similarity | None]:
    """All frames in the axes of the component with the most of them, and the transform of that component to the world.

    Components are separate reconstructions; the world is where they meet. One without a transform is left out.
    """
    if not found:
        return [], None
    world_from = {component: _world_from_component(chunk, component, tally) for component in {c for c, _ in found}}
    largest, _ = Counter(component for component, _ in found).most_common(1)[0]
    frames = []
    for component, frame in found:
        here, there = world_from[largest], world_from[component]
        if component == largest:
            frames.append(frame)
        elif here is None or there is None:
            tally.add("were left out because nothing says where their component stands", frame.name)
        elif frame.camera is not None:
            camera = frame.camera.transformed(here.inverse() @ there)
            frames.append(Frame(frame.path, camera, frame.name, exif_rotate=frame.exif_rotate))
    return frames, world_from[largest]


def _world_from_component(chunk: Element, component: str | None, tally: Tally) -> Similarity | None:
    """The transform of a component, or the chunk's; None where there is none or it is none."""
    elements = [e.find("transform") for e in chunk.iterfind("components/component") if e.get("id") == component]
    element = next((e for e in [*elements, chunk.find("transform")] if e is not None), None)
    if element is None:
        return None
    try:
        rotation = _numbers(element.find("rotation"), 9) or np.eye(3).ravel().tolist()
        translation = _numbers(element.find("translation"), 3) or [0.0] * 3
        scale = (_numbers(element.find("scale"), 1) or [1.0])[0]
        return similarity(np.column_stack([scale * np.array(rotation).reshape(3, 3), translation]))
    except FrameError:
        tally.add("have a transform to the world that is not a rotation, a shift and a scale", f"component {component}")
        return None


def _up(frames: list[Frame], chunk: Element, world_from_capture: Similarity | None) -> Tensor | None:
    """Up in the capture's frame, where the world's is known: an Earth-centred one, or a local one with references."""
    if world_from_capture is None or not frames:
        return None
    centre = torch.stack([frame.camera.center for frame in frames if frame.camera is not None]).mean(0)
    up_in_world = geocentric_up(world_from_capture.apply(centre))
    if up_in_world is None:
        references = [*chunk.iterfind("cameras//camera/reference"), *chunk.iterfind("markers/marker/reference")]
        if not any(r.get("z") and r.get("enabled", "1").lower() in ("1", "true") for r in references):
            return None
        up_in_world = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    return world_from_capture.rotation.T @ up_in_world
