"""`check`: is this derivative right?

`flat` makes any function one of a vector, `probes` measures it, `judging` says which disagreement is a fault, of which
kind and where, `consistency` takes the derivative once more in the working precision, and `result` holds what is said.
"""

from gradlab.checking.examine import check
from gradlab.checking.result import Check, Finding

__all__ = ["Check", "Finding", "check"]
