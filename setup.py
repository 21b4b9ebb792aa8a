"""Extension modules only; everything else stands in pyproject.toml."""

from Cython.Build import cythonize
from setuptools import Extension, setup

# No contraction into fused multiply-adds: a magnitude has the same bits on every machine and in the reference twin.
COMPILE_ARGS = ["-O3", "-Wall", "-Wno-unused-function", "-fno-strict-aliasing", "-ffp-contract=off"]
MODULES = ["wheel", "norms", "handles", "files", "reader", "syscalls", "sockets", "strict"]
LIBRARIES = {"sockets": ["dl"]}  # part of the C library only since glibc 2.34

setup(
    ext_modules=cythonize(
        [
            Extension(
                f"pact._fast.{name}",
                [f"pact/_fast/{name}.pyx"],
                extra_compile_args=COMPILE_ARGS,
                libraries=LIBRARIES.get(name, []),
            )
            for name in MODULES
        ],
        language_level=3,
        compiler_directives={"boundscheck": False, "wraparound": False, "cdivision": True},
    )
)
