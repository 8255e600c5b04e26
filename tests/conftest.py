"""Settings for every test session."""

from __future__ import annotations

import ctypes
import os
import sys

import hypothesis
import pytest

from tests.example_count import example_count

# Two threads on tiny tensors wait for each other: ten times as long when another process uses one of two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No deadline: the time that an example takes depends on the machine, not on the code.
hypothesis.settings.register_profile("aurora", deadline=None, max_examples=example_count(100))
hypothesis.settings.load_profile("aurora")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Keep SWIG's type table alive until the process ends.

    sentencepiece 0.2.1, which SGLang pins and transformers imports, frees the table at exit, when the interpreter has
    already freed the types in it. The process then ends with a segmentation fault after all tests passed
    (`capsule_dealloc` below `finalize_modules`).
    """
    for name in [name for name in sys.modules if name.startswith("swig_runtime_data")]:
        for value in vars(sys.modules[name]).values():
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))
