"""What a check says: one verdict, the findings behind it, and the smallest error that it would have seen."""

import math
from dataclasses import asdict, dataclass
from html import escape
from typing import Any, Literal

from gradlab.errors import WrongDerivativeError

Verdict = Literal["ok", "wrong", "nan", "kink", "second", "precision", "undecided"]
Kind = Literal["wrong", "nan", "kink", "second", "precision", "undecided", "unsupported"]
# The gravest first: what makes the rest pointless to read.
GRAVITY: tuple[Verdict, ...] = ("nan", "kink", "wrong", "second", "precision", "undecided")
NAN = math.nan


@dataclass(frozen=True)
class Finding:
    """One thing that a check found.

    Attributes:
        kind: a verdict other than `ok`, or `unsupported`, which is information and no fault.
        where: the argument, path and index; "" where it is the whole function.
        order: of the derivative, 1 or 2.
        mode: `forward` or `reverse`, or "" for both.
        error: how far off, relative to the derivative; NaN where that has no meaning.
        uncertainty: of the numeric derivative, on the same scale.
        source: the line of the function that is to blame, where it is known.
        message: what was found, what was expected, what to do next.
    """

    kind: Kind
    where: str = ""
    order: int = 1
    mode: str = ""
    error: float = NAN
    uncertainty: float = NAN
    source: str = ""
    message: str = ""

    def __str__(self) -> str:
        place = f" at {self.where}" if self.where else ""
        return f"{self.kind}{place}: {self.message}"


@dataclass(frozen=True)
class Check:
    """What `check` found.

    Attributes:
        verdict: `ok`, `wrong` (rule and function disagree), `nan` (f finite, derivative not), `kink` (the one-sided
            slopes differ), `second` (first derivative right, second wrong), `precision` (right in float64, lost in the
            working precision) or `undecided` (values of f do not tell).
        findings: what was found, the gravest first; those of kind `unsupported` are information.
        power: the smallest relative error of the derivative by any one input leaf that would have been seen; infinite
            where nothing could be seen.
        name: f's name.
    """

    verdict: Verdict
    findings: tuple[Finding, ...]
    power: float
    name: str

    @property
    def ok(self) -> bool:
        """Whether the verdict is `ok`."""
        return self.verdict == "ok"

    def raise_if_failed(self) -> None:
        """Raise `WrongDerivativeError`, an `AssertionError`, with the report unless the verdict is `ok`."""
        if not self.ok:
            raise WrongDerivativeError(str(self))

    def to_dict(self) -> dict[str, Any]:
        """Everything found, as JSON scalars, lists and dicts."""
        findings = [asdict(finding) for finding in self.findings]
        return {"name": self.name, "verdict": self.verdict, "power": self.power, "findings": findings}

    def __str__(self) -> str:
        return "\n".join([heading(self), *(f"  {finding}" for finding in self.findings)])

    def __repr__(self) -> str:
        return f"Check({self.name}: {self.verdict}, power={self.power:.1g})"

    def _repr_html_(self) -> str:
        items = "".join(f"<li>{escape(str(finding))}</li>" for finding in self.findings)
        return f"<p><b>{escape(heading(self))}</b></p><ul>{items}</ul>"


def heading(check: Check) -> str:
    """The first line of a report.

    >>> heading(Check("ok", (), 1e-6, "f"))
    'derivative of f: ok (a relative error of 1e-06 would have been seen)'
    """
    seen = f" (a relative error of {check.power:.1g} would have been seen)" if check.ok else ""
    return f"derivative of {check.name}: {check.verdict}{seen}"


def concluded(findings: list[Finding], power: float, name: str) -> Check:
    """The check that these findings make: the verdict is the gravest of them, or `ok` where there is none."""
    rank = {kind: i for i, kind in enumerate((*GRAVITY, "unsupported"))}
    kinds = [finding.kind for finding in findings]
    verdict: Verdict = next((kind for kind in GRAVITY if kind in kinds), "ok")
    return Check(verdict, tuple(sorted(findings, key=lambda finding: rank[finding.kind])), float(power), name)
