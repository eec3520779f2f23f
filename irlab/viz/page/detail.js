// What is there to know of the selected op, or else of the step?

function detailView() {
  const op = selectedVersion();
  put($("#detail"), op ? opDetail(op) : stepDetail(currentStep()));
  $("#detail").scrollTop = 0;
}

/** The selected op as the step left it, as it was before, or as it was last. */
function selectedVersion() {
  if (looking.op === null) return null;
  return stateAfter().byUid.get(looking.op) ?? stateBefore().byUid.get(looking.op) ?? latestByUid.get(looking.op);
}

const section = (title, ...content) => h("section", {}, h("h3", {}, title), content);
const fields = (rows) => h("dl", { class: "fields" }, rows.filter(([, value]) => value !== "" && value !== null && value !== undefined).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
// Long names break after a dot or slash rather than anywhere.
const breakable = (text) => text.split(/(?<=[./])/).flatMap((part, i) => (i ? [h("wbr"), part] : [part]));
const code = (text) => h("code", {}, breakable(text));
const familyLine = (op) => raw.families[op.family]?.[1] ?? "#888";

// A step

function stepDetail(step) {
  const { counts } = changesOf(step);
  const [before, after] = [states[step.before], states[step.after]];
  const [name, options] = split(step.text);
  const head = h("header", {},
    h("p", { class: "kicker" }, step.input ? "Input" : `Pass ${looking.step} of ${steps.length - 1}`),
    h("h2", {}, step.input ? raw.name : name), options && code(options),
    step.summary && h("p", {}, step.summary),
    step.error && h("p", { class: "error", role: "alert" }, step.error));
  if (step.input) {
    return [head,
      section("Contents", fields([
        ["Ops", wholeText(after.ops.length)],
        ["Weights", wholeText(after.weights.length)],
        ["Parameters", countText(after.parameters)],
        ["Stored", bytesText(after.bytes)],
        ["FLOPs per token", flopsOf(after)],
      ])), elements(after), kindsOfOps(after)];
  }
  return [head,
    section("What changed",
      h("table", { class: "numbers" },
        h("thead", {}, h("tr", {}, h("th"), h("th", {}, "before"), h("th", {}, "after"), h("th", {}, "change"))),
        h("tbody", {},
          compared("Ops", before.ops.length, after.ops.length, wholeText),
          compared("Weights", before.weights.length, after.weights.length, wholeText),
          compared("Parameters", before.parameters, after.parameters, countText),
          compared("Stored", before.bytes, after.bytes, bytesText))),
      h("p", { class: "counts" }, changeCounts(counts).length ? changeCounts(counts).map((count, i) => [count, ` ${Object.keys(SIGNS).filter((kind) => counts[kind])[i]}  `]) : "This pass changed nothing.")),
    rulesTable(step),
    section("Run", fields([
      ["Time", secondsText(step.seconds)],
      ["Rewrites", wholeText(step.rewrites)],
      ["Weights computed", step.weightsComputed ? wholeText(step.weightsComputed) : ""],
      ["Promise", { exact: "exact: the same numbers", close: "close: arithmetic in another order", lossy: "lossy: other numbers" }[step.exactness]],
    ])),
    measures(step, before, after), curves(step),
    where(step), elements(after)];
}

function compared(name, before, after, text) {
  const change = before ? after / before - 1 : 0;
  return h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, text(before)), h("td", {}, text(after)),
    h("td", { class: change < 0 ? "less" : change > 0 ? "more" : "quiet" }, before === after ? "–" : `${change > 0 ? "+" : "−"}${percentText(Math.abs(change))}`));
}

function rulesTable(step) {
  const rules = Object.entries(step.rules).sort(([, a], [, b]) => b.hits - a.hits);
  if (!rules.length) return null;
  const timed = rules.some(([, rule]) => rule.seconds !== null);
  const counted = rules.some(([, rule]) => rule.matched !== null);
  return section("Rules",
    h("table", { class: "numbers rules" },
      h("thead", {}, h("tr", {}, h("th", {}, "rule"), h("th", {}, "hits"), counted && h("th", { title: "ops matched → ops made" }, "ops"), timed && h("th", {}, "time"))),
      h("tbody", {}, rules.map(([name, rule]) => h("tr", {}, h("th", { scope: "row" }, code(name)), h("td", {}, wholeText(rule.hits)),
        counted && h("td", {}, rule.matched === null ? "" : `${wholeText(rule.matched)} → ${wholeText(rule.made)}`),
        timed && h("td", {}, secondsText(rule.seconds)))))));
}

/** The error a step introduced: what the pass measured of the whole model, and of the weights it changed. */
function measures(step, before, after) {
  const rows = Object.entries(step.metrics).map(([name, value]) => [name, numberText(value)]);
  const figures = Object.values(step.layers);
  for (const name of new Set(figures.flatMap((each) => Object.keys(each)))) {
    const values = figures.map((each) => each[name]).filter(Number.isFinite);
    if (values.length) rows.push([`${words(name)}, mean of ${values.length}`, numberText(values.reduce((a, b) => a + b) / values.length)], ["Largest", numberText(Math.max(...values))]);
  }
  const known = new Set(before.weights);
  const errors = after.weights.filter((weight) => !known.has(weight) && Number.isFinite(weight.statistics?.error));
  if (errors.length) {
    const worst = errors.reduce((a, b) => (a.statistics.error > b.statistics.error ? a : b));
    const mean = errors.reduce((sum, weight) => sum + weight.statistics.error, 0) / errors.length;
    rows.push([`Weight error, mean of ${errors.length}`, percentText(mean)], ["Largest", [percentText(worst.statistics.error), " ", code(worst.name)]]);
  }
  return rows.length ? section("Error introduced", fields(rows)) : null;
}

/** What was measured step by step: the loss of a training. */
function curves(step) {
  return Object.entries(step.series).filter(([, values]) => values.length > 1).map(([name, values]) => section(`${words(name)} by step`, curve(name, values)));
}

function curve(name, values) {
  const [width, height] = [280, 96];
  const [low, high] = [Math.min(0, ...values), Math.max(...values, 1e-12)];
  const x = (i) => (i / (values.length - 1)) * width;
  const y = (value) => height - ((value - low) / (high - low)) * height;
  const points = values.map((value, i) => `${x(i).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
  const last = values[values.length - 1];
  return s("svg", { class: "curve", viewBox: `0 -2 ${width} ${height + 18}`, role: "img", "aria-label": `${words(name)} from ${numberText(values[0])} to ${numberText(last)} in ${plural(values.length, "step")}` },
    s("line", { class: "axis", x1: 0, x2: width, y1: height, y2: height }), s("polyline", { points }),
    s("text", { x: 0, y: height + 13 }, numberText(values[0])),
    s("text", { x: width / 2, y: height + 13, "text-anchor": "middle" }, plural(values.length, "step")),
    s("text", { x: width, y: height + 13, "text-anchor": "end" }, numberText(last)));
}

/** The modules that changed; those of layers counted together. */
function where(step) {
  const { kinds } = changesOf(step);
  const places = new Map();
  for (const [uid, kind] of kinds) {
    const op = states[step.after].byUid.get(uid) ?? states[step.before].byUid.get(uid);
    const place = op.path.replace(/(^|\.)\d+(?=\.|$)/, "$1*") || "(top)";
    const row = places.get(place) ?? { counts: { [ADDED]: 0, [REMOVED]: 0, [CHANGED]: 0 }, uid };
    row.counts[kind] += 1;
    places.set(place, row);
  }
  if (!places.size) return null;
  const sorted = [...places].sort(([, a], [, b]) => total(b.counts) - total(a.counts)).slice(0, 12);
  return section("Where", h("table", { class: "numbers places" }, h("tbody", {}, sorted.map(([place, { counts, uid }]) =>
    h("tr", {}, h("th", { scope: "row" }, h("button", { class: "link", onclick: () => showOp(uid) }, breakable(place))), h("td", {}, changeCounts(counts)))))));
}

const total = (counts) => counts[ADDED] + counts[REMOVED] + counts[CHANGED];

function elements(state) {
  const kinds = new Map();
  for (const weight of state.weights) {
    const row = kinds.get(weight.element) ?? { count: 0, bytes: 0, parameters: 0 };
    kinds.set(weight.element, { count: row.count + 1, bytes: row.bytes + weight.bytes, parameters: row.parameters + weight.parameters });
  }
  if (!kinds.size) return null;
  return section("Weights by encoding", h("table", { class: "numbers" },
    h("thead", {}, h("tr", {}, h("th", {}, "stored as"), h("th", {}, "weights"), h("th", {}, "bytes"), h("th", { title: "bits per weight" }, "bits"))),
    h("tbody", {}, [...kinds].sort(([, a], [, b]) => b.bytes - a.bytes).map(([name, row]) => h("tr", {}, h("th", { scope: "row" }, code(name)), h("td", {}, wholeText(row.count)), h("td", {}, bytesText(row.bytes)), h("td", {}, ((8 * row.bytes) / row.parameters).toFixed(2)))))));
}

function kindsOfOps(state) {
  const kinds = new Map();
  for (const op of state.ops) kinds.set(op.opname, (kinds.get(op.opname) ?? 0) + 1);
  const most = Math.max(...kinds.values());
  return section("Ops by kind", h("table", { class: "numbers bars" }, h("tbody", {}, [...kinds].sort(([, a], [, b]) => b - a).slice(0, 14).map(([name, count]) =>
    h("tr", {}, h("th", { scope: "row" }, code(name)), h("td", { class: "bar" }, h("i", { style: `width:${(100 * count) / most}%` })), h("td", {}, wholeText(count)))))));
}

function flopsOf(state) {
  const unknown = state.ops.some((op) => op.flops === null);
  return `${unknown ? "≥ " : ""}${countText(state.ops.reduce((sum, op) => sum + (op.flops ?? 0), 0))}`;
}

// An op

function opDetail(op) {
  const kind = changesOf(currentStep()).kinds.get(op.uid);
  const state = stateAfter().byUid.get(op.uid) === op ? stateAfter() : stateBefore();
  return [
    h("header", { style: `--family:${familyLine(op)}` },
      h("button", { class: "dismiss", title: "Back to the pass (Esc)", "aria-label": "Close", onclick: () => look({ op: null }) }, "×"),
      h("p", { class: "kicker" }, h("i", { class: "dot", style: `background:${familyLine(op)}` }), op.family, kind && h("span", { class: `count ${kind}` }, `${SIGNS[kind]} ${kind} by this pass`)),
      h("h2", {}, op.opname),
      raw.opDocs[op.opname] && h("p", {}, raw.opDocs[op.opname])),
    section(op.types.length === 1 ? "Type" : "Types", h("dl", { class: "fields" }, op.outs.flatMap((name, i) => [h("dt", {}, code(name)), h("dd", {}, code(op.types[i]))]))),
    origin(op, kind),
    op.ins.length ? section("Reads", h("ul", { class: "values" }, op.ins.map(([operand, name]) => valueRow(operand, name, state)))) : null,
    users(op, state),
    op.attributes.length ? section("Attributes", fields(op.attributes.map(([name, value]) => [code(name), code(value)]))) : null,
    op.weights.length ? section(plural(op.weights.length, "weight"), op.weights.map(([operand, weight]) => weightCard(operand, weight))) : null,
    section("IR text", h("pre", {}, op.text), op.flops !== 0 && op.opname !== "input" ? h("p", { class: "quiet" }, op.flops === null ? "FLOPs unknown" : `${countText(op.flops)} FLOPs per token at ${wholeText(raw.tokens)} tokens`) : null),
  ];
}

function origin(op, kind) {
  const made = origins.get(op.uid);
  const became = kind === REMOVED ? (becomes.get(op.uid) ?? []).map((uid) => latestByUid.get(uid)).filter(Boolean) : [];
  return section("Origin",
    fields([
      ["Module", op.origin ? code(op.origin) : op.path ? code(op.path) : ""],
      ["Source", op.source ? code(op.source) : ""],
      ["Made by", op.madeBy || made?.rule ? code(op.madeBy || made.rule) : op.opname === "input" ? "" : "the frontend"],
    ]),
    made?.sources.length ? [h("p", { class: "quiet" }, `from ${plural(made.sources.length, "op")}`), opList(made.sources)] : null,
    became.length ? [h("p", { class: "quiet" }, "became"), opList(became.map((each) => each.uid))] : null);
}

function opList(uids) {
  return h("ul", { class: "chips" }, uids.slice(0, 24).map((uid) => {
    const op = latestByUid.get(uid);
    return h("li", {}, h("button", { title: op.text, onclick: () => showOp(uid) }, h("i", { class: "dot", style: `background:${familyLine(op)}` }), op.opname));
  }), uids.length > 24 && h("li", { class: "quiet" }, `and ${uids.length - 24} more`));
}

function valueRow(operand, name, state) {
  const maker = state.maker.get(name);
  return h("li", {}, h("span", { class: "quiet" }, operand),
    h("button", { class: "link", title: maker?.text, onclick: () => maker && showOp(maker.uid) }, code(name), maker && maker.opname !== "input" ? ` ${maker.opname}` : ""),
    maker && h("code", { class: "quiet" }, maker.types[maker.outs.indexOf(name)]));
}

function users(op, state) {
  const names = new Set(op.outs);
  const reading = state.ops.filter((each) => each.ins.some(([, name]) => names.has(name)));
  return reading.length ? section("Read by", opList(reading.map((each) => each.uid))) : null;
}

function weightCard(operand, weight) {
  const found = weight.statistics;
  return h("article", { class: "weight-card" },
    h("p", { class: "kicker" }, operand, h("span", { class: "element" }, weight.element)),
    h("h4", {}, code(`@${weight.name}`)),
    fields([
      ["Type", code(weight.type)],
      ["Numbers", countText(weight.parameters)],
      ["Stored", `${bytesText(weight.bytes)}, ${((8 * weight.bytes) / Math.max(1, weight.parameters)).toFixed(2)} bits each`],
    ]),
    found ? [histogram(found), fields([
      ["Range", `${numberText(found.min)} … ${numberText(found.max)}`],
      ["Mean ± deviation", `${numberText(found.mean)} ± ${numberText(found.deviation)}`],
      ["Zeros", percentText(found.zeros / found.seen)],
      ["Not finite", found.notFinite ? wholeText(found.notFinite) : ""],
      ["Error", Number.isFinite(found.error) ? `${percentText(found.error)} of what was loaded` : ""],
    ]), h("p", { class: "quiet" }, found.seen < weight.parameters ? `Sampled: ${countText(found.seen)} of ${countText(weight.parameters)} numbers, in evenly spaced rows.` : "All numbers were read.")]
      : h("p", { class: "quiet" }, weight.missing || "Statistics were not asked for."),
    h("details", {}, h("summary", {}, "Recipe"), h("pre", {}, weight.recipe)));
}

function histogram({ histogram: bins, reach, min, max }) {
  const [width, height] = [280, 64];
  const most = Math.max(...bins, 1);
  const step = width / bins.length;
  const bars = bins.map((count, i) => {
    const tall = count ? Math.max(1, (count / most) * height) : 0;
    return s("rect", { x: (i * step + 0.5).toFixed(2), y: (height - tall).toFixed(2), width: (step - 1).toFixed(2), height: tall.toFixed(2) });
  });
  return s("svg", { class: "histogram", viewBox: `0 0 ${width} ${height + 16}`, role: "img", "aria-label": `Histogram from ${numberText(min)} to ${numberText(max)}` },
    s("line", { class: "zero", x1: width / 2, x2: width / 2, y1: 0, y2: height }), bars,
    s("line", { class: "axis", x1: 0, x2: width, y1: height, y2: height }),
    s("text", { x: 0, y: height + 13 }, numberText(-reach)), s("text", { x: width / 2, y: height + 13, "text-anchor": "middle" }, "0"),
    s("text", { x: width, y: height + 13, "text-anchor": "end" }, numberText(reach)));
}
