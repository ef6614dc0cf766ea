"""The pytest plugin: a fixture, a marker, an option and a summary for gradient tests.

pytest loads it before any conftest, so nothing is imported here but pytest; JAX and gradlab come with the first test
that asks for them, after that test's own configuration of JAX.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

PLATFORMS = ("cpu", "gpu", "tpu")
# What a test's report carries, so that it survives the way from a worker process.
PROPERTY = "gradlab"


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--gradlab-platform`."""
    group = parser.getgroup("gradlab", "derivatives of JAX functions")
    group.addoption(
        "--gradlab-platform",
        choices=PLATFORMS,
        help="run the tests of derivatives on this platform, and skip them where it is absent",
    )


def pytest_configure(config: pytest.Config) -> None:
    """The marker."""
    config.addinivalue_line(
        "markers",
        "derivatives(**options): a test of derivatives; options are the defaults of its assert_derivatives, "
        "such as order=2.",
    )


@pytest.fixture(autouse=True)
def _gradlab_platform(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run a marked test, or one with the fixture, on the platform that was asked for."""
    platform = request.config.getoption("--gradlab-platform")
    concerns = "assert_derivatives" in request.fixturenames or request.node.get_closest_marker("derivatives")
    if platform is None or not concerns:
        yield
        return
    from gradlab.testing import on_platform

    scope = on_platform(platform)
    try:
        scope.__enter__()
    except RuntimeError as error:
        pytest.skip(f"--gradlab-platform {platform}: {str(error).splitlines()[0]}")
    try:
        yield
    finally:
        scope.__exit__(None, None, None)


@pytest.fixture
def assert_derivatives(request: pytest.FixtureRequest, _gradlab_platform: None) -> Callable[..., Any]:
    """`gradlab.testing.assert_derivatives`, with the marker's options as defaults; the summary lists each call."""
    from gradlab import check

    marker = request.node.get_closest_marker("derivatives")
    defaults = dict(marker.kwargs) if marker else {}

    def checked(f: Callable[..., Any], *args: Any, **options: Any) -> Any:
        __tracebackhide__ = True
        result = check(f, *args, **(defaults | options))
        request.node.user_properties.append((PROPERTY, [result.name, result.verdict, float(result.power)]))
        result.raise_if_failed()
        return result

    return checked


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """One line a check: its test, its function, its verdict, and the smallest error that would have been seen."""
    reports = {id(r): r for group in terminalreporter.stats.values() for r in group if getattr(r, "when", "") == "call"}
    checks = [(r.nodeid, *value) for r in reports.values() for name, value in r.user_properties if name == PROPERTY]
    if not checks:
        return
    terminalreporter.section("gradlab: derivatives")
    for nodeid, name, verdict, power in checks:
        seen = f"an error of {power:.1g} would have been seen" if power < float("inf") else "nothing is proved"
        terminalreporter.line(f"{verdict:10} {name}, {seen}  [{nodeid}]", green=verdict == "ok", red=verdict != "ok")
