"""Rigs: cameras that are bolted together and take pictures at the same instants. Runs in the engine's process only.

The pictures of one instant then have one pose between them, `rig_from_world`, and each camera a constant offset from
the rig, `cam_from_rig`. That is fewer unknowns, and it places pictures that match nothing themselves. The first camera
of a rig is its reference: the rig's axes are that camera's.

Offsets are either stated, in COLMAP's rig_config.json, or estimated: the pictures are solved as if each were on its
own, and the offset of a camera is the median over all instants at which it and the reference have poses. The rig is
then written into a copy of the database and everything is mapped again.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import pycolmap
import torch
from torch import Tensor

from ..cameras import Lens
from ..errors import CaptureError
from ..files import whole_file
from ..footage.shots import Footage, Shot
from ..geometry import compose, invert, quaternion_from_rotation, rotation_from_quaternion
from . import mapping
from .job import Job, Work, fingerprint

FOLDERS = "folders"
"""What `PoseConfig.rig` says for a rig whose cameras are the folders of the footage."""
SENSOR = pycolmap.SensorType.CAMERA


@dataclass(frozen=True)
class Member:
    """One camera of a rig.

    prefix: pictures whose name begins with it are this camera's; what follows, without suffix, names the instant.
    cam_from_rig: [7] wxyz and translation, where it is stated.
    lens, parameters: intrinsics where they are stated, in COLMAP's order; "" and () where not.
    """

    prefix: str
    cam_from_rig: tuple[float, ...] | None = None
    lens: str = ""
    parameters: tuple[float, ...] = ()


@dataclass(frozen=True)
class Rig:
    """Members, the reference first."""

    members: tuple[Member, ...]

    @property
    def stated(self) -> bool:
        """Whether all offsets are known, in units that are then the model's."""
        return all(member.cam_from_rig is not None for member in self.members[1:])


# ---------------------------------------------------------------------------------------------------------------------
# What belongs together


def read_rigs(rig: str, footage: Footage) -> tuple[Rig, ...]:
    """The rigs that an option names: "" none, "folders", or the path of a file.

    Raises CaptureError when the file is damaged, or nothing of the footage was taken at the same instant.
    """
    if not rig:
        return ()
    rigs = (_folders(footage),) if rig == FOLDERS else _rig_file(Path(rig))
    for one in rigs:
        if not _members(one, footage)[0]:
            raise CaptureError(f"{footage.root} has no picture {one.members[0].prefix}* of the rig's reference camera.")
        shared = [shots for shots in _instants(one, footage).values() if len(shots) > 1]
        if not shared:
            names = " and ".join(member.prefix or "images" for member in one.members[:3])
            raise CaptureError(
                f"No two pictures of {footage.root} were taken at once by the rig of {names}: those of one instant "
                "must have the same name in the folder of each camera, such as left/0001.jpg and right/0001.jpg."
            )
    return rigs


def with_cameras(footage: Footage, rigs: tuple[Rig, ...]) -> Footage:
    """The footage with the pictures of each member as those of one camera, with its intrinsics where they are stated.

    Raises CaptureError when a member's pictures differ in size.
    """
    shots = list(footage.shots)
    for rig in rigs:
        for number, members in enumerate(_members(rig, footage)):
            member = rig.members[number]
            sizes = sorted({(shots[i].width, shots[i].height) for i in members})
            if len(sizes) > 1:
                raise CaptureError(
                    f"The pictures {member.prefix}* of {footage.root} are of one camera of a rig, but some have "
                    f"{sizes[0][0]} x {sizes[0][1]} pixels and others {sizes[1][0]} x {sizes[1][1]}. Give one size."
                )
            for i in members:
                shots[i] = replace(shots[i], camera=f"rig {member.prefix}", lens=shots[members[0]].lens)
                if member.lens:
                    shots[i] = replace(shots[i], lens=member.lens, parameters=member.parameters)
    return replace(footage, shots=tuple(shots))


def _folders(footage: Footage) -> Rig:
    """Each folder that holds pictures is a camera; the one with most pictures is the reference."""
    count: dict[str, int] = {}
    for shot in footage.shots:
        count[_parent(shot)] = count.get(_parent(shot), 0) + 1
    if len(count) < 2:
        raise CaptureError(
            f"All pictures of {footage.root} lie in one folder, so they are of one camera and no rig. Put those of "
            "each camera into a folder of its own, with the same name for what was taken at once, or give a rig file."
        )
    return Rig(tuple(Member(prefix) for prefix in sorted(count, key=lambda prefix: (-count[prefix], prefix))))


def _parent(shot: Shot) -> str:
    return shot.name[: shot.name.rfind("/") + 1]


def _rig_file(path: Path) -> tuple[Rig, ...]:
    """COLMAP's rig_config.json: a list of rigs, each with cameras. Raises CaptureError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rigs = tuple(Rig(tuple(_reference_first([_member(entry) for entry in rig["cameras"]]))) for rig in content)
        if not rigs or any(len(rig.members) < 2 for rig in rigs):
            raise ValueError("a rig needs two cameras or more")
        return rigs
    except OSError as error:
        raise CaptureError(f"The rig file {path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise CaptureError(f"{path} is no rig configuration as COLMAP has them ({what}).") from error


def _member(entry: dict[str, Any]) -> tuple[bool, Member]:
    """One camera, and whether it is the reference."""
    offset = None
    rotation, translation = entry.get("cam_from_rig_rotation"), entry.get("cam_from_rig_translation")
    if (rotation is None) != (translation is None):
        raise ValueError("cam_from_rig_rotation and cam_from_rig_translation need each other")
    if rotation is not None and translation is not None:
        if len(rotation) != 4 or len(translation) != 3:
            raise ValueError("cam_from_rig_rotation has four numbers (w, x, y, z), cam_from_rig_translation three")
        offset = tuple(float(value) for value in (*rotation, *translation))
        length = math.hypot(*offset[:4])
        if not all(math.isfinite(value) for value in offset) or length < 1e-6:
            raise ValueError("a cam_from_rig is no rigid motion")
        offset = (*(value / length for value in offset[:4]), *offset[4:])
    lens, parameters = str(entry.get("camera_model_name", "")), tuple(map(float, entry.get("camera_params", ())))
    if lens and lens not in Lens.__members__:
        raise ValueError(f"the camera model {lens} is not known")
    if lens and not parameters:
        lens = ""
    return bool(entry.get("ref_sensor", False)), Member(str(entry["image_prefix"]), offset, lens, parameters)


def _reference_first(entries: list[tuple[bool, Member]]) -> list[Member]:
    """The members, the reference first; the offset of a reference is nothing, and stating another is a mistake."""
    if sum(reference for reference, _ in entries) != 1:
        raise ValueError("exactly one camera of a rig must have ref_sensor: true")
    if len({member.prefix for _, member in entries}) < len(entries):
        raise ValueError("two cameras have the same image_prefix")
    return [m for reference, m in entries if reference] + [m for reference, m in entries if not reference]


def _members(rig: Rig, footage: Footage) -> list[list[int]]:
    """Indices into the footage's shots for each member: by the longest prefix that fits; "" is a prefix of nothing in a
    folder."""
    found: list[list[int]] = [[] for _ in rig.members]
    for i, shot in enumerate(footage.shots):
        fits = [
            number
            for number, member in enumerate(rig.members)
            if shot.name.startswith(member.prefix) and (member.prefix or "/" not in shot.name)
        ]
        if fits:
            found[max(fits, key=lambda number: len(rig.members[number].prefix))].append(i)
    return found


def _instants(rig: Rig, footage: Footage) -> dict[str, dict[int, int]]:
    """By the name of each instant, the shots of the members that took one: member to index."""
    found: dict[str, dict[int, int]] = {}
    for number, indices in enumerate(_members(rig, footage)):
        for i in indices:
            instant = str(PurePosixPath(footage.shots[i].name[len(rig.members[number].prefix) :]).with_suffix(""))
            found.setdefault(instant, {}).setdefault(number, i)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Offsets


def estimated(rig: Rig, footage: Footage, model: pycolmap.Reconstruction) -> Rig:
    """The rig with the offsets that a model of its pictures, each solved on its own, has.

    Raises CaptureError when a member and the reference never both have a pose.
    """
    poses = {
        model.images[i].name: torch.from_numpy(model.images[i].cam_from_world().matrix()).double()
        for i in model.reg_image_ids()
    }
    instants = _instants(rig, footage).values()
    members = [rig.members[0]]
    for number, member in enumerate(rig.members[1:], start=1):
        both = [
            compose(poses[footage.shots[shots[number]].name], invert(poses[footage.shots[shots[0]].name]))
            for shots in instants
            if {0, number} <= shots.keys() and all(footage.shots[shots[k]].name in poses for k in (0, number))
        ]
        if not both:
            raise CaptureError(
                f"How the camera {member.prefix} stands to {rig.members[0].prefix} cannot be estimated: no picture of "
                "it and of the other, taken at once, were both placed. State the offsets in a rig file, or leave --rig "
                "out."
            )
        offset = median_motion(torch.stack(both))
        quaternion = quaternion_from_rotation(offset[:, :3])
        members.append(replace(member, cam_from_rig=(*quaternion.tolist(), *offset[:, 3].tolist())))
    return Rig(tuple(members))


def median_motion(motions: Tensor) -> Tensor:
    """[3, 4]: of the rotations of motions [N, 3, 4] the one that is nearest to all others, by the sum of angles, and
    the median translation. Up to half of them may be wrong."""
    rotations = motions[:, :, :3]
    trace = torch.einsum("iab,jab->ij", rotations, rotations)
    angles = torch.acos(((trace - 1) / 2).clamp(-1, 1))
    return torch.cat([rotations[angles.sum(dim=1).argmin()], motions[:, :, 3].median(dim=0).values[:, None]], dim=1)


# ---------------------------------------------------------------------------------------------------------------------
# In COLMAP's database


def bolted(job: Job, work: Work, rigs: tuple[Rig, ...], stated: bool) -> Work:
    """A copy of a database of features and matches whose frames are those of the rigs, all of whose offsets are known.

    What belongs to no rig stays a frame of its own. stated: offsets were given, and stay unless they are to be refined.
    """
    rows = [[(member.prefix, member.cam_from_rig) for member in rig.members] for rig in rigs]
    fixed = frozenset(range(1, len(rigs) + 1)) if stated and not job.config.refine_known else frozenset()
    bolt = replace(
        work,
        name="rig",
        database=job.folder / "rig.db",
        inputs=fingerprint(work.inputs, rows, stated),
        fixed_rigs=fixed,
    )
    inputs = fingerprint(bolt.inputs, mapping.read_matches(work.database).links())
    if not job.record.finished("matches rig", inputs) or not bolt.database.exists():
        with job.record.working("matches rig", "matches", inputs), whole_file(bolt.database) as partial:
            shutil.copyfile(work.database, partial)
            with pycolmap.Database.open(str(partial)) as opened:
                write_rigs(opened, job.footage, rigs)
    return bolt


def write_rigs(database: pycolmap.Database, footage: Footage, rigs: tuple[Rig, ...]) -> None:
    """Replace the rigs and frames of a database whose image_id is 1 + index of the shot. rig_id becomes 1 + index of
    the rig."""
    rig_of: dict[int, int] = {}
    camera_of = {image.image_id - 1: image.camera_id for image in database.read_all_images()}
    left = set(camera_of)
    with pycolmap.DatabaseTransaction(database):
        database.clear_frames()
        database.clear_rigs()
        for rig_id, rig in enumerate(rigs, start=1):
            made = pycolmap.Rig()
            made.rig_id = rig_id
            for member, indices in zip(rig.members, _members(rig, footage), strict=True):
                if indices:
                    camera = camera_of[indices[0]]
                    sensor, rig_of[camera] = pycolmap.sensor_t(SENSOR, camera), rig_id
                    if member is rig.members[0]:
                        made.add_ref_sensor(sensor)
                    else:
                        made.add_sensor(sensor, _rigid(member.cam_from_rig))
            database.write_rig(made, use_rig_id=True)
            for shots in _instants(rig, footage).values():
                _write_frame(database, rig_id, [(camera_of[i], i) for i in shots.values()])
                left -= set(shots.values())
        for i in sorted(left):
            if camera_of[i] not in rig_of:
                made = pycolmap.Rig()
                made.rig_id = rig_of[camera_of[i]] = len(rigs) + camera_of[i]
                made.add_ref_sensor(pycolmap.sensor_t(SENSOR, camera_of[i]))
                database.write_rig(made, use_rig_id=True)
            _write_frame(database, rig_of[camera_of[i]], [(camera_of[i], i)])


def _rigid(offset: tuple[float, ...] | None) -> pycolmap.Rigid3d:
    assert offset is not None
    rotation = rotation_from_quaternion(torch.tensor(offset[:4], dtype=torch.float64))
    return pycolmap.Rigid3d(torch.cat([rotation, torch.tensor(offset[4:], dtype=torch.float64)[:, None]], 1).numpy())


def _write_frame(database: pycolmap.Database, rig_id: int, pictures: list[tuple[int, int]]) -> None:
    frame = pycolmap.Frame()
    frame.rig_id = rig_id
    for camera, index in pictures:
        frame.add_data_id(pycolmap.data_t(pycolmap.sensor_t(SENSOR, camera), index + 1))
    database.write_frame(frame)


# ---------------------------------------------------------------------------------------------------------------------
# In a finished model


def stated_scale(model: pycolmap.Reconstruction, work: Work) -> float | None:
    """What a model's lengths are to be multiplied with, to be those of the offsets that were stated; None where none
    were, or all are zero: lenses at one place, turned, tell no lengths."""
    with pycolmap.Database.open(str(work.database)) as opened:
        stated = {rig.rig_id: rig for rig in opened.read_all_rigs() if rig.rig_id in work.fixed_rigs}
    ratios = []
    for rig_id in stated.keys() & set(model.rigs):
        for sensor, found in model.rigs[rig_id].non_ref_sensors.items():
            given = stated[rig_id].sensor_from_rig(sensor)
            length = 0.0 if given is None else math.hypot(*given.translation)
            if found is not None and length > 0:
                ratios.append(length / max(math.hypot(*found.translation), 1e-12))
    return sorted(ratios)[len(ratios) // 2] if ratios else None


def in_words(
    model: pycolmap.Reconstruction, footage: Footage, metric: bool, fixed_rigs: frozenset[int]
) -> tuple[str, ...]:
    """A sentence for each rig in a model."""
    camera = {shot.name: shot.camera.removeprefix("rig ") or "images" for shot in footage.shots}
    prefix = {image.camera_id: camera[image.name] for image in model.images.values()}
    unit, sentences = (" m" if metric else ""), []
    for rig_id, rig in sorted(model.rigs.items()):
        if rig.num_sensors() < 2:
            continue
        instants = sum(frame.rig_id == rig_id and frame.has_pose() for frame in model.frames.values())
        reference = prefix[rig.ref_sensor_id.id]
        members = []
        for sensor, found in sorted(rig.non_ref_sensors.items(), key=lambda item: item[0].id):
            if found is not None and sensor.id in prefix:
                degrees = math.degrees(2 * math.acos(min(1.0, abs(found.rotation.quat[3]))))
                where = f"{math.hypot(*found.translation):.3g}{unit} from {reference}"
                members.append(f"{prefix[sensor.id]} is {where}, turned by {degrees:.1f} degrees")
        how = "as stated" if rig_id in fixed_rigs else "as estimated"
        sentences.append(
            f"Solved as a rig of {rig.num_sensors()} cameras at {instants} instants, its offsets {how}: "
            f"{'; '.join(members)}."
        )
    return tuple(sentences)
