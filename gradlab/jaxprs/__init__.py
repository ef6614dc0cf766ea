"""The only package that reads JAX's intermediate representation, which differs between JAX 0.10, 0.11 and 0.12."""

from gradlab.jaxprs.arithmetic import Kernel
from gradlab.jaxprs.dependence import density
from gradlab.jaxprs.kernels import Work, work
from gradlab.jaxprs.loops import Loop, Unrolled, unrolled
from gradlab.jaxprs.operators import Listing, Operator, Pullback, body_of, listing
from gradlab.jaxprs.program import Traced, draws, hoist, lacks_forward_rule, trace
from gradlab.jaxprs.reading import moves
from gradlab.jaxprs.sources import Frame, Frames, called, place, user_frame
from gradlab.jaxprs.units import images, saves

__all__ = [
    "Frame",
    "Frames",
    "Kernel",
    "Listing",
    "Loop",
    "Operator",
    "Pullback",
    "Traced",
    "Unrolled",
    "Work",
    "body_of",
    "called",
    "density",
    "draws",
    "hoist",
    "images",
    "lacks_forward_rule",
    "listing",
    "moves",
    "place",
    "saves",
    "trace",
    "unrolled",
    "user_frame",
    "work",
]
