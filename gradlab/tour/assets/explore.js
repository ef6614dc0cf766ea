/* What can be moved by hand.

   Each <section class="explore" data-explore="NAME"> holds a table of numbers, which gradlab computed when the page was
   made. The code here looks numbers up and draws them, on the stages of stage.js; it takes no derivative and loads
   nothing. */
"use strict";

const MAP = {
  ratio: 1,
  x: () => ({ from: -2.2, to: 2.2, name: "x" }),
  y: () => ({ from: -2.2, to: 2.2, name: "y" }),
};

/* A point and its tangent */

function tangent(stage, data) {
  const x = stage.slider("point x", data.x, data.start[0]);
  const h = stage.slider("step h", data.h, data.start[1]);
  const now = () => ({
    ...{ x: data.x[x.index], h: data.h[h.index], value: data.value[x.index], slope: data.slope[x.index] },
    ...{ quotient: data.quotient[x.index][h.index], error: data.error[x.index][h.index] },
  });
  stage.picture({
    title: ["f, its ", colored("tangent", "back"), " at x, and the ", colored("line through x + h", "good")],
    label: () => `A curve. At x = ${shown(now().x)} its tangent has the slope ${shown(now().slope)}.`,
    ratio: 0.85,
    x: () => ({ from: -1.7, to: 2.6, name: "x" }),
    y: () => ({ from: -1.6, to: 4.6, name: "f(x)" }),
    draw: (plot) => drawTangent(plot, data.curve, now()),
    point: (at) => (x.index = nearest(data.x, at)),
    key: (dx, dy) => (x.index += dx || dy),
  });
  stage.picture({
    title: ["Error of the quotient, for each step h"],
    label: () => `Error against step. For h = ${shown(now().h)} it is ${shown(now().error)}.`,
    ratio: 0.85,
    x: () => ({ from: 5e-14, to: 2, log: true, name: "step h" }),
    y: () => ({ from: 1e-13, to: 20, log: true, name: "error" }),
    draw: (plot) => drawErrors(plot, data.h, data.error[x.index], h.index),
    point: (at) => (h.index = nearest(data.h, at, Math.log)),
    key: (dx, dy) => (h.index -= dx || dy), // the list of steps falls
  });
  stage.show(() => [
    ["value", "f(x) =", now().value],
    ["slope", "f′(x) =", now().slope, "back"],
    ["quotient", "(f(x + h) − f(x)) / h =", now().quotient, "good"],
    ["error", "error", now().error, "good"],
  ]);
}

function drawTangent(plot, curve, { x, h, value, slope, quotient }) {
  const through = (slope) => [-5, 5].map((dx) => [x + dx, value + slope * dx]);
  const second = [x + h, value + h * quotient];
  plot.line(curve, "forward thick");
  plot.line([[x, value], [x + h, value], second], "good dashed");
  plot.line(through(quotient), "good");
  plot.line(through(slope), "back");
  plot.dot(second, "good", 4.5);
  plot.dot([x, value], "back", 6.5);
}

function drawErrors(plot, h, errors, chosen) {
  const points = h.map((step, i) => [step, errors[i]]);
  plot.line(points, "good thin");
  points.forEach((point, i) => plot.dot(point, "good", i === chosen ? 6.5 : 3));
}

/* Slopes in all directions */

const DIAL = 0.6; // how long a direction is drawn
const SHORT = 0.25; // how long a gradient of length one is drawn

function direction(stage, data) {
  const x = stage.slider("point x", data.side, data.start[0]);
  const y = stage.slider("point y", data.side, data.start[1]);
  const angle = stage.slider("direction v", data.angle, data.start[2], { text: (at) => `${at}°`, cyclic: true });
  const now = () => {
    const names = ["height", "gradient", "size", "top", "rate"];
    const i = x.index * data.side.length + y.index;
    const [height, gradient, size, top, rates] = names.map((name) => data[name][i]);
    const [at, v] = [[data.side[x.index], data.side[y.index]], data.v[angle.index]];
    return { at, v, height, gradient, size, top, rates, rate: rates[angle.index] };
  };
  const move = (i, j) => ((x.index = i), (y.index = j));
  const turn = (dx, dy) => (angle.index = Math.round((Math.atan2(dy, dx) / (2 * Math.PI)) * data.angle.length));
  let turning = false;
  stage.picture({
    ...MAP,
    title: ["Map of f: ", colored("∇f", "back"), ", the direction v, and ", colored("∇f along v", "good")],
    label: () => `A map. At ${pair(now().at)} the gradient is ${pair(now().gradient)}.`,
    draw: (plot) => drawMap(plot, data.contours, now()),
    point: (px, py, first) => {
      const { at, v } = now();
      if (first) turning = Math.hypot(px - at[0] - DIAL * v[0], py - at[1] - DIAL * v[1]) < 0.25;
      if (turning) turn(px - at[0], py - at[1]);
      else move(nearest(data.side, px), nearest(data.side, py));
    },
    key: (dx, dy, event) => (event.shiftKey ? (angle.index += dy - dx) : move(x.index + dx, y.index + dy)),
  });
  stage.picture({
    title: ["Slope over the direction; ", colored("∇f", "back"), " is at the top"],
    label: () => `A wave. At ${data.angle[angle.index]}° the slope is ${shown(now().rate)}; its top is at ${shown(now().top)}°.`,
    ratio: 1,
    x: () => ({ from: 0, to: 360, ticks: [0, 90, 180, 270, 360], name: "direction in degrees" }),
    y: () => ({ from: -5.5, to: 5.5, name: "slope ∇ᵥf" }),
    draw: (plot) => drawSlopes(plot, data.angle, angle.index, now()),
    point: (at) => (angle.index = nearest(data.angle, at)),
    key: (dx, dy) => (angle.index += dx || dy),
  });
  const way = (rate) => (Math.abs(rate) < 0.05 ? "almost level" : rate > 0 ? "uphill" : "downhill");
  stage.show(() => [
    ["height", "f =", now().height],
    ["gradient", "∇f =", pair(now().gradient), "back"],
    ["size", "|∇f| =", now().size, "back"],
    ["top", "at", `${shown(now().top)}°`, "back"],
    ["rate", "∇ᵥf = ⟨∇f, v⟩ =", now().rate, "good"],
    ["way", "which is", way(now().rate)],
  ]);
}

function drawMap(plot, contours, { at, v, gradient, rate }) {
  const from = (vector, length) => at.map((start, k) => start + length * vector[k]);
  const [tip, foot] = [from(gradient, SHORT), from(v, SHORT * rate)];
  plot.contours(contours);
  plot.add("circle", { cx: plot.x(at[0]), cy: plot.y(at[1]), r: plot.x(DIAL) - plot.x(0), class: "line muted thin" });
  plot.line([at, foot], "good broad");
  plot.line([tip, foot], "muted dashed");
  plot.arrow(at, from(v, DIAL), "ink");
  plot.dot(from(v, DIAL), "ink");
  plot.text(from(v, DIAL + 0.2), "v", "ink", [0, 4]);
  plot.arrow(at, tip, "back");
  plot.dot(at, "back", 6.5);
}

function drawSlopes(plot, angles, chosen, { rates, rate, top, size }) {
  plot.line([[0, 0], [360, 0]], "muted");
  plot.line([[top, -9], [top, 9]], "back dashed");
  plot.line([...angles.map((angle, i) => [angle, rates[i]]), [360, rates[0]]], "forward thick");
  plot.dot([top, size], "back", 4.5);
  plot.line([[angles[chosen], 0], [angles[chosen], rate]], "good broad");
  plot.dot([angles[chosen], rate], "good", 6.5);
}

/* Learning rates */

const LOSS = { from: 1e-5, to: 1e3, log: true };

function learningRate(stage, data) {
  const surface = stage.choice("loss", data.surfaces.map((one) => one.name));
  const rate = stage.slider("learning rate", data.rate, data.start[0]);
  const x = stage.slider("start x", data.side, data.start[1]);
  const y = stage.slider("start y", data.side, data.start[2]);
  const now = () => data.surfaces[surface.index];
  const run = (i = rate.index) => now().runs[i][x.index * data.side.length + y.index];
  const move = (i, j) => ((x.index = i), (y.index = j));
  const start = () => pair([data.side[x.index], data.side[y.index]]);
  stage.picture({
    ...MAP,
    title: ["Map of the loss, and ", colored("the path", "back")],
    label: () => `A map of the loss with the path of gradient descent from ${start()}: ${run().status}.`,
    draw: (plot) => drawPath(plot, now().contours, run().path),
    point: (px, py) => move(nearest(data.side, px), nearest(data.side, py)),
    key: (dx, dy) => move(x.index + dx, y.index + dy),
  });
  stage.picture({
    title: ["Loss after each step"],
    label: () => `The loss in ${run().loss.length - 1} steps, from ${shown(run().loss[0])} to ${shown(run().loss.at(-1))}.`,
    ratio: 0.36,
    x: () => ({ from: -0.7, to: 25, name: "step" }),
    y: () => ({ ...LOSS, name: "loss" }),
    draw: (plot) => drawLosses(plot, run().loss),
  });
  stage.picture({
    title: ["Last loss by rate; ", colored("2 / λmax", "good"), " is the edge of stability"],
    label: () => `The last loss for ${data.rate.length} rates; the edge of stability is at ${shown(now().edge)}.`,
    ratio: 0.36,
    x: () => ({ from: 0, to: 0.34, name: "learning rate" }),
    y: () => ({ ...LOSS, name: "last loss" }),
    draw: (plot) => drawRates(plot, data.rate, rate.index, now().edge, run),
    point: (at) => (rate.index = nearest(data.rate, at)),
    key: (dx, dy) => (rate.index += dx || dy),
  });
  stage.show(() => [
    ["status", "", run().status, run().status === "converged" ? "good" : "back"],
    ["steps", "steps", run().loss.length - 1],
    ["loss", "last loss", run().status === "diverges" ? null : run().loss.at(-1)],
    ["sharpness", "λmax at the minimum", now().sharpness],
    ["edge", "2 / λmax =", now().edge, "good"],
  ]);
}

function drawPath(plot, contours, flat) {
  const points = span(flat.length / 2).map((i) => flat.slice(2 * i, 2 * i + 2));
  plot.contours(contours);
  plot.line(points, "back");
  points.forEach((point, i) => plot.dot(point, "back", i ? 2.8 : 6.5));
  plot.dot(points.at(-1), "ink", 3.5);
}

function drawLosses(plot, losses) {
  const points = losses.map((loss, step) => [step, loss]);
  plot.line(points, "back");
  for (const point of points) plot.dot(point, "back", 2.5);
}

function drawRates(plot, rates, chosen, edge, run) {
  const upright = (rate, kind) => plot.line([[rate, LOSS.from / 10], [rate, LOSS.to]], kind);
  upright(edge, "good dashed");
  upright(rates[chosen], "back thin");
  rates.forEach((rate, i) => {
    const kind = i === chosen ? "back" : "forward";
    if (run(i).status === "diverges") plot.text([rate, LOSS.to], "×", kind, [0, 14]);
    else plot.dot([rate, run(i).loss.at(-1)], kind, i === chosen ? 6 : 3.5);
  });
}

/* Depth */

function depth(stage, data) {
  const layers = span(data.size[data.activation[0]].length).map((i) => i + 1);
  const count = stage.slider("layers", layers, data.start[0]);
  const activation = stage.choice("activation", data.activation, data.start[1]);
  const scale = stage.choice("size of weights", data.scale, data.start[2]);
  const residual = stage.choice("residual", ["without", "with residual connections"]);
  const chosen = () => data.activation[activation.index];
  const look = (table, name) => table[name][count.index][residual.index][scale.index];
  const sizes = (name = chosen()) => look(data.size, name);
  // The ends move by several decades at a time, and so stay where they are most of the time.
  const ends = () => {
    const every = data.activation.flatMap(sizes).map(Math.log10);
    const low = Math.min(-4, 4 * Math.floor((Math.min(...every) - 0.5) / 4));
    return { from: 10 ** low, to: 10 ** (2 * Math.ceil((Math.max(...every) + 0.2) / 2)) };
  };
  stage.picture({
    title: ["Size of the gradient at each layer: ", colored("chosen activation", "back"), ", and the other two"],
    label: () => `${count.index + 1} layers. The gradient at the first has the size ${shown(sizes()[0])}, at the last 1.`,
    ratio: 0.42,
    least: 220,
    x: () => ({ from: 0.5, to: count.index + 1.5, name: "layer, from input to output" }),
    y: () => ({ ...ends(), log: true, name: "size; the last layer's is 1" }),
    draw: (plot) => drawDepth(plot, data, chosen(), sizes, residual.index),
    key: (dx, dy) => (count.index += dx || dy),
  });
  stage.show(() => [
    ["first", "at layer 1", sizes()[0], "back"],
    ["last", "at the last layer", sizes().at(-1)],
    ["factor", "on the way back, each layer multiplies by", look(data.factor, chosen()), "back"],
  ]);
}

function drawDepth(plot, data, chosen, sizes, residual) {
  const points = (name) => sizes(name).map((size, i) => [i + 1, size]);
  const own = points(chosen);
  data.activation.filter((name) => name !== chosen).forEach((name, i) => {
    plot.line(points(name), "muted");
    plot.text(points(name)[Math.floor((own.length * (1 + 2 * i)) / 4)], name, "muted", [0, -8]);
  });
  if (chosen === "sigmoid" && !residual) {
    plot.line(own.map(([layer]) => [layer, 0.25 ** (own.length - layer)]), "good dashed");
    plot.text([own.length, 0.25 ** Math.floor(own.length * 0.4)], "¼ per layer", "good", [0, 14], "end");
  }
  plot.line(own, "back thick");
  for (const point of own) plot.dot(point, "back", 3.5);
}

/* One step, operator by operator */

const PHASES = { given: "Start.", forward: "Forward.", backward: "Backward.", update: "Update." };
const COLORS = { forward: "forward", backward: "back", update: "good" };
// Where the nodes of the graph are: columns, and rows of them.
const PLACES = [[0, 0], [0, 1], [1, 1.5], [1, 0.5], [2, 0.5], [3, 0.5]];

function steps(stage, data) {
  const last = data.frames.length - 1;
  const moment = stage.slider("moment", span(last + 1), 0, { text: (i) => `${i} of ${last}` });
  stage.buttons({ "← Back": () => moment.index--, "Next →": () => moment.index++, Start: () => (moment.index = 0) });
  const now = () => data.frames[moment.index];
  stage.picture({
    title: [colored("Values", "forward"), " on the way forward, ", colored("∂loss/∂node", "back"), " on the way back"],
    label: () => `A computation graph. ${[PHASES[now().phase], ...now().says].join(" ")}`,
    draw: (picture) => drawGraph(picture, data.nodes, now(), data.after),
    key: (dx, dy) => (moment.index += dx || -dy),
  });
  stage.show(() => [
    ["phase", "", PHASES[now().phase], COLORS[now().phase]],
    ...now().says.map((says, i) => [`says-${i}`, "", says, COLORS[now().phase]]),
    ...(now().rule ? [["rule", "The rule, with operands x and z and result y:", now().rule]] : []),
  ]);
}

function drawGraph(picture, nodes, now, after) {
  const wide = picture.width / 4;
  const box = { width: Math.min(wide - 9, 130), height: 60 };
  const places = PLACES.map(([column, row]) => [(column + 0.5) * wide, 40 + row * 84]);
  picture.height = 84 * 1.5 + 80;
  nodes.forEach(({ inputs }, i) => {
    const kind = now.node === i && now.rule ? COLORS[now.phase] : "";
    inputs.forEach((from, k) => {
      const port = places[i][1] + 20 * (k - (inputs.length - 1) / 2);
      picture.layer.append(...edge(places[from], [places[i][0], port], box.width / 2, kind));
    });
  });
  nodes.forEach(({ name, value, adjoint }, i) => {
    const known = now.phase === "update" && i === now.node ? `${shown(value)} → ${shown(after)}` : shown(value);
    const lines = [[name, "ink"], [now.values.includes(i) ? known : "", "forward"]];
    lines.push([now.adjoints.includes(i) ? shown(adjoint) : "", "back"]);
    picture.layer.append(card(places[i], box, lines, now.node === i));
  });
}

// From the right side of one box to the left side of another; its head is where the numbers go.
function edge([x0, y0], [x1, y1], half, kind) {
  const [start, stop] = [[x0 + half, y0], [x1 - half, y1]];
  const [tail, tip] = kind === "back" ? [stop, start] : [start, stop];
  const line = svg("path", { d: `M${tail}L${tip}`, class: `line ${kind ? `${kind} thick` : "muted thin"}` });
  return [line, head(...tail, ...tip, kind || "muted")];
}

function card([x, y], { width, height }, lines, chosen) {
  const small = width < 80 ? "small" : "";
  const frame = { x: x - width / 2, y: y - height / 2, width, height, rx: 6, class: chosen ? "card chosen" : "card" };
  const texts = lines.map(([words, kind], i) =>
    svg("text", { x, y: y - 13 + 18 * i, "text-anchor": "middle", class: `note ${kind} ${small}` }, words),
  );
  return svg("g", {}, svg("rect", frame), ...texts);
}

/* The sections of a page */

const EXPLORABLES = { tangent, direction, learning_rate: learningRate, depth, steps };

for (const section of document.querySelectorAll("section.explore")) {
  const data = JSON.parse(section.querySelector("script").textContent);
  EXPLORABLES[section.dataset.explore](new Stage(section), data);
}

/* On a telephone the list of pages opens on demand */

if (matchMedia("(max-width: 52rem)").matches) document.querySelector("nav details").open = false;
