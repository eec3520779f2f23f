// The modules of the model as a tree, with what the step changed in each.

function treeView() {
  const step = currentStep();
  const state = looking.side === "before" ? states[step.before] : states[step.after];
  const scrolled = $("#tree").scrollTop;
  put($("#tree"), h("h2", {}, "Modules"), h("ul", { role: "tree" }, rows(state.root, 0)));
  $("#tree").scrollTop = scrolled;
  $("#tree .selected")?.scrollIntoView({ block: "nearest" });
}

function rows(box, depth) {
  const step = currentStep();
  return box.children.flatMap((child) => {
    if (!isBox(child)) {
      const kind = changesOf(step).kinds.get(child.uid);
      const leaf = child.path && child.path !== box.path ? child.path.slice(child.path.lastIndexOf(".") + 1) : "";
      return [h("li", { role: "treeitem", class: `leaf ${kind ?? ""} ${child.uid === looking.op ? "selected" : ""}`, style: `--depth:${depth}` },
        h("button", { onclick: () => showOp(child.uid), title: child.text },
          h("i", { class: "dot", style: `background:${raw.families[child.family]?.[1] ?? "#888"}` }),
          h("span", { class: "label" }, child.opname === "input" ? child.outs[0] : child.opname),
          leaf && h("span", { class: "quiet" }, leaf),
          kind && h("span", { class: `count ${kind} end` }, SIGNS[kind])))];
    }
    const open = isOpen(child.path);
    const counts = changesIn(step, child);
    return [h("li", { role: "treeitem", "aria-expanded": String(open), class: "branch", "data-path": child.path, style: `--depth:${depth}` },
        h("button", { class: "caret", "aria-label": `${open ? "Fold" : "Unfold"} ${child.label}`, onclick: () => toggleBox(child.path) }, open ? "▾" : "▸"),
        h("button", { title: child.path, onclick: () => showBox(child) },
          h("span", { class: "label" }, child.label),
          h("span", { class: "end" }, counts.total ? changeCounts(counts) : h("span", { class: "quiet" }, wholeText(child.ops.length))))),
      ...(open ? rows(child, depth + 1) : [])];
  });
}
