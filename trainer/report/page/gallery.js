/* The gallery of the clips that went most wrong: cards, and a dialog with all frames and the scores of each stream. */

/* What can be shown of a frame: the name of the layer, its label, and the colours that explain it (make.py). */
const LAYERS = [
  ["picture", "frames", {}],
  ["limbs", "skeletons", DATA.colours.limbs],
  ["heatmap", "heatmaps", DATA.colours.heatmap],
  ["rgb_map", "where RGB looked", DATA.colours.rgb_map],
  ["pose_map", "where pose looked", DATA.colours.pose_map],
];

const AGREEMENT = {
  all: ["all", () => true],
  disagree: ["the streams disagree", (item) => disagrees(item)],
  one: ["one stream is right", (item) => streamsThatAreRight(item).length > 0],
  none: ["no stream is right", (item) => streamsThatAreRight(item).length === 0],
};

/** Add the gallery to `box`. */
function drawGallery(box, items, classNames) {
  const cards = element("div", { class: "cards" });
  const state = { text: "", agreement: "all" };
  const detail = detailOf(classNames);
  const redraw = () => {
    const shown = items.filter(
      (item) =>
        AGREEMENT[state.agreement][1](item) &&
        `${item.clip} ${classNames[item.label]} ${classNames[item.guess]}`.toLowerCase().includes(state.text),
    );
    cards.replaceChildren(...shown.map((item, place) => cardOf(item, classNames, () => detail.show(shown, place))));
    if (!shown.length) cards.append(element("p", { class: "muted" }, "no clip matches"));
  };
  const change = (name) => (value) => {
    state[name] = value;
    redraw();
  };
  const choices = Object.entries(AGREEMENT).map(([key, [text]]) => [key, text]);
  const controls = [filterField("filter clips and classes", change("text"))];
  if (streamsOf(items[0]).length > 1) controls.push(choice("show", choices, change("agreement")));
  box.append(element("div", { class: "controls" }, ...controls), cards, detail.dialog);
  redraw();
}

/** The streams of a clip, without their sum. */
function streamsOf(item) {
  return Object.keys(item.tops).filter((stream) => stream !== "fused");
}

function disagrees(item) {
  return new Set(streamsOf(item).map((stream) => item.tops[stream][0][0])).size > 1;
}

function streamsThatAreRight(item) {
  return streamsOf(item).filter((stream) => item.tops[stream][0][0] === item.label);
}

function cardOf(item, classNames, open) {
  const middle = item.moments[Math.floor(item.moments.length / 2)];
  const layers = new Set(["picture", "limbs"]);
  const right = streamsThatAreRight(item);
  const note = right.length ? `${right.join(" and ")} alone is right` : disagrees(item) ? "the streams disagree" : "";
  return element(
    "button",
    { type: "button", class: "card", onclick: open },
    momentOf(item, middle, layers),
    element("b", {}, classNames[item.label]),
    element("span", {}, element("span", { class: "muted" }, "taken for "), classNames[item.guess]),
    element("span", { class: "muted" }, note || "\u00a0"),
  );
}

/** One frame of a clip with the chosen layers on top of each other. */
function momentOf(item, moment, layers) {
  const image = (layer) => element("img", { class: `layer ${layer}`, src: moment[layer], alt: "" });
  const parts = LAYERS.filter(([layer]) => layer !== "limbs" && layers.has(layer) && moment[layer]).map(([layer]) => image(layer));
  if (layers.has("limbs")) parts.push(skeletonOf(item.side, moment.limbs));
  return element("div", { class: "moment" }, ...parts);
}

function skeletonOf(side, limbs) {
  const svg = shape("svg", { class: "layer", viewBox: `0 0 ${side} ${side}` });
  for (const outline of [true, false]) {
    for (const [x1, y1, x2, y2, colour] of limbs) {
      const stroke = outline ? "#14213d" : colour;
      svg.append(shape("line", { x1, y1, x2, y2, stroke, "stroke-width": (side / 90) * (outline ? 2 : 1) }));
    }
  }
  return svg;
}

/** The dialog that shows one clip. Returns the dialog, and show(items, place), which opens it. */
function detailOf(classNames) {
  const content = element("div");
  const state = { items: [], place: 0, layers: new Set(["picture", "limbs"]) };
  const step = (by) => {
    state.place = (state.place + by + state.items.length) % state.items.length;
    redraw();
  };
  const button = (text, title, onclick) => element("button", { type: "button", title, onclick }, text);
  const bar = element("div", { class: "bar" }, button("←", "previous clip", () => step(-1)), button("→", "next clip", () => step(1)));
  const dialog = element("dialog", { class: "detail" }, bar, content);
  bar.append(button("✕", "close", () => dialog.close()));
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close(); // a click beside the dialog
  });
  function redraw() {
    content.replaceChildren(...detailParts(state.items[state.place], state.layers, classNames, redraw));
  }
  const show = (items, place) => {
    Object.assign(state, { items, place });
    redraw();
    dialog.showModal();
  };
  return { dialog, show };
}

function detailParts(item, layers, classNames, redraw) {
  const present = LAYERS.filter(([layer]) => item.moments.some((moment) => moment[layer]));
  const boxes = present.map(([layer, text, colours]) => {
    const box = checkbox(text, layers.has(layer), (on) => {
      if (on) layers.add(layer);
      else layers.delete(layer);
      redraw();
    });
    box.append(...Object.entries(colours).map(([name, colour]) => colourKey(name, colour)));
    return box;
  });
  const moments = item.moments.map((moment) =>
    element("figure", {}, momentOf(item, moment, layers), element("figcaption", {}, `frame ${moment.frame}`)),
  );
  const title = [classNames[item.label], element("span", { class: "muted" }, " taken for "), classNames[item.guess]];
  return [
    element("h3", {}, ...title),
    element("p", { class: "muted" }, `${item.clip} · ${agreementText(item, classNames)}`),
    element("div", { class: "controls" }, ...boxes, lookedNote(present, classNames[item.guess])),
    element("div", { class: "moments" }, ...moments),
    element("div", { class: "tops" }, ...Object.entries(item.tops).map(([stream, top]) => topOf(stream, top, item, classNames))),
  ];
}

/** Says which class the maps of where the network looked are for, if there are such maps. */
function lookedNote(present, guess) {
  const hasMaps = present.some(([layer]) => layer.endsWith("_map"));
  return element("span", { class: "muted" }, hasMaps ? `(Grad-CAM of “${guess}”)` : "");
}

function colourKey(name, colour) {
  const key = element("i", { class: "key" });
  key.style.background = colour;
  return element("span", { class: "muted" }, " ", key, name);
}

function agreementText(item, classNames) {
  const streams = streamsOf(item);
  if (streams.length < 2) return `the guess leads by ${percent(item.margin)}`;
  if (!disagrees(item)) return "the streams agree";
  return `the streams disagree: ${streams.map((stream) => `${stream} says ${classNames[item.tops[stream][0][0]]}`).join(", ")}`;
}

/** The classes with the highest scores of one stream, as bars. */
function topOf(stream, top, item, classNames) {
  const rows = top.map(([number, score]) => {
    const bar = element("div", { class: `bar ${number === item.label ? "right" : "wrong"}` });
    bar.style.width = `${100 * score}%`;
    const name = element("span", { class: number === item.label ? "true" : "" }, classNames[number]);
    return element("li", {}, name, element("span", { class: "number" }, percent(score)), element("div", { class: "track" }, bar));
  });
  return element("div", {}, element("h4", {}, stream), element("ol", {}, ...rows));
}
