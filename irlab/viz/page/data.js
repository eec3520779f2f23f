// What does the page know? Unpacks the tables that irlab/viz/page_data.py writes.

const raw = JSON.parse($("#data").textContent);
const str = (index) => raw.strings[index];
const strs = (indices) => indices.map(str);

function pairs(flat, second = str) {
  const found = [];
  for (let i = 0; i < flat.length; i += 2) found.push([str(flat[i]), second(flat[i + 1])]);
  return found;
}

const weights = raw.weights.map(([name, type, element, recipe, parameters, bytes, statistics]) => ({
  name: str(name),
  type: str(type),
  element: str(element),
  recipe: str(recipe),
  parameters,
  bytes,
  statistics: typeof statistics === "number" ? null : statistics,
  missing: typeof statistics === "number" ? str(statistics) : "",
}));

const versions = raw.versions.map((row, index) => {
  const [uid, opname, family, text, outs, types, ins, attributes, held, path, origin, source, madeBy, weightLine, flops] = row;
  return {
    index,
    uid,
    opname: str(opname),
    family: str(family),
    text: str(text),
    outs: strs(outs),
    types: strs(types),
    ins: pairs(ins),
    attributes: pairs(attributes),
    weights: pairs(held, (weight) => weights[weight]),
    path: str(path),
    origin: str(origin),
    source: str(source),
    madeBy: str(madeBy),
    weightLine: str(weightLine),
    flops,
  };
});

const layouts = raw.layouts.map(([width, height, sizes, centres, edges]) => ({ width, height, sizes, centres, edges }));

// Boxes are written inner ones first.
const boxes = [];
for (const [path, label, stack, children, ins, outs, layout] of raw.boxes) {
  const box = {
    path: str(path),
    label: str(label),
    stack: Boolean(stack),
    children: children.map((child) => (child < 0 ? boxes[~child] : versions[child])),
    ins: ins.map(strs),
    outs: outs.map(strs),
    layout: layouts[layout],
  };
  box.ops = box.children.flatMap((child) => (child.children ? child.ops : [child]));
  boxes.push(box);
}
const isBox = (child) => child.children !== undefined;

const states = raw.states.map(({ root, bytes }) => {
  const state = { root: boxes[root], bytes, ops: boxes[root].ops };
  state.byUid = new Map(state.ops.map((op) => [op.uid, op]));
  state.maker = new Map(state.ops.flatMap((op) => op.outs.map((name) => [name, op])));
  state.weights = [...new Set(state.ops.flatMap((op) => op.weights.map(([, weight]) => weight)))];
  state.parameters = state.weights.reduce((sum, weight) => sum + weight.parameters, 0);
  return state;
});

const origins = new Map(
  Object.entries(raw.origins).map(([uid, [rule, ...sources]]) => [Number(uid), { rule: str(rule), sources }]),
);
const becomes = new Map();
for (const [uid, { sources }] of origins) {
  for (const source of sources) becomes.set(source, [...(becomes.get(source) ?? []), uid]);
}

/** Who stands for an op in a state: itself, or what it was made from, or what it became; the last of them first. */
function inState(state, uid) {
  const kin = [uid, ...(origins.get(uid)?.sources ?? []).toReversed(), ...(becomes.get(uid) ?? [])];
  return kin.find((each) => state.byUid.has(each));
}

// The steps a reader goes through: the input, then each pass.
const steps = [{ text: "input", before: 0, after: 0, input: true, depth: 0, diff: { ops: [], weights: [] } }, ...raw.steps];

/** Every op's latest version up to a state, wherever it is, by uid. */
const latestByUid = new Map(versions.map((version) => [version.uid, version]));
