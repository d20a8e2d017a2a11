"""Build the native extension. Everything else about the project is in pyproject.toml."""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

NATIVE = Path("src/_native")

compile_args = [
    "-std=c11",
    "-D_GNU_SOURCE",
    "-UNDEBUG",  # CPython's own flags carry -DNDEBUG
    "-O2",
    "-fvisibility=hidden",  # the only exported symbol is PyInit__native
    "-pthread",
    "-Wall",
    "-Wextra",
    "-Wno-unused-parameter",  # Cython's wrappers
    "-Wno-sign-compare",  # likewise
]
link_args = ["-pthread"]
if os.environ.get("ROLLPOINT_WERROR") == "1":
    compile_args += ["-Werror"]
if os.environ.get("ROLLPOINT_SANITIZE") == "1":
    compile_args += ["-O1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined"]
    link_args += ["-fsanitize=address,undefined"]

native = Extension(
    "rollpoint._native",
    sources=[str(NATIVE / "_native.pyx"), *sorted(map(str, NATIVE.glob("*.c")))],
    # All files beside the sources: a change in any of them rebuilds, and all
    # of them reach the sdist without a MANIFEST.in.
    depends=sorted(str(path) for path in NATIVE.iterdir() if path.suffix != ".c"),
    include_dirs=[str(NATIVE)],
    libraries=["deflate"],
    extra_compile_args=compile_args,
    extra_link_args=link_args,
)

setup(
    ext_modules=cythonize(
        [native],
        build_dir="build/cython",  # generated C stays out of src/
        compiler_directives={
            "language_level": "3",
            "binding": True,
            "embedsignature": True,
            "auto_pickle": False,
            "autotestdict": False,
        },
    ),
    # "strict" makes pip install -e . visible to mypy and IDEs, which cannot
    # follow the default editable mode's import hook.
    options={"editable_wheel": {"mode": "strict"}},
)
