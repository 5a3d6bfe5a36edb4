"""Tasks: published counts and ranges, exact oracles against slow ones, and the protocol's figures by hand."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch

from sciopt.domains.offline import (
    AbstractTask,
    AtMostQuantile,
    CategoricalSpace,
    Ehrlich,
    SampleBelow,
    Table,
    TableTask,
    WithinMutations,
    evaluate_batch,
    gb1,
    nk_landscape,
    rough_mount_fuji,
    tf_bind_8,
    transcription_factors,
)
from tests.data_helpers import require_data


def test_tf_bind_8_has_the_published_rows() -> None:
    require_data("offline/tf_binding/SIX6_REF_R1_8mers.txt")
    task = tf_bind_8()
    assert len(task.table) == 65_792 and len(torch.unique(task.table.designs, dim=0)) == 65_536
    visible = task.visible()
    assert len(visible) == 32_898
    assert task.bounds == (-0.47907, 0.49105) and task.pool() is None
    assert float(task.score(task.space.encode(["AAAAAAAC", "GTTTTTTT"]))[1]) == -0.12351
    report = evaluate_batch(task, visible.best(128))
    assert report.best == pytest.approx(0.439, abs=5e-4)  # the best visible score that the literature reports
    assert report.distinct == 128 and report.unseen == 0.0


def test_other_factors_and_files_of_ones_own(tmp_path: Path) -> None:
    assert set(transcription_factors()) == {"CRX_REF_R1", "EGR2_REF_R1", "NR1H4_REF_R1", "SIX6_REF_R1"}
    path = tmp_path / "mine.txt"
    path.write_text("8-mer\t8-mer\tE-score\nAAAAAAAA\tTTTTTTTT\t0.5\nAAAAAAAC\tGTTTTTTT\t-0.5\n")
    task = tf_bind_8(path, AtMostQuantile(quantile=0.2))
    assert task.space.decode(task.visible().designs) == ["AAAAAAAC", "GTTTTTTT"]
    assert torch.isnan(task.score(task.space.encode(["CCCCCCCC"]))).all()
    assert task.pool() is not None
    path.write_text("8-mer\t8-mer\tE-score\nAAAAAAAA\tTTTTTTTX\t0.5\n")
    with pytest.raises(ValueError, match="'TTTTTTTX' in row 1"):
        tf_bind_8(path)
    with pytest.raises(ValueError, match="expected `factor` as a path or one of CRX_REF_R1"):
        tf_bind_8("FOX")


def test_gb1_is_normalised_by_its_best() -> None:
    require_data("offline/gb1/four_mutations_full_data.csv.zip")
    task = gb1()
    assert len(task.table) == 149_361 and task.bounds == (0.0, 8.76196565571)
    wild = task.space.encode(["VDGV", "FWAA"])
    assert float(task.score(wild)[0]) == 1.0 and float(task.score(wild)[1]) == pytest.approx(8.76196565571)
    visible = task.visible()
    assert len(visible) == 2000 and float(visible.scores.max()) <= 2.1527
    near = TableTask(
        domain=task.domain, table=task.table, rule=WithinMutations(reference="VDGV", mutations=2), floor=0.0
    )
    assert len(near.visible()) == 1 + 76 + 2091
    assert len(task.pool()) == 149_361  # type: ignore[arg-type]


def slow_ehrlich(task: Ehrlich, x: list[int]) -> float:
    """The definition, letter by letter."""
    if any(float(task.transitions[a, b]) == 0 for a, b in zip(x[:-1], x[1:], strict=True)):
        return -float("inf")
    value, levels = 1.0, task.quantization or task.motif_length
    for k in range(task.motifs):
        motif, offsets = task.motif(k)
        best = 0
        for start in range(task.length - offsets[-1]):
            best = max(best, sum(x[start + o] == m for m, o in zip(motif, offsets, strict=True)))
        value *= int(best * levels / task.motif_length) / levels
    return value


@pytest.mark.parametrize("quantization", [None, 2])
def test_ehrlich_follows_its_definition(quantization: int | None, generator: torch.Generator) -> None:
    for seed in range(6):
        task = Ehrlich(
            states=6, length=12, motifs=2, motif_length=3, quantization=quantization, seed=seed, rows=200, ceiling=0.5
        )
        assert torch.equal(task.score(task.optimum()), torch.ones(1, dtype=torch.float64))
        designs = torch.cat(
            [task.initial(40, generator), task.space.random(40, generator), task.visible().designs[:40]]
        )
        expected = [slow_ehrlich(task, row) for row in designs.tolist()]
        assert task.score(designs).tolist() == pytest.approx(expected)
        assert -float("inf") in expected and any(e > 0 for e in expected)
        letters = [task.motif(k)[0] for k in range(2)]
        assert all(len(set(m)) == 3 for m in letters)


def test_ehrlich_of_the_benchmark_has_a_feasible_table_below_its_ceiling() -> None:
    task = Ehrlich()
    visible = task.visible()
    assert visible.designs.shape == (5000, 32) and len(torch.unique(visible.designs, dim=0)) == 5000
    assert bool(task.feasible(visible.designs).all()) and float(visible.scores.max()) <= 0.5
    assert float(visible.scores.max()) > 0
    assert float(task.score(task.optimum())) == 1.0
    assert torch.allclose(task.transitions.sum(-1), torch.ones(32, dtype=torch.float64))
    assert torch.equal(task.visible().designs, Ehrlich().visible().designs)
    reach = torch.linalg.matrix_power((task.transitions > 0).double(), 32)
    assert bool((reach > 0).all())  # every state can be reached from every other


def test_nk_landscapes_are_additive_without_neighbours_and_rough_with() -> None:
    flat = nk_landscape(length=8, neighbours=0, alphabet="abc")
    scores = flat.table.scores.reshape(3, -1)
    torch.testing.assert_close((scores[1] - scores[0]).std(), torch.zeros((), dtype=torch.float64), atol=1e-12, rtol=0)

    def peaks(task: TableTask) -> int:
        grid = task.table.scores.reshape([task.space.letters] * task.space.length)
        top = torch.ones_like(grid, dtype=torch.bool)
        for axis in range(grid.ndim):
            top &= grid >= grid.amax(axis, keepdim=True)
        return int(top.sum())

    assert peaks(flat) == 1
    counts = [peaks(nk_landscape(length=8, neighbours=k, seed=3)) for k in (0, 2, 7)]
    assert counts[0] == 1 and counts[0] < counts[1] < counts[2]
    assert peaks(rough_mount_fuji(length=8, roughness=0.0)) == 1 < peaks(rough_mount_fuji(length=8, roughness=0.5))


def test_spaces_translate_number_enumerate_and_mutate(generator: torch.Generator) -> None:
    space = CategoricalSpace(length=3, alphabet="ACG")
    every = space.everything()
    assert space.decode(every) == ["".join(p) for p in product("ACG", repeat=3)]
    assert torch.equal(space.number(every), torch.arange(27)) and torch.equal(space.encode(space.decode(every)), every)
    assert float(space.one_hot(every).sum()) == 81.0
    assert ((space.mutated(every, 2, generator) != every).sum(-1) == 2).all()
    with pytest.raises(ValueError, match="'ACT' in row 1"):
        space.encode(["ACG", "ACT"])
    with pytest.raises(ValueError, match=r"integers in \[0, 3\)"):
        space.decode(torch.tensor([[0, 1, 3]]))
    with pytest.raises(ValueError, match="expected `size` at most 4194304 to enumerate"):
        CategoricalSpace(length=30, alphabet="AC").everything()


def test_the_report_counts_by_hand() -> None:
    space = CategoricalSpace(length=2, alphabet="ab")
    designs = space.encode(["aa", "ab", "ba"])
    task = TableTask(
        domain=space,
        table=Table(designs=designs, scores=torch.tensor([0.0, 1.0, 4.0], dtype=torch.float64)),
        rule=AtMostQuantile(quantile=0.5),
    )
    report = evaluate_batch(task, space.encode(["ba", "bb", "ab", "ba"]))
    assert report.scores.tolist() == [1.0, 0.0, 0.25, 1.0] and report.best == 1.0 and report.median == 0.625
    assert (report.distinct, report.unscored, report.unseen) == (3, 1, 0.75)
    # distances to {aa, ab}: 1, 1, 0, 1; of pairs: ba-bb 1, ba-ab 2, ba-ba 0, bb-ab 1, bb-ba 1, ab-ba 2
    assert report.novelty == pytest.approx(3 / 4 / 2) and report.diversity == pytest.approx(7 / 6 / 2)
    assert len(SampleBelow(quantile=0.9, count=1, seed=0).rows(space, task.table)) == 1
    assert task.space.decode(task.table.best(2)) == ["ba", "ab"]
    with pytest.raises(ValueError, match="expected 3 finite `scores`"):
        Table(designs=designs, scores=torch.tensor([0.0, torch.nan, 1.0]))
    with pytest.raises(ValueError, match="leave visible rows"):
        TableTask(domain=space, table=task.table, rule=WithinMutations(reference="bb", mutations=0)).visible()


@pytest.mark.parametrize(
    ("designs", "scores", "error", "message"),
    [
        (
            torch.rand(3, 2),
            torch.arange(3.0),
            TypeError,
            "`designs` as integers of shape .n, length., got .3, 2. torch.float32",
        ),
        (torch.ones(3, 2).bool(), torch.arange(3.0), TypeError, "got .3, 2. torch.bool"),
        (torch.arange(3), torch.arange(3.0), TypeError, "got .3,. torch.int64"),
        ([[1], [2]], torch.arange(2.0), TypeError, "`designs` as a tensor of real numbers, got list"),
        (torch.ones(3, 2).long(), [1.0, 2.0, 3.0], TypeError, "`scores` as a tensor of real numbers, got list"),
        (torch.ones(3, 2).long(), torch.zeros(3, dtype=torch.complex64), TypeError, "got torch.complex64"),
        (
            torch.ones(3, 2).long(),
            torch.full((3,), 1e200, dtype=torch.float64),
            ValueError,
            "of at most 1e.100 in size",
        ),
    ],
)
def test_tables_of_another_kind_are_refused(designs, scores, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Table(designs=designs, scores=scores)


def test_tables_of_other_integers_are_converted() -> None:
    table = Table(designs=torch.ones(3, 2, dtype=torch.uint8), scores=torch.arange(3))
    assert table.designs.dtype == torch.int64 and table.scores.dtype == torch.float64


def test_a_table_of_long_sequences_is_an_oracle() -> None:
    space = CategoricalSpace(length=60, alphabet="ACGT")
    designs = space.random(50, torch.Generator().manual_seed(0))
    scores = torch.arange(50.0, dtype=torch.float64)
    task = TableTask(domain=space, table=Table(designs=designs, scores=scores), rule=AtMostQuantile(quantile=0.5))
    asked = torch.cat([designs[[7, 3, 7]], space.random(1, torch.Generator().manual_seed(9))])
    torch.testing.assert_close(task.score(asked), torch.tensor([7.0, 3.0, 7.0, torch.nan]).double(), equal_nan=True)
    assert evaluate_batch(task, asked).unscored == 1


def test_a_table_that_contradicts_itself_is_no_oracle() -> None:
    space = CategoricalSpace(length=2, alphabet="AC")
    table = Table(designs=space.encode(["AA", "AC", "AA"]), scores=torch.tensor([1.0, 2.0, 3.0]))
    with pytest.raises(ValueError, match="one score for each design, got 1 and 3 for 'AA'. Average them first"):
        TableTask(domain=space, table=table, rule=AtMostQuantile(quantile=0.5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CategoricalSpace(length=2.5, alphabet="AC"), "`length` as a whole number, got 2.5"),  # type: ignore[arg-type]
        (lambda: CategoricalSpace(length=2, alphabet=["AA", "C"]), "`alphabet` as one text of all letters"),  # type: ignore[arg-type]
        (lambda: AtMostQuantile(quantile=50), "AtMostQuantile: expected `quantile` in .0, 1., got 50"),
        (lambda: SampleBelow(quantile=0.0, count=3, seed=0), "SampleBelow: expected `quantile`"),
        (lambda: SampleBelow(quantile=0.5, count=0, seed=0), "SampleBelow: expected `count` >= 1"),
        (lambda: WithinMutations(reference="AA", mutations=-1), "WithinMutations: expected `mutations` >= 0"),
    ],
)
def test_rules_out_of_range_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


class OwnTask(AbstractTask):
    """A user's task, as the page says, with what they may get wrong."""

    def __init__(self, bounds=(0.0, 3.0), shape=(-1,)) -> None:
        self.limits, self.shape = bounds, shape

    @property
    def space(self) -> CategoricalSpace:
        return CategoricalSpace(length=3, alphabet="AC")

    @property
    def bounds(self) -> tuple[float, float]:
        return self.limits

    def visible(self) -> Table:
        designs = self.space.everything()[:6]
        return Table(designs=designs, scores=self.score(designs).flatten())

    def score(self, designs: torch.Tensor) -> torch.Tensor:
        return designs.sum(-1).double().reshape(self.shape)

    def pool(self) -> torch.Tensor | None:
        return None


def test_a_task_of_ones_own_and_what_may_be_wrong_with_it() -> None:
    last = OwnTask().space.everything()[6:]
    assert evaluate_batch(OwnTask(), last).best == 1.0
    with pytest.raises(ValueError, match="OwnTask: expected `bounds` as two finite scores in order, got .3.0, 3.0."):
        evaluate_batch(OwnTask(bounds=(3.0, 3.0)), last)
    with pytest.raises(ValueError, match="OwnTask: expected `score` to return 2 scores, one per design, got .2, 1."):
        evaluate_batch(OwnTask(shape=(-1, 1)), last)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "TableTask: expected `table` with at least one row, got 0"),
        (b"8-mer\treverse\tE-score\n", "TableTask: expected `table` with at least one row, got 0"),
        (b"8-mer\treverse\tE-score\n\xff\xfe\n", "tf_bind_8: expected columns 8-mer.* can't decode"),
        (b"8-mer,reverse,E-score\nAAAAAAAA,TTTTTTTT,1\n", "tf_bind_8: expected columns 8-mer"),
        (b"8-mer\treverse\tE-score\nAAAAAAAA\tTTTTTTTT\tnan\n", "2 finite `scores`"),
    ],
)
def test_files_of_another_form_are_refused(tmp_path, data: bytes, message: str) -> None:
    (tmp_path / "table.txt").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        tf_bind_8(tmp_path / "table.txt")


def test_empty_lines_of_a_file_are_nothing(tmp_path) -> None:
    text = "8-mer\treverse\tE-score\nAAAAAAAA\tTTTTTTTT\t0.5\n\nAAAAAAAC\tGTTTTTTT\t0.25\n\n"
    (tmp_path / "table.txt").write_text(text)
    assert tf_bind_8(tmp_path / "table.txt").bounds == (0.25, 0.5)
