"""What every docstring example may use without importing it, and cheap seeds."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Leaves out seeds of devices that are not there.

    torch.manual_seed keeps a seed for each of them until it is there, every time with the call stack in words: most of
    the time of a short test.
    """
    if getattr(config.option, "numprocesses", None):  # its workers run the tests, and it needs no PyTorch
        return
    import torch

    for device in (torch.cuda, torch.xpu, torch.mtia):
        if not device.is_available():
            device.manual_seed_all = lambda seed: None


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace: dict[str, object]) -> None:
    """Gives examples ``torch``, from a fixed random state."""
    import torch

    torch.manual_seed(0)
    doctest_namespace["torch"] = torch
