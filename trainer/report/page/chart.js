/* Line charts, drawn as SVG. Charts in the same group show the same epochs: dragging across one of them zooms all. */

const MARGIN = { left: 52, right: 12, top: 8, bottom: 26 };
const CHART_HEIGHT = 240;

/** Charts that show the same range of epochs, [first, last], or all epochs if it is null. */
function chartGroup() {
  const group = { range: null, redraws: [] };
  group.zoom = (range) => {
    group.range = range;
    group.redraws.forEach((redraw) => redraw());
  };
  return group;
}

/** Draw charts in `box`. `recordsOf(series)` returns the records that contain a series. */
function drawCharts(box, charts, recordsOf, group) {
  const redraws = charts.map((chart) => drawChart(box, chart, recordsOf, group));
  group.redraws.push(...redraws);
  new ResizeObserver(() => redraws.forEach((redraw) => redraw())).observe(box);
}

/** Add one chart to `box`. Returns a function that draws it again. */
function drawChart(box, chart, recordsOf, group) {
  const lines = chart.series.map((series, number) => lineOf(series, number, recordsOf(series)));
  const plot = shape("svg", { height: CHART_HEIGHT, role: "img", "aria-label": chart.title });
  const tip = element("div", { class: "tip", hidden: "" });
  const legend = element("div", { class: "legend" });
  const redraw = () => redrawChart(plot, chart, lines, group);
  for (const line of lines) legend.append(legendEntry(line, redraw));
  const title = element("h3", {}, chart.title, element("span", { class: "muted" }, chart.note ? ` ${chart.note}` : ""));
  box.append(element("figure", { class: "chart" }, title, element("div", { class: "plot" }, plot, tip), legend));
  followPointer(plot, chart, lines, tip, group);
  return redraw;
}

/** A series with its points [x, y], without those that have no value. */
function lineOf(series, number, records) {
  const values = records[series.name];
  const points = records.epochs.map((x, place) => [x, values[place]]).filter(([, y]) => y !== null);
  return { ...series, points, colour: series.colour || `c${number % 10}`, visible: !series.hidden };
}

function legendEntry(line, redraw) {
  const sample = shape("svg", { width: 26, height: 10 }, shape("path", { d: "M1 5H25", class: lineClass(line) }));
  const entry = element("button", { type: "button", "aria-pressed": String(line.visible) }, sample, line.label);
  entry.addEventListener("click", () => {
    line.visible = !line.visible;
    entry.setAttribute("aria-pressed", line.visible);
    redraw();
  });
  return entry;
}

function lineClass(line) {
  return `line ${line.colour}${line.dash ? " dash" : ""}${line.faint ? " faint" : ""}`;
}

function redrawChart(plot, chart, lines, group) {
  const width = plot.parentElement.clientWidth;
  if (!width) return; // the tab is not shown
  plot.setAttribute("width", width);
  const visible = lines.filter((line) => line.visible && line.points.length);
  const [first, last] = group.range || [0, Math.max(1e-9, ...lines.flatMap((line) => line.points.map(([x]) => x)))];
  const ys = visible.flatMap((line) => line.points.filter(([x]) => x >= first && x <= last).map(([, y]) => y));
  plot.scales = {
    x: linearScale(first, last, MARGIN.left, width - MARGIN.right, 6),
    y: verticalScale(chart.axis, ys),
  };
  // The part of a zoomed line that is beside the axes is hidden by a nested picture of the size of the plot.
  const inside = shape("svg", { x: MARGIN.left - 4, width: width - MARGIN.left - MARGIN.right + 8, height: CHART_HEIGHT });
  inside.setAttribute("viewBox", `${MARGIN.left - 4} 0 ${width - MARGIN.left - MARGIN.right + 8} ${CHART_HEIGHT}`);
  inside.append(...visible.flatMap((line) => drawnLine(line, plot.scales)));
  plot.replaceChildren(...axesOf(plot.scales, chart.axis, width), inside);
}

/** The scale of the y axis for the values in view. */
function verticalScale(axis, ys) {
  const [bottom, top] = [CHART_HEIGHT - MARGIN.bottom, MARGIN.top];
  const positive = axis === "log" ? ys.filter((y) => y > 0) : ys;
  if (!positive.length) return linearScale(0, 1, bottom, top, 4);
  const [low, high] = [Math.min(...positive), Math.max(...positive)];
  if (axis === "log") return logScale(low, high, bottom, top);
  if (axis === "share") return linearScale(0, Math.min(1, Math.max(high * 1.1, 0.05)), bottom, top, 5);
  return linearScale(0, high * 1.1 || 1, bottom, top, 5);
}

function linearScale(low, high, from, to, count) {
  const span = high - low || 1;
  const power = 10 ** Math.floor(Math.log10(span / count));
  const step = power * [1, 2, 5, 10].find((factor) => (power * factor * count) >= span * 0.999);
  const ticks = [];
  for (let tick = Math.ceil(low / step - 1e-9); tick * step <= high + step * 1e-9; tick++) ticks.push(tick * step);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  return {
    from,
    to,
    at: (value) => from + ((value - low) / span) * (to - from),
    back: (pixel) => low + ((pixel - from) / (to - from)) * span,
    ticks: ticks.map((tick) => [tick, tick.toFixed(digits)]),
  };
}

function logScale(low, high, from, to) {
  const [start, end] = low === high ? [low / 2, high * 2] : [low / 1.1, high * 1.1];
  const [a, b] = [Math.log10(start), Math.log10(end)];
  const factors = b - a > 4 ? [1] : b - a > 2 ? [1, 3] : b - a > 1 ? [1, 2, 5] : b - a > 0.4 ? [1, 1.5, 2, 3, 4, 5, 7] : [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9];
  const ticks = [];
  for (let power = Math.floor(a); power <= b; power++) {
    for (const factor of factors) {
      const tick = factor * 10 ** power;
      if (tick >= start && tick <= end) ticks.push([tick, Number(tick.toPrecision(2)).toString()]);
    }
  }
  return { at: (value) => (value > 0 ? from + ((Math.log10(value) - a) / (b - a)) * (to - from) : from), ticks };
}

function axesOf({ x, y }, axis, width) {
  const bottom = CHART_HEIGHT - MARGIN.bottom;
  const parts = [];
  for (const [value, text] of y.ticks) {
    parts.push(shape("path", { class: "grid", d: `M${MARGIN.left} ${y.at(value)}H${width - MARGIN.right}` }));
    const label = axis === "share" ? `${Number((100 * value).toPrecision(3))}%` : text;
    parts.push(shape("text", { x: MARGIN.left - 6, y: y.at(value) + 4, "text-anchor": "end" }, label));
  }
  for (const [value, text] of x.ticks) {
    const label = value === x.ticks[0][0] ? `epoch ${text}` : text;
    parts.push(shape("text", { x: x.at(value), y: bottom + 17, "text-anchor": "middle" }, label));
  }
  parts.push(shape("path", { class: "axis", d: `M${MARGIN.left} ${bottom}H${width - MARGIN.right}` }));
  return parts;
}

function drawnLine(line, { x, y }) {
  const places = line.points.map(([px, py]) => [x.at(px), y.at(py)]);
  // Points beside the plot are left out, but not the neighbours of visible points, so that lines reach the edges.
  const inside = places.map(([px]) => px >= x.from - 1 && px <= x.to + 1);
  const near = places.filter((_, i) => inside[i - 1] || inside[i] || inside[i + 1]);
  const path = near.map(([px, py]) => `${px.toFixed(1)} ${py.toFixed(1)}`).join("L");
  const parts = near.length > 1 ? [shape("path", { d: `M${path}`, class: lineClass(line) })] : [];
  if (line.kind === "val" || near.length === 1) {
    parts.push(...near.map(([cx, cy]) => shape("circle", { cx, cy, r: 2.6, class: `dot ${line.colour}` })));
  }
  return parts;
}

/** Show the values under the pointer, zoom into the epochs that the user drags across, and zoom out on double-click. */
function followPointer(plot, chart, lines, tip, group) {
  const cursor = shape("path", { class: "cursor" });
  const selection = shape("rect", { class: "selection", y: MARGIN.top, height: CHART_HEIGHT - MARGIN.top - MARGIN.bottom });
  let start = null;
  const pixelOf = (event) => {
    const pixel = event.clientX - plot.getBoundingClientRect().left;
    return Math.min(Math.max(pixel, MARGIN.left), plot.clientWidth - MARGIN.right);
  };
  plot.addEventListener("pointerdown", (event) => {
    start = pixelOf(event);
    plot.setPointerCapture(event.pointerId);
  });
  plot.addEventListener("pointermove", (event) => {
    if (!plot.scales) return;
    const pixel = pixelOf(event);
    cursor.setAttribute("d", `M${pixel} ${MARGIN.top}V${CHART_HEIGHT - MARGIN.bottom}`);
    plot.append(cursor);
    tip.replaceChildren(...valuesAt(plot.scales.x.back(pixel), chart.axis, lines));
    tip.hidden = !tip.childElementCount;
    tip.style.left = pixel < plot.clientWidth / 2 ? `${pixel + 14}px` : "auto";
    tip.style.right = pixel < plot.clientWidth / 2 ? "auto" : `${plot.clientWidth - pixel + 14}px`;
    if (start !== null) {
      selection.setAttribute("x", Math.min(start, pixel));
      selection.setAttribute("width", Math.abs(pixel - start));
      plot.append(selection);
    }
  });
  plot.addEventListener("pointerup", (event) => {
    const pixels = [start ?? 0, pixelOf(event)].sort((a, b) => a - b);
    start = null;
    selection.remove();
    if (pixels[1] - pixels[0] > 8) group.zoom(pixels.map(plot.scales.x.back));
  });
  plot.addEventListener("pointerleave", () => {
    cursor.remove();
    tip.hidden = true;
  });
  plot.addEventListener("dblclick", () => group.zoom(null));
}

/** The epoch that is nearest to `x`, and the values of the visible lines there. */
function valuesAt(x, axis, lines) {
  const rows = [];
  for (const line of lines.filter((each) => each.visible && each.points.length)) {
    const distance = ([epoch]) => Math.abs(epoch - x);
    const [epoch, value] = line.points.reduce((best, point) => (distance(point) < distance(best) ? point : best));
    if (!rows.length) rows.push(element("div", { class: "muted" }, `epoch ${Number(epoch.toFixed(2))}`));
    const text = axis === "share" ? `${(100 * value).toFixed(2)}%` : Number(value.toPrecision(4)).toString();
    rows.push(element("div", { class: `value ${line.colour}` }, element("span", {}, line.label), element("b", {}, text)));
  }
  return rows;
}
