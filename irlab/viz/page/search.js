// Finding ops: by name, module, weight, or anything else in their text.

const MOST_RESULTS = 60;
const haystacks = new Map();

function haystack(op) {
  let text = haystacks.get(op);
  if (text === undefined) {
    text = `${op.text} ${op.path} ${op.origin} ${op.madeBy} ${op.weights.map(([, weight]) => weight.name).join(" ")}`.toLowerCase();
    haystacks.set(op, text);
  }
  return text;
}

/** The ops of the step that hold all the words, as they are after it, or before it where they are gone. */
function search(query) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return [];
  const after = stateAfter();
  const candidates = [...after.ops, ...stateBefore().ops.filter((op) => !after.byUid.has(op.uid))];
  return candidates.filter((op) => words.every((word) => haystack(op).includes(word)));
}

function setUpSearch() {
  const input = $("#search input");
  const list = $("#search ol");
  let at = 0;
  let results = [];
  const close = () => (list.hidden = true);
  const choose = (op) => {
    close();
    input.blur();
    showOp(op.uid);
  };
  const show = () => {
    const { kinds } = changesOf(currentStep());
    put(list, 
      ...results.slice(0, MOST_RESULTS).map((op, i) => h("li", { role: "option", "aria-selected": String(i === at), onpointerdown: (event) => { event.preventDefault(); choose(op); } },
        h("i", { class: "dot", style: `background:${familyLine(op)}` }), h("b", {}, op.opname), h("span", { class: "path" }, op.origin || op.path || op.outs[0] || ""),
        kinds.has(op.uid) && h("span", { class: `count ${kinds.get(op.uid)}` }, SIGNS[kinds.get(op.uid)]))),
      h("li", { class: "total" }, results.length > MOST_RESULTS ? `${wholeText(results.length)} ops; the first ${MOST_RESULTS} are shown` : plural(results.length, "op")));
    list.hidden = !input.value.trim();
    list.querySelector("[aria-selected=true]")?.scrollIntoView({ block: "nearest" });
  };
  const refresh = () => {
    at = 0;
    results = search(input.value);
    show();
  };
  input.addEventListener("input", refresh);
  input.addEventListener("focus", refresh);
  input.addEventListener("blur", close);
  input.addEventListener("keydown", (event) => {
    const shown = Math.min(results.length, MOST_RESULTS);
    if (event.key === "Escape") input.blur();
    else if (event.key === "Enter" && shown) choose(results[at]);
    else if ((event.key === "ArrowDown" || event.key === "ArrowUp") && shown) {
      at = (at + (event.key === "ArrowDown" ? 1 : shown - 1)) % shown;
      show();
      event.preventDefault();
    }
    event.stopPropagation();
  });
}
