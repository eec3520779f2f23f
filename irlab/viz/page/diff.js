// The IR text that the step changed.

function diffView() {
  const { diff } = currentStep();
  const parts = [];
  if (diff.weights.length) parts.push(h("h3", {}, "Weights"), lines(diff.weights, weightLine));
  if (diff.ops.length) parts.push(h("h3", {}, "Graph"), lines(diff.ops, opLine));
  if (!parts.length) parts.push(h("p", { class: "empty" }, currentStep().input ? "The input: choose a pass in the timeline to see what it changed in the text." : "This pass changed no text."));
  if (parts.length > 1 && diff.folded) parts.unshift(h("p", { class: "note" }, `Equal layers are shown once: ${plural(diff.folded, "layer")} changed like the first of their stack.`));
  put($("#view"), h("div", { class: "diff", tabindex: 0 }, parts));
}

function lines(rows, text) {
  return h("div", { class: "lines" }, rows.map(([tag, item]) => (tag === "…" ? h("div", { class: "gap" }, `⋯ ${plural(item, "line")} alike`) : text(tag, item))));
}

const tags = { " ": "same", "+": "added", "-": "removed" };

function opLine(tag, index) {
  const op = versions[index];
  return h("button", { class: `line ${tags[tag]} ${op.uid === looking.op ? "selected" : ""}`, "data-uid": op.uid, onclick: () => look({ op: op.uid }) },
    h("span", { class: "sign" }, tag === "-" ? "−" : tag), h("span", { class: "text" }, op.text), h("span", { class: "path" }, op.origin || op.path));
}

function weightLine(tag, index) {
  const weight = weights[index];
  return h("div", { class: `line ${tags[tag]}` }, h("span", { class: "sign" }, tag === "-" ? "−" : tag),
    h("span", { class: "text" }, `@${weight.name} : ${weight.type} = ${weight.recipe}`));
}
