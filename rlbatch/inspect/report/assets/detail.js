"use strict";
// One decision: in words, what pushed it, what each size would have given; and the table of all.

function describe(change) {
  if (Math.abs(change) < 1e-6) return "stay";
  return (change > 0 ? "\u00d7" : "\u00f7") + compact(2 ** Math.abs(change));
}

/** Return what happened at a line, in sentences. */
function sentences(run, i) {
  if (run.words[i]) return run.words[i];
  const name = run.events[run.event[i]];
  const told = [`After step ${run.step[i].toLocaleString("en")} (${run.samples[i].toLocaleString("en")} samples): ` +
    (name === "end" ? "the run ended." : `batch size ${run.before[i].toLocaleString("en")}` +
      (run.size[i] === run.before[i] ? ", unchanged." : ` to ${run.size[i].toLocaleString("en")}.`))];
  if (run.probability[i] !== null) told[0] += ` Confidence ${run.probability[i].toFixed(2)}.`;
  if (run.noise[i] !== null) told.push(`Noise scale ${noiseText(run, i)} samples.`);
  if (whyText(run, i)) told.push(`It says: ${whyText(run, i)}.`);
  return told;
}

function bar(label, share, text, against, centred) {
  const fill = element("i", { class: against ? "against" : null });
  const width = Math.min(Math.abs(share), 1) * (centred ? 50 : 100);
  fill.style.width = width + "%";
  fill.style.left = (centred ? (against ? 50 - width : 50) : 0) + "%";
  return [element("span", {}, label), element("div", { class: centred ? "track" : "track left" }, fill),
    element("span", { class: "num" }, text)];
}

function pushBars(run, i) {
  const pushes = run.pushes[i];
  if (!pushes) return null;
  const most = Math.max(...pushes.map(Math.abs), 0.1);
  const rows = run.groups.map((name, at) => [name, pushes[at]]).filter(([, push]) => Math.abs(push) >= 0.05);
  return element("div", {}, element("h3", {}, "What pushed it"),
    element("p", { class: "soft" }, "Log odds for the chosen change (right) and against it (left)."),
    element("div", { class: "bars", role: "list" },
      ...rows.flatMap(([name, push]) => bar(name, push / most, (push > 0 ? "+" : "") + push.toFixed(1), push < 0, true))));
}

function oddsBars(run, i) {
  const odds = run.odds[i];
  if (!odds || !run.grid || odds.length !== run.grid.length) return null;
  return element("div", {}, element("h3", {}, "Probability of each change"),
    element("div", { class: "bars" },
      ...odds.flatMap((percent, at) => bar(describe(run.grid[at]), percent / 100, percent + "%", false, false))));
}

/** Return throughput, efficiency and their product over batch sizes at a line, each over its best. */
function tradeOff(run, i) {
  const curve = run.curves[run.curve[i]], low = run.min || 1, high = run.max || 65536;
  if (!curve || !(high > low)) return null;
  const sizes = [], throughput = [], efficiency = [];
  for (let at = 0; at <= 60; at++) {
    const size = low * (high / low) ** (at / 60);
    sizes.push(size);
    throughput.push(size / 2 ** stepCost(curve, size));
    efficiency.push(run.noise[i] === null ? null : run.noise[i] / (run.noise[i] + size));
  }
  const goodput = throughput.map((value, at) => (efficiency[at] === null ? null : value * efficiency[at]));
  const over = (values) => { const best = Math.max(...values); return values.map((v) => (v === null ? null : v / best)); };
  return [sizes, over(throughput), efficiency, over(goodput)];
}

function drawTradeOff(run, i, holder, look) {
  const data = tradeOff(run, i);
  if (!data) {
    holder.append(element("p", { class: "soft" }, "The cost of other sizes was not recorded here."));
    return null;
  }
  const names = ["throughput / best", "statistical efficiency", "their product / best"];
  const lines = names.map((label, at) => ({ label, stroke: look.colors[at], width: 2, dash: DASHES[at], points: { show: false } }));
  holder.append(element("p", { class: "soft" }, ...names.flatMap((name, at) => [element("span", { class: "key" }, swatch(look.colors[at], DASHES[at]), " " + name), "  "])));
  const axisLook = { stroke: look.soft, grid: { stroke: look.line, width: 1 }, ticks: { stroke: look.line, width: 1 } };
  const line = (u, size, dash) => {
    const x = u.valToPos(size, "x", true);
    u.ctx.save();
    u.ctx.strokeStyle = look.mark;
    u.ctx.lineWidth = 2 * devicePixelRatio;
    u.ctx.setLineDash(dash.map((d) => d * devicePixelRatio));
    u.ctx.beginPath();
    u.ctx.moveTo(x, u.bbox.top);
    u.ctx.lineTo(x, u.bbox.top + u.bbox.height);
    u.ctx.stroke();
    u.ctx.restore();
  };
  const plot = new uPlot({
    width: look.width(holder), height: 190, legend: { show: false }, cursor: { show: false }, series: [{}, ...lines],
    scales: { x: { time: false, distr: 3, log: 2 }, y: { range: [0, 1.04] } },
    axes: [{ ...axisLook, size: 34, values: (u, splits) => splits.map((v, at) => (v === null || at % Math.ceil(splits.length / 8) ? "" : compact(v))) },
      { ...axisLook, size: 44 }],
    hooks: { draw: [(u) => { line(u, run.size[i], []); if (run.size[i] !== run.before[i]) line(u, run.before[i], [3, 3]); }] },
  }, data, holder);
  holder.append(element("p", { class: "soft" }, "Batch size in samples; the upright line is the size chosen" +
    (run.size[i] === run.before[i] ? "." : ", the dotted one the size before.")));
  return plot;
}

function swatch(color, dash, width = 3) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  made.setAttribute("width", "26");
  made.setAttribute("height", "8");
  made.setAttribute("aria-hidden", "true");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
  for (const [key, value] of Object.entries({ x1: 0, y1: 4, x2: 26, y2: 4, "stroke-width": width, "stroke-dasharray": dash.join(" ") })) {
    line.setAttribute(key, value);
  }
  line.style.stroke = color;
  made.append(line);
  return made;
}

const PAGE = 50;
const HEADS = ["step", "samples", "cost", "loss", "validation", "noise scale", "size", "asked", "applied", "rate", "confidence"];

/** Return the rows of a table's page around a line. */
function tablePage(run, lines, page, selected, pick) {
  const body = element("tbody");
  for (const i of lines.slice(page * PAGE, (page + 1) * PAGE)) {
    const event = run.events[run.event[i]];
    const cells = [run.step[i].toLocaleString("en"), run.samples[i].toLocaleString("en"), compact(run.cost[i]), compact(run.train[i]),
      compact(run.val[i]), noiseText(run, i), run.before[i].toLocaleString("en"),
      run.asked[i] === null ? "-" : Math.round(run.asked[i]).toLocaleString("en"), run.size[i].toLocaleString("en"),
      compact(run.rate[i]), run.probability[i] === null ? "-" : run.probability[i].toFixed(2)];
    const why = element("td", { class: "text" });
    if (event !== "decision") why.append(element("span", { class: "event" }, event + " "));
    why.append(whyText(run, i));
    body.append(element("tr", { class: "pick", "aria-selected": String(i === selected), onclick: () => pick(i) },
      ...cells.map((cell) => element("td", {}, cell)), why));
  }
  const head = element("tr", {}, ...HEADS.map((name) => element("th", { scope: "col" }, name)),
    element("th", { scope: "col", class: "text" }, "why"));
  return element("table", {}, element("thead", {}, head), body);
}
