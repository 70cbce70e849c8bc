/* The table of classes: recall of each stream as bars, with the number of clips. */

/** Add the table for a level (evaluation.py: levels_of) to `box`. */
function drawClasses(box, level) {
  const streams = Object.keys(level.streams);
  const rows = level.classes.map((each, number) => ({
    number,
    ...each,
    recall: Object.fromEntries(streams.map((stream) => [stream, recallOf(level, stream, number)])),
  }));
  const body = element("tbody");
  const state = { text: "", key: "number", down: false };
  const redraw = () => body.replaceChildren(...ordered(rows, state).map((row) => classRow(row, streams)));
  const sortBy = (key, startsDown) => {
    state.down = state.key === key ? !state.down : startsDown;
    state.key = key;
    redraw();
  };
  const header = (text, key, startsDown, look = "number") =>
    element("th", { class: look }, element("button", { type: "button", onclick: () => sortBy(key, startsDown) }, text));
  const names = [header("class", "name", false, ""), header("clips", "clips", true), element("th", { class: "wide" })];
  const head = element("tr", {}, header("#", "number", false), ...names, ...streams.map((s) => header(s, s, false)));
  const filter = filterField("filter classes", (text) => {
    state.text = text;
    redraw();
  });
  const table = element("table", { class: "classes" }, element("thead", {}, head), body);
  box.append(
    element("div", { class: "controls" }, filter, legendOf(streams)),
    element("div", { class: "scroll tall" }, table),
  );
  redraw();
}

/** The share of a class's clips that a stream recognises; NaN for a class without clips. */
function recallOf(level, stream, number) {
  const right = level.streams[stream].find(([label, guess]) => label === number && guess === number);
  return (right ? right[2] : 0) / level.classes[number].clips;
}

function ordered(rows, { text, key, down }) {
  const value = (row) => (key in row.recall ? row.recall[key] : row[key]);
  const compare = (a, b) => {
    const [x, y] = [value(a), value(b)];
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y); // classes without clips come last
    return (down ? -1 : 1) * (x < y ? -1 : x > y ? 1 : 0) || a.number - b.number;
  };
  const matches = (row) => `${row.name} ${row.group}`.toLowerCase().includes(text);
  return rows.filter(matches).sort(compare);
}

function classRow(row, streams) {
  const bars = streams.map((stream, number) => {
    const bar = element("div", { class: `bar ${streamColour(stream, number)}` });
    bar.style.width = `${100 * (row.recall[stream] || 0)}%`;
    return bar;
  });
  return element(
    "tr",
    { title: row.group },
    element("td", { class: "number" }, String(row.number)),
    element("th", {}, row.name),
    element("td", { class: "number" }, String(row.clips)),
    element("td", { class: "wide" }, ...bars),
    ...streams.map((stream) => element("td", { class: "number" }, percent(row.recall[stream]))),
  );
}

function legendOf(streams) {
  const entries = streams.map((stream, number) =>
    element("span", {}, element("i", { class: `key ${streamColour(stream, number)}` }), stream),
  );
  return element("span", { class: "keys" }, ...entries);
}

/** The colour of a stream. In a comparison the runs take the place of the streams, and get the colours of the curves. */
function streamColour(stream, number) {
  return { fused: "ink", rgb: "rgb", pose: "pose", sum: "c2" }[stream] || `c${number % 10}`;
}
