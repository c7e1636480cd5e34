"""Compile the kernels and lay out the wheel; everything else is in pyproject.toml.

If the kernels cannot be compiled, all else is installed, and activations use plain torch operations.
"""

import runpy
import subprocess
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

KERNELS = Path("activations", "kernels")
PACKAGE = Path("actbench")  # the folder in the wheel that holds all packages


class BuildPackage(build_py):
    """Copy run.py into the package: it lies at the root of a checkout, outside of every package."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            self.copy_file("run.py", str(Path(self.build_lib) / PACKAGE / "run.py"))


class BuildKernels(build_ext):
    """Compile into the package: in place if it is installed as editable, else into the wheel."""

    def run(self) -> None:
        build = runpy.run_path(str(KERNELS / "build.py"))["build"]
        try:
            build(KERNELS if self.inplace or self.editable_mode else self._target())
        except (OSError, subprocess.CalledProcessError) as error:
            self.warn(f"no fused kernels, activations will use plain torch operations: {error}")

    def get_outputs(self) -> list[str]:
        return [str(path) for path in self._target().glob("fused_*.so")]

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def _target(self) -> Path:
        return Path(self.build_lib) / PACKAGE / KERNELS


class PlatformWheel(bdist_wheel):
    """Tag the wheel with the platform alone: the compiled files depend on neither Python's version nor its ABI."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


class BinaryDistribution(Distribution):
    """Mark the wheel as specific to a platform: it contains compiled files."""

    def has_ext_modules(self) -> bool:
        return True


setup(
    cmdclass={"build_py": BuildPackage, "build_ext": BuildKernels, "bdist_wheel": PlatformWheel},
    distclass=BinaryDistribution,
)
