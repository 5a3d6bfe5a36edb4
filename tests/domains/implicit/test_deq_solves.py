"""What a solve promises: one status per sample, frozen modes, precision, warm starts, clear refusals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sciopt import SolveError
from sciopt.domains.implicit.equilibrium import DEQ
from sciopt.hypergradients import Implicit, NeumannOrKrylov
from sciopt.inner import Anderson, Picard
from sciopt.solution import Status
from tests.domains.implicit.deq_cases import SIZE, Cell, relative, unrolled
from tests.helpers import randn


@pytest.fixture
def cell(generator: torch.Generator) -> Cell:
    return Cell(generator)


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    return randn(4, SIZE, generator=generator)


def test_every_sample_has_its_status_and_a_bad_one_harms_none(x: Tensor) -> None:
    rates = torch.tensor([0.1, 0.5, 1.5, 0.97], dtype=torch.float64).unsqueeze(-1)
    seen: list[int] = []

    def f(z: Tensor, inputs: tuple[Tensor, Tensor]) -> Tensor:
        seen.append(z.shape[0])
        return inputs[0] * z + inputs[1]

    layer = DEQ(f, solver=Picard(rtol=1e-8, max_steps=300), throw=False)
    z, solution = layer((rates, x), init=torch.zeros_like(x), return_solution=True)
    assert solution.status_code.tolist() == [0, 0, int(Status.DIVERGED), int(Status.MAX_STEPS)]
    torch.testing.assert_close(z[:2], x[:2] / (1 - rates[:2]), rtol=1e-7, atol=1e-8)
    assert solution.num_steps[0] < solution.num_steps[1] < 300
    assert min(seen) < 4  # finished samples are dropped
    with pytest.raises(
        SolveError, match=r"Picard: expected status CONVERGED, got DIVERGED in 2 of 4 problems \(rows 2, 3\)"
    ):
        DEQ(f, solver=Picard(max_steps=300))((rates, x), init=torch.zeros_like(x))


def test_permuting_the_batch_changes_nothing(cell: Cell, generator: torch.Generator) -> None:
    x = 3 * randn(40, SIZE, generator=generator) * torch.linspace(0, 1, 40, dtype=torch.float64).unsqueeze(-1)
    order = torch.randperm(40, generator=generator)
    layer = DEQ(cell, solver=Anderson(rtol=1e-10))
    torch.testing.assert_close(layer(x[order]), layer(x)[order], rtol=1e-12, atol=1e-13)
    alone = torch.cat([layer(row.unsqueeze(0)) for row in x[:5]])
    torch.testing.assert_close(layer(x)[:5], alone, rtol=1e-8, atol=1e-9)


def test_a_warm_start_saves_steps_and_nothing_is_remembered(cell: Cell, x: Tensor) -> None:
    layer = DEQ(cell)
    z, cold = layer(x, return_solution=True)
    _, again = layer(x, return_solution=True)
    assert torch.equal(again.num_steps, cold.num_steps)
    near, warm = layer(x + 1e-6, init=z.detach(), return_solution=True)
    assert int(warm.num_steps.max()) < int(cold.num_steps.min())
    torch.testing.assert_close(near, layer(x + 1e-6), rtol=1e-6, atol=1e-7)


class Noisy(nn.Module):
    """A cell with dropout."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.cell, self.dropout = cell, nn.Dropout(0.5)
        self.masks: list[Tensor] = []

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        mask = self.dropout(torch.ones_like(z))
        self.masks.append(mask.detach())
        return self.cell(z, x) * mask


def test_dropout_draws_one_mask_per_call_and_the_adjoint_uses_it(generator: torch.Generator) -> None:
    cell = Cell(generator, radius=0.4)  # kept entries count double
    x = randn(12, SIZE, generator=generator) * torch.linspace(0, 4, 12, dtype=torch.float64).unsqueeze(-1)
    noisy = Noisy(cell)
    layer = DEQ(noisy, solver=Anderson(rtol=1e-13))
    torch.manual_seed(3)
    z, solution = layer(x, return_solution=True)
    found = torch.autograd.grad(z.square().sum(), cell.W)[0]
    whole = [m for m in noisy.masks if m.shape == x.shape]
    mask = whole[0]
    assert len(noisy.masks) > 5 and all(torch.equal(m, mask) for m in noisy.masks)
    assert 0.2 < float((mask == 0).double().mean()) < 0.8
    assert int(solution.num_steps.max()) > int(solution.num_steps.min())  # samples did end at different times
    reference = unrolled(lambda z, x: cell(z, x) * mask, x)
    torch.testing.assert_close(z, reference, rtol=1e-10, atol=1e-11)
    assert relative(found, torch.autograd.grad(reference.square().sum(), cell.W)[0]) < 1e-10
    # the generator goes on as after one evaluation of f
    after = torch.rand(())
    torch.manual_seed(3)
    noisy(torch.zeros_like(x), x)
    assert torch.equal(torch.rand(()), after)
    noisy.masks.clear()
    torch.func.grad(lambda y: layer(y).sum())(x)
    first = noisy.masks[0]
    assert not torch.equal(first, mask)  # the next call draws anew
    noisy.masks.clear()
    layer(x)
    assert not torch.equal(noisy.masks[0], first)
    noisy.eval()
    torch.testing.assert_close(layer(x), unrolled(cell, x), rtol=1e-10, atol=1e-11)


def test_batch_norm_is_frozen_and_takes_in_the_solution_once(cell: Cell, x: Tensor) -> None:
    norm = nn.BatchNorm1d(SIZE).double()
    with torch.no_grad():
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean += 0.1
        norm.running_var += 0.5

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.norm = cell, norm

        def forward(self, z: Tensor, x: Tensor) -> Tensor:
            return self.norm(self.cell(z, x))

    module = Normed()
    mean, var = norm.running_mean.clone(), norm.running_var.clone()

    def held(z: Tensor, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(cell(z, x), mean, var, norm.weight, norm.bias)

    layer = DEQ(module, solver=Anderson(rtol=1e-13))
    z = layer(x)
    reference = unrolled(held, x)
    torch.testing.assert_close(z, reference, rtol=1e-10, atol=1e-11)
    assert int(norm.num_batches_tracked or 0) == 1 and norm.training
    batch = cell(z, x).detach()
    torch.testing.assert_close(norm.running_mean, 0.9 * mean + 0.1 * batch.mean(0), rtol=1e-10, atol=1e-12)
    # the backward pass comes after the update, and still uses the statistics of the solve
    wanted = [cell.W, norm.weight]
    found = torch.autograd.grad(z.square().sum(), wanted)
    truth = torch.autograd.grad(reference.square().sum(), wanted)
    assert all(relative(a, b) < 1e-10 for a, b in zip(found, truth, strict=True))
    module.eval()
    layer(x)
    assert int(norm.num_batches_tracked or 0) == 1

    class Coupled(nn.BatchNorm1d):
        def forward(self, input: Tensor, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            return super().forward(input + x)

    coupled = Coupled(SIZE, track_running_stats=False).double()
    with pytest.raises(ValueError, match="DEQ: expected normalisation that keeps the samples apart"):
        DEQ(coupled)(x)


def test_training_with_dropout_and_batch_norm_descends(generator: torch.Generator) -> None:
    torch.manual_seed(0)
    hidden, target = 8, randn(64, 1, generator=generator).float()
    data = torch.cat([target, randn(64, hidden - 1, generator=generator).float()], -1)

    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.norm, self.dropout = nn.Linear(hidden, hidden), nn.BatchNorm1d(hidden), nn.Dropout(0.1)

        def forward(self, z: Tensor, x: Tensor) -> Tensor:
            return torch.tanh(self.norm(self.dropout(0.5 * self.inner(z)) + x))

    model = nn.Sequential(DEQ(Body()), nn.Linear(hidden, 1))
    optimizer = torch.optim.Adam(model.parameters(), 3e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (model(data) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast_ends_where_the_solve_begins(dtype: torch.dtype, generator: torch.Generator) -> None:
    cell = Cell(generator).float()
    layer = DEQ(cell, solver=Anderson(rtol=1e-5))
    x = randn(4, SIZE, generator=generator).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = layer(x)
        z.sum().backward()
    assert z.dtype == torch.float32
    mine = cell.W.grad
    cell.W.grad = None
    assert mine is not None
    unrolled(cell, x.float()).sum().backward()
    assert cell.W.grad is not None and relative(mine, cell.W.grad) < 1e-4


def test_float32_has_its_own_tolerance(generator: torch.Generator) -> None:
    cell = Cell(generator).float()
    x = randn(4, SIZE, generator=generator).float()
    z, solution = DEQ(cell)(x, return_solution=True)
    assert z.dtype == torch.float32 and bool(solution.converged.all())
    torch.testing.assert_close(z, unrolled(cell, x), rtol=1e-3, atol=1e-3)


def test_a_failed_adjoint_is_an_error_or_a_warning() -> None:
    # every start is an equilibrium along the mean, which is there for x = 0; the adjoint is singular
    x = torch.zeros(2, 60, dtype=torch.float64, requires_grad=True)
    turn = torch.ones(60, 60, dtype=torch.float64) / 60

    def f(z: Tensor, x: Tensor) -> Tensor:
        return z @ turn + x

    z = DEQ(f)(x)
    with pytest.raises(SolveError, match="Implicit: adjoint: expected status CONVERGED"):
        z.sum().backward()
    quiet = DEQ(f, throw=False, hypergradient=Implicit(NeumannOrKrylov(rtol=1e-8)))
    with pytest.warns(UserWarning, match="Implicit: adjoint"):
        quiet(x).sum().backward()


def test_bad_input_is_refused_by_name(cell: Cell, x: Tensor) -> None:
    with pytest.raises(TypeError, match="DEQ: expected `f` to be callable"):
        DEQ(3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="DEQ: expected `solver` to be a solver"):
        DEQ(cell, solver=Anderson)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="DEQ: expected `hypergradient` to be a hypergradient"):
        DEQ(cell, hypergradient="implicit")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="DEQ: expected every tensor of `x` and `init` to have the same leading batch"):
        DEQ(cell)(x, init=torch.zeros(3, SIZE, dtype=torch.float64))
    with pytest.raises(ValueError, match="expected `f\\(z, x\\)` of the shape of z"):
        DEQ(lambda z, x: z[:, :2])(x)
    with pytest.raises(ValueError, match="DEQ: expected `shape` or `init`"):
        DEQ(cell)(torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="expected finite `outer_params`"):
        DEQ(cell)(x * torch.nan)
