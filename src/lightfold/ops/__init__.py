"""Differentiable operations of radiance fields: a native CPU kernel and a plain PyTorch reference for each."""

from .adam import adam_
from .backend import bfloat16_pays, native_info, own_threads, use
from .composite import Composite, composite, distance_at
from .hash_encode import HashGrid, hash_encode, hash_gradient
from .march import march
from .mlp import mlp
from .radiance import Loss, Picture, Radiance, Tracing, density_at, render_rays, train_rays
from .spherical_harmonics import spherical_harmonics
from .surface import surface
from .surface_march import Steps, march_field, surface_march

__all__ = [
    "Composite",
    "HashGrid",
    "Loss",
    "Picture",
    "Radiance",
    "Steps",
    "Tracing",
    "adam_",
    "bfloat16_pays",
    "composite",
    "density_at",
    "distance_at",
    "hash_encode",
    "hash_gradient",
    "march",
    "march_field",
    "mlp",
    "native_info",
    "own_threads",
    "render_rays",
    "spherical_harmonics",
    "surface",
    "surface_march",
    "train_rays",
    "use",
]
