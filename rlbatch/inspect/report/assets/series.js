"use strict";
// Runs as they come from the log, and as the aligned arrays that uPlot wants.

const AXES = { step: "optimizer steps", samples: "samples", cost: "cost" };
const DASHES = [[], [9, 4], [2, 3], [9, 3, 2, 3], [5, 2], [14, 4]];

/** Return the place of the last value at or below `x`, or -1. */
function lastAt(values, x) {
  let low = 0, high = values.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] <= x) low = middle + 1; else high = middle;
  }
  return low - 1;
}

/** Return the place of the value nearest to `x`. */
function nearest(values, x) {
  const left = Math.max(lastAt(values, x), 0), right = Math.min(left + 1, values.length - 1);
  return x - values[left] <= values[right] - x ? left : right;
}

/** Merge the axes of runs, from zero on: the sorted values, and for each run the rows of its lines. */
function mergedAxis(axes) {
  if (axes.length === 1) {
    // A line may stand at the same place as the one before (a roll-back): both are kept.
    return { xs: [0, ...axes[0]], rows: [axes[0].map((_, i) => i + 1)] };
  }
  const xs = Float64Array.from(new Set([0, ...axes.flat()])).sort();
  const rowOf = new Map();
  xs.forEach((x, row) => rowOf.set(x, row));
  return { xs: Array.from(xs), rows: axes.map((axis) => axis.map((x) => rowOf.get(x))) };
}

/**
 * Spread a run's values over the merged rows; `carry` repeats the last one until the run ends, and
 * `start` is the value before the first line, if there is one.
 */
function spread(values, rows, length, carry, start = null) {
  const out = new Array(length).fill(null);
  for (let i = 0; i < values.length; i++) out[rows[i]] = values[i];
  if (start !== null && rows.length && rows[0] > 0) out[0] = start;
  if (carry && rows.length) {
    let last = null;
    for (let row = 0; row <= rows[rows.length - 1]; row++) {
      if (out[row] === null) out[row] = last; else last = out[row];
    }
  }
  return out;
}

/** Return log2 of the cost of a step, interpolated in log-log. */
function stepCost(curve, size) {
  const place = Math.min(Math.max(Math.log2(size), 0), curve.length - 1);
  const lower = Math.min(Math.floor(place), curve.length - 2);
  return curve[lower] + (curve[lower + 1] - curve[lower]) * (place - lower);
}

function compact(value) {
  if (value === null || value === undefined) return "-";
  const size = Math.abs(value);
  if (size !== 0 && size < 1e-3) return value.toExponential(1);
  if (size < 1e4) return String(Number(value.toPrecision(4)));
  for (const [limit, unit, letter] of [[1e6, 1e3, "k"], [1e9, 1e6, "M"], [1e12, 1e9, "G"]]) {
    if (size < limit) return Number((value / unit).toPrecision(3)) + letter;
  }
  return value.toExponential(1);
}

function noiseText(run, i) {
  if (run.noise[i] === null) return "-";
  if (run.error[i] === -1) return "> " + compact(run.noise[i]);
  return compact(run.noise[i]) + (run.error[i] === null ? "" : " \u00b1 " + compact(run.error[i]));
}

function whyText(run, i) {
  const place = run.why.of[i];
  return place < 0 ? "" : run.why.texts[place];
}

function isGuard(run, i) {
  const name = run.events[run.event[i]];
  return name !== "decision" && name !== "end";
}

function isMarked(run, i) {
  return run.size[i] !== run.before[i] || isGuard(run, i);
}

/** Make an element: attributes, then children; texts never become markup. */
function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}
