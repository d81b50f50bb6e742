"""Only the extensions; everything else is in pyproject.toml.

A kernel that doesn't compile fails the install: there is no slow fallback.
``AKOCORE_DEBUG=1`` builds with bounds checks, assertions and ``-O1``.
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG = os.environ.get("AKOCORE_DEBUG") == "1"
KERNELS = Path("src/akocore/_fast")
BUILD = Path("build/cython-debug" if DEBUG else "build/cython")


def source(kernel: Path) -> Path:
    """The kernel; for a debug build a checked copy, since the directives in a file win."""
    if not DEBUG:
        return kernel
    checked = BUILD / "source" / kernel.name
    checked.parent.mkdir(parents=True, exist_ok=True)
    checked.write_text(kernel.read_text().replace("boundscheck=False", "boundscheck=True", 1))
    return checked


extensions = [
    Extension(
        f"akocore._fast.{kernel.stem}",
        [source(kernel).as_posix()],
        depends=[header.as_posix() for header in KERNELS.glob("*.h")],
        include_dirs=[KERNELS.as_posix()],
        extra_compile_args=["-O1" if DEBUG else "-O3", "-g", "-Wall", "-Wextra"],
        undef_macros=["NDEBUG"] if DEBUG else [],
    )
    for kernel in sorted(KERNELS.glob("*.pyx"))
]

setup(
    ext_modules=cythonize(
        extensions,
        build_dir=BUILD.as_posix(),
        annotate=os.environ.get("AKOCORE_ANNOTATE") == "1",
    ),
    # make decides when to build; a build always compiles, so that flags never go stale.
    options={"build_ext": {"force": True}},
)
