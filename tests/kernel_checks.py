"""How kernels are compared with their references, on which types and sizes, and how they are kept from taking the
test process with them."""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from lightfold import ops
from lightfold.ops import backend


def _instruction_sets() -> list[str]:
    try:
        return list(backend.core().isas())
    except ImportError:
        return ["not built"]  # Each test of a kernel then says so; tests of everything else still run.


INSTRUCTION_SETS = _instruction_sets()
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
SIZES = pytest.mark.parametrize("n", [0, 1, 63, 1000], ids="n{}".format)
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
"""Largest error, as a share of the largest value expected."""


def assert_near(actual: Tensor, expected: Tensor, what: str = "", slack: float = 1.0) -> None:
    """`actual` equals `expected` (possibly of a wider type) to within the tolerance of its own type, times `slack`."""
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    if actual.numel() == 0:
        return
    error = float((actual.detach().double() - expected.detach().double()).abs().max())
    largest = max(float(expected.detach().abs().max()), 1e-30)
    share, limit = error / largest, TOLERANCE[actual.dtype] * slack
    assert share <= limit, (
        f"{what}: error {error:.3g} is {share:.3g} of the largest value {largest:.3g} (> {limit:.3g})"
    )


def assert_twins(
    function: Callable[..., Tensor | tuple[Tensor, ...]], inputs: list[Tensor], slack: float = 1.0
) -> None:
    """Native kernel and reference agree on `function`'s outputs and, under random cotangents, on all gradients.

    Gradients are taken for those inputs that are of a float type and require one. The reference runs in double
    precision on the same numbers, so that its own rounding does not count.
    """
    generator = torch.Generator().manual_seed(7)

    def run(values: list[Tensor]) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        out = function(*values)
        return out if isinstance(out, tuple) else (out,), [v for v in values if v.requires_grad]

    def gradients(outputs: tuple[Tensor, ...], leaves: list[Tensor]) -> list[Tensor]:
        pairs = [(o, c.to(o.dtype)) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad]
        found = torch.autograd.grad([o for o, _ in pairs], leaves, [c for _, c in pairs], allow_unused=True)
        return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True)]

    native, native_leaves = run([v.detach().clone().requires_grad_(v.requires_grad) for v in inputs])
    wide = [v.detach().double() if v.is_floating_point() else v for v in inputs]
    with ops.use("reference"):
        reference, leaves = run([w.clone().requires_grad_(v.requires_grad) for w, v in zip(wide, inputs, strict=True)])
    for i, (a, b) in enumerate(zip(native, reference, strict=True)):
        assert_near(a, b, f"output {i}", slack)
    if not leaves:
        return
    cotangents = [torch.randn(o.shape, generator=generator, dtype=o.dtype) for o in native]
    for i, (a, b) in enumerate(zip(gradients(native, native_leaves), gradients(reference, leaves), strict=True)):
        assert_near(a, b, f"gradient {i}", slack)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads for PyTorch, and so for the kernels."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fate(function: Callable[[], object], cpu_seconds: int = 1) -> str:
    """What becomes of `function` in a process of its own: "done", "hung", "crashed: ...", or what it raised."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork, to survive a kernel that does not return")
    import resource

    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            faulthandler.disable()  # A crash is reported as a word, not as a page.
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            # Processor time, so that a busy machine does not look like a kernel that hangs.
            resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))
            torch.set_num_threads(1)
            function()
        except BaseException as error:  # noqa: BLE001 (it is handed to the parent, whatever it is)
            os.write(writer, f"{type(error).__name__}: {error}"[:4000].encode())
        finally:
            os._exit(0)
    os.close(writer)
    end, done, status = time.monotonic() + 60.0, 0, 0
    while done == 0 and time.monotonic() < end:
        time.sleep(0.005)
        done, status = os.waitpid(child, os.WNOHANG)
    if done == 0:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read().decode()
    if done == 0 or (os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL)):
        return "hung"
    if os.WIFSIGNALED(status):
        return f"crashed: {signal.Signals(os.WTERMSIG(status)).name}"
    return said or "done"
