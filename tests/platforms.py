"""Marks of tests that need more than Python. No PyTorch here: test modules in worker processes do without it."""

import sys
from pathlib import Path

import pytest

needs_processes = pytest.mark.skipif(sys.platform == "win32", reason="needs fork servers and signals")
needs_proc = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="looks for processes where Linux lists them"
)
