"use strict";

// All latents of a site: every statistic is a column to sort by, and can be filtered by.

browser.list = (() => {
  const { el, select } = browser.dom;
  const { count, figure, share, value, measure: written, measureName, measureMeaning } = browser.format;

  const KINDS = ["", "AND", "OR", "AND, OR"];
  const kind = (role) => (role === 0 ? "" : `${KINDS[role & 3]}${role & 4 ? " ✓" : ""}`);

  // The order in which latents were last listed, for walking through them.
  let walked = { site: -1, latents: [] };

  function allColumns(data, site) {
    const { n_positions: nPositions } = browser.manifest.sites[site];
    const of = (name) => (i) => data[name][i];
    const columns = [
      { key: "latent", name: "latent", numeric: true, value: (i) => i, cell: (i) => el("a", { href: browser.route.latent(site, i) }, String(i)) },
      { key: "label", name: "most active at", value: (i) => browser.tokens.label(data.label[i]), cell: (i) => browser.tokens.labelElement(data.label[i]) },
      { key: "n_active", name: "fires at", title: "Share of the positions at which it is active.", numeric: true, value: of("n_active"), cell: (i) => share(data.n_active[i] / Math.max(1, nPositions)) },
      { key: "max", name: "max", title: "Largest activation.", numeric: true, value: of("max"), cell: (i) => value(data.max[i]) },
    ];
    if (data.mean) columns.push({ key: "mean", name: "mean", title: "Mean activation where it is active.", numeric: true, value: of("mean"), cell: (i) => value(data.mean[i]) });
    if (data.decoder) columns.push({ key: "decoder", name: "nearest", title: "Cosine of its decoder row with the nearest other one of this SAE.", numeric: true, value: of("decoder"), cell: (i) => figure(data.decoder[i]) });
    for (const [way, arrow, meaning] of [["up", "←", "upstream"], ["down", "→", "downstream"]]) {
      for (const name of browser.manifest.measures) {
        const key = `${way}_${name}`;
        if (data[key]) {
          columns.push({ key, name: `${arrow} ${measureName(name)}`, title: `The largest ${measureName(name)} with any ${meaning} latent. ${measureMeaning(name)}`, numeric: true, optional: name !== "pearson", value: of(key), cell: (i) => written(data[key][i], name) });
        }
      }
    }
    if (browser.manifest.n_booleans > 0) columns.push({ key: "role", name: "combination", title: "What it is a candidate for: AND or OR of two latents before it; ✓ where the stricter test is passed.", numeric: true, value: of("role"), cell: (i) => kind(data.role[i]) });
    if (browser.manifest.communities.length > 0) columns.push({ key: "community", name: "community", numeric: true, value: of("community"), cell: (i) => (data.community[i] < 0 ? "" : el("a", { href: `#community/${data.community[i]}` }, String(data.community[i]))) });
    return columns;
  }

  // Shares are typed in as percentages would be read; all others as they stand.
  const scaleOf = (key, site) => (key === "n_active" ? browser.manifest.sites[site].n_positions / 100 : 1);

  function passes(data, columns, options, site) {
    const word = (options.token ?? "").toLowerCase();
    const bounds = columns.filter((column) => column.numeric).flatMap((column) => {
      const scale = scaleOf(column.key, site);
      return [["min", 1], ["max", -1]].flatMap(([name, sign]) => {
        const limit = Number.parseFloat(options[`${name}.${column.key}`]);
        return Number.isNaN(limit) ? [] : [(i) => sign * (column.value(i) - limit * scale) >= 0];
      });
    });
    return (i) =>
      (options.dead === "yes" || data.n_active[i] > 0) &&
      (word === "" || data.label[i].some((id) => browser.tokens.raw(id).toLowerCase().includes(word))) &&
      bounds.every((bound) => bound(i));
  }

  function filters(columns, options, changed) {
    const numeric = columns.filter((column) => column.numeric);
    let key = Object.keys(options).map((name) => name.split(".", 2)[1]).find(Boolean) ?? "n_active";
    const set = (name, text) => {
      if (text === "") delete options[name];
      else options[name] = text;
      changed();
    };
    const number = (label, name) => el("label", { class: "field" }, el("span", {}, label),
      el("input", { type: "text", inputmode: "decimal", size: 5, value: options[`${name}.${key}`] ?? "", oninput: (event) => set(`${name}.${key}`, event.target.value) }));
    const bounds = el("span", { class: "bounds" });
    const drawBounds = () => bounds.replaceChildren(number("from", "min"), number("to", "max"),
      key === "n_active" ? el("span", { class: "aside" }, "%") : "");
    drawBounds();
    return el("form", { class: "filters", role: "search", onsubmit: (event) => event.preventDefault() },
      el("label", { class: "field" }, el("span", {}, "token"),
        el("input", { type: "search", size: 12, value: options.token ?? "", oninput: (event) => set("token", event.target.value) })),
      select("filter by", numeric.map((column) => [column.key, column.name]), key, (chosen) => {
        key = chosen;
        drawBounds();
      }),
      bounds,
      el("label", { class: "field" }, el("input", { type: "checkbox", checked: options.dead === "yes", onchange: (event) => set("dead", event.target.checked ? "yes" : "") }), el("span", {}, "also those that never fired")),
      el("label", { class: "field" }, el("input", { type: "checkbox", checked: options.all === "yes", onchange: (event) => set("all", event.target.checked ? "yes" : "") }), el("span", {}, "every measure")));
  }

  async function page({ site, options }) {
    const about = browser.manifest.sites[site];
    const [data] = await Promise.all([
      browser.data.shard(`lists/${site}`),
      browser.manifest.n_contexts > 0 ? browser.tokens.load() : null,
    ]);
    const columns = allColumns(data, site);
    const holder = el("div");
    const found = el("p", { class: "aside", "aria-live": "polite" });

    function draw() {
      const rows = [...Array(about.d_sae).keys()].filter(passes(data, columns, options, site));
      const given = options.sort ?? "-n_active";
      const table = browser.table({
        columns: columns.filter((column) => options.all === "yes" || !column.optional),
        rows,
        perPage: 50,
        sort: { key: given.replace(/^-/, ""), descending: given.startsWith("-") },
        onsort: ({ key, descending }) => {
          options.sort = (descending ? "-" : "") + key;
          browser.route.keep(options);
          remember();
        },
      });
      const remember = () => queueMicrotask(() => { walked = { site, latents: table.ordered() }; });
      remember();
      found.textContent = `${count(rows.length)} of ${count(about.d_sae)} latents`;
      holder.replaceChildren(table.element);
    }

    const changed = () => {
      browser.route.keep(options);
      draw();
    };
    draw();
    return {
      title: about.name,
      site,
      content: [
        el("h1", {}, about.name, el("span", { class: "aside" }, ` ${about.arch}${about.writes === about.name ? "" : `, writes ${about.writes}`}, ${count(about.n_alive)} of ${count(about.d_sae)} latents fired`)),
        el("section", { class: "panel" }, filters(columns, options, changed), found, holder),
      ],
    };
  }

  // The latent `by` steps further in the order last listed, or by number.
  function step(site, latent, by) {
    const { latents } = walked;
    const at = walked.site === site ? latents.indexOf(latent) : -1;
    if (at >= 0) return latents[at + by] ?? null;
    const next = latent + by;
    return next >= 0 && next < browser.manifest.sites[site].d_sae ? next : null;
  }

  return { page, step, kind };
})();
