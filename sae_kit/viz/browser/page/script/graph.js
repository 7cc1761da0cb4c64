"use strict";

// A graph of latents over layers: columns are sites, lines are drawn by a measure. Nodes are
// buttons, so that the keyboard reaches them; arrow keys walk along the strongest line.

browser.graph = (() => {
  const { el, svg, select, slider } = browser.dom;
  const { count, figure, measure: written, measureName, shortNames } = browser.format;
  const NODE = 22, GAP = 7, HEAD = 24, PAD = 6;

  const settings = { measure: null, threshold: 0.2 }; // kept from graph to graph

  const measures = () => browser.manifest.measures;
  const chosen = () => (measures().includes(settings.measure) ? settings.measure : measures()[0]);

  // source: {nodes: [{site, latent, label, share?, isCentre?}], edges: [{a, b, nBoth, values}]}, of
  // which draw() reads afresh; onexpand(node), if it can grow; keepAll: nodes without a line stay.
  function graph(source, { onexpand, keepAll = false, empty = "", extra = [] } = {}) {
    const lines = svg("svg", { class: "lines", "aria-hidden": "true" });
    const nodesAt = el("div", { class: "nodes" });
    const canvas = el("div", { class: "canvas" }, lines, nodesAt);
    const scroller = el("div", { class: "graph-scroll" }, canvas);
    const [says, example] = [el("p", { "aria-live": "polite" }), el("div")];
    const info = el("div", { class: "graph-info" }, says, example);
    const controls = el("div", { class: "graph-controls" });
    let shown = { nodes: [], edges: [], buttons: [] };
    let isMoved = false; // by the reader: it stays where they put it
    for (const does of ["wheel", "pointerdown"]) scroller.addEventListener(does, () => { isMoved = true; }, { passive: true });

    const column = () => measures().indexOf(chosen());
    const strength = (edge) => edge.values[column()];

    // What is above the threshold: all of it, or as much as hangs together with the centre.
    function visible() {
      const edges = source.edges.filter((edge) => strength(edge) >= settings.threshold);
      if (keepAll) return { nodes: source.nodes, edges };
      const centre = source.nodes.findIndex((node) => node.isCentre);
      const used = centre < 0 ? new Set(edges.flatMap(({ a, b }) => [a, b])) : reached(centre, edges);
      const number = new Map([...used].sort((a, b) => a - b).map((old, i) => [old, i]));
      return {
        nodes: [...number.keys()].map((old) => source.nodes[old]),
        edges: edges.filter(({ a }) => used.has(a))
          .map((edge) => ({ ...edge, a: number.get(edge.a), b: number.get(edge.b) })),
      };
    }

    function tell(text) {
      const isBare = source.nodes.length > 0 && shown.edges.length === 0 && !keepAll;
      says.textContent = text || (isBare ? `No line reaches ${figure(settings.threshold)}; lower the threshold to see weaker ones.` : hint(onexpand));
      example.replaceChildren();
    }

    // The strongest context of a node, once it has arrived, if the node is still the one told about.
    async function illustrate(node) {
      const told = says.textContent;
      const { top, max } = await browser.latentData(node.site, node.latent);
      if (says.textContent === told && top.length > 0) example.replaceChildren(browser.contexts.lines(top.slice(0, 1), max));
    }

    const nodeName = (node) => `${shortNames(browser.manifest.sites.map((s) => s.name))[node.site]}/${node.latent} ${browser.tokens.label(node.label)}`;

    function highlight(which) {
      canvas.classList.toggle("focused", which !== null);
      const near = new Set();
      shown.edges.forEach((edge) => {
        const own = which !== null && (edge.a === which || edge.b === which);
        edge.path.classList.toggle("near", own);
        if (own) near.add(edge.a).add(edge.b);
      });
      shown.buttons.forEach((button, i) => button.classList.toggle("near", near.has(i) || i === which));
    }

    function about(which) {
      const own = shown.edges.filter((edge) => edge.a === which || edge.b === which)
        .sort((a, b) => strength(b) - strength(a)).slice(0, 3)
        .map((edge) => `${nodeName(shown.nodes[edge.a === which ? edge.b : edge.a])} (${written(strength(edge), chosen())})`);
      tell(`${nodeName(shown.nodes[which])}${own.length ? ` — ${measureName(chosen())}: ${own.join(", ")}` : ""}`);
      illustrate(shown.nodes[which]).catch(() => {});
    }

    // The next node: along the strongest line to the left or right, or up and down the column.
    function neighbour(which, key) {
      if (key === "ArrowLeft" || key === "ArrowRight") {
        const [own, other] = key === "ArrowLeft" ? ["b", "a"] : ["a", "b"];
        const found = shown.edges.filter((edge) => edge[own] === which)
          .sort((a, b) => strength(b) - strength(a))[0];
        return found ? found[other] : null;
      }
      const { column: here, row } = shown.places[which];
      const next = row + (key === "ArrowUp" ? -1 : 1);
      const found = shown.places.findIndex((place) => place.column === here && Math.abs(place.row - next) < 0.1);
      return found < 0 ? null : found;
    }

    function onkeydown(event, which) {
      if (event.key === "e" && onexpand) {
        onexpand(shown.nodes[which]);
      } else if (event.key.startsWith("Arrow")) {
        const next = neighbour(which, event.key);
        if (next !== null) shown.buttons[next].focus();
      } else return;
      event.preventDefault();
      event.stopPropagation();
    }

    function nodeButton(node, which, { left, top, width }) {
      const open = () => browser.route.go(browser.route.latent(node.site, node.latent));
      const button = el("button", {
        class: `node${node.isCentre ? " centre" : ""}`,
        style: {
          left: `${left}px`, top: `${top}px`, width: `${width}px`, height: `${NODE}px`,
          "--share": node.share ?? 0,
        },
        title: nodeName(node),
        "aria-label": `latent ${nodeName(node)}`,
        onclick: open,
        onmouseenter: () => { highlight(which); about(which); },
        onmouseleave: () => { highlight(null); tell(""); },
        onfocus: () => { highlight(which); about(which); },
        onblur: () => { highlight(null); tell(""); },
        onkeydown: (event) => onkeydown(event, which),
      }, el("span", { class: "number" }, String(node.latent)), " ", browser.tokens.labelElement(node.label));
      if (!onexpand) return button;
      const more = el("button", {
        class: "more", tabindex: -1, title: "expand: its neighbours on both sides", "aria-label": `expand ${nodeName(node)}`,
        style: { left: `${left + width - 9}px`, top: `${top - 5}px` },
        onclick: () => onexpand(node),
      }, "+");
      return [button, more];
    }

    function line(edge, from, to) {
      const bend = Math.max(12, (to.x - from.x) / 2);
      const d = `M${from.x} ${from.y}C${from.x + bend} ${from.y} ${to.x - bend} ${to.y} ${to.x} ${to.y}`;
      const size = Math.max(0, Math.min(1, strength(edge)));
      const all = measures().map((name, i) => `${measureName(name)} ${written(edge.values[i], name)}`).join(" · ");
      const says = `${nodeName(shown.nodes[edge.a])} → ${nodeName(shown.nodes[edge.b])}: both active at ${count(edge.nBoth)} positions · ${all}`;
      return svg("g", { class: "line", onmouseenter: () => tell(says), onmouseleave: () => tell("") },
        svg("path", { class: "reach", d }),
        svg("path", { class: "seen", d, style: { "stroke-width": `${0.6 + 4 * size}px`, "--size": size.toFixed(3) } }),
        svg("title", {}, says));
    }

    function draw() {
      if (!scroller.isConnected) return; // drawn once it has a width: see the observer below
      const { nodes, edges } = visible();
      if (nodes.length === 0) {
        canvas.classList.add("empty");
        nodesAt.replaceChildren(el("p", { class: "none" }, empty));
        lines.replaceChildren();
        shown = { nodes: [], edges: [], buttons: [] };
        tell("");
        return;
      }
      canvas.classList.remove("empty");
      const focused = shown.nodes[shown.buttons.indexOf(document.activeElement)];
      const { sites, places } = browser.layout(nodes, edges.map((edge) => ({ ...edge, weight: Math.max(0, strength(edge)) })));
      const room = Math.max(scroller.clientWidth, 320);
      const pitch = Math.max(84, (room - 2 * PAD) / sites.length);
      const width = Math.min(150, pitch - Math.max(22, pitch * 0.22));
      const tallest = Math.max(...places.map((place) => Math.abs(place.row)));
      const middle = HEAD + PAD + tallest * (NODE + GAP) + NODE / 2;
      const at = places.map(({ column: c, row }) => ({
        left: PAD + c * pitch + (pitch - width) / 2, top: middle + row * (NODE + GAP) - NODE / 2, width,
      }));
      canvas.style.setProperty("width", `${2 * PAD + pitch * sites.length}px`);
      canvas.style.setProperty("height", `${middle + tallest * (NODE + GAP) + NODE / 2 + PAD}px`);
      shown = { nodes, edges: [], places, buttons: [] };
      const names = shortNames(browser.manifest.sites.map((site) => site.name));
      const heads = sites.map((site, c) => el("a", {
        class: "column-head", href: browser.route.list(site), title: browser.manifest.sites[site].name,
        style: { left: `${PAD + c * pitch}px`, width: `${pitch}px` },
      }, /^\d+$/.test(names[site]) ? `block ${names[site]}` : names[site]));
      const buttons = nodes.map((node, i) => nodeButton(node, i, at[i]));
      shown.buttons = buttons.map((one) => (Array.isArray(one) ? one[0] : one));
      shown.edges = edges.map((edge) => {
        const [from, to] = [at[edge.a], at[edge.b]];
        const path = line(edge, { x: from.left + width, y: from.top + NODE / 2 }, { x: to.left, y: to.top + NODE / 2 });
        return { ...edge, path };
      });
      lines.replaceChildren(...shown.edges.map((edge) => edge.path));
      nodesAt.replaceChildren(...heads, ...buttons.flat());
      const middleOf = at[nodes.findIndex((node) => node.isCentre)];
      if (middleOf && !isMoved) scroller.scrollLeft = middleOf.left + (width - scroller.clientWidth) / 2;
      tell("");
      // A graph that grows keeps the reader's place in it.
      const again = focused ? nodes.findIndex((node) => node.site === focused.site && node.latent === focused.latent) : -1;
      if (again >= 0) shown.buttons[again].focus({ preventScroll: true });
    }

    function drawControls() {
      controls.replaceChildren(
        select("lines by", measures().map((name) => [name, measureName(name)]), chosen(), (name) => {
          settings.measure = name;
          draw();
        }),
        slider("at least", { min: 0, max: 1, step: 0.01, value: settings.threshold, show: figure }, (at) => {
          settings.threshold = at;
          draw();
        }),
        ...extra);
    }

    drawControls();
    const element = el("div", { class: "graph" }, controls, scroller, info);
    let drawnFor = -1;
    new ResizeObserver(() => {
      if (scroller.clientWidth === drawnFor) return;
      drawnFor = scroller.clientWidth;
      draw();
    }).observe(scroller);
    return { element, draw };
  }

  // The nodes to which lines lead from one.
  function reached(start, edges) {
    const found = new Set([start]);
    for (let grows = true; grows;) {
      grows = false;
      for (const { a, b } of edges) {
        if (found.has(a) === found.has(b)) continue;
        found.add(a).add(b);
        grows = true;
      }
    }
    return found;
  }

  const hint = (grows) =>
    `Point at a node or a line for its numbers. Arrow keys walk, Enter opens${grows ? ", e or + expands" : ""}.`;

  return { graph, settings, chosen };
})();
