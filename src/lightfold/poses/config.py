"""What can be chosen about finding poses. The defaults are for a CPU, and for not having to choose."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from ..cameras import Lens
from ..errors import ConfigError

STAGES = ("features", "pairs", "matches", "mapping", "refinement", "writing")
"""The stages of a solution, in their order."""


@dataclass(frozen=True)
class PoseConfig:
    """How poses are found."""

    lens: str = "auto"
    """Lens model to solve for, by COLMAP's name (SIMPLE_RADIAL, OPENCV, OPENCV_FISHEYE, ...). auto: what each picture's
    header suggests."""
    cameras: Literal["auto", "one", "each"] = "auto"
    """Which pictures share intrinsics. auto: those of one camera, focal length and size; one: all of the same size;
    each: none."""
    max_side: int = 1000
    """Longer side in pixels at which features are looked for; pictures are scaled down to it, never up."""
    max_features: int = 4096
    """Most features per picture."""
    first_octave: Literal[-1, 0] = 0
    """-1 doubles each picture first, which finds three times the features for five times the time."""
    pairs: Literal["auto", "exhaustive", "sequential", "spatial", "retrieval"] = "auto"
    """Which pictures are compared. auto: all with all while that is cheap; else neighbours in time with loop closures
    (a video, a walk), neighbours on the map (GPS), and pictures that look alike."""
    overlap: int = 10
    """Neighbours in time that each picture is compared with, where pictures are in order."""
    neighbours: int = 30
    """Pictures that look alike, or are near on the map, that each picture is compared with."""
    mapper: Literal["auto", "incremental", "global"] = "auto"
    """incremental adds picture by picture; global solves all at once, is faster on large sets and checked against the
    matches. auto: by the number of pictures."""
    refine_principal_point: bool = True
    """Free the principal point in the last bundle adjustment, where the model is strong enough to determine it."""
    refine_known: bool = False
    """Refine intrinsics that were given as known (a calibration) too."""
    rig: str = ""
    """Cameras that are bolted together and take pictures at the same instants. folders: each folder of the footage is
    one camera, pictures of the same name were taken at once, and how the cameras stand to each other is estimated. Or
    a file, COLMAP's rig_config.json, which can state that. Empty: every picture was taken on its own."""
    panoramas: Literal["whole", "crops-4", "crops-6", "crops-8", "crops-14"] = "whole"
    """What is trained on, where the footage is panoramas. whole: the panoramas as they are. crops-8, and so on:
    perspective pictures cut out of each, for methods and programs that need such; they go to CAPTURE/crops-8."""
    crop_side: int | None = None
    """Side in pixels of those pictures. None: as large as it takes to lose no detail."""
    retries: bool = True
    """Try again on its own, with more pairs, lower thresholds, another mapper, richer features, when pictures are
    left over."""
    seed: int = 0
    """Seed of everything random. With one thread, the same seed gives the same model."""
    threads: int | None = None
    """Processor threads. None: one per core that this process may use."""
    silence: float = 900.0
    """Seconds without a sign of life after which the engine is taken for stuck and stopped."""
    from_stage: Literal["", "features", "pairs", "matches", "mapping", "refinement", "writing"] = ""
    """Do this stage and all after it again, also where they are finished. Empty: do only what remains."""

    def __post_init__(self) -> None:
        least = {
            "max_side": 64,
            "max_features": 64,
            "overlap": 1,
            "neighbours": 1,
            "crop_side": 16,
            "seed": 0,
            "threads": 1,
            "silence": 1,
        }
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= smallest):
                raise ConfigError(f"The option '{name}' must be a finite number of at least {smallest}, not {value}.")
        known = [lens.value for lens in Lens if lens is not Lens.ORTHOGRAPHIC]
        if self.lens != "auto" and self.lens not in known:
            raise ConfigError(f"The option 'lens' must be auto or one of {', '.join(known)}, not {self.lens}.")

        if self.rig and self.cameras != "auto":
            raise ConfigError("The option 'cameras' must be auto with a rig: each lens is a camera of its own.")

    def richer(self) -> PoseConfig:
        """The same with features that find more and cost up to ten times as much: for pictures that were left over."""
        return replace(
            self, max_side=max(2 * self.max_side, 2000), max_features=max(2 * self.max_features, 8192), first_octave=-1
        )
