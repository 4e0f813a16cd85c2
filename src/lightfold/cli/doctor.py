"""lightfold doctor: what is installed, which kernels run here, what is slow and why."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .. import cache, machine
from ..errors import ConfigError, LightfoldError
from . import console
from .arguments import parse

DESCRIPTION = (
    """Say what is installed, which kernels run here, and what is slow and why, with the command that fixes it."""
)
EXTRAS = {"lpips": (("torchmetrics", "torchvision"), "LPIPS scores")}
NEEDED = ("torch", "numpy", "pillow", "tyro", "rich", "av", "safetensors", "pyyaml", "tensorboard", "psutil")
SAMPLES = 1 << 15
"""Points in a measurement: enough to fill the caches, few enough for a tenth of a second."""


@dataclass(frozen=True)
class DoctorArguments:
    measure: bool = True
    """Measure for a second how fast the kernels are."""


def main(words: list[str]) -> None:
    """The verb. An error when what the package cannot do without is missing."""
    arguments = parse(DoctorArguments, words, "doctor", DESCRIPTION, DoctorArguments())
    missing = [name for name in NEEDED if machine.package_version(name) is None]
    if missing:
        names = " ".join(missing)
        raise LightfoldError(
            f"These packages are missing: {names}. Install them with `{sys.executable} -m pip install {names}`."
        )
    import torch

    torch.set_num_threads(machine.default_threads())
    advice: list[str] = []
    rows = [*system(), *packages(), *kernels(advice), *gpus(), *caches(advice)]
    if arguments.measure and machine.instruction_set() != "not built":
        rows += speed(advice)
    console.table(rows, title="lightfold doctor")
    for sentence in advice:
        console.remark(sentence)
    if machine.instruction_set() == "not built":
        raise LightfoldError(
            "The native kernels are not built, so nothing can be trained. Build them with `pip install .` in the "
            "repository; it needs a C++ compiler."
        )
    if not advice:
        console.say("Nothing is wrong here.", style="green")


def system() -> list[tuple[str, str]]:
    """Python, operating system, processor, memory."""
    import psutil

    memory = psutil.virtual_memory()
    return [
        ("Python", f"{platform.python_version()} at {sys.executable}"),
        ("system", platform.platform()),
        ("processor", f"{machine.processor()}, {machine.usable_cores()} of {os.cpu_count()} logical cores usable"),
        ("memory", f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free"),
    ]


def packages() -> list[tuple[str, str]]:
    """Versions, and which extras are there."""
    rows = [("lightfold", machine.package_version("lightfold") or "not installed (used from its source folder)")]
    rows.append(("packages", ", ".join(f"{name} {machine.package_version(name)}" for name in NEEDED)))
    for extra, (modules, purpose) in EXTRAS.items():
        lacking = [name for name in modules if find_spec(name) is None]
        state = "installed" if not lacking else f'not installed; `pip install "lightfold[{extra}]"` adds {purpose}'
        rows.append((f"extra [{extra}]", state))
    return rows


def kernels(advice: list[str]) -> list[tuple[str, str]]:
    """Instruction set and threads, with what is wrong about them."""
    import torch

    threads, cores = torch.get_num_threads(), machine.usable_cores()
    if threads < cores and "OMP_NUM_THREADS" in os.environ:
        advice.append(
            f"Only {threads} of {cores} cores are used, because OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']} "
            "says so; `unset OMP_NUM_THREADS` uses them all."
        )
    busy = _load()
    if busy is not None and busy > 0.5 * cores:
        advice.append(
            f"Other programs keep {busy:.1f} of {cores} cores busy, so training is slower than it could be (see `top`)."
        )
    if machine.instruction_set() == "not built":
        return [("kernels", "not built"), ("threads", str(threads))]
    from .. import ops

    native = ops.native_info()
    isas = [str(name) for name in native["available"]]  # type: ignore[attr-defined]
    isa = str(native["isa"])
    if isa != isas[0]:
        chosen = f"LIGHTFOLD_ISA={os.environ['LIGHTFOLD_ISA']}" if "LIGHTFOLD_ISA" in os.environ else "something"
        advice.append(
            f"The kernels use {isa} where {isas[0]} would run, because {chosen} says so; `unset LIGHTFOLD_ISA`."
        )
    elif isa == "portable" and platform.machine().lower() in ("x86_64", "amd64"):
        advice.append(
            "This processor, or the virtual machine around it, has no AVX2; with it training is several times faster."
        )
    fast = ops.backend.bfloat16_pays(torch.device("cpu"))
    return [
        ("kernels", f"{isa} (this processor can run {', '.join(isas)})"),
        ("precision", "bfloat16 in networks" if fast else "float32, as bfloat16 is no faster with these kernels"),
        ("threads", f"{threads} of {cores} cores"),
    ]


def _load() -> float | None:
    """Cores that other programs keep busy, over a fifth of a second; None where the system does not say."""
    import psutil

    try:
        share = psutil.cpu_percent(interval=0.2) / 100
    except (OSError, psutil.Error):
        return None
    return share * (os.cpu_count() or 1)


def gpus() -> list[tuple[str, str]]:
    """Every device that PyTorch sees: the kernels that run on it and why, and what training changes there."""
    from .. import devices
    from ..ops.backend import triton_lacks, triton_version

    seen = [device for device in devices.present() if device != devices.CPU]
    if not seen:
        return [("GPU", "none that PyTorch sees; none is needed"), ("--device auto", "cpu")]
    rows, version = [], triton_version() or "of an unknown version"
    for device in seen:
        lacking = triton_lacks(device.type)
        used = (
            f"Triton {version}, compiled for the device when first used and kept in Triton's cache"
            if lacking is None
            else f"plain PyTorch, which is slow, because {lacking}"
        )
        precision = "bfloat16" if devices.half_type("auto", device) else "float32"
        size = devices.memory(device) or 0
        rows.append((f"--device {device}", f"{devices.title(device)}, {size / 2**30:.0f} GiB; kernels: {used}"))
        launched = "as a whole" if lacking is None and devices.graphs(device) else "kernel by kernel"
        told = f"precision {precision}; for ngp there: {_options(device)}, and steps launched {launched}"
        rows.append((f"  {device}", told))
    taken = devices.choose()
    why = "" if taken != devices.CPU else "; MPS only when it is named, and other GPUs only with Triton"
    return [*rows, ("--device auto", f"{devices.title(taken)}{why}")]


def _options(device: Any) -> str:
    """What a training changes on a GPU where the user sets nothing."""
    from .. import devices
    from ..config import for_gpu, lookup
    from ..methods import METHODS

    default = next(iter(METHODS))
    sentence = for_gpu(default, lookup(default)[1], size=devices.size(device))[1]
    return "as on the processor" if sentence is None else sentence.partition(": ")[2].partition(" (")[0]


def caches(advice: list[str]) -> list[tuple[str, str]]:
    """Where decoded pictures are kept, how much, and how much it may become."""
    folder = machine.cache_folder()
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0
    free = shutil.disk_usage(_existing(folder)).free
    most = f"half of what the disk has left ({cache.LIMIT} in gigabytes sets another limit)"
    try:
        stated = cache.stated_limit()
    except ConfigError as error:
        advice.append(str(error))
    else:
        most = most if stated is None else f"{stated / 1e9:g} GB ({cache.LIMIT})"
    told = f"{folder}: {size / 1e9:.1f} GB, may be deleted; at most {most}; {free / 1e9:.0f} GB free"
    return [("picture cache", told)]


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.parents) if parent.exists())


def speed(advice: list[str]) -> list[tuple[str, str]]:
    """Points per second through encoding and density network, forward, on all threads and on one."""
    import torch

    threads = torch.get_num_threads()
    if threads == 1:
        return [("speed", f"{points_per_second() / 1e6:.1f} M points/s through encoding and network")]
    torch.set_num_threads(1)
    one = points_per_second()
    torch.set_num_threads(threads)
    many = points_per_second()
    if many < 0.6 * threads * one:
        advice.append(
            f"{threads} threads are only {many / one:.1f} times as fast as one: the cores are shared with other "
            f"programs, or are two names of one core; try `--threads {max(1, threads // 2)}` and compare rays/s."
        )
    return [
        (
            "speed",
            f"{many / 1e6:.1f} M points/s through encoding and network on {threads} threads, {one / 1e6:.1f} M on one",
        )
    ]


def points_per_second(seconds: float = 0.3) -> float:
    """Rate of the default method's encoding and density network, on random points; the best of a few repetitions."""
    import torch

    from .. import ops

    generator = torch.Generator().manual_seed(0)
    grid = ops.HashGrid()
    table = 1e-4 * torch.randn(grid.rows, grid.features, generator=generator)
    weights = [0.1 * torch.randn(shape, generator=generator) for shape in ((64, grid.width), (16, 64))]
    points = torch.rand(SAMPLES, 3, generator=generator)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        start = time.perf_counter()
        ops.mlp(ops.hash_encode(points, table, grid), weights)
        best = min(best, time.perf_counter() - start)
    return SAMPLES / best
