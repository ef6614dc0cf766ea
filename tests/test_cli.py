"""The command line: one main job, one line for a mistake, and files that are whole or untouched."""

import json
import subprocess
import sys

import jax
import pytest

from gradlab import calibration, cli, problems
from gradlab.comparison import compare
from gradlab.errors import MissingExtraError
from gradlab.mode import cost
from gradlab.problems import Problem


def run(capsys, *arguments):
    """The exit code, stdout and stderr of a command."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    return (stopped.value.code or 0, *capsys.readouterr())


@pytest.fixture
def small_table(monkeypatch):
    """Three problems at small sizes, one of which lacks its data."""

    def build(self):
        if self.requires:
            raise MissingExtraError("digits need scikit-learn")
        return self.make(jax.random.key(0), 4)

    table = tuple(problems.get(name) for name in ("rosenbrock", "softmax", "digits_mlp"))
    monkeypatch.setattr(problems, "TABLE", table)
    monkeypatch.setattr(Problem, "build", build)


def test_one_problem_is_compared(capsys):
    code, out, err = run(capsys, "compare", "softplus_sum")
    assert code == 0 and err == ""
    assert "gradient of softplus_sum" in out and "reverse" in out


def test_chosen_modes_and_quantity(capsys):
    code, out, _ = run(capsys, "compare", "rosenbrock", "--of", "hvp", "--modes", "forward_over_reverse")
    assert code == 0
    assert "hvp of rosenbrock" in out and "reverse_over_reverse" not in out


def test_the_whole_table_ends_in_one_summary(capsys, small_table):
    code, out, err = run(capsys, "compare")
    assert code == 0 and err == ""
    assert "digits_mlp: left out" in out
    assert "gradient: fastest right mode on 1 problems" in out
    assert out.rstrip().splitlines()[-1].startswith("Mode reverse, that of jax.jacobian, took")


def test_no_progress_bar_where_nobody_watches(capsys, small_table):
    assert run(capsys, "compare", "--of", "jacobian")[2] == ""


def test_files_hold_what_was_printed(capsys, tmp_path):
    paths = [tmp_path / name for name in ("out.json", "out.html", "out.png")]
    options = [word for path in paths for word in (f"--{path.suffix[1:].replace('png', 'plot')}", str(path))]
    code, _, _ = run(capsys, "compare", "softplus_sum", *options)
    assert code == 0
    content = json.loads(paths[0].read_text())
    assert content["comparisons"][0]["name"] == "softplus_sum"
    assert {"jax", "python", "devices", "precision"} <= set(content["info"])
    assert "softplus_sum" in paths[1].read_text()
    assert paths[2].read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.html", "out.json", "out.png"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compare", "rosenbrok"], "rosenbrock"),
        (["compare", "math:sin"], "--args"),
        (["compare", "rosenbrock", "--of", "jacobean"], "jacobian"),
        (["compare", "rosenbrock", "--modes", "revers"], "reverse"),
        (["compare", "softmax", "--of", "gradient"], "scalar"),
        (["compare", "--modes", "reverse"], "--of"),
        (["compare", "rosenbrock", "--json", "no/such/folder/x.json"], "does not exist"),
        (["compare", "rosenbrock", "--html", "."], "folder"),
        (["compare", "rosenbrock", "--plot", "x.bmp"], ".png"),
        (["check", "rosenbrok"], "rosenbrock"),
        (["check", "rosenbrock", "--order", "3"], "order"),
        (["check", "rosenbrock", "--json", "no/such/folder/x.json"], "does not exist"),
    ],
)
def test_a_mistake_is_named_on_stderr_with_exit_code_two(capsys, monkeypatch, arguments, words):
    monkeypatch.setattr(cli, "compare", lambda *a, **k: compare(*a, **k, repeats=1))
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert words in " ".join(err.split())
    assert "Traceback" not in err and out == ""


def test_a_failed_run_leaves_the_old_file(capsys, tmp_path):
    path = tmp_path / "out.json"
    path.write_text("old")
    assert run(capsys, "compare", "rosenbrock", "--modes", "revers", "--json", str(path))[0] == 2
    assert path.read_text() == "old"


def test_a_right_derivative_ends_in_exit_code_zero(capsys, tmp_path):
    path = tmp_path / "out.json"
    code, out, err = run(capsys, "check", "softmax", "--json", str(path))
    assert code == 0 and err == "" and "softmax: ok" in out
    content = json.loads(path.read_text())
    assert content["check"]["verdict"] == "ok" and "jax" in content["info"]


def test_another_verdict_ends_in_exit_code_one(capsys, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("import jax.numpy as jnp\nf = lambda x: jnp.abs(x).sum()\nx = jnp.zeros(2)\n")
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, "check", "mine:f", "--args", "mine:x", "--order", "2")
    assert code == 1 and "mine:f: kink" in out and "args[0][0]" in out


def test_problems_lists_every_name(capsys):
    code, out, _ = run(capsys, "problems")
    assert code == 0
    assert all(name in out for name in problems.names())


def test_info_names_what_the_numbers_depend_on(capsys):
    code, out, _ = run(capsys, "info")
    assert code == 0
    for word in ("jax", "jaxlib", "python", "devices", "float32"):
        assert word in out


def test_the_module_runs_as_the_command():
    done = subprocess.run([sys.executable, "-m", "gradlab", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "compare" in done.stdout


def test_graph_lists_operators_and_writes_its_files(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine_graph.py").write_text("import jax.numpy as jnp\nf = lambda x: jnp.sum(x**2)\nx = jnp.ones(3)\n")
    wanted = ("--html", "g.html", "--dot", "g.dot", "--plot", "g.png")
    code, out, err = run(capsys, "graph", "mine_graph:f", "--args", "mine_graph:x", *wanted)
    assert code == 0 and err == ""
    assert "graph of mine_graph:f: 2 operators" in out and "mine_graph.py:2" in out
    assert (tmp_path / "g.html").read_text().startswith("<!doctype html>")
    assert (tmp_path / "g.dot").read_text().startswith('digraph "mine_graph:f"')
    assert (tmp_path / "g.png").read_bytes().startswith(b"\x89PNG")
    code, _, err = run(capsys, "graph", "rosenbrock", "--html", "missing/g.html")
    assert code == 2 and "--html" in err and not (tmp_path / "missing").exists()


def test_blame_ends_with_one_where_it_finds_something(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = "import jax.numpy as jnp\ndef f(x, y):\n    return jnp.sqrt(x) * y\nargs = (0.0, 2.0)\n"
    (tmp_path / "mine_blame.py").write_text(source)
    code, out, _ = run(capsys, "blame", "mine_blame:f", "--args", "mine_blame:args")
    assert code == 1 and "inf in the derivative by args[0], born at mine_blame.py:3: the pullback of sqrt" in out
    code, out, _ = run(capsys, "blame", "rosenbrock")
    assert code == 0 and "none is cut off" in out
    code, _, err = run(capsys, "blame", "softmax")
    assert code == 2 and "NotScalarError" in err and "cotangent" in err


def test_predict_says_what_auto_would_take_and_writes_json(capsys, tmp_path):
    file = tmp_path / "prediction.json"
    code, out, err = run(capsys, "predict", "lotka_volterra", "--json", str(file))
    assert code == 0 and err == ""
    assert "jacobian of lotka_volterra: auto takes forward" in out
    assert json.loads(file.read_text())["prediction"]["choice"] == "forward"


def test_calibrate_keeps_what_it_measured(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADLAB_CACHE_DIR", str(tmp_path / "new"))
    monkeypatch.setattr(calibration, "cases", lambda: [(jax.numpy.sin, (jax.numpy.ones(1000),))])
    code, out, _ = run(capsys, "calibrate", "--budget", "0.01")
    assert code == 0 and "within a factor of" in out
    assert cost.origin() == "calibrated"
    assert json.loads((tmp_path / "new" / f"rates-{cost.platform()}.json").read_text())["call"] > 0
    assert run(capsys, "calibrate", "--budget", "0")[0] != 0


def test_digits_are_trained_and_written_down(capsys, tmp_path):
    files = ("--json", str(tmp_path / "out.json"), "--plot", str(tmp_path / "out.png"))
    code, out, err = run(capsys, "train", "--model", "softmax", "--steps", "60", "--seed", "3", *files)
    assert code == 0 and err == "" and "softmax by adam: max_steps after 60 steps" in out
    found = json.loads((tmp_path / "out.json").read_text())
    assert len(found["training"]["losses"]) == 60 and f"{found['test_accuracy']:.1%} of 360 images" in out
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--model", "mlq"), "Did you mean 'mlp'?"),
        (("--optimizer", "adm"), "Did you mean 'adam'?"),
        (("--optimizer", "lbfgs", "--learning-rate", "0.1"), "line search"),
        (("--steps", "-1"), "steps must be"),
    ],
)
def test_a_training_that_makes_no_sense_is_refused(capsys, arguments, said):
    code, _, err = run(capsys, "train", *arguments)
    assert code == 2 and said in " ".join(err.split())
