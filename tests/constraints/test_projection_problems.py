"""Projections as inner problems: their optimality conditions and derivatives are those of the functions."""

from __future__ import annotations

import pytest
import torch

from sciopt.constraints import (
    box_problem,
    constrained_to,
    l1_ball_problem,
    project_box,
    project_l1_ball,
    project_simplex,
    project_volume,
    simplex_problem,
    volume_problem,
)
from sciopt.params import ravel
from tests.constraints.helpers import F64, normal

POINT = torch.tensor([0.9, -0.4, 0.35, 1.6, 0.1], dtype=F64)
WEIGHTS = torch.tensor([1.0, 2.0, 0.5, 1.5, 1.0], dtype=F64)


def with_multipliers(problem, y, phi, tau, w, equality, capped):
    """The full unknown from the projection: multipliers by stationarity ``y - phi + tau w - mu_low + mu_high = 0``."""
    reduced = y - phi + tau * w
    parts = [reduced.clamp(min=0.0)] + ([(-reduced).clamp(min=0.0)] if capped else [])
    unknown = {"primal": y}
    if equality:
        unknown["equality"] = tau.reshape(1)
    else:
        parts.append(tau.reshape(1))
    unknown["inequality"] = torch.cat(parts)
    assert unknown.keys() == problem.start(y, phi).keys()
    return unknown


def implicit_jacobian(problem, unknown, phi):
    """d primal / d phi by a dense solve with the residual's Jacobian."""
    layout, flat = ravel(unknown)
    size = unknown["primal"].numel()

    def residual(z, phi):
        return layout.flatten(problem.optimality(layout.unflatten(z), phi))

    assert float(residual(flat, phi).abs().max()) < 1e-12
    a = torch.func.jacrev(residual, argnums=0)(flat, phi)
    b = torch.func.jacrev(residual, argnums=1)(flat, phi)
    first = {key: value for key, value in layout.unflatten(torch.arange(flat.numel())).items()}["primal"]
    solved = -torch.linalg.solve(a, b)
    assert first.numel() == size
    return solved[first]


@pytest.mark.parametrize(
    ("problem", "projection", "w", "equality", "capped"),
    [
        (simplex_problem(), lambda p: project_simplex(p), torch.ones(5, dtype=F64), True, False),
        (
            simplex_problem(1.5, upper=0.8),
            lambda p: project_simplex(p, 1.5, upper=0.8),
            torch.ones(5, dtype=F64),
            True,
            True,
        ),
        (volume_problem(2.0, weights=WEIGHTS), lambda p: project_volume(p, 2.0, weights=WEIGHTS), WEIGHTS, True, True),
        (
            volume_problem(2.0, weights=WEIGHTS, equality=False),
            lambda p: project_volume(p, 2.0, weights=WEIGHTS, equality=False),
            WEIGHTS,
            False,
            True,
        ),
    ],
)
def test_kkt_statement_agrees_with_the_function_in_value_and_derivative(problem, projection, w, equality, capped):
    y = projection(POINT)
    free = (y > 0) & (y < (0.8 if capped and w[1] == 1.0 else 1.0))
    tau = ((POINT - y) / w)[free][0]
    unknown = with_multipliers(problem, y, POINT, tau, w, equality, capped)
    torch.testing.assert_close(
        implicit_jacobian(problem, unknown, POINT), torch.func.jacrev(projection)(POINT), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize(
    ("problem", "projection"),
    [
        (box_problem(0.0, 1.0), lambda p: project_box(p, 0.0, 1.0)),
        (l1_ball_problem(1.3), lambda p: project_l1_ball(p, 1.3)),
        (constrained_to(lambda x, phi: project_simplex(x)), project_simplex),
    ],
)
def test_projected_minima_agree_with_the_function(problem, projection):
    y = projection(POINT)
    assert float(problem.optimality(y, POINT).abs().max()) < 1e-15
    moved = y + 0.1 * normal(5)
    assert float(problem.optimality(moved, POINT).abs().max()) > 1e-3
    a = torch.func.jacrev(lambda x: problem.optimality(x, POINT))(y)
    b = torch.func.jacrev(lambda p: problem.optimality(y, p))(POINT)
    torch.testing.assert_close(-torch.linalg.solve(a, b), torch.func.jacrev(projection)(POINT), rtol=0, atol=1e-12)


def test_batches_and_design_variables():
    problem = volume_problem(1.0, batch_ndim=1)
    point, volume = normal(3, 4), torch.tensor([0.5, 1.0, 2.0], dtype=F64)
    unknown = problem.start(torch.zeros(3, 4, dtype=F64), {"point": point, "volume": volume})
    assert unknown["equality"].shape == (3, 1) and unknown["inequality"].shape == (3, 8)
    residual = problem.optimality(unknown, {"point": point, "volume": volume})
    torch.testing.assert_close(residual["equality"][:, 0], -volume)
    torch.testing.assert_close(residual["primal"], -point)
    upper = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=F64)
    boxed = box_problem(0.0, batch_ndim=1)
    outer = {"point": point, "upper": upper}
    assert not boxed.optimality(project_box(point, 0.0, upper), outer).any()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="simplex_problem: expected parameters among point, radius, got `volume`"):
        simplex_problem().start(POINT, {"point": POINT, "volume": 1.0})
    with pytest.raises(ValueError, match=r"expected `point` in `outer_params`, got \['lower'\]"):
        box_problem().optimality(POINT, {"lower": 0.0})
