"""The tour: it builds, every page works in a real browser, and what is moved by hand shows the library's numbers."""

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from browser import visit
from test_equations import FACTS

import gradlab as gl
from gradlab import tour
from gradlab.errors import OptionError
from gradlab.tour import explorables, links, page, site
from gradlab.tour.explorables import EXPLORABLES

# One process for all of them, so that the site is built once.
pytestmark = pytest.mark.xdist_group("tour")

# What a person does with the section that is chosen last.
HANDS = """
let section;
const choose = (name) => (section = document.querySelector(`[data-explore=${name}]`));
const items = () => [...section.querySelectorAll("[data-shows]")].map((e) => e.dataset);
const shows = () => Object.fromEntries(items().map(({shows, value}) => [shows, value]));
const control = (name) => section.querySelector(`[aria-label="${name}"]`);
const told = (name) => control(name).closest("label").querySelector("output").textContent;
const put = (name, index) => {
  control(name)[control(name).type === "range" ? "value" : "selectedIndex"] = index;
  control(name).dispatchEvent(new Event("input"));
};
const picture = (k) => section.querySelectorAll("svg")[k];
const press = (k, key, more) => picture(k).dispatchEvent(new KeyboardEvent("keydown", {key, ...more}));
const pointer = (kind, k, x, y, on = window) => {
  const box = picture(k).querySelector(".frame").getBoundingClientRect();
  const at = {clientX: box.left + x * box.width, clientY: box.bottom - y * box.height};
  on.dispatchEvent(new PointerEvent(kind, {...at, bubbles: true}));
};
const down = (k, x, y) => pointer("pointerdown", k, x, y, picture(k));
const click = (k, x, y) => (down(k, x, y), pointer("pointerup", k, x, y));
const button = (name) => [...section.querySelectorAll("button")].find((e) => e.textContent.includes(name)).click();
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The whole tour."""
    return tour.build(tmp_path_factory.mktemp("site") / "tour").parent


# The site


def test_the_built_site_is_whole(built):
    assert links.broken(built) == []
    assert {path.stem for path in built.glob("*.html")} == {*site.ORDER, "operators"}
    for name in site.ORDER:
        text = (built / f"{name}.html").read_text()
        alts = re.findall(r'<img src="[^"]+" alt="([^"]*)"', text)
        assert all(len(alt.split()) > 2 for alt in alts), name
        assert len(alts) == text.count("<img") == len(list(built.glob(f"{name}-[0-9]*.svg"))), name
        compile((built / f"{name}.py").read_text(), name, "exec")
    for row, address in tour.rows().items():
        name, place = address.split("#")
        assert f'id="{place}"' in (built / name).read_text(), row


def test_every_page_loads_without_an_error_and_without_leaving_its_folder(built, tmp_path):
    pages = [*sorted(built.glob("*.html")), built / "api" / "gradlab.html"]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda one: visit(one, "", tmp_path / one.stem), pages))
    for path, seen in zip(pages, found, strict=True):
        assert seen["errors"] == [], path.name
        assert all(name.startswith(("data:", built.as_uri())) for name in seen["requests"]), path.name


def test_the_tour_shows_every_row_and_every_explorable():
    assert set(tour.rows()) == set(FACTS)
    used = {name for part in site.ORDER for name in re.findall(r"^```explore (\w+)$", site.source(part), re.MULTILINE)}
    assert used == set(EXPLORABLES)


def test_a_folder_with_anything_else_in_it_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OptionError, match="is no tour that was written before"):
        tour.build(tmp_path)
    with pytest.raises(OptionError, match="is no tour"):
        tour.build(tmp_path / "thesis.tex")
    with pytest.raises(OptionError, match="cannot be made"):
        tour.build(tmp_path / "thesis.tex" / "deeper" / "tour")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_an_older_site_stays_where_a_page_fails(tmp_path, monkeypatch):
    old = tmp_path / "tour"
    old.mkdir()
    (old / site.SEAL).touch()
    (old / "index.html").write_text("the older one")
    monkeypatch.setattr(site, "PAGES", {})
    monkeypatch.setattr(site, "ORDER", ("index", "bad"))
    monkeypatch.setattr(site, "source", {"index": "# Fine\n", "bad": "# Bad\n\n```python\n1 / 0\n```\n"}.get)
    for out in (old, tmp_path / "new"):
        with pytest.raises(RuntimeError, match=r"^bad, line 4: ZeroDivisionError"):
            tour.build(out)
    assert [path.name for path in tmp_path.iterdir()] == ["tour"]
    assert (old / "index.html").read_text() == "the older one"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("a = 1\nraise KeyError(a)", r"^page, line 4: KeyError: 1"),
        ("import gradlab as gl\ngl.gradient(3)", r"^page, line 4: ArgumentError"),
        ("import gradlab as gl\ngl.plots.axes()", "has no alt="),
    ],
)
def test_a_page_that_fails_names_its_place(code, said):
    with pytest.raises(RuntimeError, match=said):
        page.render("page", f"# Page\n\n```python\n{code}\n```\n")


def test_code_that_should_be_refused_has_to_be():
    refused = page.render("page", "# Page\n\n```python raises\nimport gradlab as gl\ngl.gradient(3)\n```\n")
    assert "gradlab.errors.ArgumentError" in refused.body
    with pytest.raises(RuntimeError, match="should have raised"):
        page.render("page", "# Page\n\n```python raises\n1 + 1\n```\n")


def test_what_looks_like_a_page_within_code_stays_code():
    code = "a = {'b': {'c': 1}}\nprint('{{ a }}')\n# # {2.1}"
    text = f"# A page {{9.1, 9.2}}\n\n```python\n{code}\n```\n" + "\n`{{ a }}` is {{ a }}.\n"
    made = page.render("page", text)
    assert page.rows_of(text) == ["9.1", "9.2"]
    assert made.title == "A page" and made.code == [code + "\n"]
    assert '<span class="row" id="row-9.1" title="equation 9.1">9.1</span>' in made.body
    assert "<code>{{ a }}</code> is {'b': {'c': 1}}." in made.body and '<pre class="given">{{ a }}' in made.body


def test_the_script_of_a_page_shows_what_the_page_does(tmp_path):
    blocks = (
        "import gradlab as gl\ndef half(x):\n    return x / 2",
        "a = half(\n    3,\n)\na  # printed",
        "print(a)",
        "gl.plots.axes()",
        "gl.gradient(3)",
    )
    options = ("", "", "", ' alt="Empty axes."', " raises")
    fences = [f"```python{option}\n{code}\n```\n" for option, code in zip(options, blocks, strict=True)]
    made = page.render("page", "# Page\n\n" + "\n".join(fences))
    (tmp_path / "page.py").write_text("\n".join(made.code))
    done = subprocess.run([sys.executable, "page.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("1.5\n1.5\ngradient takes a function") and "print(a)  # printed" in made.code[1]
    assert re.findall(r'<pre class="given">(.*?)\s*</pre>', made.body)[:2] == ["1.5", "1.5"]
    assert (tmp_path / "page-1.svg").read_bytes() == made.pictures["page-1.svg"]


def test_a_value_between_the_words_is_text():
    made = page.render("page", "# Page\n\n```python\na = '<b>*1*</b>'\n```\n\nIt is {{ a }}, **{{ a[3:6] }}**.\n")
    assert "It is &lt;b&gt;*1*&lt;/b&gt;, <strong>*1*</strong>." in made.body


def test_a_missing_extra_is_told_and_the_rest_of_the_page_goes_on():
    missing = "import gradlab as gl\ndef f():\n    raise gl.errors.MissingExtraError('no asdex')\nfound = f()"
    blocks = (missing, "found.nonzeros", "1 + 2", "(lambda: unknown)()")
    made = page.render("page", "# P\n" + "".join(f"\n```python\n{code}\n```\n" for code in blocks) + "{{ found }}")
    assert re.findall(r'<pre class="given">(.*?)</pre>', made.body) == ["no asdex", "no asdex", "3", "no asdex"]
    assert "(not known here)" in made.body
    with pytest.raises(RuntimeError, match="NameError"):
        page.render("page", "# P\n\n```python\nunknown\n```\n")


def test_links_that_lead_nowhere_are_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<h1 id="top">A</h1><a href="#top"></a><a href="b.html#there"></a><a href="https://example.org"></a>'
        '<a href="#gone"></a><a href="b.html#gone"></a><a href="c.html"></a><a href="../outside.html"></a>'
        '<img src="gone.svg"><script src="https://example.org/spy.js"></script>'
    )
    (tmp_path / "b.html").write_text('<p id="there">B</p>')
    (tmp_path.parent / "outside.html").write_text("")
    gone = ("gone.svg", "https://example.org/spy.js", "#gone", "b.html#gone", "c.html", "../outside.html")
    assert links.broken(tmp_path) == [f"a.html: {link}" for link in gone]


# What is moved by hand


def close(given, expected, digits):
    """Assert equality but for rounding to so many digits."""
    np.testing.assert_allclose(np.asarray(given, float), np.asarray(expected, float), rtol=0.51 * 10 ** (1 - digits))


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A page with all of them."""
    folder = tmp_path_factory.mktemp("demo")
    done = page.render("demo", "# Demo\n\n" + "\n".join(f"```explore {name}\n```\n" for name in EXPLORABLES))
    titles = dict.fromkeys((*site.ORDER, "demo", "operators"), "Demo")
    (folder / "demo.html").write_text(site._page("demo", done.body, titles))
    for asset in site.ASSETS:
        (folder / asset).write_text((site._files() / "assets" / asset).read_text())
    return folder / "demo.html"


@pytest.fixture(scope="module")
def data(demo):
    """The numbers of every explorable, as the browser gets them."""
    found = re.findall(r'data-explore="(\w+)".*?<script type="application/json">(.*?)</script>', demo.read_text())
    return {name: json.loads(text) for name, text in found}


def test_explorables_are_small_and_say_what_they_show(data):
    for name, one in EXPLORABLES.items():
        assert one.title and one.summary.endswith(".")
        assert len(json.dumps(data[name], separators=(",", ":"))) < 160_000, name


def test_statuses_follow_the_edge_of_stability(data):
    bowl, valleys = data["learning_rate"]["surfaces"]
    for rate, runs in zip(data["learning_rate"]["rate"], bowl["runs"], strict=True):
        found = {run["status"] for run in runs}
        assert ("diverges" in found) == (rate > bowl["edge"]) and (
            "oscillates" not in found or rate > 0.9 * bowl["edge"]
        )
    # Where the loss is no quadratic one, the descent is caught between the walls.
    assert {run["status"] for run in valleys["runs"][-1]} == {"oscillates"}
    assert {run["status"] for run in valleys["runs"][0]} == {"still on its way"}


@pytest.fixture(scope="module")
def moved(demo):
    """What the page shows after everything was moved, in one visit."""
    acts = "".join(f'choose("{name}");{{const at = (seen.{name} = {{}});{act}}}' for name, act in ACTS.items())
    return visit(demo, HANDS + SURVEY + acts)


# In words to those who cannot see, and named to those who cannot point.
SURVEY = """seen.parts = [...document.querySelectorAll(".explore")].map((e) => ({
  name: e.dataset.explore,
  live: e.querySelectorAll("[aria-live=polite]").length,
  pictures: [...e.querySelectorAll("svg")].map((s) => [s.getAttribute("role"), s.getAttribute("aria-label")]),
  keys: e.querySelectorAll("svg[tabindex='0']").length,
  controls: [...e.querySelectorAll("input, select")].map((c) => c.getAttribute("aria-label")),
  wrong: [...e.querySelectorAll(".panels, .readout")].some((p) => /NaN|undefined|Infinity|null/.test(p.outerHTML)),
}));"""
ACTS = {
    "tangent": """
        put("point x", 100); put("step h", 4); at.put = [told("point x"), told("step h"), shows()];
        at.label = picture(0).getAttribute("aria-label");
        press(0, "ArrowRight"); at.right = [told("point x"), shows()];
        press(1, "ArrowRight"); at.larger = [told("step h"), shows()];
        click(0, 0.2, 0.5); at.click = [told("point x"), shows()];
        down(0, 0.3, 0.5); pointer("pointermove", 0, 0.6, 0.9); pointer("pointerup", 0, 0.6, 0.9);
        pointer("pointermove", 0, 0.1, 0.1); at.drag = [told("point x"), shows()];
        click(1, 0, 0.5); at.smallest = [told("step h"), shows()];
        down(0, -3, 0.5); pointer("pointerup", 0, 0, 0); at.beyond = told("point x");""",
    "direction": """
        put("point x", 2); put("point y", 15); put("direction v", 7); at.put = shows();
        const where = () => ["point x", "point y", "direction v"].map(told);
        click(0, 0.5, 0.75); at.click = [where(), shows()];
        press(0, "ArrowUp"); press(0, "ArrowLeft"); at.keys = [where(), shows()];
        put("direction v", 0); press(1, "ArrowLeft"); at.around = [where(), shows()];
        press(0, "ArrowLeft", {shiftKey: true}); at.shift = where();
        put("point x", 8); put("point y", 8); put("direction v", 0);
        down(0, (0.6 + 2.2) / 4.4, 0.5); pointer("pointermove", 0, 0.5, 0.9); pointer("pointerup", 0, 0.5, 0.9);
        at.dial = [where(), shows()];
        click(1, 0.75, 0.5); at.angle = where();""",
    "learning_rate": """
        const where = () => ["learning rate", "start x", "start y"].map(told);
        put("learning rate", 4); put("start x", 3); put("start y", 1); at.put = [where(), shows()];
        click(0, 0.1, 0.4); press(0, "ArrowUp"); at.start = [where(), shows()];
        click(2, 1, 0.5); at.fastest = [where(), shows()];
        put("loss", 1); press(2, "ArrowLeft"); at.valleys = [where(), shows()];""",
    "depth": """
        put("layers", 5); put("activation", 1); put("size of weights", 2); put("residual", 1); at.put = shows();
        put("activation", 0); put("residual", 0); at.sigmoid = shows();
        press(0, "ArrowLeft"); at.keys = [told("layers"), shows()];
        put("layers", 0); at.one = shows();""",
    "steps": """
        const texts = () => [...picture(0).querySelectorAll("text")].map((e) => e.textContent);
        const says = () => Object.values(shows());
        at.moments = [[texts(), says()]];
        for (let i = 0; i < 8; i++) { button("Next"); at.moments.push([texts(), says()]); }
        button("Next"); at.end = told("moment");
        press(0, "ArrowLeft"); at.left = [texts(), says()];
        button("Back"); at.back = told("moment"); button("Start"); at.start = told("moment");
        put("moment", 3); at.put = says();""",
}


def test_explorables_have_names_and_words(moved):
    assert moved["errors"] == [] and [part["name"] for part in moved["parts"]] == list(EXPLORABLES)
    for part in moved["parts"]:
        assert part["live"] == 1 and part["keys"] >= 1 and all(part["controls"]) and not part["wrong"]
        assert all(role == "img" and len(label) > 20 for role, label in part["pictures"])


def test_the_tangent_has_the_slope_of_the_library(moved):
    def agrees(shown, x, h):
        with jax.enable_x64(True):
            value, slope = explorables.curve(x), gl.derivative(explorables.curve)(x)
            quotient = (explorables.curve(x + h) - value) / h
            error = abs(quotient - slope)
        close([shown["value"], shown["slope"], shown["quotient"]], [value, slope, quotient], 6)
        close(shown["error"], error, 3)

    seen = moved["tangent"]
    assert seen["put"][:2] == ["1", "0.05"] and "x = 1 " in seen["label"]
    agrees(seen["put"][2], 1.0, 0.05)
    assert seen["right"][0] == "1.025" and seen["larger"][0] == "0.1"
    agrees(seen["larger"][1], 1.025, 0.1)
    assert seen["click"][0] == "−0.85" and seen["drag"][0] == "0.875" and seen["beyond"] == "−1.5"
    agrees(seen["drag"][1], 0.875, 0.1)
    # The smallest step is not the best one.
    assert seen["smallest"][0] == "10⁻¹³" and float(seen["smallest"][1]["error"]) > 1e-5


def test_the_slopes_are_the_directional_derivatives_of_the_library(moved):
    def agrees(shown, point, degrees):
        p, f = jnp.array(point), explorables.landscape
        angle = np.radians(degrees)
        close(shown["rate"], gl.directional_derivative(f)(p, jnp.array([np.cos(angle), np.sin(angle)])), 4)
        close(shown["height"], f(p), 4)
        close(shown["size"], jnp.linalg.norm(gl.gradient(f)(p)), 4)
        close(re.findall(r"[\d.]+", shown["gradient"]), jnp.abs(gl.gradient(f)(p)), 4)

    seen = moved["direction"]
    agrees(seen["put"], [-1.5, 1.75], 42)
    assert seen["click"][0] == ["0", "1", "42°"] and seen["keys"][0] == ["−0.25", "1.25", "42°"]
    agrees(seen["keys"][1], [-0.25, 1.25], 42)
    assert seen["around"][0][2] == "354°" and seen["shift"][2] == "0°"
    # The tip of the direction is turned; the point stays where it is, and the way across the gradient is level.
    assert seen["dial"][0] == ["0", "0", "90°"] and seen["dial"][1]["way"] == "almost level"
    assert float(seen["dial"][1]["rate"]) == 0 and seen["angle"] == ["0", "0", "270°"]


def test_the_path_is_that_of_gradient_descent(moved):
    def agrees(shown, loss, rate, start):
        loop = gl.descent_loop(loss, optax.sgd(rate), steps=int(shown["steps"]))
        close(shown["loss"], loss(loop(jnp.array(start))[0]), 2)

    seen = moved["learning_rate"]
    assert seen["put"][0] == ["0.18", "1.5", "−0.5"] and seen["put"][1]["status"] == "converged"
    agrees(seen["put"][1], explorables.bowl, 0.18, [1.5, -0.5])
    sharpness = gl.curvature.sharpness(explorables.bowl, jnp.zeros(2), key=jax.random.key(0))
    close(seen["put"][1]["edge"], sharpness.largest_rate, 4)
    assert seen["start"][0] == ["0.18", "−1.5", "0.5"]
    assert seen["fastest"][0][0] == "0.32" and seen["fastest"][1]["status"] == "diverges"
    assert seen["fastest"][1]["loss"] == ""
    assert seen["valleys"][0][0] == "0.28" and seen["valleys"][1]["status"] == "oscillates"
    agrees(seen["valleys"][1], explorables.valleys, 0.28, [-1.5, 0.5])


def network(activation, depth, residual, scale):
    """The same network as plain layers, each in its scope."""

    def f(weights, x):
        for i in range(depth):
            with jax.named_scope(f"layer{i}"):
                x = residual * x + activation(scale * x @ weights[i])
        return jnp.sum(x)

    return f


def test_sizes_of_gradients_are_those_that_flow_through_the_graph(moved):
    seen = moved["depth"]
    cases = [(seen["put"], jnp.tanh, 1.0, 2**0.5), (seen["sigmoid"], jax.nn.sigmoid, 0.0, 2**0.5)]
    for shown, activation, residual, scale in cases:
        with jax.enable_x64(True):
            weights, x = explorables.layers()
            flow = gl.graph(network(activation, 6, residual, scale), weights[:6], x).flow("scope")
        sizes = [layer.adjoint for layer in flow.layers]
        close([shown["first"], shown["last"]], [sizes[0], 1], 3)
        close(shown["factor"], (sizes[0] / sizes[-1]) ** (1 / 5), 3)
    assert seen["keys"][0] == "5" and float(seen["keys"][1]["first"]) > float(seen["sigmoid"]["first"])
    assert seen["one"]["first"] == seen["one"]["last"] == "1" and seen["one"]["factor"] == ""


def test_the_worked_step_is_that_of_the_graph(moved):
    seen = moved["steps"]
    nodes = gl.graph(explorables.worked, 5.0, 2.0, 9.0).nodes
    numbers = lambda values: [f"{float(value):g}".replace("-", "−") for value in values]
    before, after = seen["moments"][0][0], seen["moments"][-1][0]
    assert before[1::3] == ["5", "2", "9", "", "", ""] and before[2::3] == [""] * 6
    assert after[1::3] == ["5 → 4.5", *numbers(node.value for node in nodes[1:])]
    assert after[2::3] == numbers(node.adjoint for node in nodes)
    # Values come one by one, then adjoints, from the loss to the inputs.
    known = [[sum(map(bool, texts[k::3])) for k in (1, 2)] for texts, _ in seen["moments"]]
    assert known == [[3, 0], [4, 0], [5, 0], [6, 0], [6, 1], [6, 2], [6, 4], [6, 6], [6, 6]]
    said = [" ".join(says) for _, says in seen["moments"]]
    assert "ŷ = 5 · 2 = 10" in said[1] and "y = x z" in said[1]
    assert "∂loss/∂θ = 2 · 2 = 4" in said[7] and "x̄ = ȳ z, z̄ = ȳ x" in said[7]
    assert "θ ← 5 − 0.125 · 4 = 4.5" in said[8] and "The loss there is 0." in said[8]
    assert seen["end"] == "8 of 8" and seen["left"] == seen["moments"][7]
    assert seen["back"] == "6 of 8" and seen["start"] == "0 of 8" and "loss = 1² = 1" in seen["put"]


def test_a_site_is_written_anew_from_within_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(site, "ORDER", ("index",))
    monkeypatch.setattr(site, "PAGES", {})
    monkeypatch.setattr(site, "source", lambda name: "# A page\n")
    monkeypatch.setattr(links, "broken", lambda folder: [])
    out = tmp_path / "site"
    out.mkdir()
    (out / site.SEAL).touch()
    (out / "older.html").touch()
    monkeypatch.chdir(out)
    assert tour.build(".") == out / "index.html"
    assert (out / "index.html").exists() and not (out / "older.html").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


def test_what_a_page_loads_from_elsewhere_is_found_in_every_form(tmp_path):
    held = ("//e.org/x", "https://e.org/y", "https://e.org/z", "https://e.org/w")
    text = '<script src="{}"></script><img src="{}"><object data="{}"></object><img srcset="{} 2x" src="data:,">'
    (tmp_path / "a.html").write_text(text.format(*held) + '<a href="https://e.org/y">y</a><meta name="viewport">')
    (tmp_path / "b.html").write_text('<a href="a.html#viewport">a</a>')
    assert links.broken(tmp_path) == [*(f"a.html: {link}" for link in held), "b.html: a.html#viewport"]
