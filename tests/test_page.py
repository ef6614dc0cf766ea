"""The page of a graph in a real browser: it shows what it promises, by mouse and by keyboard, and loads nothing."""

import jax
import jax.numpy as jnp
from browser import opened

import gradlab as gl

# What a person would do, and what is then on the page.
VISIT = """<script>
const seen={errors:window.errors,start:panel.innerText},box=i=>document.getElementById('n'+i);
const press=key=>document.activeElement.dispatchEvent(new KeyboardEvent('keydown',{key,bubbles:true}));
box(1).dispatchEvent(new MouseEvent('mouseenter'));seen.hover=panel.innerText;
box(1).dispatchEvent(new MouseEvent('mouseleave'));seen.left=panel.innerText;
box(2).dispatchEvent(new MouseEvent('click',{bubbles:true}));seen.click=panel.innerText;
press('ArrowDown');seen.down=panel.innerText;press('ArrowUp');press('ArrowUp');seen.up=panel.innerText;
seen.focus=document.activeElement.id;seen.hash=location.hash;
seen.requests=performance.getEntriesByType('resource').map(e=>e.name).filter(n=>!n.startsWith('data:'));
seen.policy=document.querySelectorAll('meta[http-equiv=Content-Security-Policy]').length;
seen.boxes=document.querySelectorAll('g.node').length;
const out=document.createElement('pre');out.id='seen';out.textContent=JSON.stringify(seen);document.body.append(out);
</script>"""
CATCH = "<script>window.errors=[];window.onerror=m=>{window.errors.push(String(m))};"
CATCH += "document.addEventListener('securitypolicyviolation',e=>window.errors.push(e.blockedURI))</script>"


def visit(page, folder, fragment=""):
    """Open a page, do what `VISIT` says, and return what was seen."""
    path = folder / "page.html"
    path.write_text(page.replace("<head>", f"<head>{CATCH}").replace("</body>", f"{VISIT}</body>"))
    return opened(path, folder / "profile", fragment)


def test_the_page_answers_mouse_and_keyboard_and_loads_nothing(tmp_path):
    seen = visit(gl.graph(lambda theta: (2.0 * theta - 9.0) ** 2, 5.0).to_html(), tmp_path)
    assert seen["errors"] == [] and seen["requests"] == [] and seen["policy"] == 1 and seen["boxes"] == 4
    assert "args[0]" in seen["start"]
    for text in (seen["hover"], seen["up"]):
        assert all(part in text for part in ("mul(2.0, %0)", "y = x z", "x̄ = ȳ z", "value\n10", "adjoint ∂f/∂node\n2"))
    assert seen["left"] == seen["start"]
    assert "sub(%1, 9.0)" in seen["click"] and "integer_pow" in seen["down"]
    assert (seen["focus"], seen["hash"]) == ("n1", "#n1")


def test_an_address_with_a_node_opens_there_and_names_cannot_inject(tmp_path):
    def f(x):
        with jax.named_scope("</script><img src=x onerror=alert(1)>"):
            return jnp.sum(jax.nn.relu(x))

    seen = visit(gl.graph(f, jnp.ones(3)).to_html(), tmp_path, "#n2")
    assert seen["errors"] == [] and seen["requests"] == []
    assert "relu(%0)" in seen["start"] and "a rule of its own" in seen["start"]
