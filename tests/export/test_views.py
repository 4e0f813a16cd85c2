"""What training views say of points: where they see a surface, where they look through, and what colour it has."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ball_field import RADIUS, BallRender, ball_info, ball_views

from lightfold.cameras import Camera
from lightfold.errors import RunError
from lightfold.export.views import Seen, content_box, even_choice, observe, render_views, surface_points
from lightfold.methods.base import Image


@pytest.fixture(scope="module")
def method() -> BallRender:
    return BallRender(ball_info(), shaded=True)


@pytest.fixture(scope="module")
def views(method: BallRender) -> list[Seen]:
    return ball_views(method)


def directions(count: int) -> torch.Tensor:
    made = torch.randn(count, 3, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(made, dim=1)


def test_a_surface_is_seen_from_its_outer_side_only(views: list[Seen]) -> None:
    outward = directions(500)
    seen = observe(RADIUS * outward, outward, views, slack=0.02)
    assert (seen.support > 0).all()
    # Cameras stand at 2.6: about a third of them see any point of the ball.
    assert 2 < float(seen.support.float().mean()) < 10
    # At the rim a camera sees past the edge of the inner side, within the tolerance.
    assert float((observe(RADIUS * outward, -outward, views, slack=0.0).support == 0).float().mean()) > 0.95


def test_points_in_front_are_looked_through_and_points_inside_are_hidden(views: list[Seen]) -> None:
    outward = directions(500)
    before = observe(1.0 * outward, outward, views, slack=0.02)
    # The rim of the ball may lie behind a point by no more than the tolerance, hence not all of them.
    assert (before.through > 0).all() and float((before.support == 0).float().mean()) > 0.9
    inside = observe(0.3 * outward, outward, views, slack=0.02)
    assert (inside.through == 0).all() and (inside.support == 0).all() and inside.rgb.isnan().all()


def test_colours_are_those_of_the_pictures(views: list[Seen]) -> None:
    outward = directions(500)
    rgb = observe(RADIUS * outward, outward, views, slack=0.02).rgb / 255
    # BallRender paints the normal: 0.5 n + 0.5.
    assert (rgb - (0.5 * outward + 0.5)).abs().mean() < 0.01


def test_colours_learnt_in_pq_are_seen_as_srgb() -> None:
    light = BallRender(ball_info(hdr_exposure=1.0), shaded=True)
    seen = ball_views(light)[0]
    learnt = light.render(seen.camera).rgb
    assert (seen.rgb / 255 - light.info.shown(learnt)).abs().max() < 0.003 < (seen.rgb / 255 - learnt).abs().max()


def test_nothing_outside_every_picture_is_judged(views: list[Seen]) -> None:
    seen = observe(torch.tensor([[0.0, 0.0, 50.0]]), None, views[:1], slack=0.02)
    assert int(seen.support + seen.through) == 0
    empty = observe(torch.zeros(0, 3), None, views, slack=0.1)
    assert len(empty.support) == 0 and empty.rgb.shape == (0, 3)


def test_surface_points_lie_on_the_surface_with_its_normals_and_colours(views: list[Seen]) -> None:
    points = surface_points(views, 2000)
    assert 1500 < len(points) <= 2100
    assert torch.allclose(points.xyz.norm(dim=1), torch.full((len(points),), RADIUS), atol=1e-3)
    outward = points.xyz / RADIUS
    assert float((points.normal * outward).sum(dim=1).min()) > 0.9
    assert ((points.rgb / 255) - (0.5 * outward + 0.5)).abs().max() < 0.05
    again = surface_points(views, 2000)
    assert torch.equal(points.xyz, again.xyz)


def test_the_box_is_that_of_the_content_and_never_beyond_the_scene(method: BallRender, views: list[Seen]) -> None:
    box = content_box(method.info, views)
    assert ((box[0] < -0.6) & (box[0] > -0.8) & (box[1] > 0.6) & (box[1] < 0.8)).all()
    far = [
        replace(view, depth=view.depth + 50, nearest=view.nearest + 50, farthest=view.farthest + 50) for view in views
    ]
    assert torch.equal(content_box(method.info, far), torch.tensor([[-1.0] * 3, [1.0] * 3]))
    # Where the scene goes on, content counts up to where cameras stood.
    open_box = content_box(replace(method.info, bounded=False), far)
    centres = torch.stack([camera.center for camera in method.info.cameras])
    assert torch.allclose(open_box[1], centres.amax(0).clamp(min=1.0))


def test_views_are_chosen_evenly_and_rendered_small(method: BallRender) -> None:
    assert even_choice(method.info, 4) == [0, 5, 10, 15]
    assert even_choice(method.info, 100) == list(range(16))
    calls = []
    views = render_views(method, 3, 24, lambda *call: calls.append(call))  # type: ignore[arg-type]
    assert [view.index for view in views] == [0, 8, 15]
    assert all((view.camera.width, view.camera.height) == (24, 24) for view in views)
    assert [call[1:] for call in calls] == [(0, 3), (1, 3), (2, 3)]


def test_a_field_of_nothing_is_a_sentence() -> None:
    class Fog(BallRender):
        def render(self, camera: Camera, background: torch.Tensor | None = None) -> Image:
            image = super().render(camera, background)
            return Image(image.rgb, 0.2 * image.alpha, image.depth)

    with pytest.raises(RunError, match=r"No surface was found.*Train longer"):
        ball_views(Fog(ball_info()))
