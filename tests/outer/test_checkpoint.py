"""A resumed run equals an uninterrupted one, bit for bit; what cannot be continued is refused with advice."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sciopt import BilevelProblem, Minimize, OptimizeResult, optimize
from sciopt.outer import MMA, CheckpointError, StepRecord
from sciopt.outer.checkpoint import pack, read, unpack, write
from tests.outer.problems import F64, follower, shrinkage

DATA = torch.tensor([2.0, -3.0, 1.5], dtype=F64)
TARGETS = torch.tensor([1.0, -1.0, 0.3], dtype=F64)
ZEROS = torch.zeros(3, dtype=F64)
ADAM = partial(torch.optim.Adam, lr=0.1, amsgrad=True)
TORCH_LBFGS = partial(torch.optim.LBFGS, max_iter=2, line_search_fn="strong_wolfe")


def noisy(generator: torch.Generator) -> BilevelProblem:
    """An outer loss with noise from the generator, so that a run depends on its state."""
    inner = shrinkage(TARGETS, DATA)[0].inner

    def loss(theta: Tensor, phi: Tensor) -> Tensor:
        noise = torch.randn(3, generator=generator, dtype=F64)
        return 0.5 * ((theta - TARGETS + 0.1 * noise) ** 2).sum()

    return BilevelProblem(inner=inner, outer_loss=loss)


class Killed(Exception):
    """Stands for whatever ends a process."""


def kill_at(step: int) -> Callable[[StepRecord], None]:
    def callback(record: StepRecord) -> None:
        if record.step == step:
            raise Killed

    return callback


def assert_same(one: OptimizeResult, two: OptimizeResult) -> None:
    assert torch.equal(one.outer_params, two.outer_params) and torch.equal(one.inner_params, two.inner_params)
    assert (one.value, one.status, one.message, one.num_steps) == (two.value, two.status, two.message, two.num_steps)
    for name in set(one.history) - {"seconds"}:
        left, right = (torch.tensor(r.history[name], dtype=F64) for r in (one, two))
        torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True, msg=name)


@pytest.mark.parametrize(("outer", "every"), [(ADAM, 1), (ADAM, 4), (TORCH_LBFGS, 1)], ids=["Adam", "Adam-4", "LBFGS"])
def test_a_resumed_torch_run_is_the_uninterrupted_one(tmp_path: Path, outer: Any, every: int) -> None:
    def run(generator: torch.Generator, **options: Any) -> OptimizeResult:
        return optimize(noisy(generator), ZEROS, init=ZEROS, outer=outer, max_steps=8, generator=generator, **options)

    def fresh() -> torch.Generator:
        return torch.Generator().manual_seed(5)

    whole = run(fresh())
    file = tmp_path / "run.safetensors"
    keep = {"checkpoint": file, "checkpoint_every": every, "resume": True}
    for step in (3, 5):  # killed twice
        with pytest.raises(Killed):
            run(fresh(), callbacks=[kill_at(step)], **keep)
    assert_same(run(fresh(), **keep), whole)
    assert_same(run(fresh(), **keep), whole)  # a finished run, called again
    assert os.listdir(tmp_path) == [file.name]


def test_a_resumed_design_step_is_the_uninterrupted_one(tmp_path: Path) -> None:
    def run(max_steps: int, **options: Any) -> OptimizeResult:
        weights = torch.tensor([4.0, 1.0, 9.0], dtype=F64)
        ones = torch.ones(3, dtype=F64)
        budget = {"bounds": (1e-3, 5.0), "inequality": lambda theta, phi: phi.sum()[None] - 3.0}
        return optimize(
            follower(weights), ones, init={"x": ones}["x"], outer=MMA(), max_steps=max_steps, **budget, **options
        )

    file = tmp_path / "run"
    run(4, checkpoint=file)
    assert_same(run(9, checkpoint=file, resume=True), run(9))  # a larger budget continues


def test_an_inner_failure_leaves_the_checkpoint(tmp_path: Path) -> None:
    inner = Minimize(lambda theta, phi: 0.5 * ((theta - phi) ** 2).sum())
    problem = BilevelProblem(inner=inner, outer_loss=lambda theta, phi: (theta - 0.55).sqrt().sum())
    ones, file = torch.ones(1, dtype=F64), tmp_path / "run"
    sgd = partial(torch.optim.SGD, lr=0.1)
    failed = optimize(problem, ones, init=ones, outer=sgd, throw=False, checkpoint=file)
    again = optimize(problem, ones, init=ones, outer=sgd, throw=False, checkpoint=file, resume=True)
    assert failed.num_steps > 1 and torch.equal(again.outer_params, failed.outer_params)
    assert_same(again, failed)


def corrupt(file: Path, how: str) -> None:
    data = bytearray(file.read_bytes())
    if how == "flipped byte":
        data[-3] ^= 1
    elif how == "flipped text":
        at = data.index(b"point")
        data[at] ^= 1
    elif how == "truncated":
        data = data[: len(data) // 2]
    elif how == "empty":
        data = bytearray()
    else:
        data = bytearray(b"something else altogether, long enough to be read")
    file.write_bytes(bytes(data))


@pytest.mark.parametrize("how", ["flipped byte", "flipped text", "truncated", "empty", "foreign"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, how: str) -> None:
    problem, _ = shrinkage(TARGETS, DATA)
    file = tmp_path / "run"
    optimize(problem, ZEROS, init=ZEROS, outer=ADAM, max_steps=2, checkpoint=file)
    corrupt(file, how)
    before = file.read_bytes()
    with pytest.raises(CheckpointError, match="expected a whole checkpoint.*delete it to start anew"):
        optimize(problem, ZEROS, init=ZEROS, outer=ADAM, max_steps=2, checkpoint=file, resume=True)
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"problem": shrinkage(TARGETS, DATA + 1e-12)[0]}, "`problem`"),
        (
            {"problem": BilevelProblem(inner=shrinkage(TARGETS, DATA)[0].inner, outer_loss=lambda t, p: t.sum())},
            "`problem`",
        ),
        ({"outer": partial(torch.optim.Adam, lr=0.2)}, "`outer`"),
        ({"outer_params": ZEROS + 0.1}, "`outer_params`"),
        ({"init": ZEROS.clone() + 1.0}, "`init`"),
        ({"bounds": (-1.0, 1.0)}, "`bounds`"),
        ({"warm_start": False}, "`warm_start`"),
        ({"generator": torch.Generator()}, "`generator`"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    call = {"problem": shrinkage(TARGETS, DATA)[0], "outer_params": ZEROS, "init": ZEROS, "outer": ADAM, "max_steps": 1}

    def run(**options: Any) -> None:
        every = {**call, "checkpoint": tmp_path / "run", **options}
        optimize(every.pop("problem"), every.pop("outer_params"), **every)

    run()
    run(resume=True, problem=shrinkage(TARGETS, DATA)[0])  # the same code and data, made again
    with pytest.raises(CheckpointError, match=f"differs in {named}.*file of its own"):
        run(resume=True, **change)
    with pytest.raises(CheckpointError, match="Pass resume=True to continue it"):
        run()


def test_resume_without_a_file_name_is_refused() -> None:
    with pytest.raises(ValueError, match="expected `checkpoint` with resume=True"):
        optimize(shrinkage(TARGETS, DATA)[0], ZEROS, init=ZEROS, outer=ADAM, resume=True)


def test_a_checkpoint_in_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="Create the folder first"):
        optimize(
            shrinkage(TARGETS, DATA)[0], ZEROS, init=ZEROS, outer=ADAM, checkpoint=tmp_path / "none" / "run.safetensors"
        )


def test_any_plain_state_survives_the_file(tmp_path: Path) -> None:
    state = {
        "numbers": [1, 0.1, float("inf"), -0.0, True, None, "text"],
        3: (torch.arange(3), [torch.tensor(2.0, dtype=torch.bfloat16), torch.zeros(0, 2)]),
        "mask": torch.tensor([True, False]),
        "view": torch.arange(6.0).reshape(2, 3).T,
    }
    write(tmp_path / "file", state, {"a": 1})
    back = read(tmp_path / "file", {"a": 1}, torch.device("cpu"))
    assert str(back) == str(state) and torch.equal(back["view"], state["view"])
    with pytest.raises(TypeError, match="expected an optimizer state of tensors"):
        pack({"a": object()}, {})
    assert unpack(pack((1, [2]), {}), {}, torch.device("cpu")) == (1, [2])
