// What did a step change? Compares the two states of a step by the identity of their ops.

const ADDED = "added";
const REMOVED = "removed";
const CHANGED = "changed";

const isSameOp = (a, b) =>
  a === b ||
  (a.text === b.text && a.weights.length === b.weights.length && a.weights.every(([, w], i) => w === b.weights[i][1]));

/** The kind of change of each op that a step changed, by uid, with counts and what boxes it lies in. */
function changesOf(step) {
  if (step.changes) return step.changes;
  const before = states[step.before];
  const after = states[step.after];
  const kinds = new Map();
  for (const op of before.ops) {
    const now = after.byUid.get(op.uid);
    if (!now) kinds.set(op.uid, REMOVED);
    else if (!isSameOp(op, now)) kinds.set(op.uid, CHANGED);
  }
  for (const op of after.ops) if (!before.byUid.has(op.uid)) kinds.set(op.uid, ADDED);
  const counts = { [ADDED]: 0, [REMOVED]: 0, [CHANGED]: 0 };
  for (const kind of kinds.values()) counts[kind] += 1;
  step.changes = { kinds, counts, perBox: new Map() };
  return step.changes;
}

/** How many ops inside a box a step changed, by kind. */
function changesIn(step, box) {
  const { kinds, perBox } = changesOf(step);
  let counts = perBox.get(box);
  if (!counts) {
    counts = { [ADDED]: 0, [REMOVED]: 0, [CHANGED]: 0, total: 0 };
    for (const op of box.ops) {
      const kind = kinds.get(op.uid);
      if (kind) {
        counts[kind] += 1;
        counts.total += 1;
      }
    }
    perBox.set(box, counts);
  }
  return counts;
}

const SIGNS = { [ADDED]: "+", [REMOVED]: "−", [CHANGED]: "~" };

/** The counts of a change as small coloured figures: +12 −40 ~3. */
function changeCounts(counts) {
  return Object.keys(SIGNS)
    .filter((kind) => counts[kind])
    .map((kind) => h("span", { class: `count ${kind}`, title: `${plural(counts[kind], "op")} ${kind}` }, `${SIGNS[kind]}${wholeText(counts[kind])}`));
}

// Which boxes stand open when nobody asked otherwise: those that changed, as long as what is shown stays readable.
const READABLE_NODES = { overview: 40, changes: 90 };

function openByDefault(step) {
  if (step.open) return step.open;
  const open = new Set([""]);
  const roots = new Set([states[step.before].root, states[step.after].root]);
  const changed = changesOf(step).kinds.size > 0;
  for (const root of roots) {
    let shown = root.children.length;
    const queue = [root];
    while (queue.length) {
      for (const child of queue.shift().children) {
        if (!isBox(child) || child.stack || (changed && !changesIn(step, child).total)) continue;
        if (shown + child.children.length > (changed ? READABLE_NODES.changes : READABLE_NODES.overview)) continue;
        shown += child.children.length;
        open.add(child.path);
        queue.push(child);
      }
    }
  }
  step.open = open;
  return open;
}
