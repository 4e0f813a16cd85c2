"""Panoramas written as crops to train on: the same rays, masks that follow, each panorama on one side of the split."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightfold.cameras import Camera, Lens
from lightfold.capture import Capture, Frame, Points
from lightfold.errors import CaptureError, ConfigError
from lightfold.footage.shots import Footage, Shot
from lightfold.formats import colmap, open_capture
from lightfold.geometry import so3_exp
from lightfold.images import decode
from lightfold.light import read_light
from lightfold.poses.config import PoseConfig
from lightfold.poses.solve import Solution, SubModel
from lightfold.poses.write import write_capture, write_crops
from lightfold.scene import SceneConfig, load_scene
from lightfold.split import split_names

WIDTH, HEIGHT, COUNT = 128, 64, 10
CONFIG = PoseConfig(panoramas="crops-8", crop_side=32)


def paint(direction: torch.Tensor) -> np.ndarray:
    """Smooth colours [N, 3] by direction in the world, the same from everywhere."""
    return (127.5 + 100 * direction.flip(-1)).numpy()


@pytest.fixture
def solved(tmp_path: Path) -> tuple[Footage, Solution]:
    """Ten panoramas of a sky with known poses, of which the first has a mask for its lower half."""
    root = tmp_path / "räume a"
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    generator = torch.Generator().manual_seed(1)
    frames, shots = [], []
    for k in range(COUNT):
        turn = so3_exp(0.5 * torch.randn(3, generator=generator, dtype=torch.float64))
        place = torch.randn(3, 1, generator=generator, dtype=torch.float64)
        camera = Camera.panorama(torch.cat([turn, place], dim=1), WIDTH, HEIGHT)
        name = f"größe {k:02}.png"
        colours = paint(camera.rays(camera.pixel_grid()).direction)
        Image.fromarray(colours.round().astype(np.uint8).reshape(HEIGHT, WIDTH, 3)).save(root / "images" / name)
        frames.append(Frame(root / "images" / name, camera, f"images/{name}"))
        shots.append(Shot(name, name, WIDTH, HEIGHT, lens="EQUIRECTANGULAR", mask=k == 0))
    mask = np.full((HEIGHT, WIDTH), 255, dtype=np.uint8)
    mask[HEIGHT // 2 :] = 0
    Image.fromarray(mask).save(root / "masks" / f"{shots[0].name}.png")
    xyz = 3 * torch.randn(60, 3, generator=generator, dtype=torch.float64)
    tracks = (torch.arange(60).repeat(COUNT), torch.arange(COUNT).repeat_interleave(60))
    model = root / "colmap" / "sparse" / "0"
    model.mkdir(parents=True)
    colmap.write(Capture(root, "transforms", tuple(frames), points=Points(xyz, tracks=tracks)), model)
    names = tuple(shot.name for shot in shots)
    solution = Solution(
        model=next(path.parent for path in root.rglob("images.bin")), database=root / "none.db",
        models=(SubModel(model, names),), missing=(), agreement=1.0, trusted=True, doubtful=(), error=0.5,
        intrinsics=(), metric=False, origin=None, tries=(), seconds={}, notes=(),
    )  # fmt: skip
    return Footage(root, "panoramas", True, tuple(shots)), solution


def test_a_crops_rays_are_the_panoramas_and_show_what_it_shows(solved: tuple[Footage, Solution]) -> None:
    footage, solution = solved
    path = write_crops(footage, solution, CONFIG)
    assert path == footage.root / "crops-8" / "transforms.json"
    whole = {frame.name: frame.camera for frame in open_capture(write_capture(footage, solution)).frames}
    capture = open_capture(path.parent)
    assert len(capture.frames) == 8 * COUNT and capture.points is not None and len(capture.points) == 60
    for frame in capture.frames:
        parent = whole[frame.name.rpartition("_")[0] + ".png"]
        assert frame.camera is not None and parent is not None and frame.camera.lens is Lens.PINHOLE
        rays = frame.camera.rays(frame.camera.pixel_grid())
        # The panorama's own ray through the pixel at which it sees in the same direction.
        xy, seen = parent.project(rays.origin + 7 * rays.direction)
        theirs = parent.rays(xy)
        assert bool(seen.all())
        assert torch.allclose(rays.origin, theirs.origin, atol=1e-6)
        assert torch.allclose(rays.direction, theirs.direction, atol=1e-6)
        with Image.open(frame.path) as picture:
            shown = np.asarray(picture).reshape(-1, 3).astype(float)
        assert np.abs(shown - paint(rays.direction)).max() < 4


def test_training_sees_the_light_of_which_pictures_are_copies(solved: tuple[Footage, Solution]) -> None:
    footage, solution = solved
    shots = tuple(replace(shot, source=f"/from/{Path(shot.name).stem}.hdr") for shot in footage.shots)
    footage = replace(footage, shots=(footage.shots[0], *shots[1:]))
    (footage.root / "light").mkdir()
    for shot in shots:
        radiance = f"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y {HEIGHT} +X {WIDTH}\n".encode()
        path = footage.root / "light" / Path(shot.name).with_suffix(".hdr")
        path.write_bytes(radiance + bytes([200, 100, 50, 130]) * (WIDTH * HEIGHT))
    capture = open_capture(write_capture(footage, solution))
    names = ["images/größe 00.png", *(f"light/größe {k:02}.hdr" for k in range(1, COUNT))]
    assert [frame.name for frame in capture.frames] == names
    assert capture.frames[0].mask is not None and read_light(capture.frames[1], decode)[0].max() > 3
    assert all(frame.path.suffix == ".png" for frame in open_capture(write_crops(footage, solution, CONFIG)).frames)


def test_a_panorama_is_on_one_side_of_the_split(solved: tuple[Footage, Solution], tmp_path: Path) -> None:
    footage, solution = solved
    capture = open_capture(write_crops(footage, solution, CONFIG).parent)
    sides: dict[str, set[str | None]] = {}
    for frame in capture.frames:
        sides.setdefault(frame.name.rpartition("_")[0], set()).add(frame.split)
    assert list(sides.values()) == [{"test" if k % 8 == 0 else "train"} for k in range(COUNT)]
    scene = load_scene(capture, SceneConfig(), tmp_path / "cache")
    held_out = {scene.info.names[i].rpartition("_")[0] for i in scene.info.test}
    trained = {scene.info.names[i].rpartition("_")[0] for i in scene.info.train}
    assert len(held_out) == 2 and len(trained) == 8 and not held_out & trained


@pytest.mark.parametrize("rule", ["every:5", "fraction:0.8"])
def test_crops_of_a_panorama_stay_together_in_any_split(solved: tuple[Footage, Solution], rule: str) -> None:
    footage, solution = solved
    frames = sorted(open_capture(write_crops(footage, solution, CONFIG).parent).frames, key=lambda frame: frame.name)
    train, test, _ = split_names(frames, rule)
    sides = [{name.rpartition("_")[0] for name in names} for names in (train, test)]
    assert (len(train), len(test)) == (8 * 8, 8 * 2) and not sides[0] & sides[1]


def test_masks_are_cut_alike(solved: tuple[Footage, Solution]) -> None:
    footage, solution = solved
    capture = open_capture(write_crops(footage, solution, CONFIG).parent)
    masked = [frame for frame in capture.frames if frame.mask is not None]
    assert [frame.name.rpartition("_")[0] for frame in masked] == ["images/größe 00"] * 8
    shares = []
    for frame in masked:
        assert frame.mask is not None
        with Image.open(frame.mask) as picture:
            shares.append(float((np.asarray(picture) > 0).mean()))
    # The belt is cut in halves; 45 degrees up almost all counts, 45 degrees down almost nothing.
    assert all(0.45 < share < 0.52 for share in shares[:4])
    assert all(share > 0.7 for share in shares[4:6]) and all(share < 0.25 for share in shares[6:])


def test_finished_crops_are_kept_and_changed_ones_are_not(solved: tuple[Footage, Solution]) -> None:
    footage, solution = solved
    said: list[tuple[str, int, int]] = []
    path = write_crops(footage, solution, CONFIG, lambda *words: said.append(words))
    assert said[-1] == ("cutting panoramas", 8 * COUNT, 8 * COUNT)
    before = path.stat().st_mtime_ns
    assert write_crops(footage, solution, CONFIG) == path and path.stat().st_mtime_ns == before
    write_crops(footage, solution, replace(CONFIG, crop_side=24))
    with Image.open(next((path.parent / "images").iterdir())) as picture:
        assert picture.size == (24, 24)
    assert write_crops(footage, solution, replace(CONFIG, panoramas="crops-14")).parent.name == "crops-14"


def test_what_the_user_has_there_is_not_touched(solved: tuple[Footage, Solution]) -> None:
    footage, solution = solved
    mine = footage.root / "crops-8" / "images" / "mine.jpg"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with pytest.raises(CaptureError, match="not put there by this program"):
        write_crops(footage, solution, CONFIG)
    assert mine.read_bytes() == b"mine"
    with pytest.raises(ConfigError, match="crop_side"):
        PoseConfig(crop_side=3)
