// Any figure of the layers as a map: a column for each layer, a row for each part of one.

const FIGURES = {
  bytes: { label: "Bytes stored", text: bytesText, add: true, of: (weight) => weight.bytes },
  parameters: { label: "Parameters", text: countText, add: true, of: (weight) => weight.parameters },
  bits: { label: "Bits per weight", text: (value) => value.toFixed(2), of: (weight) => (8 * weight.bytes) / weight.parameters },
  flops: { label: "FLOPs per token", text: countText, add: true, ofOp: (op) => op.flops },
  error: { label: "Weight error", text: percentText, of: (weight) => weight.statistics?.error, absent: "no weight has changed yet." },
  zeros: { label: "Zeros", text: percentText, of: (weight) => weight.statistics && weight.statistics.zeros / weight.statistics.seen },
  largest: { label: "Largest magnitude", text: numberText, of: (weight) => weight.statistics && Math.max(-weight.statistics.min, weight.statistics.max) },
  deviation: { label: "Standard deviation", text: numberText, of: (weight) => weight.statistics?.deviation },
};

// Figures that a pass left for its layers or weights count from the pass on.
for (const step of raw.steps) {
  for (const figures of Object.values(step.layers)) {
    for (const name of Object.keys(figures)) FIGURES[`pass:${name}`] ??= { label: `${words(name)}, as passes measured it`, text: numberText, ofPass: name };
  }
}

const LAYER = /^(?:(.*?)\.)?(\d+)(?:\.(.*))?$/;

/** The figure by place: { layers: Map(row → Map(layer → {value, uid})), rest: Map(name → {value, uid}) }. */
function figureOf(figure, state) {
  const layers = new Map();
  const rest = new Map();
  const put = (path, value, uid) => {
    if (!Number.isFinite(value)) return;
    const match = LAYER.exec(path);
    const [map, key] = match ? [layers.get(match[3] ?? "") ?? new Map(), Number(match[2])] : [rest, path || "(top)"];
    if (match) layers.set(match[3] ?? "", map);
    const old = map.get(key);
    map.set(key, { value: old ? (figure.add ? old.value + value : Math.max(old.value, value)) : value, uid });
  };
  const readers = new Map(state.ops.flatMap((op) => op.weights.map(([, weight]) => [weight, op])));
  if (figure.of) for (const weight of state.weights) put(weight.name.replace(/\.weight$/, ""), figure.of(weight), readers.get(weight).uid);
  if (figure.ofOp) for (const op of state.ops) if (figure.ofOp(op)) put(op.origin || op.path, figure.ofOp(op), op.uid);
  if (figure.ofPass) {
    const byPlace = new Map(state.ops.flatMap((op) => [[op.origin, op], ...op.weights.map(([, weight]) => [weight.name, op])]));
    for (const step of steps.slice(0, looking.step + 1)) {
      for (const [path, figures] of Object.entries(step.layers ?? {})) {
        if (figure.ofPass in figures) put(path.replace(/\.weight$/, ""), figures[figure.ofPass], byPlace.get(path)?.uid);
      }
    }
  }
  return { layers, rest };
}

function heatControls() {
  const step = currentStep();
  return [
    h("label", {}, "Figure ", h("select", { id: "metric", onchange: (event) => look({ metric: event.target.value }) },
      Object.entries(FIGURES).map(([name, { label }]) => h("option", { value: name, selected: name === looking.metric }, label)))),
    h("div", { class: "segments", role: "group", "aria-label": "Scale" },
      [["map", "One scale"], ["row", "Scale per row"]].map(([scale, label]) => h("button", { "aria-pressed": String(looking.scale === scale), onclick: () => look({ scale }) }, label))),
    step.before !== step.after && h("div", { class: "segments", role: "group", "aria-label": "Which graph" },
      [["before", "Before"], ["after", "After"]].map(([side, label]) => h("button", { "aria-pressed": String((looking.side === "before" ? "before" : "after") === side), onclick: () => look({ side }) }, label))),
  ];
}

function heatView() {
  const figure = FIGURES[looking.metric] ?? FIGURES.bytes;
  const state = looking.side === "before" ? stateBefore() : stateAfter();
  const { layers, rest } = figureOf(figure, state);
  const parts = [];
  if (layers.size) parts.push(h("h3", {}, `${figure.label}, by layer`), heatMap(layers, figure));
  if (rest.size) parts.push(h("h3", {}, layers.size ? "Outside the layers" : figure.label), bars(rest, figure));
  if (!parts.length) {
    const reason = figure.of && (weights.find((weight) => weight.missing)?.missing ?? figure.absent);
    parts.push(h("p", { class: "empty" }, `${figure.label} is not known here${reason ? `: ${reason}` : "."}`));
  }
  put($("#view"), h("div", { class: "heat" }, parts));
}

function heatMap(rowsByName, figure) {
  const numbers = [...new Set([...rowsByName.values()].flatMap((row) => [...row.keys()]))].sort((a, b) => a - b);
  const names = [...rowsByName.keys()];
  const left = 12 + 7 * Math.max(...names.map((name) => Math.min(28, name.length)));
  const room = $("#view").clientWidth - left - 60;
  const [cell, gap, row] = [Math.max(6, Math.min(48, room / numbers.length)), 1, 24];
  const all = [...rowsByName.values()].flatMap((each) => [...each.values()].map(({ value }) => value));
  const scaleOf = (name) => {
    const values = looking.scale === "row" ? [...rowsByName.get(name).values()].map(({ value }) => value) : all;
    return [Math.min(...values), Math.max(...values)];
  };
  const width = left + numbers.length * cell + 8;
  const height = names.length * row + 24;
  const svg = s("svg", { class: "map", width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${figure.label} of each layer` });
  names.forEach((name, y) => {
    const [low, high] = scaleOf(name);
    svg.append(s("text", { class: "row", x: left - 8, y: y * row + 16, "text-anchor": "end" }, cut(name || "(layer)", 28)));
    numbers.forEach((number, x) => {
      const found = rowsByName.get(name).get(number);
      if (!found) return;
      const share = high > low ? (found.value - low) / (high - low) : 0.5;
      const rect = s("rect", {
        class: `cell${found.uid === looking.op ? " selected" : ""}`, x: left + x * cell, y: y * row + gap, width: cell - gap, height: row - 2 * gap, rx: 2,
        style: `--share:${(8 + 92 * share).toFixed(1)}%`, onclick: () => found.uid !== undefined && look({ op: found.uid }),
      });
      rect.addEventListener("pointerenter", (event) => showTip(event, [`layer ${number}  ${name}`, `${figure.label}: ${figure.text(found.value)}`]));
      rect.addEventListener("pointerleave", hideTip);
      svg.append(rect);
    });
  });
  const every = Math.ceil(28 / cell);
  numbers.forEach((number, x) => {
    if (x % every === 0) svg.append(s("text", { class: "column", x: left + x * cell + cell / 2, y: names.length * row + 15, "text-anchor": "middle" }, String(number)));
  });
  return h("div", { class: "map-frame" }, svg, looking.scale === "map" ? legend(Math.min(...all), Math.max(...all), figure) : h("p", { class: "quiet" }, "Each row from its least (light) to its most (dark)."));
}

function legend(low, high, figure) {
  return h("div", { class: "legend" }, h("span", {}, figure.text(low)), h("i", {}), h("span", {}, figure.text(high)));
}

function bars(rest, figure) {
  const sorted = [...rest].sort(([, a], [, b]) => b.value - a.value);
  const most = Math.max(...sorted.map(([, { value }]) => value), Number.MIN_VALUE);
  return h("table", { class: "numbers bars" }, h("tbody", {}, sorted.slice(0, 40).map(([name, { value, uid }]) => h("tr", {},
    h("th", { scope: "row" }, h("button", { class: "link", onclick: () => uid !== undefined && look({ op: uid }) }, name)),
    h("td", { class: "bar" }, h("i", { style: `width:${Math.max(0, (100 * value) / most)}%` })), h("td", {}, figure.text(value))))));
}
