"use strict";

// Elements are made here and nowhere else, and text only ever becomes text nodes: whatever a token
// holds, it is never read as markup.

browser.dom = (() => {
  const SVG = "http://www.w3.org/2000/svg";

  function fill(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
      if (value === undefined || value === null || value === false) continue;
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (name === "style") {
        for (const [property, one] of Object.entries(value)) element.style.setProperty(property, one);
      } else if (name === "value" || name === "checked" || name === "selected") element[name] = value;
      else element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
    return element;
  }

  const el = (tag, attributes = {}, ...children) =>
    fill(document.createElement(tag), attributes, children);

  const svg = (tag, attributes = {}, ...children) =>
    fill(document.createElementNS(SVG, tag), attributes, children);

  // A labelled choice; `options` are [value, text] pairs.
  function select(label, options, chosen, onchange) {
    const choices = options.map(([value, text]) =>
      el("option", { value, selected: value === chosen }, text));
    const field = el("select", { onchange: (event) => onchange(event.target.value) }, choices);
    return el("label", { class: "field" }, el("span", {}, label), field);
  }

  // A labelled slider that shows its value; `oninput` gets the number.
  function slider(label, { min, max, step, value, show }, oninput) {
    const shown = el("output", {}, show(value));
    const input = el("input", {
      type: "range", min, max, step, value, "aria-label": label,
      oninput: (event) => {
        shown.textContent = show(Number(event.target.value));
        oninput(Number(event.target.value));
      },
    });
    return el("label", { class: "field" }, el("span", {}, label), input, shown);
  }

  const section = (title, ...children) =>
    el("section", { class: "panel" }, el("h2", {}, title), ...children);

  return { el, svg, select, slider, section };
})();
