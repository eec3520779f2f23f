// Puts the views together, and listens to the keyboard.

const TABS = { graph: ["Graph", graphView, graphControls], diff: ["IR diff", diffView, () => []], heat: ["Heat map", heatView, heatControls] };

function showTip(event, texts) {
  const tip = $("#tip");
  put(tip, ...texts.map((text) => h("div", {}, text)));
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(8, Math.min(event.clientX + 14, innerWidth - width - 8))}px`;
  tip.style.top = `${event.clientY + 18 + height > innerHeight ? event.clientY - height - 10 : event.clientY + 18}px`;
}

const hideTip = () => ($("#tip").hidden = true);

function totalsView() {
  const [first, last] = [states[0], states[states.length - 1]];
  const changed = (from, to, text) => (from === to ? text(to) : `${text(from)} → ${text(to)}`);
  put($("#totals"), [
    ["ops", changed(first.ops.length, last.ops.length, wholeText)],
    ["parameters", countText(last.parameters)],
    ["stored", changed(first.bytes, last.bytes, bytesText)],
  ].flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

function centreView(change, focus) {
  hideTip();
  const [, view, controls] = TABS[looking.tab];
  put($("#tabs"), ...Object.entries(TABS).map(([tab, [label]]) => h("button", { role: "tab", "data-tab": tab, "aria-selected": String(tab === looking.tab), onclick: () => look({ tab }, {}) }, label)));
  put($("#controls"), controls());
  const scrolled = looking.tab !== "graph" && !("step" in change) && !("tab" in change) ? $("#view").firstElementChild?.scrollTop : 0;
  view(focus);
  if (scrolled) $("#view").firstElementChild.scrollTop = scrolled;
}

function move(by) {
  const step = Math.min(steps.length - 1, Math.max(0, looking.step + by));
  if (step !== looking.step) look({ step }, {});
}

const KEYS = {
  ArrowLeft: () => move(-1),
  ArrowRight: () => move(1),
  Home: () => move(-steps.length),
  End: () => move(steps.length),
  "/": () => $("#search input").focus(),
  Escape: () => look({ op: null }),
  g: () => look({ tab: "graph" }, {}),
  d: () => look({ tab: "diff" }, {}),
  h: () => look({ tab: "heat" }, {}),
  m: () => document.body.classList.toggle("show-tree"),
  t: () => $("#theme").click(),
  0: () => look({}, {}),
  "+": () => zoomBy(1.25),
  "-": () => zoomBy(1 / 1.25),
};

function setUp() {
  $("#model").textContent = raw.name;
  readAddress();
  views.push((change) => "step" in change && timelineView(), centreView, () => treeView(), () => detailView());
  setUpSearch();
  $("#tree-toggle").addEventListener("click", KEYS.m);
  $("#theme").addEventListener("click", () => {
    const dark = getComputedStyle(document.documentElement).colorScheme.includes("dark");
    document.documentElement.dataset.theme = dark ? "light" : "dark";
  });
  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches?.("input, select, textarea");
    if (typing || event.ctrlKey || event.metaKey || event.altKey || !KEYS[event.key]) return;
    event.preventDefault();
    KEYS[event.key]();
  });
  addEventListener("resize", () => looking.tab === "graph" && centreView({}, null));
  addEventListener("hashchange", () => { readAddress(); look({ step: looking.step }, {}); });
  totalsView();
  look({ step: looking.step, tab: looking.tab }, looking.op === null ? {} : { uid: looking.op });
}

setUp();
