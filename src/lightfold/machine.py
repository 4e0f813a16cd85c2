"""What this program runs on: processor, usable cores, memory, versions. Recorded with every run."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

CGROUP_QUOTAS = (
    (Path("/sys/fs/cgroup/cpu.max"), None),
    (Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")),
)
"""Where Linux writes the share of processor time that a container may use (cgroup version 2, then 1)."""


def processor() -> str:
    """Model name of the processor, as the system gives it; the architecture when it gives none."""
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # Only Linux has this file; the others are asked below.
    if sys.platform == "darwin":
        question = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        try:
            answer = subprocess.run(question, capture_output=True, text=True, timeout=5, check=False)
            return answer.stdout.strip() or platform.machine()
        except (OSError, subprocess.TimeoutExpired):
            return platform.machine()
    return platform.processor() or platform.machine() or "unknown"


def usable_cores() -> int:
    """Logical cores that this process may use: its affinity, and the quota of the container around it.

    More threads than that wait for each other; PyTorch does not look at the quota.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    return max(1, min(cores, cgroup_quota() or cores))


def cgroup_quota() -> int | None:
    """Cores' worth of processor time that the container may use, rounded up; None without a limit."""
    for quota_file, period_file in CGROUP_QUOTAS:
        try:
            words = quota_file.read_text().split()
            period = float(words[1] if period_file is None else period_file.read_text())
            quota = float(words[0])
        except (OSError, ValueError, IndexError):
            continue  # The file is absent, or says "max".
        if quota > 0 and period > 0:
            return math.ceil(quota / period)
    return None


def default_threads() -> int:
    """Threads to compute with: PyTorch's own choice, unless the container allows less."""
    import torch

    return max(1, min(torch.get_num_threads(), usable_cores()))


def cache_folder() -> Path:
    """Where decoded pictures are kept between runs. LIGHTFOLD_CACHE chooses another folder."""
    chosen = os.environ.get("LIGHTFOLD_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "lightfold"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "lightfold" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightfold"


def instruction_set() -> str:
    """The instruction set that the native kernels use here, or "not built"."""
    from . import ops

    try:
        return str(ops.native_info()["isa"])
    except ImportError:
        return "not built"


def commit() -> str | None:
    """The commit this package was installed from, where the installer recorded one (PEP 610)."""
    try:
        text = distribution("lightfold").read_text("direct_url.json")
        found = json.loads(text or "{}").get("vcs_info", {}).get("commit_id")
    except (PackageNotFoundError, ValueError, AttributeError):
        return None
    return found if isinstance(found, str) else None


def package_version(name: str) -> str | None:
    """Installed version of a distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def environment() -> dict[str, Any]:
    """Everything about this machine and these packages that a number in a run depends on; plain JSON types."""
    import psutil
    import torch

    return {
        "lightfold": package_version("lightfold") or "not installed",
        "commit": commit(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": package_version("numpy"),
        "platform": platform.platform(),
        "processor": processor(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "instruction_set": instruction_set(),
    }


def peak_memory_bytes() -> int | None:
    """The most memory this process has held, or None where the system does not say (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
