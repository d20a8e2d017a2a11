"""Benchmarks find harness.py beside them and the tests' tool finder."""

import compileall
import importlib.util
import sys
from pathlib import Path

HERE = Path(__file__).parent
for folder in (HERE, HERE.parent / "tests"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

# A checkout may have no bytecode (PYTHONDONTWRITEBYTECODE): all commands of ours would be compiled
# at each start, which an installed one is once.
_package = importlib.util.find_spec("rollpoint")
if _package is not None and _package.origin is not None:
    compileall.compile_dir(Path(_package.origin).parent, quiet=2)
