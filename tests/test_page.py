"""The page of a graph in a real browser: it shows what it promises, by mouse and by keyboard, and loads nothing."""

import jax
import jax.numpy as jnp
from browser import visit

import gradlab as gl

# What a person would do, and what is then on the page.
HANDS = """
const box = (i) => document.getElementById("n" + i);
const mouse = (kind, i) => box(i).dispatchEvent(new MouseEvent(kind, {bubbles: kind === "click"}));
const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
const told = (name) => (seen[name] = panel.innerText);
told("start");
mouse("mouseenter", 1); told("hover");
mouse("mouseleave", 1); told("left");
mouse("click", 2); told("click");
press("ArrowDown"); told("down");
press("ArrowUp"); press("ArrowUp"); told("up");
Object.assign(seen, {focus: document.activeElement.id, hash: location.hash});
seen.boxes = document.querySelectorAll("g.node").length;
"""


def handled(page, folder, fragment=""):
    """Open the page of a graph, handle it, and return what was seen."""
    assert page.count("http-equiv") == page.count("Content-Security-Policy") == 1
    (folder / "page.html").write_text(page)
    seen = visit(folder / "page.html", HANDS, fragment=fragment)
    assert seen["errors"] == [] and all(name.startswith("data:") for name in seen["requests"])
    return seen


def test_the_page_answers_mouse_and_keyboard_and_loads_nothing(tmp_path):
    seen = handled(gl.graph(lambda theta: (2.0 * theta - 9.0) ** 2, 5.0).to_html(), tmp_path)
    assert seen["boxes"] == 4 and "args[0]" in seen["start"]
    for text in (seen["hover"], seen["up"]):
        assert all(part in text for part in ("mul(2.0, %0)", "y = x z", "x̄ = ȳ z", "value\n10", "adjoint ∂f/∂node\n2"))
    assert seen["left"] == seen["start"]
    assert "sub(%1, 9.0)" in seen["click"] and "integer_pow" in seen["down"]
    assert (seen["focus"], seen["hash"]) == ("n1", "#n1")


def test_an_address_with_a_node_opens_there_and_names_cannot_inject(tmp_path):
    def f(x):
        with jax.named_scope("</script><img src=x onerror=alert(1)>"):
            return jnp.sum(jax.nn.relu(x))

    seen = handled(gl.graph(f, jnp.ones(3)).to_html(), tmp_path, "#n2")
    assert "relu(%0)" in seen["start"] and "a rule of its own" in seen["start"]
