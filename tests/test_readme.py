"""The README's examples run (the doctest glob), its Python blocks too, and what it names exists."""

import re
from pathlib import Path

import pytest

import gradlab as gl
from gradlab import operators

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = [block for block in re.findall(r"```python\n(.*?)```", README, re.S) if ">>>" not in block]


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_a_block_without_prompts_runs(block, capsys):
    exec(compile(block, "README.md", "exec"), {})
    assert "best forward" in capsys.readouterr().out


def test_the_readme_says_how_many_problems_there_are():
    assert set(re.findall(r"(\d+) (?:real problems|functions)", README)) == {str(len(gl.problems.TABLE))}


def test_every_operator_is_in_the_table():
    for name in operators.__all__:
        assert f"{name}(" in README


def test_every_script_is_named_once_and_exists():
    table = README[README.index("| script |") :]
    named = [name for row in re.findall(r"^\| (`.*?) \|", table, re.M) for name in re.findall(r"`(\w+)`", row)]
    twins = {"torch_twins"}  # which bench_modes imports
    assert sorted(named) == sorted(
        path.stem for path in (ROOT / "scripts").glob("*.py") if path.stem not in twins and path.stem[:6] != "bench_"
    )
    for path in re.findall(r"`scripts/(\w+\.py)`", README):
        assert (ROOT / "scripts" / path).exists()


def test_every_linked_page_exists():
    for link in re.findall(r"\]\((?!http|%)([^)]+)\)", README):
        assert (ROOT / link).exists()


@pytest.mark.parametrize("target", ["compare", "test"])
def test_the_two_commands_are_in_the_makefile(target):
    assert f"make {target}" in README
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)
