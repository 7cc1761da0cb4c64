"use strict";

// The tables of a latent's neighbours: upstream and downstream with every measure, and by decoder.

browser.neighbours = (() => {
  const { el } = browser.dom;
  const { count, figure, measure: written, measureName, measureMeaning, shortNames } = browser.format;

  const link = (site, latent) => {
    const names = shortNames(browser.manifest.sites.map((one) => one.name));
    return el("a", { href: browser.route.latent(site, latent), title: browser.manifest.sites[site].name }, `${names[site]}/${latent}`);
  };

  // rows: [site, latent, label, nBoth, ...measures].
  function crossLayer(title, way, rows) {
    if (rows.length === 0) return el("section", { class: `panel ${way}` }, el("h2", {}, title), el("p", { class: "none" }, "None were kept."));
    const first = browser.manifest.measures[0];
    const columns = [
      { key: "latent", name: "latent", value: (row) => row[0] * 1e9 + row[1], cell: (row) => link(row[0], row[1]) },
      { key: "label", name: "most active at", value: (row) => browser.tokens.label(row[2]), cell: (row) => browser.tokens.labelElement(row[2]) },
      { key: "n_both", name: "both", title: "Positions at which both are active: the support of the measures.", numeric: true, value: (row) => row[3], cell: (row) => count(row[3]) },
      ...browser.manifest.measures.map((name, i) => ({
        key: name, name: measureName(name), title: measureMeaning(name), numeric: true,
        value: (row) => row[4 + i],
        cell: (row) => el("span", { class: "meter", style: { "--size": Math.max(0, Math.min(1, row[4 + i])) } }, written(row[4 + i], name)),
      })),
    ];
    const table = browser.table({ columns, rows, perPage: 8, sort: { key: first, descending: true } });
    return el("section", { class: `panel ${way}` }, el("h2", {}, title), table.element);
  }

  // rows: [latent, cosine, label].
  function decoder(site, rows) {
    return el("section", { class: "panel" },
      el("h2", { title: "Other latents of this SAE whose decoder rows have the highest cosine with this one's." }, "Nearest decoder rows"),
      el("ul", { class: "chips" }, rows.map(([latent, cosine, label]) => el("li", {},
        el("a", { class: "chip", href: browser.route.latent(site, latent) }, el("span", { class: "number" }, String(latent)), " ", browser.tokens.labelElement(label), el("span", { class: "aside" }, ` ${figure(cosine)}`))))));
  }

  return { crossLayer, decoder, link };
})();
