"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const PLOT = { left: 62, right: 740, top: 14, bottom: 408 };
const PAGE = 50; // rows shown at once
const state = { set: data.sets[0], chosen: null, policy: null, hidden: new Set(), sort: "harm", down: true, shown: PAGE, filter: "" };

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function drawn(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

const fixed = (value, digits = 2) => value.toFixed(digits);
const mega = (point) => `${fixed(point.macs / 1e6, 1)} MMACs/s (${fixed(point.share, 1)} % of the last exit)`;

// --- the curve ---------------------------------------------------------------------------------------------------------

const MARKS = { // around the origin, about 7 units in each direction
  o: "M-6 0a6 6 0 1 0 12 0a6 6 0 1 0 -12 0Z", s: "M-6-6H6V6H-6Z", "^": "M0-7L7 6H-7Z", v: "M0 7L7-6H-7Z", D: "M0-8L7 0L0 8L-7 0Z",
  "<": "M-7 0L6-7V7Z", ">": "M7 0L-6-7V7Z", p: "M0-8L7.6-2.5 4.7 6.5H-4.7L-7.6-2.5Z",
  P: "M-2-7H2V-2H7V2H2V7H-2V2H-7V-2H-2Z", h: "M-4-7H4L8 0L4 7H-4L-8 0Z", X: "M-6-6L6 6M6-6L-6 6",
  "*": "M0-10L2.4-3.1 9.5-3.1 3.8 1.2 5.9 8.1 0 4-5.9 8.1-3.8 1.2-9.5-3.1-2.4-3.1Z",
};

// What a point belongs to in the legend: fixed exits, a policy, other models, the oracle.
const seriesOf = (point) => (point.kind in data.styles ? point.kind : point.policy);
const styleOf = (series) => data.styles[series] || data.styles.other;

function ticks(most, count = 6) {
  const rough = most / count, unit = 10 ** Math.floor(Math.log10(rough));
  const step = unit * [1, 2, 2.5, 5, 10].find((factor) => factor * unit >= rough);
  const found = [];
  for (let value = 0; value <= most * 1.0001; value += step) found.push(Number(value.toPrecision(12)));
  return found;
}

function scales(points) {
  const shown = points.filter((point) => point.kind !== "sweep");
  const most = { x: 1.06 * Math.max(...points.map((p) => p.macs)) || 1, y: 1.15 * Math.max(...shown.map((p) => p.wer)) || 1 };
  const x = (macs) => PLOT.left + (macs / most.x) * (PLOT.right - PLOT.left);
  const y = (wer) => PLOT.bottom - (Math.min(wer, most.y) / most.y) * (PLOT.bottom - PLOT.top);
  return { most, x, y };
}

function drawAxes(svg, { most, x, y }) {
  const giga = most.x >= 1.06e9, unit = giga ? 1e9 : 1e6;
  for (const value of ticks(most.x / unit)) {
    svg.append(drawn("line", { class: "grid", x1: x(value * unit), x2: x(value * unit), y1: PLOT.top, y2: PLOT.bottom }));
    svg.append(drawn("text", { x: x(value * unit), y: PLOT.bottom + 18, "text-anchor": "middle" }, value));
  }
  for (const value of ticks(most.y)) {
    svg.append(drawn("line", { class: "grid", x1: PLOT.left, x2: PLOT.right, y1: y(value), y2: y(value) }));
    svg.append(drawn("text", { x: PLOT.left - 8, y: y(value) + 4, "text-anchor": "end" }, value));
  }
  svg.append(drawn("path", { class: "axis", fill: "none", d: `M${PLOT.left} ${PLOT.top}V${PLOT.bottom}H${PLOT.right}` }));
  const label = `compute (${giga ? "GMACs" : "MMACs"} per second of audio)`;
  svg.append(drawn("text", { x: (PLOT.left + PLOT.right) / 2, y: PLOT.bottom + 42, "text-anchor": "middle" }, label));
  const turned = `translate(16 ${(PLOT.top + PLOT.bottom) / 2}) rotate(-90)`;
  svg.append(drawn("text", { transform: turned, "text-anchor": "middle" }, "word error rate (%)"));
}

function drawPoint(svg, point, { x, y }) {
  const style = styleOf(seriesOf(point)), place = `translate(${x(point.macs)} ${y(point.wer)})`;
  if (point.kind === "sweep") return svg.append(drawn("circle", { cx: x(point.macs), cy: y(point.wer), r: 2.5, fill: style.colour }));
  if (["calibrated", "online"].includes(point.kind)) {
    const bar = `M${x(point.macs)} ${y(point.low)}V${y(point.high)}m-4 0h8M${x(point.macs) - 4} ${y(point.low)}h8`;
    svg.append(drawn("path", { d: bar, stroke: style.colour, fill: "none", opacity: 0.6 }));
  }
  const paint = style.marker === "X" ? { stroke: style.colour, "stroke-width": 3 } : { fill: style.colour, stroke: "#fff" };
  svg.append(drawn("path", { d: MARKS[style.marker], transform: place, ...paint, "data-point": point.name }));
  if (point.kind === "fixed") svg.append(drawn("text", { x: x(point.macs) + 8, y: y(point.wer) - 8 }, fixed(point.depth, 0)));
}

function drawCurve() {
  const svg = $("curve"), scale = scales(state.set.points);
  const points = state.set.points.filter((point) => !state.hidden.has(seriesOf(point)));
  svg.replaceChildren();
  drawAxes(svg, scale);
  const lines = new Map(); // of the fixed exits and of each sweep
  for (const point of points.filter((one) => ["fixed", "sweep"].includes(one.kind))) {
    lines.set(seriesOf(point), [...(lines.get(seriesOf(point)) || []), point]);
  }
  for (const [series, own] of lines) {
    const way = own.slice().sort((a, b) => a.macs - b.macs || a.wer - b.wer);
    const places = way.map((point) => `${scale.x(point.macs)},${scale.y(point.wer)}`).join(" ");
    svg.append(drawn("polyline", { points: places, fill: "none", stroke: styleOf(series).colour, "stroke-width": 2, opacity: 0.75 }));
  }
  const order = ["sweep", "fixed", "separate", "oracle", "calibrated", "online"];
  points.sort((a, b) => order.indexOf(a.kind) - order.indexOf(b.kind));
  for (const point of points) drawPoint(svg, point, scale);
  if (state.chosen && !state.hidden.has(seriesOf(state.chosen))) {
    const place = { cx: scale.x(state.chosen.macs), cy: scale.y(state.chosen.wer), r: 13 };
    svg.append(drawn("circle", { ...place, fill: "none", stroke: "#222", "stroke-width": 2 }));
  }
}

// The nearest mark within reach of the pointer; of two at one place the one that lies on top.
function pointAt(event) {
  const box = $("curve").getBoundingClientRect(), { x, y } = scales(state.set.points);
  const across = ((event.clientX - box.left) * 760) / box.width, down = ((event.clientY - box.top) * 460) / box.height;
  let best = null, least = 18;
  for (const point of state.set.points) {
    if (state.hidden.has(seriesOf(point))) continue;
    const distance = Math.hypot(x(point.macs) - across, y(point.wer) - down) + (point.kind === "sweep" ? 3 : 0);
    if (distance <= least) [best, least] = [point, distance];
  }
  return best;
}

function facts(point) {
  const rows = [["WER", `${fixed(point.wer)} % [${fixed(point.low)}, ${fixed(point.high)}]`], ["compute", mega(point)]];
  if (point.threshold !== null) rows.unshift(["threshold", String(point.threshold)]);
  rows.push(["mean exit layer", fixed(point.depth)]);
  if (point.target) rows.push(["asked for", point.target + (point.reached === false ? " (not reached)" : "")]);
  return rows;
}

function showTip(event) {
  const point = pointAt(event), tip = $("tip");
  tip.hidden = !point;
  if (!point) return;
  tip.textContent = [point.name, ...facts(point).map(([name, value]) => `${name}: ${value}`)].join("\n");
  tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8)}px`;
}

function drawLegend() {
  const names = [...new Set(state.set.points.map(seriesOf))];
  $("legend").replaceChildren(...names.map((series) => {
    const style = styleOf(series), box = element("input", { type: "checkbox" });
    box.checked = !state.hidden.has(series);
    box.onchange = () => { state.hidden[box.checked ? "delete" : "add"](series); drawCurve(); };
    const sign = drawn("svg", { viewBox: "-12 -10 24 20" });
    const paint = style.marker === "X" ? { stroke: style.colour, "stroke-width": 3 } : { fill: style.colour };
    sign.append(drawn("path", { d: MARKS[style.marker], ...paint }));
    return element("label", {}, box, " ", sign, " ", style.label || series);
  }));
}

// --- a point -----------------------------------------------------------------------------------------------------------

function configOf(point) {
  if (point.kind === "sweep") return point.threshold === null ? "" : (data.sweeps[point.policy] || "").replace("THRESHOLD", String(point.threshold));
  return data.configs[point.name] || "";
}

function showDetail() {
  const point = state.chosen, list = element("dl"), config = configOf(point);
  const rows = [...facts(point), ["CER", `${fixed(point.cer)} %`]];
  if (point.rtf !== null) rows.push(["RTF", `${fixed(point.rtf, 4)}${point.kind === "online" ? "" : " (added up, not measured)"}`]);
  if (point.over) rows.push(["WER - fixed line", `${fixed(point.over[0])} [${fixed(point.over[1])}, ${fixed(point.over[2])}]`]);
  if (point.promise) rows.push([`promised on ${data.valid}`, point.promise]);
  for (const [name, value] of rows) list.append(element("dt", {}, name), element("dd", {}, value));
  $("detail").replaceChildren(element("h2", {}, point.name), list, ...configParts(point, config), ...bars(point));
}

function configParts(point, config) {
  if (!config) return [element("p", { class: "soft" }, point.kind === "oracle" ? "A bound, no method: it looks at the reference." : "Another model.")];
  const text = element("pre", { id: "config", tabindex: "0" }, config), button = element("button", { id: "copy", type: "button" }, "copy");
  button.onclick = async () => {
    getSelection().selectAllChildren(text);
    // Some browsers lend the clipboard to no page that is a file; the older way works there.
    const done = await navigator.clipboard?.writeText(config).then(() => true, () => false) || document.execCommand("copy");
    button.textContent = done ? "copied" : "press Ctrl-C";
  };
  return [element("p", {}, "Decoding configuration ", button), text];
}

function bars(point) {
  if (!point.stops) return [];
  const all = point.stops.reduce((sum, count) => sum + count, 0) || 1, most = Math.max(...point.stops, 1);
  const rows = point.stops.map((count, index) => {
    const bar = element("i");
    bar.style.width = `${(100 * count) / most}%`;
    return element("div", { class: "bar" }, `exit ${state.set.layers[index]}`, element("span", {}, bar), `${count} (${fixed((100 * count) / all, 0)} %)`);
  });
  return [element("p", {}, "Where utterances stop"), element("div", { id: "stops" }, ...rows)];
}

function choose(point) {
  state.chosen = point;
  drawCurve();
  showDetail();
  if (point.name in state.set.exits) usePolicy(point.name);
}

// --- the utterances ----------------------------------------------------------------------------------------------------

const words = (text) => text.normalize("NFKC").split(/\s+/).filter(Boolean);

// Levenshtein's alignment of the words: [operation, word of the reference, word that was said].
function align(reference, said) {
  const rows = reference.length + 1, columns = said.length + 1;
  const cost = Array.from({ length: rows }, (_, i) => Array.from({ length: columns }, (_, j) => i || j));
  for (let i = 1; i < rows; i++) {
    for (let j = 1; j < columns; j++) {
      cost[i][j] = Math.min(cost[i - 1][j - 1] + (reference[i - 1] !== said[j - 1]), cost[i - 1][j] + 1, cost[i][j - 1] + 1);
    }
  }
  const steps = [];
  for (let i = rows - 1, j = columns - 1; i || j;) {
    const same = i && j && reference[i - 1] === said[j - 1];
    if (i && j && cost[i][j] === cost[i - 1][j - 1] + !same) steps.push([same ? "same" : "other", reference[--i], said[--j]]);
    else if (i && cost[i][j] === cost[i - 1][j] + 1) steps.push(["missing", reference[--i], ""]);
    else steps.push(["more", "", said[--j]]);
  }
  return steps.reverse();
}

function marked(reference, text) {
  const parts = align(words(reference), words(text)).map(([step, due, said]) => {
    if (step === "same") return said;
    if (step === "missing") return element("del", { title: "missing" }, due);
    return element("mark", step === "more" ? { class: "more", title: "added" } : { title: `reference: ${due}` }, said);
  });
  return element("span", {}, ...parts.flatMap((part) => [part, " "]));
}

const exitAt = (row) => state.set.exits[state.policy][row];
const COLUMNS = [
  ["utterance", (one) => one.id], ["seconds", (one) => one.seconds], ["exit", (one, row) => state.set.layers[exitAt(row)]],
  ["errors", (one, row) => one.errors[exitAt(row)]], ["at the last", (one) => one.errors.at(-1)],
  ["harm", (one, row) => one.errors[exitAt(row)] - one.errors.at(-1)],
];

// Exits that say the same share a line.
function textLines(one, row) {
  const lines = [element("div", { class: "line" }, element("span", {}, "reference"), element("span", {}, one.reference))];
  for (let first = 0, next; first < one.at.length; first = next) {
    for (next = first + 1; one.at[next] === one.at[first];) next++;
    const layers = state.set.layers, span = next - first > 1 ? `exits ${layers[first]} to ${layers[next - 1]}` : `exit ${layers[first]}`;
    const stops = first <= exitAt(row) && exitAt(row) < next;
    const label = element("span", {}, `${span}: ${one.errors[first]}${stops ? " \u25C2" : ""}`);
    lines.push(element("div", { class: stops ? "line stop" : "line" }, label, marked(one.reference, one.texts[one.at[first]])));
  }
  return lines;
}

function utteranceRow(row) {
  const one = state.set.utterances[row], cells = COLUMNS.map(([, value]) => value(one, row)), harm = cells.at(-1);
  const name = element("td", { class: "id" }, one.id);
  if (one.audio) name.append(element("audio", { controls: "", preload: "none", src: one.audio }));
  const numbers = cells.slice(1).map((value, index) => element("td", { class: "number" }, index ? String(value) : fixed(value, 1)));
  if (harm) numbers.at(-1).classList.add(harm > 0 ? "harm" : "gain");
  return element("tr", {}, name, ...numbers, element("td", {}, ...textLines(one, row)));
}

function order() {
  const value = COLUMNS.find(([name]) => name === state.sort)[1], wanted = state.filter.toLowerCase();
  const rows = state.set.utterances.map((_, row) => row).filter((row) => {
    const one = state.set.utterances[row];
    return !wanted || [one.id, one.reference, ...one.texts].some((text) => text.toLowerCase().includes(wanted));
  });
  const keys = new Map(rows.map((row) => [row, value(state.set.utterances[row], row)]));
  const compare = (a, b) => (keys.get(a) < keys.get(b) ? -1 : keys.get(a) > keys.get(b) ? 1 : 0);
  return rows.sort((a, b) => (state.down ? -compare(a, b) : compare(a, b)) || a - b);
}

function drawTable() {
  const rows = order();
  $("utterances").tHead.rows[0].replaceChildren(...[...COLUMNS.map(([name]) => {
    const button = element("button", { type: "button" }, name);
    button.onclick = () => { state.down = state.sort === name ? !state.down : name !== "utterance"; state.sort = name; drawTable(); };
    const sorted = state.sort === name ? { "aria-sort": state.down ? "descending" : "ascending" } : {};
    return element("th", { scope: "col", ...sorted }, button);
  }), element("th", { scope: "col" }, "text at every exit: errors")]);
  $("utterances").tBodies[0].replaceChildren(...rows.slice(0, state.shown).map(utteranceRow));
  $("more").hidden = rows.length <= state.shown;
  $("count").textContent = `${Math.min(rows.length, state.shown)} of ${rows.length} utterances`;
}

function usePolicy(name) {
  state.policy = name;
  $("policy").value = name;
  drawTable();
}

function useSet(set) {
  Object.assign(state, { set, shown: PAGE });
  for (const button of $("sets").children) button.setAttribute("aria-pressed", String(button.textContent === set.name));
  const names = Object.keys(set.exits);
  $("policy").replaceChildren(...names.map((name) => element("option", {}, name)));
  state.policy = names.includes(state.policy) ? state.policy : set.boldest;
  $("policy").value = state.policy;
  drawLegend();
  const same = state.chosen && set.points.find((point) => point.name === state.chosen.name && point.kind === state.chosen.kind);
  choose(same || set.points.find((point) => point.name === state.policy && point.kind !== "promise") || set.points[0]);
  drawTable();
}

for (const set of data.sets) { // the fixed exits are policies, too
  const layers = set.points.filter((point) => point.kind === "fixed");
  layers.forEach((point, index) => { set.exits[point.name] = set.utterances.map(() => index); });
}
$("sets").append(...data.sets.map((set) => {
  const button = element("button", { type: "button" }, set.name);
  button.onclick = () => useSet(set);
  return button;
}));
$("curve").addEventListener("mousemove", showTip);
$("curve").addEventListener("mouseleave", () => { $("tip").hidden = true; });
$("curve").addEventListener("click", (event) => { const point = pointAt(event); if (point) choose(point); });
$("policy").onchange = () => usePolicy($("policy").value);
$("filter").oninput = () => { Object.assign(state, { filter: $("filter").value.trim(), shown: PAGE }); drawTable(); };
$("more").onclick = () => { state.shown += PAGE; drawTable(); };
useSet(data.sets[0]);
