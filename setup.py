"""The one thing that pyproject.toml cannot say: compile the kernels. Where that fails all else is installed, and runs."""

import runpy
import subprocess
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_ext import build_ext

KERNELS = Path("activations", "kernels")


class BuildKernels(build_ext):
    """Compile into the package: in place where it is installed as editable, else into the wheel."""

    def run(self) -> None:
        in_place = self.inplace or self.editable_mode
        build = runpy.run_path(str(KERNELS / "build.py"))["build"]
        try:
            build(KERNELS if in_place else Path(self.build_lib) / KERNELS)
        except (OSError, subprocess.CalledProcessError) as error:
            self.warn(f"no fused kernels, activations will use plain torch operations: {error}")

    def get_outputs(self) -> list[str]:
        return [str(path) for path in (Path(self.build_lib) / KERNELS).glob("fused_*.so")]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class BinaryDistribution(Distribution):
    """A wheel with compiled files is one machine's kind's."""

    def has_ext_modules(self) -> bool:
        return True


setup(cmdclass={"build_ext": BuildKernels}, distclass=BinaryDistribution)
