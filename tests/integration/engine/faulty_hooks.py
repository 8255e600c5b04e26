"""Makes one call of one hook of a running server raise, and starts the controller again after an error.

The folder of :func:`faulty_python` goes into the server's ``PYTHONPATH``. A file then names the hook that raises next,
at the first attribute that the hook reads. The file is removed when that has happened. ``around_lengths`` is not there:
SGLang calls it under overlap scheduling, which a CPU does not have.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Final

FAULT_VARIABLE: Final = "TEST_FAULT_FILE"
HOOKS: Final = (
    *("around_forward", "around_rule", "around_draft", "around_verify"),
    *("around_extend", "around_prefill_extend", "around_release"),
)
_CODE: Final = """
import importlib.util, os, sys
from pathlib import Path

NAME, FAULT = "aurora_runtime.serving.speculation.hooks", Path(os.environ["TEST_FAULT_FILE"])


def read(self, name):
    if name == "_held" and FAULT.exists():
        self.__dict__.update(_held=False, _failed=False)
    hook = sys._getframe(1).f_code.co_name
    if hook.startswith("around_") and FAULT.exists() and FAULT.read_text() == hook:
        FAULT.unlink()
        raise ZeroDivisionError
    return object.__getattribute__(self, name)


class Finder:
    def find_spec(self, name, path=None, target=None):
        if name != NAME:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            module.WorkerHooks.__getattribute__ = read

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Finder())
"""


def faulty_python(folder: Path) -> str:
    """A folder of Python's start-up code."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(textwrap.dedent(_CODE))
    return str(folder)
