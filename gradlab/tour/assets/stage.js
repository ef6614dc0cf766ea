/* What explore.js is made of: pictures with axes, controls, and a line that says what they show. */
"use strict";

/* Elements */

const maker = (space) => (name, attributes = {}, ...children) => {
  const node = document.createElementNS(space, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
};
const html = maker("http://www.w3.org/1999/xhtml");
const svg = maker("http://www.w3.org/2000/svg");
// Words in the color of what they name.
const colored = (words, kind) => html("b", { class: kind }, words);

/* Numbers */

const span = (count) => Array.from({ length: count }, (_, i) => i);
const power = (exponent) => "10" + String(exponent).replace(/./g, (sign) => (sign === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[sign]));

// Four digits with a true minus sign; what is very large or small as a power of ten.
function shown(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "string") return value;
  const size = Math.abs(value);
  if (size === 0 || (size >= 1e-3 && size < 1e5)) return String(Number(value.toPrecision(4))).replace("-", "−");
  const [factor, exponent] = value.toExponential(2).split("e").map(Number);
  return (factor === 1 ? "" : `${factor} · `.replace("-", "−")) + power(exponent);
}

const pair = (numbers) => `(${numbers.map(shown).join(", ")})`;

function nearest(values, value, map = Number) {
  const gaps = values.map((one) => Math.abs(map(one) - map(value)));
  return gaps.indexOf(Math.min(...gaps));
}

/* Scales: from numbers to pixels, and back */

function scale({ from, to, log = false, ticks = null }, start, stop) {
  // Whatever lies beyond the lower end of a logarithmic scale is drawn just outside of it.
  const map = log ? (value) => Math.log10(Math.max(value, from / 10)) : Number;
  const unmap = log ? (value) => 10 ** value : Number;
  const [low, high] = [map(from), map(to)];
  const at = (value) => start + ((map(value) - low) / (high - low)) * (stop - start);
  at.back = (pixel) => unmap(low + ((pixel - start) / (stop - start)) * (high - low));
  const most = Math.max(2, Math.abs(stop - start) / (log ? 32 : 55));
  at.ticks = ticks ?? multiples(low, high, log ? Math.ceil((high - low) / most) : round((high - low) / most)).map(unmap);
  at.tick = log ? (value) => power(Math.round(Math.log10(value))) : shown;
  return at;
}

// 1, 2 or 5 times a power of ten, the next one up.
function round(step) {
  const unit = 10 ** Math.floor(Math.log10(step));
  return unit * [1, 2, 5, 10].find((factor) => factor * unit >= step * 0.999);
}

function multiples(low, high, step) {
  const first = Math.ceil(low / step - 1e-9);
  return span(Math.floor(high / step + 1e-9) - first + 1).map((i) => Number(((first + i) * step).toPrecision(12)));
}

/* Pictures: drawn anew, in the width that they have, whenever something moves */

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
const MARGIN = { left: 46, right: 14, top: 20, bottom: 36 };
let clips = 0;

class Picture {
  /* title: nodes.  draw(picture), label(): what it shows, drawn and in words.  key(dx, dy, event), point(x, y, first):
     where arrow keys or the pointer move something.  ratio, x(), y(): for one with axes, height over width, and the ends
     and the name of each axis. */
  constructor(host, options) {
    this.options = options;
    this.clip = `explore-${clips++}`;
    this.svg = svg("svg", { role: "img" });
    host.append(html("figure", {}, html("figcaption", {}, ...options.title), this.svg));
    if (options.key) this.listenToKeys(options.key);
    if (options.point) this.listenToPointer(options.point);
  }

  listenToKeys(key) {
    this.svg.setAttribute("tabindex", "0");
    this.svg.addEventListener("keydown", (event) => {
      if (!(event.key in ARROWS)) return;
      event.preventDefault();
      key(...ARROWS[event.key], event);
    });
  }

  listenToPointer(point) {
    // What moves sideways only leaves it to a finger to scroll up and down.
    this.svg.classList.add(point.length > 1 ? "moves" : "slides");
    const tell = (event, first) => {
      const box = this.svg.getBoundingClientRect();
      const zoom = this.width / box.width;
      point(this.x.back((event.clientX - box.left) * zoom), this.y.back((event.clientY - box.top) * zoom), first);
    };
    this.svg.addEventListener("pointerdown", (down) => {
      const held = new AbortController();
      const whileHeld = { signal: held.signal };
      addEventListener("pointermove", (event) => tell(event, false), whileHeld);
      for (const end of ["pointerup", "pointercancel"]) addEventListener(end, () => held.abort(), whileHeld);
      tell(down, true);
    });
  }

  draw() {
    this.width = Math.round(this.svg.parentElement.clientWidth) || 320;
    this.layer = svg("g");
    this.svg.setAttribute("aria-label", this.options.label());
    this.svg.replaceChildren(this.layer);
    if (this.options.ratio) this.axes(this.options.x(), this.options.y());
    this.options.draw(this);
  }

  set height(height) {
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${height}`);
  }

  axes(x, y) {
    const { left, top } = MARGIN;
    const width = this.width - left - MARGIN.right;
    const height = Math.round(Math.max(width * this.options.ratio, Math.min(width, this.options.least ?? 0)));
    const [right, bottom] = [left + width, top + height];
    const area = { x: left, y: top, width, height };
    this.height = bottom + MARGIN.bottom;
    [this.x, this.y] = [scale(x, left, right), scale(y, bottom, top)];
    const line = (x1, y1, x2, y2) => svg("line", { x1, y1, x2, y2, class: "grid" });
    const words = (x, y, anchor, text, kind = "") => svg("text", { x, y, "text-anchor": anchor, class: kind }, text);
    this.layer.setAttribute("clip-path", `url(#${this.clip})`);
    this.layer.before(
      svg("clipPath", { id: this.clip }, svg("rect", area)),
      ...this.x.ticks.map((tick) => line(this.x(tick), top, this.x(tick), bottom)),
      ...this.y.ticks.map((tick) => line(left, this.y(tick), right, this.y(tick))),
      ...this.x.ticks.map((tick) => words(this.x(tick), bottom + 15, "middle", this.x.tick(tick))),
      ...this.y.ticks.map((tick) => words(left - 6, this.y(tick) + 4, "end", this.y.tick(tick))),
      words(right, bottom + 31, "end", x.name, "name"),
      words(left, top - 7, "start", y.name, "name"),
    );
    this.layer.after(svg("rect", { ...area, class: "frame" }));
  }

  add(name, attributes, ...children) {
    this.layer.append(svg(name, attributes, ...children));
  }

  path(points) {
    return "M" + points.map(([x, y]) => `${this.x(x).toFixed(1)} ${this.y(y).toFixed(1)}`).join("L");
  }

  line(points, kind) {
    this.add("path", { d: this.path(points), class: `line ${kind}` });
  }

  contours(levels) {
    const closed = (rings) => rings.map((ring) => `${this.path(ring)}Z`).join("");
    for (const rings of levels) this.add("path", { d: closed(rings), class: "level" });
  }

  dot([x, y], kind, r = 5) {
    this.add("circle", { cx: this.x(x), cy: this.y(y), r, class: `dot ${kind}` });
  }

  arrow(from, to, kind) {
    this.line([from, to], kind);
    this.layer.append(head(this.x(from[0]), this.y(from[1]), this.x(to[0]), this.y(to[1]), kind));
  }

  text([x, y], words, kind, [dx, dy] = [0, 0], anchor = "middle") {
    this.add("text", { x: this.x(x) + dx, y: this.y(y) + dy, "text-anchor": anchor, class: `note ${kind}` }, words);
  }
}

// The head of an arrow, in pixels; none where the arrow is too short to have a direction.
function head(x0, y0, x1, y1, kind) {
  const length = Math.hypot(x1 - x0, y1 - y0);
  if (length < 3) return "";
  const [ux, uy] = [((x1 - x0) / length) * 9, ((y1 - y0) / length) * 9];
  const side = (way) => `${x1 - ux - way * uy * 0.5} ${y1 - uy + way * ux * 0.5}`;
  return svg("path", { d: `M${x1} ${y1}L${side(1)}L${side(-1)}Z`, class: `dot ${kind}` });
}

/* One section: pictures, controls, and what they say */

class Stage {
  constructor(section) {
    this.pictures = [];
    this.panels = html("div", { class: "panels" });
    this.controls = html("div", { class: "controls" });
    this.readout = html("p", { class: "readout", "aria-live": "polite", "aria-atomic": "true" });
    section.append(this.panels, this.controls, this.readout);
  }

  picture(options) {
    this.pictures.push(new Picture(this.panels, options));
  }

  // A control has an `index`; to give it another one moves it, and draws everything anew.
  control(name, input, key, last, { text = () => "", cyclic = false } = {}) {
    const output = html("output");
    const tell = () => {
      output.textContent = text(Number(input[key]));
      if (output.textContent) input.setAttribute("aria-valuetext", output.textContent);
    };
    const update = () => (tell(), this.update());
    input.setAttribute("aria-label", name);
    input.addEventListener("input", update);
    this.controls.append(html("label", {}, html("span", {}, name), input, output));
    tell();
    return {
      get index() {
        return Number(input[key]);
      },
      set index(index) {
        input[key] = cyclic ? (index + last + 1) % (last + 1) : Math.min(Math.max(index, 0), last);
        update();
      },
    };
  }

  slider(name, values, start, { text = shown, cyclic = false } = {}) {
    const last = values.length - 1;
    const input = html("input", { type: "range", min: 0, max: last, step: 1, value: start });
    return this.control(name, input, "value", last, { text: (index) => text(values[index]), cyclic });
  }

  choice(name, words, start = 0) {
    const input = html("select", {}, ...words.map((word) => html("option", {}, word)));
    input.selectedIndex = start;
    return this.control(name, input, "selectedIndex", words.length - 1);
  }

  buttons(actions) {
    const made = Object.entries(actions).map(([name, act]) => {
      const button = html("button", { type: "button" }, name);
      button.addEventListener("click", act);
      return button;
    });
    this.controls.append(html("div", { class: "buttons" }, ...made));
  }

  // tell(): what the readout says, as [key, words, value, color].
  show(tell) {
    this.tell = tell;
    this.update();
    addEventListener("resize", () => this.pictures.forEach((picture) => picture.draw()));
  }

  update() {
    for (const picture of this.pictures) picture.draw();
    this.readout.replaceChildren(...this.tell().flatMap((item) => [said(...item), " "]));
  }
}

function said(key, words, value, kind = "ink") {
  const attributes = { "data-shows": key, "data-value": value ?? "" };
  return html("span", attributes, words ? `${words} ` : "", colored(shown(value), kind));
}
