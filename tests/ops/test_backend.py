"""ops/backend.py: which code runs an op, and what it refuses to run."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from kernel_checks import fate, threads

from lightfold import ops
from lightfold.ops import backend
from lightfold.ops.backend import empty, half_type, kernel, reference_wanted, route


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
        with (
            pytest.raises(ValueError, match="name: expected 'native', 'reference' or 'triton', got 'cuda'"),
            ops.use("cuda"),
        ):
            pass
        assert not reference_wanted()


class TestRoute:
    def test_a_tensor_of_the_cpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x = torch.zeros(3)
        assert route("adam", x, x) == "native"
        with ops.use("reference"):
            assert route("adam", x) == "reference"
        with ops.use("triton"):
            monkeypatch.setenv("TRITON_INTERPRET", "0")
            with pytest.raises(RuntimeError, match="adam: Triton runs tensors of the CPU under its interpreter only"):
                route("adam", x)

    def test_devices(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(backend, "find_spec", lambda name: object())
        assert backend.triton_lacks("cuda") is None and backend.triton_lacks("xpu") is None
        assert backend.triton_lacks("mps") == "Triton has no kernels for 'mps'"
        for found, works in (("3.3.1", False), ("3.10.0+rocm7", True), (None, True), ("4.0", True)):
            monkeypatch.setattr(backend, "triton_version", lambda found=found: found)
            assert (backend.triton_lacks("cuda") is None) is works, found
        monkeypatch.setattr(backend, "triton_version", lambda: "3.3.1")
        assert backend.triton_lacks("xpu") == (
            "Triton 3.3.1 does not compile the kernels: 3.4 does, which comes with PyTorch 2.8"
        )
        monkeypatch.setattr(backend, "find_spec", lambda name: None)
        assert "pip install" in str(backend.triton_lacks("cuda"))
        assert not backend.interpreted()

    def test_a_device_without_triton_takes_the_reference_and_says_so_once(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Elsewhere:
            device = torch.device("mps")

        monkeypatch.setattr(backend, "_noted", set())
        for _ in range(2):
            assert route("adam", Elsewhere()) == "reference"  # type: ignore[arg-type]
        assert len(caplog.messages) == 1 and "plain PyTorch" in caplog.messages[0]

    def test_tensors_of_two_devices(self) -> None:
        with pytest.raises(ValueError, match="adam: expected tensors on one device, got cpu and meta"):
            route("adam", torch.zeros(1), torch.zeros(1, device="meta"))

    def test_half_types_are_those_of_autocast(self) -> None:
        assert half_type(torch.zeros(1)) is None
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert half_type(torch.zeros(1)) is torch.bfloat16
            assert half_type(torch.zeros(1, dtype=torch.float64)) is None


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
