"""What a hypergradient keeps alive, counted on tensor storages (sizes reduced; `make bench` has the full ones)."""

import torch

from sciopt.hypergradients import Implicit, Unrolled
from sciopt.linsolve import CG
from tests.benchmarks.bench_memory import gradient
from tests.benchmarks.measure import peak_bytes

SIZE = 20_000


def peak(method, steps):
    return peak_bytes(lambda: gradient(method, steps, SIZE))


def test_implicit_does_not_grow_with_the_inner_steps():
    few, many = (peak(Implicit(CG(rtol=1e-6)), steps) for steps in (10, 200))
    assert many <= 1.01 * few


def test_checkpoints_take_less_than_a_fifth_of_a_plain_unroll():
    plain, kept = peak(Unrolled(num_steps=200), 200), peak(Unrolled(num_steps=200, checkpoints=14), 200)
    assert kept <= 0.2 * plain
    assert plain >= 200 * SIZE * 8  # the plain one does record every step


def test_checkpoints_give_the_gradient_of_the_plain_unroll():
    plain, kept = (gradient(Unrolled(num_steps=30, checkpoints=k), 30, 50) for k in (None, 5))
    torch.testing.assert_close(kept, plain, rtol=1e-12, atol=1e-16)
