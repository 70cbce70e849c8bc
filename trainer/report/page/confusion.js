/* The confusion matrix, which can be sorted and filtered, and the list of the pairs that are confused most often. */

const LARGEST_CELL = 50;
const SMALLEST_CELL = 9;
const MANY = 30; // with more classes, the list of pairs is below the matrix
const NUM_PAIRS = 15;
const LONGEST_NAME = 34; // characters beside the matrix

const ORDERS = {
  number: ["class number", (each) => each.number],
  group: ["coarse class", (each) => each.group],
  recall: ["lowest accuracy first", (each) => each.recall],
  wrong: ["most errors first", (each) => -each.wrong],
  clips: ["most clips first", (each) => -each.clips],
};

/** Add the controls, the matrix and the list of pairs for the levels of an evaluation to `box`. */
function drawConfusion(box, levels) {
  const state = { level: levels[0], stream: Object.keys(levels[0].streams)[0], order: "number", text: "", least: 1, only: null };
  const controls = element("div", { class: "controls" });
  const matrix = element("div", { class: "matrix scroll" });
  const readout = element("p", { class: "readout" }, "\u00a0");
  const pairs = element("div", { class: "pairs" });
  const layout = element("div", { class: "confusion" }, element("div", {}, readout, matrix), pairs);
  const redraw = () => {
    const table = tableOf(state.level, state.stream);
    const shown = shownClasses(table, state);
    layout.classList.toggle("many", shown.length > MANY);
    matrix.replaceChildren(matrixOf(table, shown, matrix.clientWidth, readout, select, state.order === "group"));
    pairs.replaceChildren(...pairsOf(table, shown, select));
    readout.textContent = `${shown.length} of ${table.classes.length} classes; point at a cell to read it`;
  };
  /** Show only these classes, and those that they are confused with; all classes for null. */
  function select(numbers) {
    state.only = numbers;
    controls.querySelector(".all").hidden = numbers === null;
    redraw();
  }
  controls.append(...confusionControls(levels, state, redraw, select));
  box.append(controls, layout);
  new ResizeObserver(redraw).observe(box);
}

function confusionControls(levels, state, redraw, select) {
  const change = (name) => (value) => {
    state[name] = value;
    redraw();
  };
  const streams = Object.keys(levels[0].streams).map((stream) => [stream, stream]);
  const controls = [
    filterField("filter classes", change("text")),
    choice("scores", streams, change("stream")),
    choice("order", Object.entries(ORDERS).map(([key, [text]]) => [key, text]), change("order")),
    choice("errors of at least", [1, 2, 3, 5, 10, 20].map((count) => [count, `${count} clip${count > 1 ? "s" : ""}`]), (value) =>
      change("least")(Number(value)),
    ),
    element("button", { type: "button", class: "all", hidden: "", onclick: () => select(null) }, "show all classes"),
  ];
  if (levels.length > 1) {
    const pick = (number) => {
      state.level = levels[Number(number)];
      select(null);
    };
    controls.splice(1, 0, choice("classes", levels.map((level, number) => [number, level.title]), pick));
  }
  return controls;
}

/** The counts of one stream: a Map from "label,guess" to the number of clips, and the classes with their totals. */
function tableOf(level, stream) {
  const counts = new Map(level.streams[stream].map(([label, guess, count]) => [`${label},${guess}`, count]));
  const classes = level.classes.map((each, number) => {
    const right = counts.get(`${number},${number}`) || 0;
    return { ...each, number, recall: each.clips ? right / each.clips : 2, wrong: each.clips - right };
  });
  return { classes, counts, cells: level.streams[stream] };
}

/** The classes to show, in order: those that match the filter, and those that are confused with them. */
function shownClasses(table, { text, least, only, order }) {
  const matches = (each) => (only ? only.includes(each.number) : `${each.name} ${each.group}`.toLowerCase().includes(text));
  const matching = new Set(table.classes.filter(matches).map((each) => each.number));
  const shown = new Set(matching);
  if (text || only) {
    for (const [label, guess, count] of table.cells) {
      if (count >= least && matching.has(label)) shown.add(guess);
      if (count >= least && matching.has(guess)) shown.add(label);
    }
  } else if (least > 1) {
    shown.clear();
    for (const [label, guess, count] of table.cells) {
      if (label !== guess && count >= least) shown.add(label).add(guess);
    }
  }
  const key = ORDERS[order][1];
  const compare = (a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : a.number - b.number);
  return table.classes.filter((each) => shown.has(each.number)).sort(compare);
}

function matrixOf(table, shown, width, readout, select, grouped) {
  const names = shown.map((each) => shortName(each.name));
  const labels = 16 + 6.2 * Math.max(4, ...names.map((name) => name.length));
  const cell = Math.min(LARGEST_CELL, Math.max(SMALLEST_CELL, Math.floor((width - labels - 8) / Math.max(1, shown.length))));
  const side = cell * shown.length;
  const svg = shape("svg", { width: labels + side + 4, height: labels + side + 4, role: "img", "aria-label": "confusion matrix" });
  svg.style.fontSize = `${Math.min(11, cell + 0.5)}px`;
  const corner = { class: "corner", x: labels - 5, "text-anchor": "end" };
  svg.append(shape("text", { ...corner, y: labels - 20 }, "taken for →"), shape("text", { ...corner, y: labels - 7 }, "true class ↓"));
  shown.forEach((each, place) => svg.append(...nameAt(each, names[place], labels, labels + (place + 0.5) * cell, select)));
  svg.append(shape("rect", { class: "ground", x: labels, y: labels, width: side, height: side }));
  shown.forEach((label, row) => {
    if (grouped && row && label.group !== shown[row - 1].group) svg.append(groupEdge(labels, labels + row * cell, side));
    shown.forEach((guess, column) => {
      const count = table.counts.get(`${label.number},${guess.number}`);
      if (!count) return;
      const at = { x: labels + column * cell, y: labels + row * cell, cell };
      svg.append(...cellAt(at, label, guess, count, readout, select));
    });
  });
  return svg;
}

/** The name of a class beside its row and above its column. A click shows only this class and its confusions. */
function nameAt(each, name, edge, middle, select) {
  const attributes = { class: "name", "dominant-baseline": "central", onclick: () => select([each.number]) };
  const title = () => shape("title", {}, `${each.name}: ${each.clips} clips`);
  const row = shape("text", { ...attributes, x: edge - 5, y: middle, "text-anchor": "end" }, name, title());
  const turned = { ...attributes, transform: `translate(${middle} ${edge - 5}) rotate(-90)` };
  return [row, shape("text", turned, name, title())];
}

function shortName(name) {
  return name.length > LONGEST_NAME ? `${name.slice(0, LONGEST_NAME - 1)}…` : name;
}

/** Lines between two coarse classes. */
function groupEdge(edge, middle, side) {
  return shape("path", { class: "edge", d: `M${edge} ${middle}h${side}M${middle} ${edge}v${side}` });
}

function cellAt({ x, y, cell }, label, guess, count, readout, select) {
  const share = count / label.clips;
  const right = label.number === guess.number;
  const told = right
    ? `${count} of ${label.clips} clips of “${label.name}” are right (${percent(share)})`
    : `${count} of ${label.clips} clips of “${label.name}” are taken for “${guess.name}” (${percent(share)})`;
  const box = shape("rect", {
    class: right ? "cell right" : "cell wrong",
    ...{ x, y, width: cell - (cell > 12 ? 1 : 0), height: cell - (cell > 12 ? 1 : 0) },
    "fill-opacity": (0.15 + 0.85 * Math.sqrt(share)).toFixed(2),
    "data-label": label.number,
    "data-guess": guess.number,
    "data-count": count,
    onpointerenter: () => (readout.textContent = told),
    onclick: () => select([label.number, guess.number]),
  });
  if (cell < 18) return [box];
  const text = { x: x + cell / 2, y: y + cell / 2, class: share > 0.3 ? "count strong" : "count" };
  return [box, shape("text", { ...text, "text-anchor": "middle", "dominant-baseline": "central" }, String(count))];
}

/** A list of the pairs of shown classes that are confused most often. A click shows only these two classes. */
function pairsOf(table, shown, select) {
  const numbers = new Set(shown.map((each) => each.number));
  const wrong = table.cells.filter(([label, guess]) => label !== guess && numbers.has(label) && numbers.has(guess));
  const largest = [...wrong].sort((a, b) => b[2] - a[2]).slice(0, NUM_PAIRS);
  const items = largest.map(([label, guess, count]) => {
    const [truth, taken] = [table.classes[label], table.classes[guess]];
    const share = element("span", { class: "muted" }, ` of ${truth.clips}`);
    const text = [element("b", {}, String(count)), share, ` ${truth.name} `, element("span", { class: "muted" }, "taken for "), taken.name];
    return element("li", {}, element("button", { type: "button", onclick: () => select([label, guess]) }, ...text));
  });
  const title = items.length ? "Most often confused" : "No confusions among these classes";
  return [element("h3", {}, title), element("ol", {}, ...items)];
}
