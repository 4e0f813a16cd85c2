"""Several Python threads may compute at once: a viewer beside a video in the background."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from lightfold import ops


def test_threads_do_not_disturb_each_other() -> None:
    """Each thread has weights of its own; the packed copy that a kernel makes of them must stay its caller's."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(5000, 32, generator=rng)
    networks = [[torch.randn(64, 32, generator=rng), torch.randn(16, 64, generator=rng)] for _ in range(4)]
    alone = [ops.mlp(x, weights) for weights in networks]

    def repeat(i: int) -> bool:
        return all(torch.equal(ops.mlp(x, networks[i]), alone[i]) for _ in range(30))

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(repeat, range(4)))


def test_own_threads_give_the_count_back_whoever_leaves_last() -> None:
    before = torch.get_num_threads()
    first, second = ops.own_threads(), ops.own_threads()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.get_num_threads() == 1
    second.__exit__(None, None, None)
    assert torch.get_num_threads() == before
