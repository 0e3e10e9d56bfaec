import os
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src"
sys.path.insert(0, str(SOURCE))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH")]))


@pytest.fixture(autouse=True, scope="session")
def coordinator():
    """The program under test: MEZCAL_COORDINATOR, or the one on PATH."""
    from bakapara import program

    return program()


@pytest.fixture
def bp():
    """This machine, with four slots."""
    from bakapara import Bakapara

    with Bakapara(slots=4) as bp:
        yield bp
