"""devices.py and guard.py: which device is taken, what is said where there is none, and numbers that arrive late."""

from __future__ import annotations

import math
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from lightfold import devices
from lightfold.devices import Reports, choose, half_type, shortage
from lightfold.errors import ConfigError
from lightfold.guard import PATIENCE, SCALE, Guard
from lightfold.ops import backend
from lightfold.optim import Group


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many devices of each kind PyTorch sees; Triton has kernels for two of the kinds."""
    seen = {"cuda": 0, "xpu": 0, "mps": 0}
    monkeypatch.setattr(devices, "count", seen.__getitem__)
    monkeypatch.setattr(devices, "triton_lacks", lambda kind: None if kind != "mps" else "Triton has no kernels")
    return seen


class TestChoice:
    def test_auto_takes_a_gpu_that_triton_serves(self, cards: dict[str, int]) -> None:
        assert choose() == devices.CPU
        cards["mps"] = 1
        assert choose() == devices.CPU, "MPS only when it is named"
        cards["xpu"] = 1
        assert choose() == torch.device("xpu", 0)
        cards["cuda"] = 2
        assert choose() == torch.device("cuda", 0)

    def test_auto_stays_on_the_cpu_without_triton(self, cards: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
        cards["cuda"] = 1
        monkeypatch.setattr(devices, "triton_lacks", lambda kind: "Triton is not installed")
        assert choose() == devices.CPU and choose("cuda") == torch.device("cuda", 0)

    def test_names(self, cards: dict[str, int]) -> None:
        cards |= {"cuda": 2, "mps": 1}
        assert choose("cuda:1") == torch.device("cuda", 1) and choose("mps") == torch.device("mps", 0)
        assert choose("cpu") == devices.CPU
        assert [choose("auto", place).index for place in range(2)] == [0, 1], "a process, a GPU"

    @pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:-1", "cpu:1", "", "mps:0", "cuda:1; rm"])
    def test_names_that_mean_nothing(self, name: str) -> None:
        with pytest.raises(ConfigError, match=r"^There is no device called '.*'; known are auto, cpu, .*\.$"):
            choose(name)

    @pytest.mark.parametrize(
        ("name", "place", "said"),
        [
            ("xpu", None, r"^PyTorch sees no 'xpu' device here \(.*\); use --device cpu\.$"),
            ("cuda:2", None, r"^There is no device cuda:2; PyTorch sees 2 of that kind, counted from 0\.$"),
            ("cuda", 2, r"^This machine has 2 GPU\(s\), too few for 3 processes; start fewer\.$"),
            ("cuda:1", 0, r"^Each of several processes takes a GPU of its own; say --device cuda, .*\.$"),
        ],
    )
    def test_devices_that_are_not_there(self, name: str, place: int | None, said: str, cards: dict[str, int]) -> None:
        cards["cuda"] = 2
        with pytest.raises(ConfigError, match=said):
            choose(name, place)


class TestPrecision:
    def test_auto_is_bfloat16_where_a_gpu_has_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        card = torch.device("cuda", 0)
        for major, expected in ((9, torch.bfloat16), (7, None)):
            monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, major=major: (major, 0))
            assert half_type("auto", card) == expected
        assert half_type("auto", torch.device("mps", 0)) is None
        assert half_type("float16", card) == torch.float16 and half_type("float32", card) is None

    @pytest.mark.usefixtures("isa")
    def test_auto_is_bfloat16_where_the_processor_has_it(self) -> None:
        fast = backend.core().isa() == "avx512bf16"
        assert half_type("auto", devices.CPU) == (torch.bfloat16 if fast else None)
        assert half_type("float32", devices.CPU) is None and half_type("bfloat16", devices.CPU) == torch.bfloat16

    def test_what_a_device_does_not_compute_in(self) -> None:
        with pytest.raises(ConfigError, match=r"^The kernels of 'cpu' do not compute in float16; leave --precision"):
            half_type("float16", devices.CPU)
        with pytest.raises(ConfigError, match=r"^The kernels of 'mps' do not compute in bfloat16"):
            half_type("bfloat16", torch.device("mps", 0))


class Late(Reports):
    """Reports whose device has no clock: what it is sent arrives when it is asked for."""

    def __init__(self) -> None:
        super().__init__(torch.device("cuda", 0))
        self.read: list[float] = []

    def _start(self, values):
        def read() -> dict[str, float]:
            self.read.append(float(values["step"]))
            return {name: float(value) for name, value in values.items()}

        return read


class TestReports:
    def test_the_cpu_tells_at_once(self) -> None:
        reports = Reports(devices.CPU)
        assert reports.turn({"loss": torch.tensor(0.5), "rays": 3}) == {"loss": 0.5, "rays": 3}

    def test_a_gpu_tells_some_steps_late_in_order(self) -> None:
        """The first step is waited for, so that there is something to say; from then on the lag is always the same."""
        reports = Late()
        told = [reports.turn({"step": float(step)})["step"] for step in range(12)]
        lag = devices.LAG
        assert told == [0.0] * (lag + 1) + [float(step) for step in range(1, 12 - lag)]
        assert reports.read == [float(step) for step in range(12 - lag)], "each once"

    def test_what_is_forgotten_is_not_told(self) -> None:
        reports = Late()
        for step in range(8):
            reports.turn({"step": float(step)})
        reports.forget()
        assert reports.turn({"step": 20.0}) == {"step": 20.0}


def group_of(*values: Tensor) -> list[Group]:
    return [Group("all", [nn.Parameter(value) for value in values], 0.1)]


class TestGuard:
    """As on a GPU, which it is told it has: its arithmetic is the same anywhere."""

    def step(self, guard: Guard, groups: list[Group], factor: float) -> None:
        guard.backward(sum((p * factor).sum() for group in groups for p in group.params))  # type: ignore[arg-type]
        guard.clean(groups)

    def guard(self, half: torch.dtype = torch.bfloat16) -> Guard:
        guard = Guard(devices.CPU, half)
        guard.active = True
        return guard

    def test_a_loss_that_is_not_finite_leaves_no_gradient(self) -> None:
        groups = group_of(torch.ones(3), torch.ones(2))
        self.step(self.guard(), groups, math.nan)
        assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in groups[0].params)  # type: ignore[arg-type]

    def test_a_good_one_keeps_its_gradient(self) -> None:
        groups = group_of(torch.ones(3))
        for half in (torch.bfloat16, torch.float16):
            self.step(self.guard(half), groups, 0.25)
            assert groups[0].params[0].grad is not None
            torch.testing.assert_close(groups[0].params[0].grad, torch.full((3,), 0.25))
            groups[0].params[0].grad = None

    def test_on_the_cpu_it_does_nothing(self) -> None:
        groups = group_of(torch.ones(3))
        self.step(Guard(devices.CPU, torch.bfloat16), groups, math.nan)
        assert groups[0].params[0].grad is not None and groups[0].params[0].grad.isnan().all()

    def test_the_scale_falls_where_gradients_overflow_and_grows_again(self) -> None:
        guard, groups = self.guard(torch.float16), group_of(torch.ones(1))
        assert guard.scale is not None
        self.step(guard, groups, 1e35)  # Finite, but not when it is scaled.
        assert float(guard.scale) == SCALE / 2
        assert groups[0].params[0].grad is not None and float(groups[0].params[0].grad) == 0.0
        for _ in range(PATIENCE):
            groups[0].params[0].grad = None
            self.step(guard, groups, 1.0)
        assert float(guard.scale) == SCALE and float(groups[0].params[0].grad) == 1.0


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_what_is_compiled_is_counted_and_what_is_found_is_not() -> None:
    knobs = pytest.importorskip("triton.knobs", reason="this Triton does not tell").compilation
    before, times = knobs.listener, SimpleNamespace(total=250_000)
    begun: list[int] = []
    with devices.Compilations(lambda: begun.append(1)) as compiled:
        for cache_hit in (True, False, True, False):
            knobs.listener(src=None, metadata={}, metadata_group={}, times=times, cache_hit=cache_hit)
    assert begun == [1] and (compiled.kernels, compiled.seconds) == (2, 0.5) and knobs.listener is before


@pytest.mark.parametrize(
    ("cores", "size"), [(304, 1.0), (132, 1.0), (128, 1.0), (60, 0.5), (36, 0.25), (20, 0.125), (2, 0.125)]
)
def test_small_gpus_are_small(cores: int, size: float, monkeypatch: pytest.MonkeyPatch) -> None:
    about = SimpleNamespace(multi_processor_count=cores)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: about)
    monkeypatch.setattr(torch.xpu, "get_device_properties", lambda device: SimpleNamespace(gpu_subslice_count=cores))
    assert devices.size(torch.device("cuda", 0)) == devices.size(torch.device("xpu", 0)) == size
    assert devices.size(devices.CPU) == 1.0


def test_a_device_without_graphs_is_launched_on_as_usual() -> None:
    assert devices.graphs(devices.CPU) is None and devices.graph_pool(devices.CPU) is None
    assert devices.graphs(torch.device("mps")) is None
    with devices.apart(devices.CPU):
        pass


def test_who_gives_up_says_how_much_memory_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    card = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Card")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=8 << 30))
    said = shortage(card, "a picture", "ask for less")
    assert said == "The memory of 8 GiB of cuda:0 (Card) does not suffice for a picture, however small; ask for less."
