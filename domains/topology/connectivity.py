"""What holds a structure: rigid motions left free, and islands of material that nothing holds."""

from __future__ import annotations

import itertools

import numpy as np

from sciopt.domains.topology.grid import Grid

__all__ = ["conductor_joined", "free_motions", "held_nodes", "joined_to_supports", "loose_island", "reached"]

AXES = "xyz"


def free_motions(grid: Grid, fixed: np.ndarray) -> list[str]:
    """Names of the rigid motions that the held unknowns leave free.

    Example:
        >>> free_motions(Grid(nx=2, ny=1), np.array([0, 2]))
        ['translation in y']
        >>> free_motions(Grid(nx=2, ny=1, nz=1), np.arange(3))
        ['rotation about x', 'rotation about y', 'rotation about z']
    """
    d = grid.ndim
    node, axis = np.divmod(fixed, d)
    held = held_motions(grid.positions()[node], axis)
    names = [f"translation in {name}" for i, name in enumerate(AXES[:d]) if not held[:, i].any()]
    rank = int(np.linalg.matrix_rank(held)) if len(fixed) else 0
    missing = held.shape[1] - rank - len(names)
    if not missing:
        return names
    if d == 2:
        return [*names, "rotation"]
    around = [f"rotation about {name}" for i, name in enumerate(AXES) if free_alone(held, 3 + i)]
    return [*names, *(around if len(around) == missing else [f"{missing} rotations" if missing > 1 else "a rotation"])]


def held_motions(position: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """Rows: components ``axis`` at ``position`` of the unit motions: translations, then rotations (one in the plane)."""
    d = position.shape[-1]
    moved = [(axis == i).astype(float) for i in range(d)]
    for i, j in ((0, 1),) if d == 2 else ((1, 2), (2, 0), (0, 1)):  # about z; about x, y, z
        moved.append(np.where(axis == i, -position[:, j], np.where(axis == j, position[:, i], 0.0)))
    return np.stack(moved, axis=-1)


def free_alone(held: np.ndarray, motion: int) -> bool:
    """Whether a motion, with any translation added to it, moves no held unknown."""
    if not len(held):
        return True
    basis = held[:, :3]
    rest = held[:, motion] - basis @ np.linalg.lstsq(basis, held[:, motion], rcond=None)[0]
    return bool(np.abs(rest).max() < 1e-9 * max(1.0, np.abs(held).max()))


def loose_island(
    grid: Grid, present: np.ndarray, held: np.ndarray, load: np.ndarray, solid: np.ndarray
) -> tuple[int, np.ndarray, list[str]] | None:
    """The first island of elements that carries a load or has to be solid, and that its supports do not hold.

    Args:
        grid: the elements.
        present: elements that may have material, of the grid's shape; elements join across sides.
        held: numbers of the unknowns that are held, by supports or springs.
        load: force on every unknown, ``(num_dofs,)``.
        solid: elements that have to be solid.

    Returns:
        Its number of elements, the centre of its first element and its free motions; None when all is held. An island
        without elements is a loaded node that touches no material.

    Example:
        >>> grid = Grid(nx=5, ny=1)
        >>> gap = np.array([[True, True, False, True, True]])
        >>> size, centre, free = loose_island(grid, gap, np.arange(4), np.eye(24)[23], np.zeros_like(gap))
        >>> size, centre.tolist(), len(free)
        (2, [3.5, 0.5], 3)
    """
    d = grid.ndim
    labels = islands(present)
    flat = labels.reshape(-1)
    nodes = grid.element_nodes()
    loaded = np.unique(np.setdiff1d(np.flatnonzero(load), held) // d)  # forces on held unknowns need no material
    bare = loaded[~marked(nodes[flat > 0], grid.num_nodes)[loaded]]
    if bare.size:
        return 0, grid.positions()[bare[0]], []
    for island in range(1, int(flat.max()) + 1):
        inside = marked(nodes[flat == island], grid.num_nodes)
        if not (inside[loaded].any() or solid[labels == island].any()):
            continue
        free = free_motions(grid, held[inside[held // d]])
        if free:
            first = np.flatnonzero(flat == island)[0]
            return int((flat == island).sum()), grid.centres().reshape(-1, d)[first], free
    return None


def marked(numbers: np.ndarray, count: int) -> np.ndarray:
    """True at these numbers, ``(count,)``.

    Example:
        >>> marked(np.array([2, 0, 2]), 4).tolist()
        [True, False, True, False]
    """
    mask = np.zeros(count, dtype=bool)
    mask[numbers] = True
    return mask


def islands(present: np.ndarray) -> np.ndarray:
    """Number of the island, from 1, of each element that is present; elements join across sides.

    Example:
        >>> islands(np.array([[True, False, True]])).tolist()
        [[1, 0, 2]]
    """
    from scipy.ndimage import label

    labels = np.zeros(present.shape, dtype=np.int64)
    label(present, output=labels)
    return labels


def joined_to_supports(
    grid: Grid,
    density: np.ndarray,
    fixed: np.ndarray,
    load: np.ndarray,
    *,
    springs: np.ndarray | None = None,
    cut: float = 0.5,
) -> bool:
    """Whether all loads of a finished design act on material that its supports hold against every rigid motion.

    Material is what is denser than ``cut``; elements join across sides, as a corner or an edge is no more than a hinge. An
    island on a roller alone is held by nothing in the roller's direction, and does not count.

    Args:
        grid: the elements.
        density: built densities of the grid's shape.
        fixed: numbers of the fixed unknowns; what loads them flows off into the supports at once.
        load: ``(num_dofs,)`` or ``(cases, num_dofs)``; a node where none of the cases is above a millionth of the largest
            force counts as unloaded.
        springs: stiffness of springs to the ground ``(num_dofs,)``, which hold as supports do; None: none.
        cut: densities above it count as material.

    Example:
        >>> grid = Grid(nx=3, ny=1)
        >>> joined_to_supports(grid, np.array([[1.0, 0.2, 1.0]]), np.arange(4), np.eye(16)[15])
        False
    """
    held = fixed if springs is None else np.union1d(fixed, np.flatnonzero(springs))
    size = np.abs(np.atleast_2d(load)).max(axis=0)
    size[fixed] = 0.0
    loaded = marked(np.flatnonzero(size > 1e-6 * size.max()) // grid.ndim, grid.num_nodes)
    return bool(held_nodes(grid, density > cut, held, loaded)[loaded].all())


def held_nodes(grid: Grid, material: np.ndarray, held: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Nodes of the islands of material that are held against every rigid motion, ``(num_nodes,)``.

    Args:
        grid: the elements; they join across sides.
        material: which elements there are, bool of the grid's shape.
        held: numbers of the unknowns that are held.
        wanted: nodes, bool ``(num_nodes,)``; islands without any of them are left out.

    Example:
        >>> grid = Grid(nx=3, ny=1)
        >>> every = np.ones(8, dtype=bool)
        >>> held_nodes(grid, np.array([[True, False, True]]), np.arange(4), every).tolist()
        [True, True, True, True, False, False, False, False]
    """
    d = grid.ndim
    labels, nodes = islands(material).reshape(-1), grid.element_nodes()
    at_support = marked(held // d, grid.num_nodes)
    good = np.zeros(grid.num_nodes, dtype=bool)
    touching = set(labels[at_support[nodes].any(axis=1)].tolist())
    for island in (set(labels[wanted[nodes].any(axis=1)].tolist()) & touching) - {0}:
        inside = marked(nodes[labels == island], grid.num_nodes)
        if not free_motions(grid, held[inside[held // d]]):
            good |= inside
    return good


def conductor_joined(grid: Grid, density: np.ndarray, sinks: np.ndarray, cut: float = 0.5) -> bool:
    """Whether there are elements denser than ``cut``, and all of them are joined to a sink.

    Args:
        grid: the elements.
        density: built densities of the grid's shape.
        sinks: numbers of the nodes that are sinks.
        cut: densities above it count as the good conductor.

    Example:
        >>> conductor_joined(Grid(nx=3, ny=1), np.array([[1.0, 0.2, 1.0]]), np.array([0]))
        False
    """
    labels = islands(density > cut).reshape(-1)
    at_sink = marked(sinks, grid.num_nodes)[grid.element_nodes()].any(axis=1)
    found = set(labels.tolist()) - {0}
    return bool(found) and found <= set(labels[at_sink].tolist())


def reached(grid: Grid, material: np.ndarray, sinks: np.ndarray) -> np.ndarray:
    """Nodes of the islands of material that touch one of ``sinks`` (numbers of nodes), ``(num_nodes,)``.

    Example:
        >>> reached(Grid(nx=3, ny=1), np.array([[True, False, True]]), np.array([0])).sum()
        np.int64(4)
    """
    labels, nodes = islands(material).reshape(-1), grid.element_nodes()
    cold = np.unique(labels[marked(sinks, grid.num_nodes)[nodes].any(axis=1)])
    return marked(nodes[np.isin(labels, cold[cold > 0])], grid.num_nodes)


def describe_place(place: np.ndarray) -> str:
    """Coordinates for a message: ``(3, 0.5)``.

    Example:
        >>> describe_place(np.array([3.0, 0.5]))
        '(3, 0.5)'
    """
    return f"({', '.join(f'{x:g}' for x in itertools.chain(place))})"
