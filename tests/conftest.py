"""Fixtures that every test may ask for."""

import signal
import zlib

import pytest
import torch

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell starts background jobs so; tests of ^C need it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="device that tests with the `device` fixture run on, e.g. cuda")


@pytest.fixture
def device(request) -> torch.device:
    """The device of ``--device``."""
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(autouse=True)
def default_device(request):
    """Tensors made without a device lie on ``--device``, so that the same tests run there."""
    device = request.config.getoption("--device")
    if device == "cpu":
        yield
        return
    with torch.device(device):
        yield


@pytest.fixture
def generator(request) -> torch.Generator:
    """A CPU generator with a seed of the test's own, shown when the test fails."""
    seed = zlib.crc32(request.node.nodeid.encode())
    print(f"generator seed {seed}")
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request) -> torch.dtype:
    """Both floating-point types."""
    return request.param
