"use strict";
// The charts over steps, samples or cost: what each shows, and the marks on them.

/** What is drawn: for each chart its series, by the arrays of a run. */
const CHARTS = [
  { id: "loss", title: "Loss", scale: "log10", lines: [
    { of: "train", label: "training", thin: true }, { of: "val", label: "validation" }] },
  { id: "size", title: "Batch size (samples)", scale: "log2", marks: true, lines: [
    { of: "size", label: "", stepped: true }] },
  { id: "noise", title: "Gradient noise scale (samples)", scale: "log10", band: true, lines: [
    { of: "noise", label: "", stepped: true }] },
  { id: "rate", title: "Learning rate", scale: "log10", lines: [{ of: "rate", label: "", stepped: true }] },
  { id: "cost", title: "Cost", scale: "linear", lines: [{ of: "cost", label: "" }] },
  { id: "efficiency", title: "Statistical efficiency", scale: "linear", fixed: [0, 1], lines: [
    { of: "efficiency", label: "" }] },
  { id: "throughput", title: "Throughput at the chosen size", scale: "log10", lines: [
    { of: "throughput", label: "" }] },
];

function token(name) {
  return getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
}

function faded(color, share) {
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
  return `rgba(${r}, ${g}, ${b}, ${share})`;
}

/** Return the arrays and series of a chart for the runs that are shown. */
function chartSeries(chart, runs, merged, colors, logs) {
  const data = [merged.xs], series = [{}], bands = [];
  const usable = (values) => logs ? values.map((v) => (v !== null && v > 0 ? v : null)) : values;
  runs.forEach((run, place) => {
    const rows = merged.rows[place], color = colors[run.id % colors.length];
    const one = runs.length === 1 && chart.lines.length > 1;
    chart.lines.forEach((line, number) => {
      const tone = one && !line.thin ? colors[1] : color;
      data.push(spread(usable(run[line.of]), rows, merged.xs.length, line.stepped, line.of === "size" ? run.before[0] : null));
      series.push({
        label: run.name + (line.label ? " " + line.label : ""), spanGaps: true,
        stroke: line.thin && !one ? faded(tone, 0.55) : tone, width: line.thin ? 1.2 : 2,
        dash: DASHES[run.id % DASHES.length], points: { show: line.of === "val" && rows.length < 60, size: 5 },
        paths: line.stepped ? uPlot.paths.stepped({ align: 1 }) : undefined,
      });
      if (number === 0 && chart.band) {
        const edge = (sign) => run.noise.map((v, i) =>
          (v === null || run.error[i] === null || run.error[i] < 0 ? v : v + sign * run.error[i]));
        const ends = [edge(1), edge(-1).map((v, i) => (v === null ? v : Math.max(v, run.noise[i] / 10)))];
        for (const values of ends) { // the lower end, often near zero, stretches the scale tenfold at most
          data.push(spread(usable(values), rows, merged.xs.length, true));
          series.push({ label: "", stroke: "transparent", spanGaps: true, points: { show: false },
            paths: uPlot.paths.stepped({ align: 1 }) });
        }
        bands.push({ series: [series.length - 2, series.length - 1], fill: faded(color, 0.18) });
      }
    });
  });
  return { data, series, bands };
}

/** Draw the changes of the batch size and what the guard did; at most one mark a pixel. */
function drawMarks(u, runs, axis) {
  const ratio = devicePixelRatio, context = u.ctx, size = 5 * ratio;
  const { left, top, width, height } = u.bbox;
  context.save();
  context.beginPath();
  context.rect(left, top, width, height);
  context.clip();
  for (const run of runs) {
    let lastX = -1e9;
    const first = Math.max(lastAt(run[axis], u.scales.x.min), 0);
    for (let i = first; i < run.size.length && run[axis][i] <= u.scales.x.max; i++) {
      if (!isMarked(run, i)) continue;
      const x = u.valToPos(run[axis][i], "x", true);
      if (x - lastX < 3 * ratio) continue;
      lastX = x;
      mark(context, x, u.valToPos(run.size[i], "y", true), size, isGuard(run, i) ? 0 : run.size[i] - run.before[i]);
    }
  }
  context.restore();
}

function mark(context, x, y, size, change) {
  context.beginPath();
  context.fillStyle = token(change === 0 ? "guard" : change > 0 ? "up" : "down");
  context.strokeStyle = token("page");
  context.lineWidth = devicePixelRatio;
  if (change === 0) { // the guard or a switch: a diamond
    context.moveTo(x, y - 1.5 * size);
    context.lineTo(x + 1.3 * size, y);
    context.lineTo(x, y + 1.5 * size);
    context.lineTo(x - 1.3 * size, y);
  } else { // a triangle that points the way
    const tip = change > 0 ? -1 : 1;
    context.moveTo(x, y + tip * 1.3 * size);
    context.lineTo(x + size, y - tip * 0.7 * size);
    context.lineTo(x - size, y - tip * 0.7 * size);
  }
  context.closePath();
  context.fill();
  context.stroke();
}

const SCALES = { linear: {}, log2: { distr: 3, log: 2 }, log10: { distr: 3, log: 10 } };

/** Places of the ticks of a logarithmic axis: powers, or some multiples where few powers fit. */
function logTicks(base) {
  return (u, axis, low, high) => {
    const within = (values) => values.filter((v) => v >= low * 0.9999 && v <= high * 1.0001);
    const first = Math.floor(Math.log(low) / Math.log(base)), last = Math.ceil(Math.log(high) / Math.log(base));
    const powers = [];
    for (let power = first; power <= last; power++) powers.push(base ** power);
    const every = Math.ceil(within(powers).length / 8);
    if (every > 1) return within(powers.filter((_, at) => (first + at) % every === 0));
    if (base === 2 || within(powers).length >= 4) return within(powers);
    for (const digits of [[1, 3], [1, 2, 5], [1, 1.5, 2, 3, 4, 5, 7]]) {
      const ticks = within(powers.flatMap((power) => digits.map((digit) => digit * power)));
      if (ticks.length >= 3) return ticks;
    }
    return [0, 1, 2, 3].map((part) => Number((low + (part / 3) * (high - low)).toPrecision(3)));
  };
}

/** Return a y range that holds the values; a constant gets some room. */
function yRange(chart, scale) {
  return (u, low, high) => {
    if (chart.fixed) return chart.fixed;
    if (low === null || low === undefined) return scale === "linear" ? [0, 1] : [1, 10];
    if (scale !== "linear") {
      const room = low === high ? 2 : (high / low) ** 0.06;
      return [low / room, high * room];
    }
    const room = low === high ? Math.abs(low) * 0.1 || 1 : (high - low) * 0.06;
    return [low >= 0 ? Math.max(low - room, 0) : low - room, high + room];
  };
}

/** Make the plot of one chart. `hooks` has `cursor`, `zoom` and `pick`. */
function makePlot(chart, holder, runs, merged, look, hooks) {
  const scale = look.linear.has(chart.id) ? "linear" : chart.scale;
  const { data, series, bands } = chartSeries(chart, runs, merged, look.colors, scale !== "linear");
  const axisLook = { stroke: look.soft, grid: { stroke: look.line, width: 1 }, ticks: { stroke: look.line, width: 1 } };
  const options = {
    width: look.width(holder), height: look.height, series, bands, legend: { show: false },
    scales: { x: { time: false }, y: { ...SCALES[scale], range: yRange(chart, scale) } },
    axes: [
      { ...axisLook, values: (u, splits) => splits.map(compact), size: 34 },
      { ...axisLook, size: 56, values: (u, splits) => splits.map(compact),
        filter: (u, splits) => splits, splits: scale === "linear" ? undefined : logTicks(scale === "log2" ? 2 : 10) },
    ],
    cursor: { sync: { key: "runs", setSeries: false }, drag: { x: true, y: false, dist: 6 }, y: false,
      points: { show: false }, bind: { dblclick: () => () => hooks.zoom(null) } },
    hooks: {
      setCursor: [(u) => hooks.cursor(u)],
      setScale: [(u, key) => { if (key === "x") hooks.zoom(u); }],
      draw: chart.marks ? [(u) => drawMarks(u, runs, look.axis)] : [],
      ready: [(u) => u.over.addEventListener("click", (event) => hooks.pick(u, event))],
    },
  };
  return new uPlot(options, data, holder);
}
