// The graph before and after a step: two panes of nested boxes that fold, pan and zoom.

const CHARACTER = 6.9;
const LINE = 16;
const LEGIBLE = 0.7;
const zooms = { before: { x: 0, y: 0, k: 1 }, after: { x: 0, y: 0, k: 1 } };
const found = { before: new Map(), after: new Map() };

function graphControls() {
  const sides = [["both", "Before | after"], ["before", "Before"], ["after", "After"]];
  const step = currentStep();
  return [
    step.before !== step.after &&
      h("div", { class: "segments", role: "group", "aria-label": "Which graph" },
        sides.map(([side, label]) => h("button", { "aria-pressed": String(looking.side === side), "data-side": side, onclick: () => look({ side }, {}) }, label))),
    h("div", { class: "segments", role: "group", "aria-label": "Folding" },
      h("button", { title: "Unfold what changed, fold the rest", id: "fold-changes", onclick: () => { looking.toggled.clear(); look({ toggled: looking.toggled }, {}); } }, "Changes"),
      h("button", { title: "Fold everything", id: "fold-all", onclick: foldAll }, "Fold all")),
    h("div", { class: "segments", role: "group", "aria-label": "Zoom" },
      h("button", { title: "Zoom out (−)", onclick: () => zoomBy(1 / 1.25) }, "−"),
      h("button", { title: "Fit (0)", id: "fit", onclick: () => look({}, {}) }, "Fit"),
      h("button", { title: "Zoom in (+)", onclick: () => zoomBy(1.25) }, "+")),
  ];
}

function foldAll() {
  looking.toggled.clear();
  for (const path of openByDefault(currentStep())) if (path) looking.toggled.set(path, false);
  look({ toggled: looking.toggled }, {});
}

function graphView(focus) {
  const step = currentStep();
  const same = step.before === step.after;
  const sides = same ? ["after"] : looking.side === "both" ? ["before", "after"] : [looking.side];
  const title = { before: "Before", after: "After" };
  for (const side of Object.keys(found)) found[side].clear();
  const panes = sides.map((side) => {
    const state = states[step[side]];
    const root = place(state.root);
    const canvas = s("g", { class: "canvas" });
    drawBox(canvas, root, 0, -HEADER, side, true);
    const svg = s("svg", { "data-side": side, tabindex: 0, "aria-label": `Graph ${same ? "" : side}` }, arrowHead(side), canvas);
    const label = same ? (step.input ? "As loaded" : "Nothing changed") : title[side];
    const pane = h("div", { class: "pane", "data-side": side },
      h("div", { class: "pane-title" }, h("b", {}, label), h("span", {}, `${plural(state.ops.length, "op")} · ${bytesText(state.bytes)}`)),
      svg);
    panAndZoom(svg, canvas, side);
    return { side, pane, svg, canvas, root };
  });
  put($("#view"), h("div", { class: "panes" }, panes.map(({ pane }) => pane)));
  for (const each of panes) aim(each, focus);
}

function arrowHead(side) {
  return s("defs", {},
    s("marker", { id: `arrow-${side}`, viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 8, markerHeight: 8, markerUnits: "userSpaceOnUse", orient: "auto-start-reverse" },
      s("path", { d: "M0 0.8 L8 4 L0 7.2 z", class: "arrow" })));
}

/** Draw the contents of a placed box whose top left corner is at (x, y). */
function drawBox(parent, placed, x, y, side, isRoot = false) {
  const { box } = placed;
  if (!isRoot) {
    parent.append(s("rect", { class: "box-frame", x, y, width: placed.width, height: placed.height, rx: 8 }));
    const header = s("g", { class: "box-header", "data-path": box.path, role: "button", onclick: () => toggleBox(box.path, false) },
      s("title", {}, `${box.path}: click to fold`),
      s("rect", { x, y, width: placed.width, height: HEADER, rx: 8 }),
      s("text", { x: x + 10, y: y + 17 }, `▾ ${cut(box.label, placed.width / CHARACTER - 12)}`),
      s("text", { class: "quiet", x: x + placed.width - 10, y: y + 17, "text-anchor": "end" }, plural(box.ops.length, "op")));
    parent.append(header);
    found[side].set(`box:${box.path}`, { x: x + placed.width / 2, y: y + placed.height / 2, width: placed.width, height: placed.height });
  }
  const edges = s("g", { class: "edges" });
  parent.append(edges);
  for (const edge of placed.edges) drawEdge(edges, edge, x, y, side);
  for (const slot of placed.slots) {
    const left = x + slot.x - slot.width / 2;
    const top = y + slot.y - slot.height / 2;
    if (slot.inner) drawBox(parent, slot.inner, left + (slot.width - slot.inner.width) / 2, top + (slot.height - slot.inner.height) / 2, side);
    else if (slot.op) drawOp(parent, slot.op, box, left, top, slot, side);
    else if (slot.box) drawFolded(parent, slot.box, left, top, slot, side);
    else drawPort(parent, slot, left, top, side);
  }
}

function drawEdge(parent, { from, to, points }, x, y, side) {
  const [first, ...rest] = points.map(([px, py]) => `${(px + x).toFixed(1)} ${(py + y).toFixed(1)}`);
  let d = `M${first}`;
  for (let i = 0; i + 2 < rest.length; i += 3) d += `C${rest[i]},${rest[i + 1]},${rest[i + 2]}`;
  const names = valuesBetween(from, to);
  const state = states[currentStep()[side]];
  const uids = names.map((name) => state.maker.get(name)?.uid);
  const edge = s("g", { class: uids.includes(looking.op) || (to.op && to.op.uid === looking.op) ? "edge lit" : "edge" },
    s("path", { class: "reach", d }),
    s("path", { class: "line", d, "marker-end": `url(#arrow-${side})` }));
  edge.addEventListener("pointerenter", (event) => showTip(event, names.slice(0, 8).map((name) => valueText(name, state))));
  edge.addEventListener("pointerleave", hideTip);
  parent.append(edge);
}

function valueText(name, state) {
  const op = state.maker.get(name);
  return op ? `${name} : ${op.types[op.outs.indexOf(name)]}` : name;
}

function drawOp(parent, op, box, x, y, { width, height }, side) {
  const kind = changesOf(currentStep()).kinds.get(op.uid);
  const leaf = op.path && op.path !== box.path ? op.path.slice(op.path.lastIndexOf(".") + 1) : "";
  const line = raw.families[op.family]?.[1] ?? "#888";
  const room = (width - 24) / CHARACTER + 0.5;
  const title = op.opname === "input" ? op.outs[0] : op.opname;
  const node = s("g", {
      class: ["op", kind, op.uid === looking.op && "selected"].filter(Boolean).join(" "),
      "data-uid": op.uid, role: "button", onclick: () => look({ op: op.uid }),
    },
    s("rect", { class: "card", x, y, width, height, rx: 6 }),
    s("rect", { class: "tint", x, y, width, height, rx: 6, fill: line }),
    s("path", { class: "stripe", fill: line, d: `M${x + 6} ${y}h-1a5 5 0 0 0 -5 5v${height - 10}a5 5 0 0 0 5 5h1z` }),
    s("text", { class: "title", x: x + 14, y: y + 18 }, cut(title, room),
      leaf && room - title.length > 4 && s("tspan", { class: "quiet leaf", dx: CHARACTER }, cut(leaf, room - title.length - 1))));
  let at = y + 18;
  if (op.types.length && op.opname !== "return") node.append(s("text", { class: "type", x: x + 14, y: (at += LINE) }, cut(op.types[0], room)));
  if (op.weightLine) node.append(s("text", { class: "weight", x: x + 14, y: (at += LINE) }, `■ ${cut(op.weightLine, room - 2)}`));
  if (kind) node.append(badge(x + width - 2, y + 2, kind));
  node.addEventListener("pointerenter", (event) => showTip(event, [op.text]));
  node.addEventListener("pointerleave", hideTip);
  parent.append(node);
  found[side].set(`op:${op.uid}`, { x: x + width / 2, y: y + height / 2, width, height, within: box.path });
}

function badge(x, y, kind) {
  return s("g", { class: `badge ${kind}` }, s("circle", { cx: x, cy: y, r: 8 }), s("text", { x, y: y + 4, "text-anchor": "middle" }, SIGNS[kind]));
}

function drawFolded(parent, box, x, y, { width, height }, side) {
  const counts = changesIn(currentStep(), box);
  const kinds = Object.keys(SIGNS).filter((kind) => counts[kind]);
  const same = box.stack ? `${box.children.length} × ${wholeText(box.children[0].ops.length)} ops, alike` : plural(box.ops.length, "op");
  const held = new Set(box.ops.flatMap((op) => op.weights.map(([, weight]) => weight)));
  const bytes = [...held].reduce((sum, weight) => sum + weight.bytes, 0);
  const node = s("g", { class: "folded", "data-path": box.path, role: "button", onclick: () => toggleBox(box.path, true) },
    s("title", {}, `${box.path}: click to unfold`),
    box.stack && s("rect", { class: "card behind", x: x + 5, y: y - 4, width: width - 4, height, rx: 7 }),
    s("rect", { class: "card", x, y, width, height, rx: 7 }),
    s("text", { class: "title", x: x + 12, y: y + 18 }, `▸ ${cut(box.label, (width - 24) / CHARACTER - 1)}`),
    s("text", { class: "type", x: x + 12, y: y + 18 + LINE }, box.stack ? same : `${same}${bytes ? ` · ${bytesText(bytes)}` : ""}`));
  kinds.forEach((kind, i) => node.append(badge(x + width - 4 - 15 * (kinds.length - 1 - i), y + 1, kind)));
  parent.append(node);
  found[side].set(`box:${box.path}`, { x: x + width / 2, y: y + height / 2, width, height });
}

function drawPort(parent, { names, enters, width, height }, x, y, side) {
  const state = states[currentStep()[side]];
  const label = names.length === 1 ? cut(names[0], 12) : `${names.length} values`;
  const node = s("g", { class: `port ${enters ? "in" : "out"}`, role: "button", onclick: () => {
      const maker = state.maker.get(names[0]);
      if (maker) showOp(maker.uid);
    } },
    s("rect", { x, y, width, height, rx: height / 2 }),
    s("text", { x: x + width / 2, y: y + 13, "text-anchor": "middle" }, label));
  node.addEventListener("pointerenter", (event) => showTip(event, names.slice(0, 8).map((name) => valueText(name, state))));
  node.addEventListener("pointerleave", hideTip);
  parent.append(node);
}

// Pan and zoom

function panAndZoom(svg, canvas, side) {
  let from = null;
  svg.addEventListener("pointerdown", (event) => {
    if (event.button === 0) from = { x: event.clientX, y: event.clientY, moved: false };
  });
  svg.addEventListener("pointermove", (event) => {
    if (!from) return;
    const [dx, dy] = [event.clientX - from.x, event.clientY - from.y];
    if (!from.moved && Math.hypot(dx, dy) < 4) return;
    if (!from.moved) svg.setPointerCapture(event.pointerId);
    Object.assign(from, { x: event.clientX, y: event.clientY, moved: true });
    svg.classList.add("dragging");
    moveTo(canvas, side, { ...zooms[side], x: zooms[side].x + dx, y: zooms[side].y + dy });
  });
  const end = () => {
    // The click that ends a drag is not meant for what lies under it.
    if (from?.moved) svg.addEventListener("click", (event) => event.stopPropagation(), { capture: true, once: true });
    setTimeout(() => svg.classList.remove("dragging"));
    from = null;
  };
  svg.addEventListener("pointerup", end);
  svg.addEventListener("pointercancel", end);
  svg.addEventListener("wheel", (event) => {
    event.preventDefault();
    hideTip();
    const zoom = zooms[side];
    if (!event.ctrlKey && !event.metaKey) {
      moveTo(canvas, side, { ...zoom, x: zoom.x - event.deltaX, y: zoom.y - event.deltaY });
      return;
    }
    const frame = svg.getBoundingClientRect();
    zoomAt(canvas, side, Math.exp(-event.deltaY / 300), event.clientX - frame.left, event.clientY - frame.top);
  }, { passive: false });
}

function moveTo(canvas, side, zoom) {
  zooms[side] = zoom;
  canvas.setAttribute("transform", `translate(${zoom.x} ${zoom.y}) scale(${zoom.k})`);
}

function zoomAt(canvas, side, factor, x, y) {
  const { x: left, y: top, k } = zooms[side];
  const next = Math.min(3, Math.max(0.05, k * factor));
  moveTo(canvas, side, { k: next, x: x - ((x - left) * next) / k, y: y - ((y - top) * next) / k });
}

function zoomBy(factor) {
  for (const svg of document.querySelectorAll(".pane svg")) {
    const { width, height } = svg.getBoundingClientRect();
    zoomAt(svg.querySelector(".canvas"), svg.dataset.side, factor, width / 2, height / 2);
  }
}

/** Bring what is asked for into view: a selected op or a box, else the whole graph, else where the first change is. */
function aim({ side, svg, canvas, root }, focus) {
  if (!focus) {
    moveTo(canvas, side, zooms[side]);
    return;
  }
  const { width, height } = svg.getBoundingClientRect();
  const wanted = focus.uid !== undefined ? found[side].get(`op:${inState(states[currentStep()[side]], focus.uid)}`) : focus.path ? found[side].get(`box:${focus.path}`) : null;
  if (wanted) {
    const k = Math.min(0.9, Math.max(0.45, Math.min((width - 60) / wanted.width, (height - 60) / wanted.height)));
    moveTo(canvas, side, { k, x: width / 2 - wanted.x * k, y: height / 2 - wanted.y * k });
    return;
  }
  const fit = Math.min((width - 24) / root.width, (height - 24) / root.height, 1);
  const k = fit > LEGIBLE ? fit : Math.min(1, Math.max(LEGIBLE, (width - 24) / root.width));
  const first = firstChange(side);
  moveTo(canvas, side, { k, x: placedAt(width, root.width * k, first.x * k, 0.5), y: placedAt(height, root.height * k, first.y * k, 0.3) });
}

/** Where a graph of a length begins in a pane: in the middle if it fits, else so that `spot` lies at a share of the pane. */
function placedAt(room, length, spot, share) {
  if (length <= room) return (room - length) / 2;
  return Math.max(room - length - 12, Math.min(12, share * room - spot));
}

/** Where to look first: the top of what the step changed in the box that holds most of it. */
function firstChange(side) {
  const { kinds } = changesOf(currentStep());
  const ops = (of) => [...found[of]].filter(([key]) => key.startsWith("op:"));
  const changed = (of) => ops(of).filter(([key]) => kinds.has(Number(key.slice(3)))).map(([, spot]) => spot);
  const perBox = new Map();
  for (const { within } of [...changed("before"), ...changed("after")]) perBox.set(within, (perBox.get(within) ?? 0) + 1);
  const most = [...perBox].reduce((best, each) => (best && best[1] >= each[1] ? best : each), null)?.[0];
  const choices = [changed(side).filter(({ within }) => within === most), changed(side), ops(side).map(([, spot]) => spot)];
  const spots = choices.find((each) => each.length) ?? [{ x: 0, y: 0 }];
  const across = spots.map(({ x }) => x);
  return { x: (Math.min(...across) + Math.max(...across)) / 2, y: Math.min(...spots.map(({ y }) => y)) };
}
