"""Wheels that hold the coordinator, if `MEZCAL_PROGRAMS` names the directory where it was built."""

import os
import shutil
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

PROGRAMS = os.environ.get("MEZCAL_PROGRAMS")


class BuildWithProgram(build_py):
    """Puts the program beside the modules."""

    def run(self) -> None:
        super().run()
        if PROGRAMS:
            target = Path(self.build_lib, "bakapara", "bin", "coordinator")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(Path(PROGRAMS, "coordinator"), target)


class ForThisPlatform(Distribution):
    """A wheel that holds a program is for one kind of machine."""

    def has_ext_modules(self) -> bool:
        return bool(PROGRAMS)


setup(cmdclass={"build_py": BuildWithProgram}, distclass=ForThisPlatform)
