// What is the reader looking at? One value, kept in the address (#...), and told to every view when it changes.

const looking = { step: 0, tab: "graph", side: "both", op: null, weightsOf: null, toggled: new Map(), metric: "bytes", scale: "map" };
const views = [];

const currentStep = () => steps[looking.step];
const stateBefore = () => states[currentStep().before];
const stateAfter = () => states[currentStep().after];

const isOpen = (path) => looking.toggled.get(path) ?? openByDefault(currentStep()).has(path);

/** Change what is looked at. `focus` asks the graph to bring the selected op (or a box, by path) into view. */
function look(change, focus = null) {
  Object.assign(looking, change);
  writeAddress();
  for (const view of views) view(change, focus);
}

function toggleBox(path, open = !isOpen(path)) {
  looking.toggled.set(path, open);
  look({ toggled: looking.toggled });
}

/** The boxes around an op in a state, outermost first, or null. */
function chainTo(box, uid) {
  for (const child of box.children) {
    if (!isBox(child)) {
      if (child.uid === uid) return [box];
    } else if (child.ops.some((op) => op.uid === uid)) {
      return [box, ...chainTo(child, uid)];
    }
  }
  return null;
}

/** Select an op and show it, unfolding what is around it. */
function showOp(uid, change = {}) {
  if (!stateAfter().byUid.has(uid) && !stateBefore().byUid.has(uid)) {
    change.step = steps.findIndex((step) => states[step.before].byUid.has(uid) || states[step.after].byUid.has(uid));
    if (change.step < 0) return;
    looking.step = change.step;
  }
  for (const state of [stateBefore(), stateAfter()]) {
    for (const box of chainTo(state.root, inState(state, uid)) ?? []) looking.toggled.set(box.path, true);
  }
  look({ op: uid, tab: "graph", ...change }, { uid });
}

function showBox(box) {
  let path = box.path;
  while (path) {
    looking.toggled.set(path, true);
    path = path.includes(".") ? path.slice(0, path.lastIndexOf(".")) : "";
  }
  look({ tab: "graph" }, { path: box.path });
}

function writeAddress() {
  const parts = new URLSearchParams();
  parts.set("step", looking.step);
  if (looking.tab !== "graph") parts.set("tab", looking.tab);
  if (looking.side !== "both") parts.set("side", looking.side);
  if (looking.op !== null) parts.set("op", looking.op);
  if (looking.tab === "heat") parts.set("metric", looking.metric);
  const toggled = [...looking.toggled].map(([path, open]) => (open ? "+" : "-") + path);
  if (toggled.length) parts.set("open", toggled.join(","));
  history.replaceState(null, "", `#${parts}`);
}

function readAddress() {
  const parts = new URLSearchParams(location.hash.slice(1));
  const number = (name) => (/^\d+$/.test(parts.get(name) ?? "") ? Number(parts.get(name)) : null);
  const step = number("step");
  const changed = steps.findIndex((each) => !each.input && each.before !== each.after);
  looking.step = step !== null && step < steps.length ? step : Math.max(0, changed);
  if (["graph", "diff", "heat"].includes(parts.get("tab"))) looking.tab = parts.get("tab");
  if (["both", "before", "after"].includes(parts.get("side"))) looking.side = parts.get("side");
  looking.op = latestByUid.has(number("op")) ? number("op") : null;
  looking.metric = parts.get("metric") ?? looking.metric;
  for (const entry of (parts.get("open") ?? "").split(",").filter(Boolean)) looking.toggled.set(entry.slice(1), entry[0] === "+");
}
