"""What a pool would do, on a clock that costs no time: the dispatcher is the one that runs."""

from .run import knee, point, simulate
from .scenario import Machine, Result, Scenario

__all__ = ["Machine", "Result", "Scenario", "knee", "point", "simulate"]
