"""optim.py: schedules, and Adam over groups."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lightfold.optim import Adam, Group, constant, exponential_after, warm_up


class TestSchedules:
    def test_constant(self) -> None:
        assert [constant(f) for f in (0.0, 0.5, 1.0)] == [1.0, 1.0, 1.0]

    def test_decay_of_nerf(self) -> None:
        """5e-4, down by ten every 500 k steps: the published rate at step 100 k."""
        assert 5e-4 * exponential_after(0.0, 0.1)(100 / 500) == pytest.approx(3.15479e-4, rel=1e-5)

    def test_warm_up_of_mip_nerf_360(self) -> None:
        """2e-3 to 2e-5 over 250 k steps, of which the first 512 warm up: the published rate at step 256."""
        factor = warm_up(constant, 512 / 250_000)(256 / 250_000)
        assert factor == pytest.approx(0.710036, rel=1e-5)
        schedule = warm_up(exponential_after(0.0, 0.01), 512 / 250_000)
        assert 2e-3 * schedule(256 / 250_000) == pytest.approx(1.41339e-3, rel=1e-5)

    @pytest.mark.parametrize("start", [0.0, 0.3, 1.0])
    def test_plateau_then_decay(self, start: float) -> None:
        schedule = exponential_after(start, 0.05)
        values = [schedule(i / 100) for i in range(101)]
        assert all(v == 1.0 for i, v in enumerate(values) if i / 100 <= start)
        assert all(a >= b for a, b in zip(values, values[1:], strict=False))
        assert values[-1] == pytest.approx(0.05 if start < 1 else 1.0)
        # The same factor over the same time.
        assert schedule(start + 0.5 * (1 - start)) == pytest.approx(0.05**0.5 if start < 1 else 1.0)

    def test_warm_up_ends_where_it_should(self) -> None:
        schedule = warm_up(constant, 0.1, first=0.2)
        assert schedule(0.0) == pytest.approx(0.2) and schedule(0.1) == schedule(1.0) == 1.0
        assert warm_up(constant, 0.0)(0.0) == 1.0


def groups_of(seed: int = 0) -> list[Group]:
    generator = torch.Generator().manual_seed(seed)

    def param(*shape: int) -> nn.Parameter:
        return nn.Parameter(torch.randn(*shape, generator=generator))

    return [
        Group("table", [param(40, 2)], 0.1, sparse=True, schedule=exponential_after(0.5, 0.01)),
        Group("networks", [param(3, 4), param(5)], 0.01, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1),
    ]


def parameters(groups: list[Group]) -> list[nn.Parameter]:
    return [p for group in groups for p in group.params]


def set_gradients(groups: list[Group], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in parameters(groups):
        g = torch.randn(p.shape, generator=generator)
        p.grad = torch.where(torch.rand(p.shape, generator=generator) < 0.3, 0.0, g)


class TestAdam:
    def test_each_group_by_its_own_rules(self) -> None:
        groups = groups_of()
        table, weight, bias = parameters(groups)
        twins = [nn.Parameter(p.detach().clone()) for p in (weight, bias)]
        theirs = torch.optim.Adam(twins, lr=0.01, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
        optim = Adam(groups)
        for step in range(5):
            set_gradients(groups, step)
            for twin, p in zip(twins, (weight, bias), strict=True):
                assert p.grad is not None
                twin.grad = p.grad.clone()
            before, still = table.detach().clone(), table.grad == 0
            optim.step(0.0)
            theirs.step()
            assert torch.equal(table[still], before[still]) and (table[~still] != before[~still]).all()
        torch.testing.assert_close(weight.detach(), twins[0].detach())
        torch.testing.assert_close(bias.detach(), twins[1].detach())

    def test_the_schedule_scales_the_step(self) -> None:
        moved = []
        for fraction in (0.0, 0.75, 1.0):
            groups = groups_of()
            table = groups[0].params[0]
            before = table.detach().clone()
            set_gradients(groups, 1)
            live = table.grad != 0
            Adam(groups).step(fraction)
            moved.append(float((table.detach() - before).abs()[live].mean()))
        assert moved[0] == pytest.approx(0.1, rel=1e-4)
        assert moved[1] == pytest.approx(0.01, rel=1e-4) and moved[2] == pytest.approx(0.001, rel=1e-3)

    def test_gradients_are_cleared_in_place(self) -> None:
        groups = groups_of()
        set_gradients(groups, 0)
        memory = [p.grad for p in parameters(groups)]
        Adam(groups).step(0.0)
        for p, g in zip(parameters(groups), memory, strict=True):
            assert p.grad is g and g is not None and (g == 0).all()

    def test_a_parameter_without_gradient_stays(self) -> None:
        groups = groups_of()
        set_gradients(groups, 0)
        weight = groups[1].params[0]
        weight.grad, before = None, weight.detach().clone()
        Adam(groups).step(0.0)
        assert torch.equal(weight, before)

    def test_forgetting_a_step(self) -> None:
        groups = groups_of()
        set_gradients(groups, 0)
        groups[1].params[1].grad = None
        optim = Adam(groups)
        optim.zero_grad()
        assert optim.step_count == 0
        assert all(p.grad is None or (p.grad == 0).all() for p in parameters(groups))

    def test_a_resumed_training_goes_on_bit_for_bit(self) -> None:
        def continued(interrupt: bool) -> list[Tensor]:
            groups = groups_of()
            optim = Adam(groups)
            for step in range(8):
                if interrupt and step == 5:
                    state = {name: t.clone() for name, t in optim.state().items()}
                    weights = [p.detach().clone() for p in parameters(groups)]
                    groups = groups_of(seed=99)
                    for p, w in zip(parameters(groups), weights, strict=True):
                        p.data.copy_(w)
                    optim = Adam(groups)
                    optim.load_state(state)
                    assert optim.step_count == 5
                set_gradients(groups, step)
                optim.step(step / 8)
            return [p.detach() for p in parameters(groups)]

        for a, b in zip(continued(False), continued(True), strict=True):
            assert torch.equal(a, b)

    def test_loading_copies(self) -> None:
        """What is loaded may be a file in memory; the training must not write into it."""
        groups = groups_of()
        optim = Adam(groups)
        state = {name: t.clone() for name, t in optim.state().items()}
        optim.load_state(state)
        set_gradients(groups, 0)
        optim.step(0.0)
        assert all((t == 0).all() for t in state.values())

    def test_state_misses_nothing(self) -> None:
        state = Adam(groups_of()).state()
        names = ["table.0", "networks.0", "networks.1"]
        assert set(state) == {"step_count"} | {f"{n}.{m}" for n in names for m in ("first", "second")}
        incomplete = {name: t for name, t in state.items() if name != "networks.1.second"}
        with pytest.raises(KeyError, match=r"networks\.1\.second"):
            Adam(groups_of()).load_state(incomplete)

    def test_without_momentum_there_is_no_first_moment(self) -> None:
        p = nn.Parameter(torch.tensor([3.0, -2.0]))
        optim = Adam([Group("p", [p], 0.1, (0.0, 0.99))])
        assert set(optim.state()) == {"step_count", "p.0.second"}
        p.grad = torch.tensor([1e-3, 5.0])
        optim.step(0.0)
        torch.testing.assert_close(p.detach(), torch.tensor([2.9, -2.1]))
        again = Adam([Group("p", [p], 0.1, (0.0, 0.99))])
        again.load_state(optim.state())
        assert again.step_count == 1 and torch.equal(again.state()["p.0.second"], optim.state()["p.0.second"])

    def test_minimises(self) -> None:
        p = nn.Parameter(torch.tensor([3.0, -2.0]))
        optim = Adam([Group("p", [p], 0.3, schedule=exponential_after(0.2, 1e-3))])
        for step in range(300):
            ((p - torch.tensor([1.0, 5.0])).square() * torch.tensor([1.0, 100.0])).sum().backward()
            optim.step(step / 300)
        torch.testing.assert_close(p.detach(), torch.tensor([1.0, 5.0]), atol=0.01, rtol=0)


class TestClipping:
    """The step itself is invariant to the gradient's scale; what was clipped shows in the first moment, half of it."""

    def moments(self, clip: float | None, gradients: list[Tensor | None]) -> list[Tensor]:
        params = [nn.Parameter(torch.zeros(3)) for _ in gradients]
        for param, gradient in zip(params, gradients, strict=True):
            param.grad = None if gradient is None else gradient.clone()
        optim = Adam([Group("a", params, 0.1, betas=(0.5, 0.999), clip=clip)])
        optim.step(0.0)
        state = optim.state()
        return [2 * state[f"a.{i}.first"] for i in range(len(params))]

    def test_norm_of_all_parameters_together(self) -> None:
        gradients: list[Tensor | None] = [torch.tensor([3.0, 0.0, 0.0]), torch.tensor([0.0, -4.0, 0.0])]
        clipped = self.moments(0.5, gradients)
        torch.testing.assert_close(torch.cat(clipped), torch.tensor([0.3, 0.0, 0.0, 0.0, -0.4, 0.0]))

    @pytest.mark.parametrize("clip", [None, 5.1])
    def test_short_gradients_stay(self, clip: float | None) -> None:
        gradient = torch.tensor([3.0, 0.0, -4.0])
        assert torch.equal(self.moments(clip, [gradient])[0], gradient)

    def test_what_is_not_finite_counts_as_zero(self) -> None:
        found = self.moments(1.0, [torch.tensor([math.nan, 2.0, math.inf]), torch.tensor([-math.inf, 0.0, 0.0]), None])
        torch.testing.assert_close(torch.cat(found), torch.tensor([0.0, 1.0, 0.0] + 6 * [0.0]))

    def test_no_gradient_at_all(self) -> None:
        assert torch.equal(self.moments(1.0, [torch.zeros(3), None])[0], torch.zeros(3))

    def test_each_group_by_itself(self) -> None:
        long, short = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
        long.grad, short.grad = torch.tensor([100.0]), torch.tensor([0.5])
        optim = Adam([Group(n, [p], 0.1, betas=(0.5, 0.999), clip=1.0) for n, p in (("long", long), ("short", short))])
        optim.step(0.0)
        assert [2 * float(optim.state()[f"{n}.0.first"]) for n in ("long", "short")] == [1.0, 0.5]
