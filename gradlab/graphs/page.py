"""A graph as one self-contained page: an SVG, and for the operator that is chosen its forward and its backward."""

import json
from collections.abc import Sequence
from html import escape
from typing import Any

from gradlab.graphs.layout import edges, layout
from gradlab.graphs.record import Node
from gradlab.graphs.rules import RULES
from gradlab.graphs.table import brief, shown, size, summary

WIDE, HIGH = 168, 84  # from one column and row to the next, in pixels
BOX = (150, 50)
LETTERS = 22

_STYLE = """
:root{--ink:#1b1f24;--muted:#656d76;--paper:#fff;--box:#f3f6f9;--line:#8c96a0;--forward:#0b6e99;--back:#d9730d}
@media(prefers-color-scheme:dark){:root{--ink:#e6e8eb;--muted:#9aa3ad;--paper:#15181c;--box:#22272e;--line:#6e7781;
--forward:#58b4dd;--back:#f0a050}}
*{box-sizing:border-box}body{margin:0;font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);
display:grid;grid-template-columns:minmax(0,1fr) min(26rem,40vw);height:100vh}
main{overflow:auto;padding:1rem}aside{overflow:auto;padding:1rem;border-left:1px solid var(--line)}
h1{font-size:1.1rem;margin:0}p{margin:.3rem 0}.muted{color:var(--muted)}
@media(max-width:48rem){body{grid-template-columns:1fr;grid-template-rows:60vh 1fr}
aside{border-left:0;border-top:1px solid var(--line)}}
svg text{text-anchor:middle;font:11px ui-monospace,monospace;fill:var(--ink)}
.box{fill:var(--box);stroke:var(--line);rx:8px}
.given .box{rx:0}.inner .box{stroke-dasharray:4 3}
.edge{fill:none;stroke:var(--line)}.edge.inner{stroke-dasharray:4 3}
.value{fill:var(--forward)!important;color:var(--forward)}.adjoint{fill:var(--back)!important;color:var(--back)}
g.node{cursor:pointer;outline:none}g.node:hover .box,g.node:focus .box{stroke:var(--ink)}
g.chosen .box{stroke:var(--ink);stroke-width:2.5}
.edge.read{stroke:var(--forward);stroke-width:2}.edge.fed{stroke:var(--back);stroke-width:2}
dt{color:var(--muted);font-size:.85rem;margin-top:.6rem}dd{margin:0;overflow-wrap:anywhere}
dd.forward{color:var(--forward)}dd.backward{color:var(--back)}
pre{white-space:pre-wrap;overflow-wrap:anywhere;font-size:.75rem;background:var(--box);padding:.5rem}
"""
_SCRIPT = """
const nodes=JSON.parse(document.getElementById('nodes').textContent),panel=document.getElementById('panel');
const boxes=nodes.map((_,i)=>document.getElementById('n'+i));let chosen=-1;
function line(list,name,text,kind){if(!text)return;const t=document.createElement('dt'),d=document.createElement('dd');
t.textContent=name;d.textContent=text;if(kind)d.className=kind;list.append(t,d)}
function show(i){const n=nodes[i],list=document.createElement('dl');panel.replaceChildren();
const head=document.createElement('h2');head.textContent=n.title;panel.append(head,list);
line(list,'forward',n.forward,'forward');line(list,'value',n.value,'forward');
line(list,'backward',n.backward,'backward');line(list,'adjoint ∂f/∂node',n.adjoint,'backward');
line(list,'shape',n.shape);line(list,'line',n.source);line(list,'scope',n.scope);line(list,'flops',n.flops);
line(list,'note',n.note);
if(n.program){const d=document.createElement('details'),s=document.createElement('summary'),
p=document.createElement('pre');s.textContent='the pullback as a program';p.textContent=n.program;d.append(s,p);
panel.append(d)}}
function choose(i,move){if(i<0||i>=nodes.length)return;if(chosen>=0)boxes[chosen].classList.remove('chosen');chosen=i;
boxes[i].classList.add('chosen');show(i);for(const e of document.querySelectorAll('.edge')){
e.classList.toggle('read',e.dataset.to==i);e.classList.toggle('fed',e.dataset.from==i)}
if(move){boxes[i].focus();boxes[i].scrollIntoView({block:'center',inline:'center'});history.replaceState(null,'','#n'+i)}}
boxes.forEach((box,i)=>{box.addEventListener('click',()=>choose(i,true));
box.addEventListener('mouseenter',()=>show(i));box.addEventListener('mouseleave',()=>{if(chosen>=0)show(chosen)});
box.addEventListener('focus',()=>{if(chosen!=i)choose(i,false)})});
document.addEventListener('keydown',e=>{const step={ArrowDown:1,ArrowRight:1,ArrowUp:-1,ArrowLeft:-1}[e.key];
if(step){e.preventDefault();choose(chosen+step,true)}else if(e.key=='Enter'&&document.activeElement.id){
const i=boxes.indexOf(document.activeElement);if(i>=0)choose(i,true)}});
const asked=location.hash.match(/^#n(\\d+)$/);if(nodes.length)choose(asked?+asked[1]:0,!!asked);
"""


def page(nodes: Sequence[Node], name: str, programs: dict[int, str]) -> str:
    """The page.

    Args:
        nodes, name: the graph.
        programs: the text of a node's pullback, by id.
    """
    data = json.dumps([_details(node, programs.get(node.id, "")) for node in nodes]).replace("<", "\\u003c")
    hint = "Hover over an operator, or choose it; arrow keys step through them in the order of execution."
    # Nothing may be loaded: not even by a page that was tampered with.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>graph of {escape(name)}</title><style>{_STYLE}</style></head><body>"
        f'<main><h1>{escape(name)}</h1><p class="muted">{escape(summary(nodes))}. {hint} '
        '<span class="value">Values forward</span>, <span class="adjoint">adjoints backward</span>.</p>'
        f'{svg(nodes)}</main><aside id="panel" aria-live="polite"></aside>'
        f'<script type="application/json" id="nodes">{data}</script><script>{_SCRIPT}</script></body></html>\n'
    )


def svg(nodes: Sequence[Node]) -> str:
    """The graph as an SVG element: a box for each node, edges from top to bottom."""
    places = layout(nodes)
    if not places:
        return "<svg></svg>"
    left = min(x for x, _ in places.values())
    at = {i: ((x - left) * WIDE + BOX[0] / 2 + 8, y * HIGH + BOX[1] / 2 + 8) for i, (x, y) in places.items()}
    width, height = (max(p[k] for p in at.values()) + BOX[k] / 2 + 8 for k in (0, 1))
    lines = [_edge(at, i, j, read) for i, j, read in edges(nodes)]
    boxes = [_box(node, *at[node.id]) for node in nodes]
    return (
        f'<svg width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        f'aria-label="computation graph of {len(nodes)} nodes">{"".join(lines)}{"".join(boxes)}</svg>'
    )


def _edge(at: dict[int, tuple[float, float]], start: int, stop: int, read: bool) -> str:
    (x0, y0), (x1, y1) = at[start], at[stop]
    y0, y1 = y0 + BOX[1] / 2, y1 - BOX[1] / 2
    bend = (y1 - y0) / 2
    path = f"M{x0:.1f} {y0:.1f}C{x0:.1f} {y0 + bend:.1f} {x1:.1f} {y1 - bend:.1f} {x1:.1f} {y1:.1f}"
    kind = "edge" if read else "edge inner"
    return f'<path class="{kind}" data-from="{start}" data-to="{stop}" d="{path}"/>'


def _box(node: Node, x: float, y: float) -> str:
    kind = " inner" if node.owner is not None else " given" if node.operator in ("input", "constant") else ""
    lines = [("", node.expression), ("value", brief(node.value)), ("adjoint", brief(node.adjoint))]
    texts = "".join(
        f'<text class="{style}" x="{x:.1f}" y="{y - 10 + 14 * k:.1f}">{escape(_short(text))}</text>'
        for k, (style, text) in enumerate(lines)
    )
    return (
        f'<g class="node{kind}" id="n{node.id}" tabindex="0" role="button" aria-label="{escape(node.expression)}">'
        f'<rect class="box" x="{x - BOX[0] / 2:.1f}" y="{y - BOX[1] / 2:.1f}" width="{BOX[0]}" height="{BOX[1]}"/>'
        f"{texts}</g>"
    )


def _short(text: str) -> str:
    return text if len(text) <= LETTERS else text[: LETTERS - 1] + "…"


def _details(node: Node, program: str) -> dict[str, Any]:
    forward, backward = RULES.get(node.operator, ("", ""))
    if node.operator.startswith("custom_"):
        forward, backward = "as its function computes it", "by a rule of its own: the program below"
    if node.owner is not None:
        backward = f"none of its own: the rule of %{node.owner} takes its place"
    return {
        "title": f"%{node.id} = {node.expression}" if node.operator != "input" else f"%{node.id}: {node.label}",
        "forward": forward,
        "backward": backward,
        "value": shown(node.value),
        "adjoint": shown(node.adjoint),
        "shape": size(node),
        "source": node.source,
        "scope": node.scope,
        "flops": "" if not node.flops else f"{node.flops:,.0f}",
        "note": node.note,
        "program": program,
    }
