"""Wheels that hold the program `mezcal`, if `MEZCAL_PROGRAMS` names the directory where it was built."""

import os
import shutil
import subprocess
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:
    # Before setuptools 70.1 the command was a package of its own.
    from wheel.bdist_wheel import bdist_wheel

PROGRAMS = os.environ.get("MEZCAL_PROGRAMS")


class BuildWithProgram(build_py):
    """Puts the program beside the modules."""

    def run(self) -> None:
        super().run()
        if PROGRAMS:
            target = Path(self.build_lib, "bakapara", "bin", "mezcal")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(Path(PROGRAMS, "mezcal"), target)
            if shutil.which("strip"):
                # Without debug information it is a tenth of the size.
                subprocess.run(["strip", str(target)], check=False)


class ForThisPlatform(Distribution):
    """A wheel that holds a program is for one kind of machine."""

    def has_ext_modules(self) -> bool:
        return bool(PROGRAMS)


class ForEveryPython(bdist_wheel):
    """The wheel is for any Python on that machine."""

    def get_tag(self):
        _, _, platform = super().get_tag()
        return "py3", "none", platform


setup(cmdclass={"build_py": BuildWithProgram, "bdist_wheel": ForEveryPython}, distclass=ForThisPlatform)
