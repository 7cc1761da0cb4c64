"use strict";

// How much of each site's latents is passed on to the next: bands between columns. The threshold is
// the reader's, since what counts as the same latent is a choice.

browser.flow = (() => {
  const { el, svg, select, slider } = browser.dom;
  const { figure, measureName, measureMeaning, shortNames } = browser.format;
  const WIDTH = 1000, TOP = 30, HEIGHT = 150, BAR = 14;

  // Pairs that follow one another from the first site on, each beginning where the last one ended.
  function chain(pairs) {
    const found = [];
    const starts = pairs.map((pair) => pair.up).filter((up) => !pairs.some((pair) => pair.down === up));
    let at = starts[0];
    for (;;) {
      const next = pairs.find((pair) => pair.up === at);
      if (!next) return found;
      found.push(next);
      at = next.down;
    }
  }

  const heading = (name, n) => (/^\d+$/.test(name) && n <= 8 ? `block ${name}` : name);
  const percent = (x) => `${Math.round(100 * x)} %`;

  function draw(pairs, measure, threshold) {
    const sites = [pairs[0].up, ...pairs.map((pair) => pair.down)];
    const names = shortNames(browser.manifest.sites.map((site) => site.name));
    const step = Math.round(100 * threshold);
    const pitch = (WIDTH - BAR) / (sites.length - 1);
    const parts = [];
    pairs.forEach((pair, i) => {
      const forward = pair.forward[measure][step];
      const backward = pair.backward[measure][step];
      const x0 = i * pitch + BAR, x1 = (i + 1) * pitch;
      const y0 = TOP + HEIGHT * (1 - forward), y1 = TOP + HEIGHT * (1 - backward), end = TOP + HEIGHT;
      const m = (x0 + x1) / 2;
      const says = `${names[pair.up]} → ${names[pair.down]}: ${percent(forward)} of the earlier latents have a counterpart (${percent(1 - forward)} disappear), ${percent(1 - backward)} of the later ones appear`;
      parts.push(svg("g", {},
        svg("title", {}, says),
        svg("path", { class: "gone", d: `M${x0} ${TOP}C${x0 + pitch / 4} ${TOP} ${x0 + pitch / 4} ${y0} ${x0 + pitch / 3} ${y0}L${x0} ${y0}Z` }),
        svg("path", { class: "new", d: `M${x1} ${TOP}C${x1 - pitch / 4} ${TOP} ${x1 - pitch / 4} ${y1} ${x1 - pitch / 3} ${y1}L${x1} ${y1}Z` }),
        svg("path", { class: "passed", d: `M${x0} ${y0}C${m} ${y0} ${m} ${y1} ${x1} ${y1}L${x1} ${end}L${x0} ${end}Z` }),
        svg("text", { class: "passed-share", x: x0 + 6, y: end - 8 }, percent(forward)),
        svg("text", { class: "passed-share", x: x1 - 6, y: end - 8, "text-anchor": "end" }, percent(backward))));
    });
    sites.forEach((site, i) => parts.push(
      svg("a", { href: browser.route.list(site), "aria-label": `latents of ${browser.manifest.sites[site].name}` },
        svg("rect", { class: "column", x: i * pitch, y: TOP, width: BAR, height: HEIGHT, rx: 3 }),
        svg("text", { class: "column-name", x: i * pitch + BAR / 2, y: TOP - 10, "text-anchor": i === 0 ? "start" : i === sites.length - 1 ? "end" : "middle" }, heading(names[site], sites.length)))));
    return parts;
  }

  function panel() {
    const pairs = chain(browser.manifest.pairs);
    if (pairs.length === 0) return null;
    const chosen = { measure: browser.graph.chosen(), threshold: 0.7 };
    const drawing = svg("svg", { class: "flow", viewBox: `0 0 ${WIDTH} ${TOP + HEIGHT + 6}`, role: "img", "aria-label": "Share of latents passed on from site to site" });
    const meaning = el("p", { class: "aside" });
    function redraw() {
      drawing.replaceChildren(...draw(pairs, chosen.measure, chosen.threshold));
      meaning.textContent = `${measureMeaning(chosen.measure)} A latent is passed on if some latent of the next site reaches the threshold with it.`;
    }
    const controls = el("div", { class: "graph-controls" },
      select("measure", browser.manifest.measures.map((name) => [name, measureName(name)]), chosen.measure, (name) => {
        chosen.measure = name;
        redraw();
      }),
      slider("threshold", { min: 0, max: 1, step: 0.01, value: chosen.threshold, show: figure }, (at) => {
        chosen.threshold = at;
        redraw();
      }));
    const legend = el("p", { class: "legend" },
      el("span", { class: "key passed" }, "passed on"), el("span", { class: "key gone" }, "disappears"), el("span", { class: "key new" }, "appears"));
    redraw();
    return el("section", { class: "panel" }, el("h2", {}, "From layer to layer"), controls, drawing, legend, meaning);
  }

  return { panel };
})();
