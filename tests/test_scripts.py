"""Every script runs as its first lines say, and draws the picture that it promises."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PICTURES = (
    "losses",
    "directional_derivatives",
    "worked_step",
    "softmax_pullback",
    "local_models",
    "vanishing_gradients",
    "outliers",
    "learning_rates",
    "granularity",
    "adversarial",
    "expression_swell",
    "initialisation",
    "hessian_spectrum",
)
# Less than a reader would ask for, where that takes long.
SMALL = {
    "adversarial": ("--steps", "100", "--images", "100"),
    "expression_swell": ("--depth", "5"),
    "initialisation": ("--layers", "3", "--width", "8"),
    "hessian_spectrum": ("--wide", "16", "--images", "64", "--steps", "8", "--products", "4", "8"),
}


def run(script, folder, *arguments):
    """Run a script from an empty folder, with this copy of gradlab, and return what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "scripts" / f"{script}.py"), *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("script", PICTURES)
def test_a_script_prints_its_numbers_and_draws_its_picture(script, tmp_path):
    printed = run(script, tmp_path, *SMALL.get(script, ()))
    assert "nan" not in printed
    promised = re.search(r"draws (\S+)", (ROOT / "scripts" / f"{script}.py").read_text())
    assert (tmp_path / promised[1]).read_bytes().startswith(b"\x89PNG")


def test_the_worked_step_prints_the_numbers_of_equation_4_1(tmp_path):
    printed = run("worked_step", tmp_path)
    for number in (
        "mul(%0, 2.0)                10         2\n",
        "= 10 ",
        "= 1\n",
        "∂loss/∂ŷ = 2",
        "∂ŷ/∂θ = 2",
        "∂loss/∂θ = 4",
        "= 4.5",
    ):
        assert number in printed


def test_check_gradients_shows_every_verdict(tmp_path):
    printed = run("check_gradients", tmp_path)
    for verdict in ("ok", "wrong", "nan", "kink", "second", "precision", "undecided"):
        assert f"\n{verdict}\n" in f"\n{printed}"


def test_bench_check_counts_alarms_and_misses(tmp_path):
    printed = run("bench_check", tmp_path, "--only", "safe norm", "conjugated", "--json", "out.json")
    rows = json.loads((tmp_path / "out.json").read_text())["tools"]["gradlab.check"]
    assert (rows["right"], rows["false_alarms"], rows["defects"], rows["missed"], rows["named"]) == (1, 0, 1, 0, 1)
    assert "gradlab.check" in printed


def test_nan_hunt_names_a_line_for_each_fault(tmp_path):
    printed = run("nan_hunt", tmp_path)
    text = (ROOT / "scripts" / "nan_hunt.py").read_text().splitlines()
    named = {int(line) for line in re.findall(r"nan_hunt\.py:(\d+)", printed)}
    assert {text[i - 1].split("(")[0].strip() for i in named} >= {"roots = jnp.sqrt", "hidden = jax.nn.relu"}
    assert len(named) == 6 and "double_where: nothing is wrong" in printed


def test_bench_blame_counts_right_lines(tmp_path):
    run("bench_blame", tmp_path, "--only", "inside_scan", "rounded", "saddle", "--json", "out.json")
    row = json.loads((tmp_path / "out.json").read_text())["tools"]["gradlab blame"]
    assert (row["not finite"], row["zero"], row["healthy accused"]) == ("1 of 1", "1 of 1", "0 of 1")


def test_bench_modes_puts_every_contender_beside_auto(tmp_path):
    options = ("--rounds", "2", "--json", "out.json", "--plot", "out.png")
    run("bench_modes", tmp_path, "--only", "robot_arm jacobian", *options)
    found = json.loads((tmp_path / "out.json").read_text())
    row = found["rows"]["robot_arm jacobian"]
    assert row["best"] in row["seconds"] and row["auto_regret"]["ratio"] >= 0.5
    assert {"auto", "jax", "gradlab forward", "gradlab reverse"} <= set(row["seconds"])
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_bench_checkpoint_says_what_segments_save(tmp_path):
    printed = run("bench_checkpoint", tmp_path, "--only", "recurrent", "--rounds", "1", "--json", "out.json")
    rows = json.loads((tmp_path / "out.json").read_text())["cases"]["recurrent"]
    assert rows["segments"]["memory"] < 0.2 and "1/5 of the memory" in printed


def test_train_digits_compares_optimizers(tmp_path):
    printed = run("train_digits", tmp_path, "softmax")
    right = [float(share) for share in re.findall(r"(\S+) of 360 right", printed)]
    assert len(right) == 4 and min(right) >= 0.95
    assert (tmp_path / "out/train_digits.png").read_bytes().startswith(b"\x89PNG")


def test_train_sharded_trains_on_two_processes(tmp_path):
    printed = run("train_sharded", tmp_path, "--steps", "30", "--model", "2")
    assert "2 processes, mesh {'data': 2, 'model': 2}: max_steps after 30 steps" in printed


def test_bench_descend_puts_every_loop_beside_the_scan(tmp_path):
    others = ("--without", "optimistix", "PyTorch", "torch.compile")
    run("bench_descend", tmp_path, "--only", "small", "--rounds", "2", "--json", "out.json", *others)
    rows = json.loads((tmp_path / "out.json").read_text())["cases"]["small"]["contenders"]
    assert {"hand-written scan", "gradlab.descent_loop", "gradlab.descend", "jitted Python loop"} <= set(rows)
    assert rows["hand-written scan"]["ratio"] == 1.0


def test_bench_graph_measures_one_case(tmp_path):
    row = json.loads(run("bench_graph", tmp_path, "--only", "gmm"))
    assert row["nodes"] > 20 and row["graph_seconds"] > 0 and row["blame"] is None


def test_compare_modes_takes_problems_by_name(tmp_path):
    printed = run("compare_modes", tmp_path, "softplus_sum")
    assert "forward: gradient cannot use mode" in printed and "reverse is ready to use" in printed
