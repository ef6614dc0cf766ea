"""The main job in one screen: what each mode of a derivative costs here, and which is the fastest right one.

Run: python scripts/compare_modes.py [problem ...]
"""

import sys

import gradlab as gl

DEFAULT = ("lotka_volterra", "tall_net", "wide_net", "digits_mlp", "kepler")


def main(names: tuple[str, ...]) -> None:
    for name in names:
        problem = gl.problems.get(name)
        f, args = problem.build()
        result = gl.compare(f, *args, of=problem.of[0])
        print(f"\n{name}: {problem.description}")
        print(result)
        if result.best is not None:
            derivative = result.function(*args)  # compiled, and already checked against float64
            print(f"  {result.best.mode} is ready to use; it returned {type(derivative).__name__}")


if __name__ == "__main__":
    main(tuple(sys.argv[1:]) or DEFAULT)
