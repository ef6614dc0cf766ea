"""The only package that reads JAX's intermediate representation, which differs between JAX 0.10, 0.11 and 0.12."""

from gradlab.jaxprs.program import Traced, draws, hoist, lacks_forward_rule, trace

__all__ = ["Traced", "draws", "hoist", "lacks_forward_rule", "trace"]
