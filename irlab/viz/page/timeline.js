// The passes in order, each with what it did in a few figures.

function timelineView() {
  const most = Math.max(...states.map((state) => state.bytes), 1);
  const cards = steps.map((step, index) => card(step, index, most));
  put($("#timeline"), h("ol", {}, cards));
  $("#timeline [aria-current=step]")?.scrollIntoView({ block: "nearest", inline: "nearest" });
}

function card(step, index, most) {
  const here = index === looking.step;
  const { counts } = changesOf(step);
  const [before, after] = [states[step.before], states[step.after]];
  const [name, options] = split(step.text);
  const bar = (state, className) => h("i", { class: className, style: `width:${(100 * state.bytes) / most}%` });
  return h("li", { class: step.depth ? "nested" : null },
    h("button", {
        class: ["step", step.error && "failed"].filter(Boolean).join(" "), "data-step": index,
        "aria-current": here ? "step" : null, title: step.error || step.summary || step.text,
        onclick: () => look({ step: index }, {}),
      },
      h("span", { class: "name" }, step.depth ? h("span", { class: "quiet" }, "↳ ".repeat(step.depth)) : null, h("b", {}, name),
        step.exactness && h("span", { class: `exactness ${step.exactness}` }, step.exactness)),
      h("span", { class: "options" }, step.input ? raw.name : options || "\u00a0"),
      h("span", { class: "figures" },
        step.error ? h("span", { class: "count removed" }, "failed")
          : step.input ? h("span", { class: "quiet" }, plural(after.ops.length, "op"))
          : counts.added + counts.removed + counts.changed ? changeCounts(counts) : h("span", { class: "quiet" }, "no change"),
        h("span", { class: "quiet end" }, step.input ? bytesText(after.bytes) : secondsText(step.seconds))),
      h("span", { class: "bytes", title: `${bytesText(before.bytes)} → ${bytesText(after.bytes)}` }, bar(before, "was"), bar(after, "is"))));
}

function split(text) {
  const at = text.search(/[{(]/);
  return at < 0 ? [text, ""] : [text.slice(0, at), text.slice(at)];
}
