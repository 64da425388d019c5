"use strict";
// Puts the page together: controls, linked charts, the selected decision, the table.

(function start() {
  const all = JSON.parse(document.getElementById("runs").textContent);
  all.forEach((run, id) => { run.id = id; });
  const byId = (id) => document.getElementById(id);
  if (!all.length) return;
  const state = { axis: "step", shown: all.map(() => true), active: 0, picked: null, linear: new Set(), range: null,
    page: 0, filter: "marked", theme: null };
  let plots = [], detailPlot = null, look = null, merged = null, busy = false, frame = 0, cursorX = null;

  const shownRuns = () => all.filter((run) => state.shown[run.id]);
  const active = () => all[state.active];

  function makeLook() {
    return { axis: state.axis, linear: state.linear, colors: [0, 1, 2, 3, 4, 5].map((at) => token("run" + at)),
      soft: token("soft"), line: token("line"), mark: token("mark"), height: innerWidth < 700 ? 190 : 230,
      width: (holder) => Math.max(holder.clientWidth, 240) };
  }

  // ---- charts ----
  function visibleCharts() {
    const has = (chart) => shownRuns().some((run) => chart.lines.some((line) => run[line.of].some((v) => v !== null)));
    return CHARTS.filter((chart) => !(chart.id === "cost" && state.axis === "cost") && has(chart));
  }

  function draw() {
    plots.forEach(({ plot }) => plot.destroy());
    plots = [];
    look = makeLook();
    const runs = shownRuns(), holder = byId("charts");
    holder.replaceChildren();
    const drawn = runs.filter((run) => run.size.length);
    merged = drawn.length ? mergedAxis(runs.map((run) => run[state.axis])) : { xs: [], rows: [] };
    if (merged.xs.length < 2) return;
    const hooks = { cursor: onCursor, zoom: onZoom, pick: onPick };
    busy = true;
    const places = visibleCharts().map((chart) => {
      const read = element("span", { class: "num" }), place = element("div", { class: "plot" });
      const unit = { cost: unitText(), throughput: "samples per " + unitText() }[chart.id];
      const head = element("header", {}, element("h3", {}, chart.title + (unit ? ` (${unit})` : "")), legend(chart), scaleButton(chart), read);
      holder.append(element("section", { class: "chart", "data-chart": chart.id, "aria-label": chart.title }, head, place));
      return { chart, read, place };
    });
    for (const { chart, read, place } of places) { // behind the loop above: the grid has its columns now
      const plot = makePlot(chart, place, runs, merged, look, hooks);
      const line = element("div", { class: "picked" });
      plot.over.append(line);
      plots.push({ chart, plot, read, line });
    }
    busy = false;
    if (state.range) zoomTo(...state.range);
    showReadout();
    showPicked();
  }

  function unitText() {
    const units = new Set(shownRuns().map((run) => run.unit));
    return units.size === 1 ? [...units][0] : "each run's unit";
  }

  /** Tell lines of a chart apart where it has several; the runs' own lines stand in the bar. */
  function legend(chart) {
    if (chart.lines.length < 2) return null;
    const one = shownRuns().length === 1;
    return element("span", { class: "soft" }, ...chart.lines.flatMap((line, at) =>
      [element("span", { class: "key" }, swatch(one ? look.colors[at] : look.soft, [], line.thin ? 1.2 : 3), " " + line.label), " "]));
  }

  function scaleButton(chart) {
    if (chart.scale !== "log10") return null;
    const linear = state.linear.has(chart.id);
    return element("button", { class: "controls", "aria-label": `Scale of ${chart.title}: ${linear ? "linear" : "logarithmic"}`,
      onclick: () => { if (linear) state.linear.delete(chart.id); else state.linear.add(chart.id); draw(); } }, linear ? "linear" : "log");
  }

  function extent() {
    return [merged.xs[0], merged.xs[merged.xs.length - 1]];
  }

  function onZoom(u) {
    if (busy) return;
    if (u === null) { state.range = null; zoomTo(...extent()); return; }
    const { min, max } = u.scales.x;
    const [low, high] = extent();
    state.range = min <= low && max >= high ? null : [min, max];
    busy = true;
    for (const { plot } of plots) if (plot !== u) plot.setScale("x", { min, max });
    busy = false;
    placeLines();
  }

  function zoomTo(min, max) {
    if (!plots.length) return;
    if (min === max) { min -= 0.5; max += 0.5; }
    busy = true;
    for (const { plot } of plots) plot.setScale("x", { min, max });
    busy = false;
    placeLines();
  }

  /** Zoom by a factor around the middle, or move by a share of what is shown. */
  function zoomBy(factor, shift) {
    const [low, high] = extent(), [min, max] = state.range || [low, high];
    const width = Math.min((max - min) * factor, high - low), middle = (min + max) / 2 + shift * (max - min);
    const start = Math.min(Math.max(middle - width / 2, low), high - width);
    state.range = width >= high - low ? null : [start, start + width];
    zoomTo(start, start + width);
  }

  function onCursor(u) {
    if (u.cursor.left === null || u.cursor.left < 0) cursorX = null;
    else cursorX = u.posToVal(u.cursor.left, "x");
    if (!frame) frame = requestAnimationFrame(() => { frame = 0; showReadout(); });
  }

  function showReadout() {
    for (const { chart, read } of plots) {
      const texts = shownRuns().map((run) => {
        const x = cursorX === null ? Infinity : cursorX, i = Math.max(lastAt(run[state.axis], x), 0);
        const values = chart.id === "noise" ? [noiseText(run, i)] : chart.lines.map((line) => (line.label ? line.label + " " : "") + compact(latest(run[line.of], i)));
        return (all.length > 1 ? run.name + ": " : "") + values.join(", ");
      });
      read.textContent = texts.join("; ");
    }
    const run = active();
    if (cursorX !== null && run) {
      const i = Math.max(lastAt(run[state.axis], cursorX), 0);
      byId("hint").textContent = `${AXES[state.axis]} ${compact(cursorX)}: size ${run.size[i]}${whyText(run, i) ? ", " + whyText(run, i) : ""}`;
    }
  }

  function latest(values, i) {
    for (let at = i; at >= Math.max(0, i - 500); at--) if (values[at] !== null) return values[at];
    return null;
  }

  // ---- the selected decision ----
  function onPick(u, event) {
    const box = u.over.getBoundingClientRect();
    const x = u.posToVal(event.clientX - box.left, "x"), y = u.posToVal(event.clientY - box.top, "y");
    const runs = shownRuns();
    if (u === (plots.find(({ chart }) => chart.id === "size") || {}).plot && runs.length > 1) {
      const far = (run) => Math.abs(Math.log2(run.size[Math.max(lastAt(run[state.axis], x), 0)] / y));
      state.active = runs.reduce((best, run) => (far(run) < far(best) ? run : best)).id;
    } else if (!state.shown[state.active]) state.active = runs[0].id;
    pick(nearestMarked(active(), x, u));
  }

  /** Return the nearest line, or a marked one within some pixels of it. */
  function nearestMarked(run, x, u) {
    const axis = run[state.axis], i = nearest(axis, x), at = u.valToPos(x, "x");
    for (let away = 0; away < 200; away++) {
      for (const near of [i - away, i + away]) {
        if (near >= 0 && near < axis.length && isMarked(run, near) && Math.abs(u.valToPos(axis[near], "x") - at) < 8) return near;
      }
    }
    return i;
  }

  function pick(i, quiet) {
    state.picked = i;
    const lines = tableLines(), at = lines.indexOf(i);
    if (at >= 0) state.page = Math.floor(at / PAGE);
    showDetail();
    showTable();
    const x = active()[state.axis][i];
    if (state.range && (x < state.range[0] || x > state.range[1])) zoomBy(1, (x - (state.range[0] + state.range[1]) / 2) / (state.range[1] - state.range[0]));
    showPicked();
    if (!quiet) byId("live").textContent = sentences(active(), i).join(" ");
  }

  function showPicked() {
    placeLines();
  }

  function placeLines() {
    const x = state.picked === null ? null : active()[state.axis][state.picked];
    for (const { plot, line } of plots) {
      const inside = x !== null && state.shown[state.active] && x >= plot.scales.x.min && x <= plot.scales.x.max;
      line.style.display = inside ? "" : "none";
      if (inside) line.style.left = plot.valToPos(x, "x") + "px";
    }
  }

  function showDetail() {
    const run = active(), holder = byId("why"), i = state.picked;
    if (detailPlot) detailPlot.destroy();
    detailPlot = null;
    if (i === null) { holder.replaceChildren(element("p", { class: "soft" }, "Click a chart, or press the arrow keys, to see why a size was chosen.")); return; }
    const words = element("ul", {}, ...sentences(run, i).map((text) => element("li", {}, text)));
    const trade = element("div", {}, element("h3", {}, "What other sizes would have given"));
    const left = element("div", {}, element("h3", {}, `${all.length > 1 ? run.name + ", " : ""}decision ${(run.places ? run.places[i] : i) + 1} of ${run.lines}`), words);
    for (const part of [pushBars(run, i), oddsBars(run, i)]) if (part) left.append(part);
    if (run.note) left.append(element("p", { class: "soft" }, run.note));
    holder.replaceChildren(left, trade);
    detailPlot = drawTradeOff(run, i, trade, makeLook());
  }

  // ---- the table ----
  let lineCache = { key: "", lines: [] };
  function tableLines() {
    const run = active(), key = state.active + state.filter;
    if (lineCache.key !== key) {
      const wanted = (i) => state.filter === "all" || isMarked(run, i) || run.events[run.event[i]] === "end";
      lineCache = { key, lines: run.size.map((_, i) => i).filter(wanted) };
    }
    return lineCache.lines;
  }

  function showTable() {
    const run = active(), lines = tableLines(), pages = Math.max(1, Math.ceil(lines.length / PAGE));
    state.page = Math.min(state.page, pages - 1);
    byId("rows").replaceChildren(tablePage(run, lines, state.page, state.picked, (i) => pick(i)));
    byId("pages").textContent = `${lines.length.toLocaleString("en")} of ${run.lines.toLocaleString("en")} lines` + (all.length > 1 ? ` of ${run.name}` : "") + (pages > 1 ? `, page ${state.page + 1} of ${pages}` : "");
  }

  // ---- controls ----
  function pressed(holder, value) {
    for (const button of byId(holder).querySelectorAll("button")) button.setAttribute("aria-pressed", String(button.value === value));
  }

  function setAxis(axis) {
    state.axis = axis;
    state.range = null;
    pressed("axis", axis);
    draw();
  }

  function setTheme(theme) {
    document.documentElement.dataset.theme = theme;
    pressed("theme", theme);
    draw();
    showDetail();
  }

  function runButtons() {
    if (all.length < 2) { byId("runs-set").remove(); return; }
    byId("runs-set").append(...all.map((run) => {
      const button = element("button", { class: "run", "aria-pressed": "true", title: run.name, onclick: () => {
        state.shown[run.id] = !state.shown[run.id];
        button.setAttribute("aria-pressed", String(state.shown[run.id]));
        if (state.shown[run.id]) state.active = run.id;
        else if (state.active === run.id) state.active = (shownRuns()[0] || all[0]).id;
        state.picked = null;
        draw(); showDetail(); showTable();
      } }, swatch(`var(--run${run.id % 6})`, DASHES[run.id % DASHES.length]), element("span", {}, run.name));
      return button;
    }));
  }

  function move(by, markedOnly) {
    const run = active(), last = run.size.length - 1;
    let i = state.picked === null ? (by > 0 ? -1 : last + 1) : state.picked;
    do i += by; while (markedOnly && i > 0 && i < last && !isMarked(run, i));
    pick(Math.min(Math.max(i, 0), last));
  }

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
    const keys = { ArrowLeft: () => move(-1, event.shiftKey), ArrowRight: () => move(1, event.shiftKey), Home: () => pick(0),
      End: () => pick(active().size.length - 1), "+": () => zoomBy(0.5, 0), "=": () => zoomBy(0.5, 0), "-": () => zoomBy(2, 0),
      "0": () => onZoom(null), Escape: () => onZoom(null),
      x: () => { const names = Object.keys(AXES); setAxis(names[(names.indexOf(state.axis) + 1) % names.length]); } };
    if (keys[event.key]) { keys[event.key](); event.preventDefault(); }
  }

  runButtons();
  for (const button of byId("axis").querySelectorAll("button")) button.addEventListener("click", () => setAxis(button.value));
  for (const button of byId("theme").querySelectorAll("button")) button.addEventListener("click", () => setTheme(button.value));
  const zooms = { in: () => zoomBy(0.5, 0), out: () => zoomBy(2, 0), left: () => zoomBy(1, -0.4), right: () => zoomBy(1, 0.4), all: () => onZoom(null) };
  for (const button of byId("zoom").querySelectorAll("button")) button.addEventListener("click", zooms[button.value]);
  byId("filter").addEventListener("change", (event) => { state.filter = event.target.value; state.page = 0; showTable(); });
  byId("earlier").addEventListener("click", () => { state.page = Math.max(0, state.page - 1); showTable(); });
  byId("later").addEventListener("click", () => { state.page += 1; showTable(); });
  byId("charts").addEventListener("keydown", onKey);

  function resize() {
    const height = innerWidth < 700 ? 190 : 230;
    for (const { plot } of plots) plot.setSize({ width: Math.max(plot.root.parentElement.clientWidth, 240), height });
    placeLines();
    if (detailPlot) detailPlot.setSize({ width: Math.max(detailPlot.root.parentElement.clientWidth, 240), height: 190 });
  }
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; resize(); } });
  let before = null;
  addEventListener("beforeprint", () => { before = document.documentElement.dataset.theme; setTheme("light"); plots.forEach(({ plot }) => plot.setSize({ width: 330, height: 170 })); });
  addEventListener("afterprint", () => { setTheme(before); });
  const dark = matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", () => setTheme(dark.matches ? "dark" : "light"));
  pressed("axis", state.axis);
  setTheme(dark.matches ? "dark" : "light");
  const firstMark = active().size.findIndex((_, i) => isMarked(active(), i));
  if (firstMark >= 0) pick(firstMark, true); else { showDetail(); showTable(); }
  document.documentElement.dataset.ready = "true";
})();
