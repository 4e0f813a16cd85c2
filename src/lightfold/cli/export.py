"""lightfold export RUN mesh|points|cameras|volume: what a run leaves for other programs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from tyro.conf import Positional, arg

from ..errors import ConfigError, RunError
from . import console
from .arguments import parse

if TYPE_CHECKING:
    from torch import Tensor

    from ..capture import Capture
    from ..export.region import Sphere
    from ..export.surface import Mesh
    from ..export.views import Progress, Seen
    from ..geometry import Similarity
    from ..methods.base import Method
    from ..run import Run
    from ..scene import SceneInfo

SIDE = 400
WHATS = ("mesh", "points", "cameras", "volume")
DESCRIPTION = """Export a mesh, a point cloud, the cameras or a volume from a run.

Coordinates are those of the capture, metres where it is in metres; --frame scene gives the frame in which training
happened, --frame original the one that the capture had before whoever wrote it normalised it. Options that name a kind
of export matter to that kind only."""


@dataclass(frozen=True)
class ExportArguments:
    run: Annotated[Positional[str], arg(metavar="RUN")] = ""
    """The run folder."""
    what: Annotated[Positional[str], arg(metavar="mesh|points|cameras|volume")] = ""
    """What to export."""
    out: Path | None = None
    """The file, whose suffix says the format, or the folder of the cameras. None: in the run's folder exports."""
    frame: Literal["capture", "scene", "original"] = "capture"
    """The frame of all coordinates."""
    box: tuple[float, float, float, float, float, float] | None = None
    """Lower and upper corner (x y z x y z), in that frame, of what to export. None: where cameras and content are."""
    views: int = 60
    """Training views that are rendered to judge and colour what is exported, or that a dense workspace holds."""
    side: int | None = None
    """Pixels on the longer side of those; of the pictures and depth maps of a dense workspace. None: 400; as many as
    the training pictures have."""
    page: bool = False
    """Also write one HTML file that turns the mesh or the points on a page, to send to somebody."""
    step: int | None = None
    """Which checkpoint. None: the newest."""
    device: str = "auto"
    """What computes: auto (a GPU that Triton has kernels for, else the processor), cpu, cuda, cuda:1, xpu or mps."""
    formats: tuple[Literal["ply", "glb", "obj", "stl"], ...] = ("ply", "glb")
    """mesh: file formats, where --out does not say."""
    source: Literal["auto", "density", "fusion", "sdf", "poisson"] = "auto"
    """mesh: from the signed distance (sdf) or the density, where the method has one; from rendered depth (fusion), or
    closed around the point cloud (poisson), which every method has. auto: sdf, else fusion."""
    resolution: int | None = None
    """mesh, volume: samples along the longest side of the box. None: 384 for a mesh, 192 for a volume."""
    level: float | None = None
    """mesh: density per scene unit at which the surface is; means --source density. None: found from the data."""
    triangles: int | None = None
    """mesh: at most so many. None: as many as there are, or 200 000 under a texture."""
    texture: Literal["none", "field", "photos"] = "none"
    """mesh: a texture from the field's own pictures, or from the photographs."""
    texture_size: int = 4096
    """mesh: pixels on a side of the texture."""
    least_piece: float = 0.0002
    """mesh: connected pieces below this share of the whole surface are dropped; 0 keeps all."""
    only_seen: bool = True
    """mesh: drop what no training camera sees."""
    count: int = 500_000
    """points: how many."""
    cameras_as: Literal[
        "transforms", "instant-ngp", "blender", "llff", "neus", "colmap", "colmap-text", "sdfstudio", "dense"
    ] = "transforms"
    """cameras: the format; dense is COLMAP's workspace with rendered depth and normal maps, for its fusion."""
    capture: Path | None = None
    """Where the pictures are now, for --texture photos, --frame original and the cameras. None: where they were."""


def main(words: list[str]) -> None:
    """The verb."""
    arguments = parse(ExportArguments, words, "export", DESCRIPTION, ExportArguments())
    if not arguments.run:
        raise ConfigError("Say what to export from which run: `lightfold export RUN mesh`.")
    _check(arguments)
    from ..run import Run
    from . import steps

    run = Run.open(arguments.run)
    steps.use_threads(None)
    for file in export_run(run, arguments):
        console.say(str(file))


def _check(arguments: ExportArguments) -> None:
    from ..config import did_you_mean

    if not arguments.what:
        raise ConfigError(f"Say what to export: {', '.join(WHATS)}.")
    if arguments.what not in WHATS:
        near = did_you_mean(arguments.what, list(WHATS))
        raise ConfigError(f"There is no export called '{arguments.what}'. {near}")
    for name, least, most in (
        ("views", 1, 10_000), ("side", 16, 8192), ("resolution", 8, 4096), ("triangles", 4, 10**9),
        ("texture_size", 64, 16384), ("count", 1, 10**9),
    ):  # fmt: skip
        value = getattr(arguments, name)
        if value is not None and not least <= value <= most:
            raise ConfigError(f"--{name.replace('_', '-')} must be from {least} to {most}, and it is {value}.")
    if arguments.level is not None and not 0 < arguments.level < 1e6:
        raise ConfigError("--level must be a density above 0 and below a million.")
    if not 0 <= arguments.least_piece < 1:
        raise ConfigError("--least-piece must be a share of the surface: from 0 to below 1.")
    box = arguments.box
    if box is not None and not all(low < high for low, high in zip(box[:3], box[3:], strict=True)):
        raise ConfigError("--box must be a lower and an upper corner, such as --box -1 -1 0 1 1 2.")
    if not arguments.formats:
        raise ConfigError("--formats: name at least one of ply, glb, obj, stl.")
    suffixes = {"mesh": (".ply", ".glb", ".obj", ".stl"), "points": (".ply",), "volume": (".npz", ".vdb")}
    wanted = suffixes.get(arguments.what)
    if wanted and arguments.out is not None and arguments.out.suffix.lower() not in wanted:
        raise ConfigError(f"--out must end in {' or '.join(wanted)} for {arguments.what}, and it is {arguments.out}.")
    if arguments.page and arguments.what not in ("mesh", "points"):
        raise ConfigError(f"--page shows a mesh or points, and this is {arguments.what}.")


def export_run(run: Run, arguments: ExportArguments) -> list[Path]:
    """What the arguments ask for; returns the files written."""
    b_from_scene = frame_of(run, arguments)
    dense = arguments.what == "cameras" and arguments.cameras_as == "dense"
    if arguments.what == "cameras" and not dense:
        return _cameras(run, arguments, b_from_scene)
    _need_libraries(arguments)
    if dense and arguments.out is not None:
        _require_new(arguments.out)
    with stages() as progress:
        from ..devices import choose
        from ..export.views import render_views

        method = run.method(arguments.step, choose(arguments.device))
        if arguments.what == "mesh":
            from ..export.mesh import source_of

            source_of(method, arguments.source, arguments.level)
        side = None if dense else arguments.side
        views = render_views(method, arguments.views, side or SIDE, progress)
        make = {"mesh": _mesh, "points": _points, "volume": _volume, "cameras": _dense}[arguments.what]
        return make(Work(run, method, views, arguments, b_from_scene, progress))


def _need_libraries(arguments: ExportArguments) -> None:
    """Say that a library is missing before anybody has waited for the work that it is needed for."""
    if arguments.what == "mesh" and arguments.texture != "none":
        from ..export.texture import xatlas_module

        xatlas_module()
    if arguments.what == "mesh" and (arguments.texture != "none" or arguments.triangles is not None):
        from ..export.surface import thinning_module

        thinning_module()
    if arguments.what == "volume" and arguments.out is not None and arguments.out.suffix.lower() == ".vdb":
        from ..export.volume import openvdb_module

        openvdb_module()


@contextmanager
def stages() -> Iterator[Progress]:
    """A progress bar for each stage, one after the other."""
    bars: dict[str, console.Report] = {}
    with ExitStack() as stack:

        def progress(what: str, done: int, total: int) -> None:
            if what not in bars:
                stack.close()
                bars.clear()
                bars[what] = stack.enter_context(console.progress(what))
            bars[what](done, total)

        yield progress


def frame_of(run: Run, arguments: ExportArguments) -> Similarity:
    """From the scene frame to the one that is asked for."""
    from ..geometry import Similarity

    if arguments.frame == "scene":
        return Similarity.identity()
    capture_from_scene = run.info.scene_from_capture.inverse()
    if arguments.frame == "capture":
        return capture_from_scene
    pictures = _pictures(run, arguments)
    if pictures is None:
        raise RunError(
            f"Only the capture itself knows its original frame, and it is no longer at {run.config.capture}; "
            "say where it is with --capture."
        )
    return pictures.original_from_capture @ capture_from_scene


def _pictures(run: Run, arguments: ExportArguments) -> Capture | None:
    """The capture that the run was trained on, if it is still there."""
    from ..formats import open_capture

    place = arguments.capture or Path(run.config.capture).expanduser()
    if not place.exists():
        if arguments.capture is not None:
            raise RunError(f"There is nothing at {place}, which --capture names.")
        return None
    return open_capture(place, run.config.format)


def _scene_box(arguments: ExportArguments, b_from_scene: Similarity) -> Tensor | None:
    """[2, 3] the box in the scene frame that holds the one asked for, whose sides may be slanted there."""
    import torch

    if arguments.box is None:
        return None
    low, high = arguments.box[:3], arguments.box[3:]
    sides = [torch.tensor(pair, dtype=torch.float64) for pair in zip(low, high, strict=True)]
    corners = b_from_scene.inverse().apply(torch.cartesian_prod(*sides))
    return torch.stack([corners.amin(0), corners.amax(0)]).float()


def _in_box(arguments: ExportArguments, xyz: Tensor) -> Tensor:
    """[N] bool: points [N, 3] of the chosen frame that lie in the box that was asked for."""
    import torch

    from ..export.views import inside_box

    return inside_box(xyz, torch.tensor(arguments.box, dtype=torch.float64).reshape(2, 3))


def _require(count: int) -> None:
    if count == 0:
        raise RunError("No surface was found in the box. Give another --box, or none.")


def _require_new(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} holds something already; give a new or an empty folder with --out.")


def _target(run: Run, arguments: ExportArguments, name: str) -> Path:
    return arguments.out or run.path / "exports" / name


class Work(NamedTuple):
    """What every kind of export is made from."""

    run: Run
    method: Method
    views: list[Seen]
    arguments: ExportArguments
    b_from_scene: Similarity
    progress: Progress


# --- the kinds ------------------------------------------------------------------------------------------------------


def _mesh(work: Work) -> list[Path]:
    import torch

    from ..export.mesh import MeshOptions, extract_mesh, write_mesh
    from ..export.surface import keep_faces

    run, method, views, arguments, b_from_scene, progress = work
    triangles = arguments.triangles
    if arguments.texture != "none" and triangles is None:
        triangles = 200_000
    options = MeshOptions(
        source=arguments.source,
        resolution=arguments.resolution or MeshOptions.resolution,
        level=arguments.level,
        box=_scene_box(arguments, b_from_scene),
        triangles=triangles,
        least_piece=arguments.least_piece,
        only_seen=arguments.only_seen,
    )
    found = extract_mesh(method, options, progress, views)
    for note in found.notes:
        console.remark(note)
    mesh = found.mesh
    if arguments.box is not None:
        inside = _in_box(arguments, torch.from_numpy(mesh.moved(b_from_scene).vertices)).numpy()
        mesh = keep_faces(mesh, inside[mesh.faces].all(axis=1))
        _require(len(mesh.faces))
    if arguments.texture != "none":
        from ..export.texture import textured

        painters = _with_photos(run, views, arguments) if arguments.texture == "photos" else views
        mesh = textured(mesh, painters, arguments.texture_size, 2 * found.spacing, progress)
    mesh = mesh.moved(b_from_scene)
    target = _target(run, arguments, "mesh.ply")
    suffixes = (target.suffix,) if arguments.out is not None else tuple(f".{name}" for name in arguments.formats)
    files = [file for suffix in suffixes for file in write_mesh(mesh, target.with_suffix(suffix))]
    console.say(f"{len(mesh.faces):,} triangles, {len(mesh.vertices):,} vertices.")
    if arguments.page:
        files.append(_mesh_page(run, mesh, target.with_suffix(".html"), b_from_scene))
    return files


def _with_photos(run: Run, views: list[Seen], arguments: ExportArguments) -> list[Seen]:
    """The same views with the photographs in place of the renderings, except where a mask or transparency says no."""
    import torch

    from . import steps

    scene = steps.scene_of(run, arguments.capture)
    painters = []
    for seen in views:
        photo = scene.view(seen.index)
        rendered = torch.nn.functional.interpolate(
            seen.rgb.permute(2, 0, 1)[None].float(), photo.rgb.shape[:2], mode="bilinear"
        )[0].permute(1, 2, 0)
        usable = photo.mask & (photo.alpha > 0.99)
        rgb = torch.where(usable[..., None], run.info.shown(photo.rgb) * 255, rendered)
        painters.append(replace(seen, rgb=rgb.round().byte()))
    return painters


def _mesh_page(run: Run, mesh: Mesh, path: Path, b_from_scene: Similarity) -> Path:
    from ..export.page import SHOWN_TRIANGLES, write_page
    from ..export.surface import smaller_copy

    shown = smaller_copy(mesh, SHOWN_TRIANGLES)
    caption = f"{len(shown.faces):,} triangles"
    write_page(path, shown.vertices, shown.colours, shown.faces, caption=caption, **_first_view(run, b_from_scene))
    return path


def _points(work: Work) -> list[Path]:
    from ..export.page import SHOWN_POINTS, write_page
    from ..export.ply import write_ply
    from ..export.points import extract_points

    run, method, views, arguments, b_from_scene, progress = work
    points = extract_points(method, arguments.count, _scene_box(arguments, b_from_scene), progress, views)
    xyz = b_from_scene.apply(points.xyz.double())
    if arguments.box is not None:
        inside = _in_box(arguments, xyz)
        points, xyz = points.select(inside), xyz[inside]
        _require(len(points))
    normals = (points.normal.double() @ b_from_scene.rotation.T).float().numpy()
    target = _target(run, arguments, "points.ply")
    write_ply(target, xyz.numpy(), normals, points.rgb.numpy())
    console.say(f"{len(points):,} points.")
    if not arguments.page:
        return [target]
    page = target.with_suffix(".html")
    every = max(1, -(-len(points) // SHOWN_POINTS))
    caption = f"{len(xyz[::every]):,} points"
    write_page(
        page, xyz.numpy()[::every], points.rgb.numpy()[::every], caption=caption, **_first_view(run, b_from_scene)
    )
    return [target, page]


def _first_view(run: Run, b_from_scene: Similarity) -> dict:
    """Title and first view of a page: from where the first training camera stood."""
    import torch

    from . import steps

    camera = run.info.cameras[run.info.train[0]]
    eye = camera.center.double()
    # Towards what is straight ahead, at about the distance of the scene's middle.
    ahead = max(0.5, float((-eye) @ camera.forward.double()))
    target = eye + ahead * camera.forward.double()
    moved = b_from_scene.apply(torch.stack([eye, target])).numpy()
    return {
        "title": steps.capture_name(run.config.capture),
        "up": b_from_scene.rotation[:, 2].numpy(),
        "eye": moved[0],
        "target": moved[1],
    }


def refined(run: Run, step: int | None) -> SceneInfo:
    """What the run knows of its scene, with the poses that training has found where it corrects them."""
    from ..refine import refined_cameras

    if step is None and not run.steps():
        return run.info
    return replace(run.info, cameras=refined_cameras(run.method(step)))


def _cameras(run: Run, arguments: ExportArguments, b_from_scene: Similarity) -> list[Path]:
    from ..export.cameras import TARGETS, capture_of, placed, sphere_of_scene, write_cameras

    pictures = _pictures(run, arguments)
    if pictures is None:
        console.remark(
            f"The pictures are no longer at {run.config.capture}, so the cameras have the size of the training "
            "pictures and know them by name only; say where they are with --capture."
        )
    info = refined(run, arguments.step)
    capture, format = capture_of(info, b_from_scene, pictures), arguments.cameras_as
    sphere: Sphere | None = sphere_of_scene(info, b_from_scene)
    if TARGETS[format].frame == "sphere":
        capture, sphere = placed(capture, format, sphere)
    folder = _target(run, arguments, "cameras")
    for note in write_cameras(capture, format, folder, sphere):
        console.remark(note)
    console.say(f"{len(capture)} cameras as {arguments.cameras_as}.")
    return [folder]


def _dense(work: Work) -> list[Path]:
    from ..export.dense import write_dense
    from . import steps

    run, method, views, arguments, b_from_scene, progress = work
    folder = _target(run, arguments, "dense")
    scene = None
    if arguments.capture is not None or Path(run.config.capture).expanduser().exists():
        scene = steps.scene_of(run, arguments.capture)
    else:
        console.remark(
            f"The pictures are no longer at {run.config.capture}, so the workspace gets renderings in their place; say "
            "where they are with --capture."
        )
    count = write_dense(method, views, b_from_scene, folder, arguments.side, scene, progress)
    console.say(f"{len(views)} pictures with depth and normal maps, {count:,} sparse points.")
    return [folder]


def _volume(work: Work) -> list[Path]:
    from ..export.blocks import Lattice
    from ..export.views import content_box
    from ..export.volume import extract_volume, write_volume

    run, method, views, arguments, b_from_scene, progress = work
    box = _scene_box(arguments, b_from_scene)
    lattice = Lattice.over(content_box(run.info, views) if box is None else box, arguments.resolution or 192)
    target = _target(run, arguments, "volume.npz")
    volume = extract_volume(method, views, lattice, b_from_scene, progress)
    write_volume(volume, target)
    console.say(" x ".join(map(str, volume.density.shape)) + " samples.")
    return [target]
