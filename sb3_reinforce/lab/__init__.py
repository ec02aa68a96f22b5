"""
The gradient laboratory: measure the signal and the noise of each estimator's gradient on the same episodes of a model.

``measure`` returns the numbers; ``sb3_reinforce.lab.report.write_report`` writes them to a report (needs the extra "zoo").
"""

from sb3_reinforce.lab.callback import NoiseScaleCallback
from sb3_reinforce.lab.cloning import Cloning, Demonstrations, clone, demonstrate
from sb3_reinforce.lab.measurement import Measurement, Result, measure
from sb3_reinforce.lab.statistics import Interval
from sb3_reinforce.lab.unbiased import BaselineCheck, check_unbiased

__all__ = [
    "BaselineCheck",
    "Cloning",
    "Demonstrations",
    "Interval",
    "Measurement",
    "NoiseScaleCallback",
    "Result",
    "check_unbiased",
    "clone",
    "demonstrate",
    "measure",
]
