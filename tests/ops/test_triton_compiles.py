"""Every kernel compiles for GPUs of two makers, though none is here: an interpreter forgives what compilers do not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from gpu_checks import NEEDS_TRITON

import lightfold

SCRIPT = Path(__file__).resolve().parents[1] / "compile_kernels.py"
KERNELS = Path(lightfold.__file__).parent / "ops" / "triton"


@NEEDS_TRITON
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Triton's compilers are there for Linux")
@pytest.mark.parametrize(
    ("target", "shared"),
    [(("cuda", "90"), 227), (("cuda", "80"), 163), (("hip", "gfx942"), 64)],
    ids=["sm90", "sm80", "gfx942"],
)
def test_compiles(target: tuple[str, str], shared: int, tmp_path: Path) -> None:
    """`shared` is what a program may take on that GPU, in KiB; a kernel that takes more fails at its launch."""
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "LIGHTFOLD_POISON")}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *target],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    compiled = json.loads(done.stdout.strip().splitlines()[-1])
    written = {
        name for file in KERNELS.glob("*.py") for name in re.findall(r"^def (_\w+_kernel)", file.read_text(), re.M)
    }
    assert written and {name for name, _ in compiled} == written
    too_large = {name: size for name, size in compiled if size > shared * 1024}
    assert not too_large
