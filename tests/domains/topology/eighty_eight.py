"""The 88-line algorithm as a plain numpy and SciPy loop, written from the paper; it shares nothing with the package.

Its numbering down the columns makes a narrow band: LAPACK's banded Cholesky takes a third of the time of a sparse LU. The
bisection needs the sum of the filtered densities alone, which is one product with the column sums of the filter; where that
comes within rounding of the allowed volume, the densities are filtered and summed as the paper has it.

Andreassen, Clausen, Schevenels, Lazarov, Sigmund. "Efficient topology optimization in MATLAB using 88 lines of code".
Struct. Multidisc. Optim. 43, 2011. Half MBB beam; element stiffness in its closed form.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy.linalg import solveh_banded

E_MIN, NU, PENALTY = 1e-9, 0.3, 3.0


# Andreassen et al. 2011, section 4: compliances of the half MBB beam, volume 0.5, penalty 3, radius 0.04 nx.
PUBLISHED = {
    (60, 20): {"sensitivity": "216.81", "density": "233.71"},
    (150, 50): {"sensitivity": "219.52", "density": "235.73"},
    (300, 100): {"sensitivity": "222.29", "density": "238.31"},
}


def closed_form_stiffness(nu: float = NU) -> np.ndarray:
    """Section 3.1 of the paper, written out."""
    k = np.array([1 / 2 - nu / 6, 1 / 8 + nu / 8, -1 / 4 - nu / 12, -1 / 8 + 3 * nu / 8])
    k = np.concatenate([k, [-1 / 4 + nu / 12, -1 / 8 - nu / 8, nu / 6, 1 / 8 - 3 * nu / 8]])
    rows = ["01234567", "10765432", "27056341", "36507214", "45670123", "54321076", "63412705", "72143650"]
    index = np.array([[int(c) for c in row] for row in rows])
    return k[index] / (1 - nu**2)


def filter_matrix(nx: int, ny: int, radius: float) -> tuple[sp.csr_matrix, np.ndarray]:
    """H and its row sums, elements numbered down the columns."""
    reach = int(np.ceil(radius)) - 1
    column, row = np.divmod(np.arange(nx * ny), ny)
    rows, columns, weights = [], [], []
    for dx in range(-reach, reach + 1):
        for dy in range(-reach, reach + 1):
            weight = radius - np.hypot(dx, dy)
            inside = (column + dx >= 0) & (column + dx < nx) & (row + dy >= 0) & (row + dy < ny)
            e = np.flatnonzero(inside)
            if weight > 0:
                rows.append(e)
                columns.append(e + dx * ny + dy)
                weights.append(np.full(e.size, weight))
    h = sp.csr_matrix((np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns))))
    return h, np.asarray(h.sum(1)).ravel()


def half_mbb(
    nx: int, ny: int, radius: float, *, density_filter: bool, volume: float = 0.5
) -> tuple[np.ndarray, list[float]]:
    """Compliance of every iteration until no density moves by > 0.01, and the physical densities ``(ny, nx)`` of the last."""
    element = closed_form_stiffness()
    node = np.arange((nx + 1) * (ny + 1)).reshape(nx + 1, ny + 1)
    left, right = node[:-1, :-1].ravel(), node[1:, :-1].ravel()
    corners = np.stack([left + 1, right + 1, right, left], axis=1)
    dofs = np.stack([2 * corners, 2 * corners + 1], axis=2).reshape(-1, 8)
    i, j = np.repeat(dofs, 8, axis=1).ravel(), np.tile(dofs, (1, 8)).ravel()
    n = 2 * node.size
    force = np.zeros(n)
    force[1] = -1
    free = np.setdiff1d(np.arange(n), np.append(np.arange(0, 2 * (ny + 1), 2), n - 1))
    place = np.full(n, -1)
    place[free] = np.arange(free.size)
    row, column = place[i], place[j]
    kept = (row >= 0) & (row <= column)  # the upper triangle over the free unknowns
    width = int((column - row)[kept].max())
    slot = ((width + row - column) * free.size + column)[kept]
    h, h_sum = filter_matrix(nx, ny, radius)
    share = h.T @ (1 / h_sum) if density_filter else np.ones(nx * ny)  # of each element in the built volume
    allowed = volume * nx * ny
    x = np.full(nx * ny, volume)
    built = x.copy()
    history: list[float] = []
    analysed = built
    change = 1.0
    while change > 0.01 and len(history) < 1000:
        analysed = built
        modulus = E_MIN + built**PENALTY * (1 - E_MIN)
        values = (modulus[:, None] * element.ravel()).ravel()[kept]
        band = np.bincount(slot, weights=values, minlength=(width + 1) * free.size).reshape(width + 1, free.size)
        u = np.zeros(n)
        u[free] = solveh_banded(band, force[free], overwrite_ab=True, check_finite=False)
        strain = np.einsum("ei,ij,ej->e", u[dofs], element, u[dofs])
        history.append(float(modulus @ strain))
        dc = -PENALTY * (1 - E_MIN) * built ** (PENALTY - 1) * strain
        dv = np.ones(nx * ny)
        if density_filter:
            dc, dv = h @ (dc / h_sum), h @ (dv / h_sum)
        else:
            dc = h @ (x * dc) / h_sum / np.maximum(1e-3, x)
        low, high, new = 0.0, 1e9, x
        while (high - low) / (low + high) > 1e-3:
            middle = 0.5 * (low + high)
            new = x * np.sqrt(-dc / dv / middle)
            new = np.maximum(0, np.maximum(x - 0.2, np.minimum(1, np.minimum(x + 0.2, new))))
            filled = share @ new
            if abs(filled - allowed) < 1e-9 * allowed:
                filled = (h @ new / h_sum if density_filter else new).sum()
            if filled > allowed:
                low = middle
            else:
                high = middle
        built = h @ new / h_sum if density_filter else new
        change = float(np.abs(new - x).max())
        x = new
    return analysed.reshape(nx, ny).T, history
