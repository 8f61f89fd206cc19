"""Marks of tests that need more than Python. No PyTorch here: test modules in worker processes do without it."""

import sys

import pytest

needs_processes = pytest.mark.skipif(sys.platform == "win32", reason="needs fork servers and signals")
