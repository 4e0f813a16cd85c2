"""scene.py: batches on a device are those of the CPU, wherever the pictures are kept."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from elsewhere import DEVICE, Elsewhere

from lightfold import devices
from lightfold import scene as scenes
from lightfold.cameras import Lens
from lightfold.formats import open_capture
from lightfold.rays import Rays
from lightfold.scene import Pixels, Scene, SceneConfig, load_scene

SAMPLE = Path(__file__).parents[1] / "examples" / "sample"


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    capture = open_capture(SAMPLE).evenly(6)
    return load_scene(capture, SceneConfig(max_side=24), tmp_path_factory.mktemp("cache"))


def assert_same(there: Pixels, here: Pixels) -> None:
    for name in ("rgb", "alpha", "xy"):
        assert getattr(there, name).device == DEVICE
        assert torch.equal(getattr(there, name).cpu(), getattr(here, name)), name
    for field in fields(Rays):
        assert torch.equal(getattr(there.rays, field.name).cpu(), getattr(here.rays, field.name)), field.name


@pytest.mark.parametrize("held", [True, False], ids=["pictures there", "pictures here"])
@pytest.mark.parametrize("direct", [True, False], ids=["every direction kept", "lenses inverted"])
def test_the_same_pixels_for_the_same_generator(
    held: bool, direct: bool, sample: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing of them is waited for."""
    monkeypatch.setattr(scenes, "memory", lambda device: 1 << 30)
    if not direct:
        monkeypatch.setattr(scenes, "MAX_DIRECTIONS", 10)
        distorted = [
            replace(camera, lens=Lens.SIMPLE_RADIAL, distortion=torch.tensor([0.05])) for camera in sample.info.cameras
        ]
        info = replace(sample.info, cameras=tuple(distorted))
        sample = Scene(info, sample._pictures, sample._frames)
    here = sample.pixels(200, torch.Generator().manual_seed(3))
    monkeypatch.setattr(devices, "TRITON_DEVICES", (DEVICE.type,))
    with Elsewhere() as elsewhere:
        placed = sample.on(DEVICE, share=1.0 if held else 0.0)
        assert placed.holds_pictures == held
        elsewhere.waits.clear()
        there = placed.pixels(200, torch.Generator().manual_seed(3))
        assert elsewhere.waits == []
        assert_same(there, here)
        view = placed.view(0)
        assert view.rgb.device == view.alpha.device == torch.device("cpu")


def test_on_the_cpu_it_is_itself(sample: Scene) -> None:
    assert sample.on(torch.device("cpu"), 1.0) is sample
