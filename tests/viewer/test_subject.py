from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from analytic_sphere import Sphere, camera_at, info_of, ring
from painted_ball import PaintedBall

from lightfold.methods.nerfacto import Nerfacto, NerfactoConfig
from lightfold.viewer.painter import Look
from lightfold.viewer.subject import Subject
from lightfold.viewer.view_tab import plane, slice_colours

TINY = NerfactoConfig(
    rays=64, proposal_samples=(8, 8), samples=6, levels=2, log2_rows=8, finest_bounded=32, width=16, appearance=4
)


@pytest.fixture
def nerfacto() -> Subject:
    torch.manual_seed(0)
    scene = PaintedBall(side=24)
    method = Nerfacto(TINY, scene.info)
    return Subject("ball", scene.info, method, None, scene)  # type: ignore[arg-type]


def look_of(subject: Subject, **changes) -> Look:
    camera = subject.first_camera()
    return Look(camera.world_from_cam.double(), math.radians(50), 24, 24, **changes)


def test_pictures_have_the_exposure_that_is_asked_for(nerfacto: Subject) -> None:
    codes = nerfacto.codes
    assert codes is not None
    with torch.no_grad():
        codes.codes.normal_(0.0, 3.0)
    train = nerfacto.info.train
    looks = [look_of(nerfacto, appearance=index) for index in (None, train[0], train[3])]
    pictures = [nerfacto.render(look.camera(), look).rgb for look in looks]
    assert not torch.allclose(pictures[0], pictures[1]) and not torch.allclose(pictures[1], pictures[2])
    plain = nerfacto.method.render(looks[0].camera())  # type: ignore[union-attr]
    torch.testing.assert_close(pictures[0], plain.rgb)


def test_cameras_are_where_training_has_moved_them(nerfacto: Subject) -> None:
    assert nerfacto.moving
    index = nerfacto.info.train[2]
    with torch.no_grad():
        nerfacto.method.poses.tangent[index, 0] = 0.25  # type: ignore[union-attr, operator, index]
    moved = nerfacto.cameras()[index].center - nerfacto.info.cameras[index].center
    torch.testing.assert_close(moved, torch.tensor([0.25, 0.0, 0.0]), atol=1e-6, rtol=0)


def test_a_method_that_learns_neither_has_the_cameras_that_were_given() -> None:
    info = info_of([camera_at(eye, torch.zeros(3)) for eye in ring(8)])
    subject = Subject("ball", info, Sphere(info))  # type: ignore[arg-type]
    assert not subject.moving and subject.codes is None and subject.cameras() == info.cameras
    assert subject.photo(0) is None and subject.thumbnail(0) is None


def test_photographs_lie_over_the_background_and_few_are_kept(nerfacto: Subject) -> None:
    scene = nerfacto.scene
    assert scene is not None
    for index in range(len(nerfacto.info.cameras)):
        photo, view = nerfacto.photo(index), scene.view(index)
        assert photo is not None
        expected = view.rgb * view.alpha[..., None] + 1.0 - view.alpha[..., None]
        torch.testing.assert_close(photo, expected)
    assert len(nerfacto._photos) <= 4
    thumbnail = nerfacto.thumbnail(3)
    assert thumbnail is not None and max(thumbnail.shape) <= 96


def test_light_learnt_in_pq_is_shown_as_srgb(nerfacto: Subject) -> None:
    info = replace(nerfacto.info, hdr_exposure=1.0, background=None)
    subject = Subject("ball", info, Sphere(info, shaded=True), None, nerfacto.scene)  # type: ignore[arg-type]
    white = torch.ones(3)
    look = look_of(subject, background=white)
    camera = look.camera()
    shown, learnt = subject.render(camera, look).rgb, Sphere(info, shaded=True).render(camera).rgb
    torch.testing.assert_close(shown[0, 0], white, atol=1e-3, rtol=0)
    torch.testing.assert_close(shown[12, 12], info.shown(learnt[12, 12]))
    photo, view = subject.photo(1), nerfacto.scene.view(1)  # type: ignore[union-attr]
    assert photo is not None
    torch.testing.assert_close(photo, info.shown(view.rgb * view.alpha[..., None]))


def test_many_cameras_are_thinned_out_evenly() -> None:
    info = info_of([camera_at(eye, torch.zeros(3)) for eye in ring(1000)])
    shown = Subject("many", replace(info), None).shown_views()
    assert len(shown) == 300 and shown[0] == 0 and shown[-1] == 999
    assert max(b - a for a, b in zip(shown, shown[1:], strict=False)) <= 4


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_lie_where_they_say(axis: int) -> None:
    points = plane(axis, 0.3, 16)
    assert points.shape == (16, 16, 3)
    torch.testing.assert_close(points[..., axis], torch.full((16, 16), 0.3), atol=1e-6, rtol=0)
    others = points.reshape(-1, 3)[:, [i for i in range(3) if i != axis]]
    assert float(others.min()) == pytest.approx(-15 / 16) and float(others.max()) == pytest.approx(15 / 16)


def test_slices_show_inside_and_outside() -> None:
    class Ball:
        def sdf_at(self, points: torch.Tensor) -> torch.Tensor:
            return points.norm(dim=1) - 0.5

    colours = slice_colours(Ball(), torch.tensor([[0.0, 0, 0], [0.9, 0, 0], [0.5, 0, 0]])).astype(int)
    assert colours[0, 0] > colours[0, 2] and colours[1, 0] < colours[1, 2] and colours[2].min() == 255

    class Fog:
        def density_at(self, points: torch.Tensor) -> torch.Tensor:
            return 100.0 * (points.norm(dim=1) < 0.5)

    colours = slice_colours(Fog(), torch.tensor([[0.0, 0, 0], [0.9, 0, 0]])).astype(int)
    assert colours[0].sum() > colours[1].sum() + 200
