"""Volumes: density and colour where they belong, in the units and the frame of the file."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ball_field import RADIUS, BallField, BallRender, ball_info, ball_views

from lightfold.errors import ConfigError, RunError
from lightfold.export.blocks import Lattice
from lightfold.export.views import Seen
from lightfold.export.volume import Volume, corners, extract_volume, write_volume
from lightfold.geometry import Similarity

INFO = ball_info(side=96)
LATTICE = Lattice.over(torch.tensor([[-1.0, -1.0, -0.9], [1.0, 1.0, 0.9]]), 40)
B_FROM_SCENE = Similarity(4.0, torch.eye(3, dtype=torch.float64)[[2, 0, 1]], torch.tensor([10.0, 20.0, 30.0]))


@pytest.fixture(scope="module")
def views() -> list[Seen]:
    return ball_views(BallRender(INFO, shaded=True), side=96)


@pytest.fixture(scope="module")
def volume(views: list[Seen]) -> Volume:
    return extract_volume(BallField(INFO), views, LATTICE, B_FROM_SCENE)  # type: ignore[arg-type]


def test_density_is_per_unit_of_the_frame_and_sits_where_the_field_has_it(volume: Volume) -> None:
    assert volume.density.shape == volume.colours.shape[:3] == LATTICE.shape
    index = np.stack(np.meshgrid(*[np.arange(n) for n in LATTICE.shape], indexing="ij"), axis=-1).reshape(-1, 3)
    at = index @ volume.frame_from_grid[:, :3].T + volume.frame_from_grid[:, 3]
    in_scene = B_FROM_SCENE.inverse().apply(torch.from_numpy(at)).float()
    expected = BallField(INFO).density_at(in_scene) / 4
    assert np.allclose(volume.density.reshape(-1), expected.numpy(), rtol=1e-3)


def test_the_surface_has_the_colours_of_the_pictures(volume: Volume) -> None:
    index = np.argwhere(volume.colours.any(axis=-1))
    at = index * LATTICE.spacing + np.array(LATTICE.lower)
    radius = np.linalg.norm(at, axis=1)
    near = np.abs(radius - RADIUS) < LATTICE.spacing
    colour = volume.colours[tuple(index[near].T)] / 255
    assert near.sum() > 500 and np.abs(colour - (0.5 * at[near] / radius[near, None] + 0.5)).mean() < 0.05
    assert not volume.colours[tuple(np.array(LATTICE.shape) // 2)].any()  # no camera sees the middle of the ball


def test_an_npz_holds_it_all(volume: Volume, tmp_path: Path) -> None:
    write_volume(volume, tmp_path / "new" / "volume.npz")
    with np.load(tmp_path / "new" / "volume.npz", allow_pickle=False) as file:
        assert file["density"].dtype == np.float16 and np.isfinite(file["density"]).all()
        assert np.allclose(file["density"], np.minimum(volume.density, 65504), rtol=1e-3, atol=1e-6)
        assert np.array_equal(file["colours"], volume.colours)
        assert np.array_equal(file["frame_from_grid"], volume.frame_from_grid)
        low, high = file["box"]
    expected = B_FROM_SCENE.apply(torch.tensor([[-1.0, -1.0, -0.9], [1.0, 1.0, 0.9]], dtype=torch.float64))
    assert np.allclose([low, high], [expected.amin(0), expected.amax(0)], atol=0.3)
    assert np.array_equal(corners(volume), [low, high])


def test_a_vdb_without_its_library_is_a_sentence(
    volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvdb", None)
    monkeypatch.setitem(sys.modules, "pyopenvdb", None)
    with pytest.raises(RunError, match=r"OpenVDB.*\.npz"):
        write_volume(volume, tmp_path / "volume.vdb")
    assert list(tmp_path.iterdir()) == []


def test_a_vdb_gets_the_transform_of_row_vectors(
    volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = {}

    class Grid:
        def copyFromArray(self, array: np.ndarray, tolerance: float = 0) -> None:
            self.array = array

    def write(name: str, grids: list) -> None:
        Path(name).write_bytes(b"vdb")
        written.update({grid.name: grid for grid in grids})

    fake = SimpleNamespace(FloatGrid=Grid, Vec3SGrid=Grid, createLinearTransform=np.array, write=write)
    monkeypatch.setitem(sys.modules, "openvdb", fake)
    write_volume(volume, tmp_path / "volume.vdb")
    assert [path.name for path in tmp_path.iterdir()] == ["volume.vdb"]
    assert set(written) == {"density", "Cd"}
    at = np.array([3.0, 4.0, 5.0, 1.0]) @ written["density"].transform
    assert np.allclose(at[:3], volume.frame_from_grid @ [3, 4, 5, 1])


def test_a_method_without_density_is_a_sentence(views: list[Seen]) -> None:
    with pytest.raises(ConfigError, match="no density"):
        extract_volume(BallRender(INFO), views, LATTICE, B_FROM_SCENE)  # type: ignore[arg-type]
