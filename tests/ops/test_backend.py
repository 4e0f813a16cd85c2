"""ops/backend.py: which code runs an op, and what it refuses to run."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from kernel_checks import fate, threads

from lightfold import ops
from lightfold.ops import backend
from lightfold.ops.backend import empty, kernel, reference_wanted


class TestUse:
    def test_nests_and_restores(self) -> None:
        assert not reference_wanted()
        with ops.use("reference"):
            assert reference_wanted()
            with ops.use("native"):
                assert not reference_wanted()
            assert reference_wanted()
        assert not reference_wanted()

    def test_restores_after_an_error(self) -> None:
        with pytest.raises(KeyError), ops.use("reference"):
            raise KeyError
        assert not reference_wanted()

    def test_unknown_name(self) -> None:
        with pytest.raises(ValueError, match="name: expected 'native' or 'reference', got 'cuda'"), ops.use("cuda"):
            pass
        assert not reference_wanted()


class TestKernel:
    def test_type_decides(self) -> None:
        assert kernel("adam", torch.zeros(1)) is backend.core().adam_f32
        assert kernel("adam", torch.zeros(1, dtype=torch.float64)) is backend.core().adam_f64

    def test_refusals(self) -> None:
        with pytest.raises(RuntimeError, match="no kernels for device 'meta'"):
            kernel("adam", torch.zeros(3, device="meta"))
        with pytest.raises(ValueError, match=r"one type, got torch\.float32 and torch\.float64"):
            kernel("adam", torch.zeros(3), torch.zeros(3, dtype=torch.float64))
        with pytest.raises(ValueError, match="contiguous"):
            kernel("adam", torch.zeros(3, 4).t())
        with pytest.raises(ValueError, match="float32 or float64"):
            kernel("adam", torch.zeros(3, dtype=torch.bfloat16))

    def test_a_missing_build_says_how_to_build(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import lightfold

        monkeypatch.setattr(backend, "_core", None)
        monkeypatch.delattr(lightfold, "_core", raising=False)
        monkeypatch.setitem(sys.modules, "lightfold._core", None)
        with pytest.raises(ImportError, match="pip install"):
            backend.core()


class TestMachine:
    def test_what_it_tells(self) -> None:
        info: dict[str, Any] = ops.native_info()
        assert info["isa"] in info["available"]
        assert info["available"][-1] == "portable"
        assert info["threads"] == torch.get_num_threads()

    def test_kernels_have_as_many_threads_as_pytorch(self) -> None:
        for count in (3, 1, 2):
            with threads(count):
                assert ops.native_info()["threads"] == count
        assert ops.native_info()["threads"] == torch.get_num_threads()

    def test_instruction_sets(self, isa: str) -> None:
        assert backend.core().isa() == isa
        with pytest.raises(ValueError, match="mmx"):
            backend.core().set_isa("mmx")
        assert backend.core().isa() == isa

    def test_a_forked_process_can_run_kernels(self) -> None:
        """Its threads are those of its parent, and do not exist."""
        w = torch.ones(4, 4)
        with threads(2):
            ops.mlp(torch.ones(1000, 4), [w])

        def child() -> None:
            torch.set_num_threads(2)
            assert (ops.mlp(torch.ones(1000, 4), [w]) == 4).all()

        assert fate(child) == "done"


def test_outputs_are_poisoned_under_test(monkeypatch: pytest.MonkeyPatch) -> None:
    out = empty((2, 3), torch.zeros(1, dtype=torch.float64))
    assert out.dtype == torch.float64 and out.isnan().all()
    monkeypatch.delenv("LIGHTFOLD_POISON")
    assert empty((2, 3), torch.zeros(1)).shape == (2, 3)
