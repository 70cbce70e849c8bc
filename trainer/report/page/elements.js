"use strict";

/* The data of the page, and small helpers that all scripts share. */

const DATA = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";

/** Give a node attributes and children. A string among the children becomes a text, and is never read as HTML. */
function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

/** Make an HTML element, such as element("button", {type: "button", onclick: f}, "text"). */
function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** Make an SVG element. */
function shape(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

/** A labelled <select> whose options are [value, text] pairs. `changed` is called with the chosen value. */
function choice(label, options, changed) {
  const select = element("select", { onchange: () => changed(select.value) });
  select.append(...options.map(([value, text]) => element("option", { value }, text)));
  return element("label", {}, `${label} `, select);
}

/** A text field that filters. `changed` is called with the text in lower case. */
function filterField(label, changed) {
  const input = element("input", { type: "search", placeholder: label, "aria-label": label });
  input.addEventListener("input", () => changed(input.value.trim().toLowerCase()));
  return input;
}

/** A checkbox with a label. `changed` is called with whether it is checked. */
function checkbox(label, checked, changed) {
  const input = element("input", { type: "checkbox", onchange: () => changed(input.checked) });
  input.checked = checked;
  return element("label", {}, input, ` ${label}`);
}

/** A share as text, such as 81.3% for 0.8125; empty for a class without clips. */
function percent(share) {
  return Number.isFinite(share) ? `${(100 * share).toFixed(1)}%` : "";
}

function sum(numbers) {
  return numbers.reduce((total, number) => total + number, 0);
}
