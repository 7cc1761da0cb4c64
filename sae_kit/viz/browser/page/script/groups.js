"use strict";

// Communities (their list, and one of them as a graph over layers), and the list of combinations.

browser.groups = (() => {
  const { el } = browser.dom;
  const { count } = browser.format;

  const loaded = () => (browser.manifest.n_contexts > 0 ? browser.tokens.load() : null);

  async function list() {
    await loaded();
    const columns = [
      { key: "number", name: "community", numeric: true, value: (row) => row[0], cell: (row) => el("a", { href: `#community/${row[0]}` }, String(row[0])) },
      { key: "n", name: "latents", numeric: true, value: (row) => row[1], cell: (row) => count(row[1]) },
      { key: "sites", name: "sites", numeric: true, value: (row) => row[2], cell: (row) => count(row[2]) },
      { key: "label", name: "most of its members are most active at", value: (row) => browser.tokens.label(row[3]), cell: (row) => browser.tokens.labelElement(row[3]) },
    ];
    const listed = browser.manifest.communities;
    const all = browser.manifest.n_communities ?? 0;
    return {
      title: "Communities",
      content: [
        el("h1", {}, "Communities", el("span", { class: "aside" }, listed.length < all ? ` the largest ${count(listed.length)} of ${count(all)}` : ` ${count(all)}`)),
        el("section", { class: "panel" }, browser.table({ columns, rows: listed, perPage: 50, sort: { key: "n", descending: true } }).element),
      ],
    };
  }

  async function community({ number }) {
    const [entry] = await Promise.all([
      browser.data.entry("communities", number, browser.manifest.communities_per_shard ?? 1),
      loaded(),
    ]);
    if (!entry) throw new Error(`There is no community ${number}.`);
    const source = {
      nodes: entry.members.map(([site, latent, label]) => ({ site, latent, label })),
      edges: entry.edges.map(([a, b, nBoth, ...values]) => ({ a, b, nBoth, values })),
    };
    const { element } = browser.graph.graph(source);
    const note = entry.n > source.nodes.length ? ` the ${source.nodes.length} best joined are shown` : "";
    return {
      title: `Community ${number}`,
      content: [
        el("h1", {}, el("a", { class: "aside", href: "#communities" }, "community "), String(number), el("span", { class: "aside" }, ` ${count(entry.n)} latents;${note || " all are shown"}`)),
        el("section", { class: "panel large" }, element),
        el("section", { class: "panel" }, el("h2", {}, "Members"),
          el("ul", { class: "chips" }, source.nodes.slice().sort((a, b) => a.site - b.site || a.latent - b.latent).map((node) =>
            el("li", {}, el("span", { class: "chip" }, browser.neighbours.link(node.site, node.latent), " ", browser.tokens.labelElement(node.label)))))),
      ],
    };
  }

  // Rows: [kind, strict, parent, parent, child], each of the three [site, latent, label].
  async function combinations() {
    const [rows] = await Promise.all([browser.manifest.n_booleans > 0 ? browser.data.shard("booleans") : [], loaded()]);
    const member = (at) => (row) => [browser.neighbours.link(row[at][0], row[at][1]), " ", browser.tokens.labelElement(row[at][2])];
    const place = (at) => (row) => row[at][0] * 1e9 + row[at][1];
    const columns = [
      { key: "child", name: "latent", value: place(4), cell: member(4) },
      { key: "kind", name: "looks like", value: (row) => row[0], cell: (row) => (row[0] === 0 ? "AND" : "OR") },
      { key: "first", name: "of", value: place(2), cell: member(2) },
      { key: "second", name: "and", value: place(3), cell: member(3) },
      { key: "strict", name: "strict test", numeric: true, title: "Support, lift, each alone insufficient, the pair sufficient; confirmed on held-out text.", value: (row) => row[1], cell: (row) => (row[1] ? "passes" : "") },
    ];
    const all = browser.manifest.n_booleans;
    return {
      title: "Combinations",
      content: [
        el("h1", {}, "Combinations", el("span", { class: "aside" }, ` ${count(all)} candidates${rows.length < all ? `, ${count(rows.length)} of them listed` : ""}`)),
        el("section", { class: "panel" }, browser.table({ columns, rows, perPage: 50, sort: { key: "strict", descending: true } }).element),
      ],
    };
  }

  return { list, community, combinations };
})();
