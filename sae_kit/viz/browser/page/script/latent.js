"use strict";

// The page of one latent.

browser.latent = (() => {
  const { el } = browser.dom;
  const { count, figure, share, value } = browser.format;

  const strongest = (rows) => rows.slice().sort((a, b) => b[4] - a[4])[0];

  function fact(name, ...content) {
    return el("div", { class: "fact" }, el("dt", {}, name), el("dd", {}, ...content));
  }

  function facts(site, latent, data) {
    const about = browser.manifest.sites[site];
    const items = [
      fact("fires at", share(data.n_active / Math.max(1, about.n_positions)), el("span", { class: "aside" }, ` ${count(data.n_active)} positions`)),
      fact("largest", value(data.max), data.mean === undefined ? "" : el("span", { class: "aside" }, ` mean ${value(data.mean)}`)),
    ];
    if (data.community >= 0) items.push(fact("community", el("a", { href: `#community/${data.community}` }, String(data.community))));
    if (about.neuronpedia) {
      const href = `https://www.neuronpedia.org/${about.neuronpedia}/${latent}`;
      items.push(fact("elsewhere", el("a", { href, rel: "noopener noreferrer", target: "_blank" }, "Neuronpedia ↗")));
    }
    return el("dl", { class: "facts" }, items);
  }

  const member = ([site, latent, label], isSelf) => (isSelf
    ? el("strong", {}, "this latent")
    : [browser.neighbours.link(site, latent), " ", browser.tokens.labelElement(label)]);

  // A candidate: [kind, strict, [parent, parent, child]].
  function role([kind, strict, trio], site, latent) {
    const [a, b, child] = trio.map((one) => member(one, one[0] === site && one[1] === latent));
    return el("li", {}, child, " ≈ ", a, el("em", { class: "operator" }, kind === 0 ? " AND " : " OR "), b,
      strict ? el("span", { class: "badge", title: "Support, lift, each alone insufficient, the pair sufficient; confirmed on held-out text." }, "passes the strict test") : "");
  }

  function roles(site, latent, data) {
    if (data.roles.length === 0) return null;
    return el("section", { class: "panel" },
      el("h2", { title: "Candidates: latents with exactly two parents that (nearly) always fire with them, or make them fire." }, "Combinations"),
      el("ul", { class: "plain roles" }, data.roles.map((one) => role(one, site, latent))));
  }

  function effects(title, way, rows) {
    if (!rows) return null;
    const most = Math.max(...rows.map(([, by]) => Math.abs(by)), 1e-9);
    return el("section", { class: `panel effects ${way}` },
      el("h2", { title: "What its decoder row adds to the logits on the direct path, before the last norm divides; mean over the vocabulary taken off." }, title),
      el("ol", { class: "plain" }, rows.map(([id, by]) => el("li", {},
        el("a", { class: "label-token", href: browser.route.search(browser.tokens.raw(id)), style: { "--size": (Math.abs(by) / most).toFixed(3) } }, el("bdi", {}, browser.tokens.name(id))),
        el("span", { class: "by" }, figure(by))))));
  }

  function steps(site, latent, data) {
    const button = (text, title, target) => (target === null
      ? el("span", { class: "step disabled", "aria-hidden": "true" }, text)
      : el("a", { class: "step", href: target, title, "aria-label": title }, text));
    const to = (row) => (row ? browser.route.latent(row[0], row[1]) : null);
    const next = (by) => {
      const found = browser.list.step(site, latent, by);
      return found === null ? null : browser.route.latent(site, found);
    };
    return el("nav", { class: "steps", "aria-label": "walk" },
      browser.manifest.pairs.length ? [
        button("⇠ upstream", "strongest upstream neighbour (key [)", to(strongest(data.up))),
        button("downstream ⇢", "strongest downstream neighbour (key ])", to(strongest(data.down)))] : "",
      button("‹", "previous latent (key k)", next(-1)),
      button("›", "next latent (key j)", next(1)));
  }

  async function page({ site, latent }) {
    const [data] = await Promise.all([
      browser.latentData(site, latent),
      browser.manifest.n_contexts > 0 ? browser.tokens.load() : null,
    ]);
    const about = browser.manifest.sites[site];
    const has = {
      up: browser.manifest.pairs.some((pair) => pair.down === site),
      down: browser.manifest.pairs.some((pair) => pair.up === site),
    };
    const hasPairs = has.up || has.down;
    const name = browser.tokens.label(data.label);
    const lineage = hasPairs
      ? browser.lineage.panel(site, latent, data, [el("a", { class: "wide", href: browser.route.graph(site, latent) }, "large")])
      : null;
    const row = el("div", { class: "row" },
      data.histogram ? el("section", { class: "panel" }, el("h2", {}, "Activations"), browser.histogram(data)) : "",
      effects("Promotes", "promotes", data.promoted), effects("Suppresses", "suppresses", data.suppressed));
    return {
      title: `${about.name}/${latent} ${name}`,
      site,
      latent,
      data,
      content: [
        el("div", { class: "heading" },
          el("h1", {}, el("a", { class: "aside", href: browser.route.list(site) }, about.name), el("span", { class: "aside" }, "/"), String(latent), " ", browser.tokens.labelElement(data.label)),
          facts(site, latent, data),
          steps(site, latent, data)),
        el("div", { class: hasPairs ? "latent two" : "latent" },
          el("div", { class: "left" }, row, browser.contexts.panels(data)),
          el("div", { class: "right" },
            lineage ? el("section", { class: "panel lineage" }, el("h2", {}, "Over the layers"), lineage.element) : null,
            has.up ? browser.neighbours.crossLayer("Upstream", "up", data.up) : null,
            has.down ? browser.neighbours.crossLayer("Downstream", "down", data.down) : null,
            roles(site, latent, data),
            data.decoder ? browser.neighbours.decoder(site, data.decoder) : null)),
      ],
    };
  }

  // The same graph on the whole width.
  async function graphPage({ site, latent }) {
    const [data] = await Promise.all([
      browser.latentData(site, latent),
      browser.manifest.n_contexts > 0 ? browser.tokens.load() : null,
    ]);
    const { element } = browser.lineage.panel(site, latent, data);
    const link = el("a", { href: browser.route.latent(site, latent) }, `${browser.manifest.sites[site].name}/${latent}`);
    return {
      title: `Over the layers: ${browser.manifest.sites[site].name}/${latent}`,
      site,
      content: [el("h1", {}, "Over the layers ", el("span", { class: "aside" }, link, " ", browser.tokens.labelElement(data.label))), el("section", { class: "panel large" }, element)],
    };
  }

  return { page, graphPage, strongest };
})();
