"""What the README shows works."""

import re
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_example_gives_the_exact_hypergradient():
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    torch.manual_seed(0)
    names: dict = {"print": lambda *words: None}
    exec(code, names)
    X, y, X_val, y_val = (names[name] for name in ("X", "y", "X_val", "y_val"))
    phi = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    theta = torch.linalg.solve(X.T @ X / len(y) + torch.diag(phi.exp()), X.T @ y / len(y))
    ((X_val @ theta - y_val) ** 2).mean().backward()
    torch.testing.assert_close(names["phi"].grad, phi.grad, rtol=1e-6, atol=0.0)


def test_commands_exist():
    """Every ``make`` target of the README, and the two it opens with."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z]+)\b", README))
    assert {"demo", "test", "validate", "bench", "clean"} <= named <= targets
    first = re.findall(r"^make ([a-z]+)", README.split("```")[1], flags=re.MULTILINE)
    assert first == ["demo", "test"]


def test_page_on_topology_runs():
    """Its blocks, one after the other as a reader would; ``exec`` of names that later blocks use."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "topology.md").read_text(), flags=re.DOTALL)
    names: dict = {"print": lambda *words: None}
    for code in blocks:
        exec(code, names)
    assert names["result"].value < 60  # of the shelf, which starts at about 130
    assert abs(names["drawn"].volume(names["weights"]).item()) < 1e-6
    assert names["value"].value == 0.0


def test_page_on_conformation_runs():
    """As the page on topology; its fit is the one whose figures it states."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "conformation.md").read_text(), flags=re.DOTALL)
    names: dict = {"print": lambda *words: None}
    for code in blocks:
        exec(code, names)
    assert names["ibuprofen"].GetNumConformers() == len(names["energies"]) == 5
    assert names["torsions"].grad.abs().max() > 1e-3
    fit = names["fit"]
    assert fit.rmsd_before.mean() > 0.12 and fit.rmsd_after.mean() < 0.075
    assert fit.energy_before > 0.59 and fit.energy_after < 0.12


def test_page_on_implicit_layers_runs():
    """As the page on topology; what its comments state in closed form holds."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "implicit.md").read_text(), flags=re.DOTALL)
    names: dict = {"print": lambda *words: None}
    for code in blocks:
        exec(code, names)
    assert 0 < names["radius"].max() < 1
    time, g = (40 / 9.81) ** 0.5, names["g"]
    torch.testing.assert_close(names["time"].item(), time, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(g.grad.item(), -time / (2 * 9.81), rtol=1e-6, atol=0.0)
    # Robertson's product at t = 100, SciPy's Radau at rtol 1e-12
    torch.testing.assert_close(names["course"].value[-1, 2].item(), 0.382758964, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(names["inside"], (-names["p"]).clamp(min=0.0).detach(), rtol=0.0, atol=1e-7)
    torch.testing.assert_close(names["p"].grad, -(names["p"] < 0).double(), rtol=0.0, atol=1e-4)
