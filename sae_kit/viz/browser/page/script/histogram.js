"use strict";

// The histogram of a latent's activations, on a logarithmic axis of counts.

browser.histogram = (() => {
  const { el, svg } = browser.dom;
  const { count, value } = browser.format;
  const WIDTH = 260, HEIGHT = 158, BASE = 140, LEFT = 4;

  function histogram(latent) {
    const counts = latent.histogram;
    const last = counts.findLastIndex((n) => n > 0);
    if (last < 0) return el("p", { class: "none" }, "No firing.");
    const most = Math.max(...counts);
    const step = (WIDTH - 2 * LEFT) / (last + 1);
    const height = (n) => (n === 0 ? 0 : 4 + (BASE - 12) * (Math.log1p(n) / Math.log1p(most)));
    const bars = counts.slice(0, last + 1).map((n, i) =>
      svg("rect", {
        class: "bar", x: LEFT + i * step, y: BASE - height(n), width: Math.max(1, step - 1), height: height(n),
      }, svg("title", {}, `${value(i * latent.bin_width)} to ${value((i + 1) * latent.bin_width)}: ${count(n)}`)));
    const end = (last + 1) * latent.bin_width;
    const label = (x, anchor, text) => svg("text", { x, y: HEIGHT - 4, "text-anchor": anchor }, text);
    return svg("svg", {
      class: "histogram", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img",
      "aria-label": `Histogram of activations from 0 to ${value(latent.max)}, ${count(latent.n_active)} firings, counts on a logarithmic axis`,
    },
    bars,
    svg("line", { class: "axis", x1: LEFT, x2: WIDTH - LEFT, y1: BASE, y2: BASE }),
    label(LEFT, "start", "0"),
    label(WIDTH / 2, "middle", "activation (counts: log)"),
    label(WIDTH - LEFT, "end", value(end)));
  }

  return histogram;
})();
