"""The tour: its code runs, its rows are those of the equations, and in a browser it moves, and loads nothing."""

import html
import itertools
import json
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_equations import FACTS
from test_page import BROWSER, CATCH, FLAGS

import gradlab as gl
from gradlab import tour
from gradlab.errors import OptionError
from gradlab.tour import explorables, links, page, site

in_a_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
# Every control and picture is moved, as a hand would, and what the section says is read after each move.
VISIT = """<script>addEventListener('load',()=>{const seen={errors:window.errors,sections:{}};
const says=s=>Object.fromEntries([...s.querySelectorAll('[data-shows]')].map(e=>[e.dataset.shows,e.dataset.value]));
const at=s=>[...s.querySelectorAll('input,select')].map(i=>i.type=='checkbox'?Number(i.checked):
i.type=='range'?Number(i.value):i.selectedIndex);
for(const s of document.querySelectorAll('section.explore')){const states=[];
const note=how=>states.push({how,at:at(s),says:says(s)});note('start');
for(const i of s.querySelectorAll('input,select')){if(i.type=='checkbox')i.checked=!i.checked;
else if(i.type=='range')i.value=Math.floor(Number(i.max)*0.7);else i.selectedIndex=1;
i.dispatchEvent(new Event('input',{bubbles:true}));note('control')}
for(const p of s.querySelectorAll('svg[tabindex]')){
p.dispatchEvent(new KeyboardEvent('keydown',{key:'ArrowLeft',bubbles:true}));note('key')}
for(const p of s.querySelectorAll('svg.moves')){const b=p.getBoundingClientRect();
p.dispatchEvent(new PointerEvent('pointerdown',{clientX:b.left+b.width*.4,clientY:b.top+b.height*.4,bubbles:true}));
dispatchEvent(new PointerEvent('pointerup',{}));note('pointer')}
for(const b of s.querySelectorAll('button')){b.click();note('button')}
seen.sections[s.dataset.explore]={states,unnamed:s.querySelectorAll('svg:not([aria-label])').length}}
seen.requests=performance.getEntriesByType('resource').map(e=>e.name);
seen.unnamed=document.querySelectorAll('img:not([alt]),img[alt=""]').length;
seen.wide=document.documentElement.scrollWidth-document.documentElement.clientWidth;
const out=document.createElement('pre');out.id='seen';out.textContent=JSON.stringify(seen);document.body.append(out);
})</script>"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return tour.build(tmp_path_factory.mktemp("tour") / "site").parent


@pytest.fixture(scope="module")
def seen(built, tmp_path_factory):
    """What a visitor finds on each page, on a telephone."""
    folder = tmp_path_factory.mktemp("visited") / "site"
    shutil.copytree(built, folder)
    pages = sorted(folder.glob("*.html"))
    with ThreadPoolExecutor(2) as pool:
        return dict(zip((path.stem for path in pages), pool.map(visit, pages), strict=True))


def visit(path):
    text = path.read_text().replace("<head>", f"<head>{CATCH}", 1).replace("</body>", f"{VISIT}</body>")
    path.write_text(text)
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    profile = f"--user-data-dir={path.parent / path.stem}-profile"
    command = [BROWSER, *FLAGS.split(), *root, profile, "--window-size=500,900", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    return json.loads(html.unescape(found[1]))


def test_every_row_of_the_equations_has_a_place_in_the_tour(built):
    rows = tour.rows()
    assert set(rows) == set(FACTS)
    for address in rows.values():
        file, anchor = address.split("#")
        assert f'id="{anchor}"' in (built / file).read_text()


def test_no_row_is_shown_twice():
    listed = [row for name in site.ORDER for row in page.rows_of(site.source(name))]
    assert len(listed) == len(set(listed))


def test_every_link_leads_somewhere_and_a_broken_one_is_found(built, tmp_path):
    assert links.broken(built) == []
    (tmp_path / "a.html").write_text(
        '<a href="b.html">b</a><p id="here"></p><a href="#here">a</a><a href="#there">a</a>'
    )
    (tmp_path / "c.html").write_text('<img src="https://example.org/x.png"><a href="a.html#here">a</a>')
    assert links.broken(tmp_path) == ["a.html: b.html", "a.html: #there", "c.html: https://example.org/x.png"]


@pytest.mark.parametrize("name", site.ORDER)
def test_the_script_of_a_page_is_python_that_names_what_it_uses(built, name):
    code = (built / f"{name}.py").read_text()
    compile(code, name, "exec")
    assert "import gradlab as gl" in code


@in_a_browser
@pytest.mark.parametrize("name", [*site.ORDER, "operators"])
def test_a_page_loads_without_an_error_or_a_request_elsewhere(seen, name):
    found = seen[name]
    assert found["errors"] == [] and found["unnamed"] == 0
    assert all(address.startswith(("file://", "data:")) for address in found["requests"])
    assert found["wide"] <= 0  # nothing to scroll sideways


def states(seen, name):
    (found,) = [one["sections"][name] for one in seen.values() if name in one["sections"]]
    assert found["unnamed"] == 0
    return found["states"]


def data(name):
    return explorables.EXPLORABLES[name].data()


@in_a_browser
@pytest.mark.parametrize("name", explorables.EXPLORABLES)
def test_what_is_moved_by_hand_answers_mouse_and_keyboard(seen, name):
    found = states(seen, name)
    told = [state["says"] for state in found]
    assert len({json.dumps(one) for one in told}) > 2
    assert {"control"} < {state["how"] for state in found}
    moved = [a["at"] != b["at"] for a, b in itertools.pairwise(found) if b["how"] in ("key", "pointer", "button")]
    assert any(moved) or name == "depth"


@in_a_browser
def test_the_tangent_is_that_of_the_library(seen):
    table = data("tangent")
    for state in states(seen, "tangent"):
        x, h = table["x"][state["at"][0]], table["h"][state["at"][1]]
        with jax.enable_x64(True):
            slope, value = gl.derivative(explorables.curve)(x), explorables.curve(x)
            quotient = (explorables.curve(x + h) - value) / h
        for shown, expected in (("value", value), ("slope", slope), ("quotient", quotient)):
            assert float(state["says"][shown]) == pytest.approx(float(expected), rel=1e-3, abs=1e-4)


@in_a_browser
def test_the_slope_along_a_direction_is_that_of_the_library(seen):
    table = data("direction")
    for state in states(seen, "direction"):
        i, j, k = state["at"]
        x, angle = jnp.array([table["side"][i], table["side"][j]]), np.radians(table["angle"][k])
        v = jnp.array([np.cos(angle), np.sin(angle)])
        rate = gl.directional_derivative(explorables.landscape)(x, v)
        assert float(state["says"]["rate"]) == pytest.approx(float(rate), rel=1e-3, abs=1e-3)


@in_a_browser
def test_the_path_of_a_descent_is_that_of_the_library(seen):
    table = data("learning_rate")
    for state in states(seen, "learning_rate"):
        surface, rate, x, y = state["at"]
        loss = (explorables.bowl, explorables.valleys)[surface]
        start = jnp.array([table["side"][x], table["side"][y]])
        steps = int(state["says"]["steps"])
        reached = gl.descent_loop(loss, optax.sgd(table["rate"][rate]), steps=steps)(start)[0]
        if state["says"]["status"] == "converged":
            assert float(state["says"]["loss"]) == pytest.approx(float(loss(reached)), rel=0.05)


@in_a_browser
def test_the_worked_step_ends_at_four_and_a_half(seen):
    found = states(seen, "steps")
    assert "θ = 5" in " ".join(found[0]["says"].values())
    assert data("steps")["after"] == 4.5
    assert data("steps")["nodes"][0]["adjoint"] == 4


@in_a_browser
def test_the_gradient_of_the_first_layer_is_that_of_the_library(seen):
    activations, scales = [*explorables.ACTIVATIONS.values()], [*explorables.SCALES.values()]
    for state in states(seen, "depth"):
        last, activation, scale, residual = state["at"]
        with jax.enable_x64(True):
            size = explorables.sizes(activations[activation], last + 1, float(residual), scales[scale])
        assert float(state["says"]["first"]) == pytest.approx(float(size[0] / size[last]), rel=0.01)


def test_a_folder_with_something_else_in_it_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(OptionError, match="no tour that was written before"):
        tour.build(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years"


def test_where_a_page_fails_the_older_site_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(site, "ORDER", ("index",))
    monkeypatch.setattr(site, "source", lambda name: "# A page\n\n```python\n1 / 0\n```\n")
    out = tmp_path / "site"
    out.mkdir()
    (out / site.SEAL).touch()
    (out / "index.html").write_text("old")
    with pytest.raises(RuntimeError, match="index, line 4: ZeroDivisionError"):
        tour.build(out)
    assert (out / "index.html").read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["site"]


def test_a_picture_without_words_is_refused():
    with pytest.raises(RuntimeError, match='has no alt="…"'):
        page.render("p", "# P\n\n```python\nimport gradlab as gl\ngl.plots.axes()\n```\n")


def test_text_code_values_and_formulas_become_html():
    text = "# P {2.1}\n\nIs $x^2$ {{ 1 + 1 }}?\n\n```python\nprint('<' + 'b')\n3 * 4\n```\n"
    done = page.render("p", text)
    assert done.title == "P" and done.script == "print('<' + 'b')\n3 * 4\n"
    for part in ('id="row-2.1"', "<msup>", "2?", '<pre class="given">&lt;b\n12</pre>'):
        assert part in done.body
