"""Gradient descent as one compiled program: the pure loop, and the host around it."""

from gradlab.descent.result import Descent
from gradlab.descent.run import descend
from gradlab.descent.step import History, descent_loop

__all__ = ["Descent", "History", "descend", "descent_loop"]
