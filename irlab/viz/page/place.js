// Where is everything when some boxes stand open? Folded layouts come with the data; an open box stretches the one around
// it, so that nothing changes sides and a reader keeps the picture in mind.

const HEADER = 26;
const MARGIN = 12;

/** A monotone map of one axis that gives each [centre, size, wanted size] at least the size it wants. */
function stretch(spans, length) {
  const grown = spans
    .filter(([, size, wanted]) => wanted > size)
    .map(([centre, size, wanted]) => [centre - size / 2, centre + size / 2, wanted / size]);
  if (!grown.length) return { map: (x) => x, length };
  const cuts = [...new Set([0, length, ...grown.flatMap(([from, to]) => [from, to])])].sort((a, b) => a - b);
  const starts = [];
  let at = Math.min(0, cuts[0]);
  for (let i = 0; i < cuts.length; i++) {
    starts.push(at);
    if (i + 1 < cuts.length) {
      const middle = (cuts[i] + cuts[i + 1]) / 2;
      const slope = grown.reduce((most, [from, to, ratio]) => (from < middle && middle < to ? Math.max(most, ratio) : most), 1);
      at += slope * (cuts[i + 1] - cuts[i]);
    }
  }
  const map = (x) => {
    if (x <= cuts[0]) return starts[0] + (x - cuts[0]);
    for (let i = cuts.length - 2; i >= 0; i--) {
      if (x >= cuts[i]) {
        const inside = Math.min(x, cuts[i + 1]) - cuts[i];
        const slope = (starts[i + 1] - starts[i]) / (cuts[i + 1] - cuts[i]);
        return starts[i] + slope * inside + Math.max(0, x - cuts[i + 1]);
      }
    }
    return x;
  };
  return { map, length: map(length) };
}

/** The contents of a box with positions relative to its top left corner: { width, height, slots, edges }. */
function place(box) {
  const { layout, children } = box;
  const inner = children.map((child) => (isBox(child) && isOpen(child.path) ? place(child) : null));
  const wanted = layout.sizes.map(([width, height], slot) =>
    inner[slot] ? [Math.max(width, inner[slot].width), Math.max(height, inner[slot].height)] : [width, height],
  );
  const axis = (i, length) => stretch(layout.centres.map((centre, slot) => [centre[i], layout.sizes[slot][i], wanted[slot][i]]), length);
  const across = axis(0, layout.width);
  const down = axis(1, layout.height);
  const slots = layout.centres.map(([cx, cy], slot) => {
    const [width, height] = layout.sizes[slot];
    const [w, hgt] = wanted[slot];
    const x = (across.map(cx - width / 2) + across.map(cx + width / 2)) / 2 + MARGIN;
    const y = (down.map(cy - height / 2) + down.map(cy + height / 2)) / 2 + HEADER;
    return { x, y, width: w, height: hgt, ...what(box, slot), inner: inner[slot] };
  });
  const edges = layout.edges.map(([from, to, points]) => {
    const placed = [];
    for (let i = 0; i < points.length; i += 2) placed.push([across.map(points[i]) + MARGIN, down.map(points[i + 1]) + HEADER]);
    placed[0] = onBorder(points.slice(0, 2), layout, from, slots[from]);
    placed[placed.length - 1] = onBorder(points.slice(-2), layout, to, slots[to]);
    return { from: slots[from], to: slots[to], points: placed };
  });
  return { box, width: across.length + 2 * MARGIN, height: down.length + HEADER + MARGIN, slots, edges };
}

function what(box, slot) {
  const { children, ins, outs } = box;
  if (slot < children.length) return isBox(children[slot]) ? { box: children[slot] } : { op: children[slot] };
  const port = slot - children.length;
  return port < ins.length ? { names: ins[port], enters: true } : { names: outs[port - ins.length], enters: false };
}

/** The same point of the border after a slot has moved and grown. */
function onBorder([x, y], layout, slot, placed) {
  const [cx, cy] = layout.centres[slot];
  const [width, height] = layout.sizes[slot];
  return [placed.x + ((x - cx) / width) * placed.width, placed.y + ((y - cy) / height) * placed.height];
}

/** The names of the values that run from one slot to another. */
function valuesBetween(from, to) {
  const given = from.op ? from.op.outs : from.box ? from.box.outs.flat() : from.names;
  const taken = new Set(to.op ? to.op.ins.map(([, name]) => name) : to.box ? to.box.ins.flat() : to.names);
  return given.filter((name) => taken.has(name));
}
