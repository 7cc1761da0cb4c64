"use strict";

// Tokens as text that can be seen: white space, control characters and marks that change the
// direction of writing are drawn as signs, so that no token hides or rearranges another.

browser.tokens = (() => {
  const { el } = browser.dom;
  const { value } = browser.format;
  let texts = [];

  const SIGNS = { "\n": "↵", "\t": "⇥", "\r": "␍", "\u007f": "␡", "\u00ad": "⟨U+00AD⟩" };
  const UNSEEN = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Co}\p{Cn}]/gu;

  const sign = (c) => {
    const code = c.codePointAt(0);
    if (SIGNS[c]) return SIGNS[c];
    if (code < 32) return String.fromCodePoint(0x2400 + code);
    return `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
  };

  // The text of a token with everything in it visible; spaces stay.
  const visible = (text) => text.replace(UNSEEN, sign);

  const raw = (id) => texts[id] ?? `⟨token ${id}⟩`;

  // For names: spaces are dots, so that " return" and "return" differ.
  const name = (id) => visible(raw(id)).replaceAll(" ", "·") || "⟨empty⟩";

  // The name of a latent, from the tokens it is most active at.
  const label = (ids) => ids.map(name).join(" ");

  const labelElement = (ids) =>
    el("span", { class: "label" }, ids.length === 0 ? "" : ids.map((id) =>
      el("bdi", { class: "label-token" }, name(id))));

  // A token of a context, shaded by how active a latent is there (in thousandths of its largest).
  function shaded(id, activation, largest, isPeak) {
    const text = visible(raw(id));
    const says = activation > 0 ? `${name(id)}: ${value((activation / 1000) * largest)}` : name(id);
    return el("span", {
      class: `token${activation > 0 ? " active" : ""}${isPeak ? " peak" : ""}`,
      style: activation > 0 ? { "--act": (activation / 1000).toFixed(3) } : {},
      title: says,
    }, text);
  }

  // Loads the vocabulary, once; afterwards tokens have their text.
  async function load() {
    if (texts.length === 0) texts = await browser.data.shard("vocabulary");
    return texts;
  }

  return { load, raw, visible, name, label, labelElement, shaded, all: () => texts };
})();
