"use strict";

// A prompt's forward pass, token by token; and one context of the text, with who shows it.

browser.prompt = (() => {
  const { el } = browser.dom;
  const { count, value } = browser.format;
  const { raw, visible, name, labelElement } = browser.tokens;

  // The tokens as buttons; arrow keys go from one to the next. marks: how strongly each is marked.
  function strip(tokens, chosen, choose, marks = []) {
    const buttons = tokens.map((id, i) => el("button", {
      class: "token",
      "aria-pressed": String(i === chosen),
      "aria-label": `token ${i}: ${name(id)}`,
      title: `${name(id)} · position ${i}`,
      tabindex: i === chosen ? 0 : -1,
      style: marks[i] ? { "--act": marks[i].toFixed(3) } : {},
      onclick: () => choose(i),
      onkeydown: (event) => {
        const next = i + ({ ArrowRight: 1, ArrowLeft: -1 }[event.key] ?? 0);
        if (next === i || !buttons[next]) return;
        event.preventDefault();
        event.stopPropagation();
        choose(next);
        buttons[next].focus();
      },
    }, visible(raw(id)) || " "));
    const element = el("div", { class: "strip", role: "group", "aria-label": "tokens" }, buttons);
    const press = (at) => buttons.forEach((button, i) => {
      button.setAttribute("aria-pressed", String(i === at));
      button.tabIndex = i === at ? 0 : -1;
    });
    return { element, press };
  }

  async function page({ number, at }) {
    if (!browser.manifest.prompts[number]) throw new Error(`There is no prompt ${number}.`);
    const [prompt] = await Promise.all([browser.data.shard(`prompts/${number}`), browser.tokens.load()]);
    const { tokens, places } = prompt;
    const source = { nodes: [], edges: [] };
    const { element, draw } = browser.graph.graph(source, { keepAll: true, empty: "No latent is active here: this position was left out." });
    const title = el("h2");
    let chosen = Math.min(at ?? tokens.length - 1, tokens.length - 1);

    function show(i) {
      chosen = i;
      source.nodes = places[i].nodes.map(([site, latent, label, activation, share]) => ({ site, latent, label, activation, share }));
      source.edges = places[i].edges.map(([a, b, nBoth, ...values]) => ({ a, b, nBoth, values }));
      title.replaceChildren("Latents active at ", el("bdi", { class: "label-token" }, name(tokens[i])), el("span", { class: "aside" }, " the stronger the colour, the nearer to their largest activation"));
      drawn.press(i);
      draw();
    }

    const drawn = strip(tokens, chosen, (i) => {
      history.replaceState(null, "", `#prompt/${number}/${i}`);
      show(i);
    });
    show(chosen);
    return {
      title: `Prompt ${number}`,
      content: [
        el("h1", {}, `Prompt ${number}`, el("span", { class: "aside" }, " choose a token")),
        el("section", { class: "panel" }, drawn.element),
        el("section", { class: "panel large" }, title, element),
      ],
    };
  }

  async function textOf(context) {
    const perShard = browser.manifest.per_shard.text;
    const tokens = (await browser.data.shard(`text/${Math.floor(context / perShard)}`))[context % perShard];
    if (!tokens) throw new Error(`There is no context ${context}: the text has ${count(browser.manifest.n_contexts)}.`);
    return tokens;
  }

  async function context({ number, at }) {
    const [tokens, shown] = await Promise.all([
      textOf(number),
      browser.data.entry("contexts", number, browser.manifest.per_shard.contexts),
      browser.tokens.load(),
    ]);
    const most = Math.max(1, ...tokens.map((_, i) => shown.filter((row) => row[3] === i).length));
    const marks = tokens.map((_, i) => shown.filter((row) => row[3] === i).length / most);
    const holder = el("div");
    const columns = [
      { key: "latent", name: "latent", value: (row) => row[0] * 1e9 + row[1], cell: (row) => browser.neighbours.link(row[0], row[1]) },
      { key: "label", name: "most active at", value: (row) => browser.tokens.label(row[2]), cell: (row) => labelElement(row[2]) },
      { key: "position", name: "token", value: (row) => row[3], cell: (row) => el("bdi", { class: "label-token" }, name(tokens[row[3]])) },
      { key: "share", name: "of its largest", numeric: true, value: (row) => row[4], cell: (row) => `${value(row[4] / 10)} %` },
    ];

    function show(i) {
      const rows = i === null ? shown : shown.filter((row) => row[3] === i);
      const where = i === null ? "in this context" : "at the chosen token";
      holder.replaceChildren(
        el("h2", {}, `${count(rows.length)} latents have one of their strongest contexts ${where}`),
        browser.table({ columns, rows, perPage: 25, sort: { key: "share", descending: true } }).element);
      drawn.press(i);
    }

    const drawn = strip(tokens, at, (i) => {
      history.replaceState(null, "", `#context/${number}/${i}`);
      show(i);
    }, marks);
    show(at !== null && at < tokens.length ? at : null);
    return {
      title: `Context ${number}`,
      content: [
        el("h1", {}, `Context ${number}`, el("span", { class: "aside" }, " shaded by how many latents show each token; choose one")),
        el("section", { class: "panel" }, drawn.element),
        el("section", { class: "panel" }, holder),
      ],
    };
  }

  return { page, context };
})();
