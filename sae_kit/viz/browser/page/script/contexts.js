"use strict";

// Contexts of a latent: the strongest, and examples of every range of its activation.

browser.contexts = (() => {
  const { el } = browser.dom;
  const { value, share } = browser.format;
  const { shaded } = browser.tokens;
  const RANGES = 8;

  // One window: [context, position of the first token, number of the peak, tokens, activations].
  function line([context, first, peak, tokens, acts], largest) {
    const at = value((acts[peak] / 1000) * largest);
    const where = `#context/${context}/${first + peak}`;
    return el("li", { class: "context" },
      el("a", { class: "act", href: where, title: `context ${context}, position ${first + peak}: show the whole of it` }, at),
      el("span", { class: "text" },
        el("span", { class: "before" }, tokens.slice(0, peak).map((id, i) => shaded(id, acts[i], largest))),
        shaded(tokens[peak], acts[peak], largest, true),
        el("span", { class: "after" }, tokens.slice(peak + 1).map((id, i) => shaded(id, acts[peak + 1 + i], largest)))));
  }

  const lines = (windows, largest) =>
    el("ol", { class: "contexts" }, windows.map((one) => line(one, largest)));

  function range(number, latent) {
    const perRange = latent.histogram.length / RANGES;
    const n = latent.histogram.slice(number * perRange, (number + 1) * perRange).reduce((a, b) => a + b, 0);
    const width = latent.bin_width * perRange;
    const perSample = latent.samples.length / RANGES;
    const windows = latent.samples.slice(number * perSample, (number + 1) * perSample).filter(Boolean);
    if (windows.length === 0) return null;
    const title = `${value(number * width)} to ${value((number + 1) * width)}`;
    return el("div", { class: "range" },
      el("h3", { title: "Random examples of the positions at which the activation is in this range." },
        title, el("span", { class: "aside" }, ` ${share(n / latent.n_active)} of its firings`)),
      lines(windows, latent.max));
  }

  function panels(latent) {
    if (latent.top.length === 0) {
      const why = latent.histogram ? "It never fired on this text." : "The site was built without a result of dashboard, which has them.";
      return [el("section", { class: "panel" }, el("h2", {}, "Contexts"), el("p", { class: "none" }, why))];
    }
    const ranges = [...Array(RANGES).keys()].reverse().map((number) => range(number, latent));
    return [
      el("section", { class: "panel" },
        el("h2", {}, "Strongest contexts", el("span", { class: "aside" }, " activation at the marked token")),
        lines(latent.top, latent.max)),
      el("section", { class: "panel" },
        el("h2", {}, "Examples by strength", el("span", { class: "aside" }, " drawn at random from each range")),
        ranges),
    ];
  }

  return { panels, lines };
})();
