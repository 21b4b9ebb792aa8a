"""Extension modules, and the program of a session; everything else stands in pyproject.toml."""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# No contraction into fused multiply-adds: a magnitude has the same bits on every machine and in the reference twin.
COMPILE_ARGS = ["-O3", "-Wall", "-Wno-unused-function", "-fno-strict-aliasing", "-ffp-contract=off"]
MODULES = ["wheel", "norms", "handles", "files", "reader", "syscalls", "sockets", "strict"]
LIBRARIES = {"sockets": ["dl"]}  # part of the C library only since glibc 2.34
PROGRAM = "pact/session/native/host.c"
PROGRAM_ARGS = ["-O2", "-Wall", "-fstack-protector-strong", "-fPIE", "-D_FORTIFY_SOURCE=2"]


class Build(build_ext):
    """The extensions, and ``pact/session/pact-session`` beside them."""

    def run(self):
        super().run()
        directory = (
            "pact/session" if self.inplace or self.editable_mode else os.path.join(self.build_lib, "pact/session")
        )
        try:
            os.unlink(os.path.join(directory, "pact-session"))  # sessions that run keep theirs
        except FileNotFoundError:
            pass
        objects = self.compiler.compile([PROGRAM], output_dir=self.build_temp, extra_postargs=PROGRAM_ARGS)
        self.compiler.link_executable(
            objects,
            "pact-session",
            output_dir=directory,
            libraries=["dl"],
            extra_postargs=["-pie", "-Wl,-z,relro,-z,now"],
        )


setup(
    cmdclass={"build_ext": Build},
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
    ),
)
