"""Lists of shell commands, run on a Mezcal cluster or on this machine.

The class of the *Bakapara* module for IPython clusters, on another engine:

>>> from bakapara import Bakapara
>>> bp = Bakapara(slots=4)
>>> jobs = [dict(cmd='true') for i in range(8)]
>>> bp.run(jobs)
True
>>> bp.join()
True
>>> jobs[0]['result']['code']
0
>>> bp.shutdown()
"""

from ._bakapara import Bakapara, Job
from ._process import BakaparaError, NoEngines, program

__all__ = ["Bakapara", "BakaparaError", "Job", "NoEngines", "program", "submit"]
__version__ = "0.1.0"

from ._detached import submit  # noqa: E402
