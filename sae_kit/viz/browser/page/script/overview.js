"use strict";

// The first page: what the site is about, and ways in.

browser.overview = (() => {
  const { el, section } = browser.dom;
  const { count, share, value } = browser.format;
  const MAX_SHOWN = 12;

  function sites() {
    const columns = [
      { key: "site", name: "site", value: (s) => s.number, cell: (s) => el("a", { href: browser.route.list(s.number) }, s.name) },
      { key: "arch", name: "SAE", value: (s) => s.arch, cell: (s) => s.arch },
      { key: "d_sae", name: "latents", numeric: true, value: (s) => s.d_sae, cell: (s) => count(s.d_sae) },
      { key: "alive", name: "that fired", numeric: true, value: (s) => s.n_alive / s.d_sae, cell: (s) => share(s.n_alive / s.d_sae) },
      { key: "l0", name: "L0", title: "Mean number of active latents at a position.", numeric: true, value: (s) => s.l0 ?? 0, cell: (s) => (s.l0 === null ? "" : value(s.l0)) },
    ];
    const rows = browser.manifest.sites.map((site, number) => ({ ...site, number }));
    return section("Sites", browser.table({ columns, rows, sort: { key: "site", descending: false } }).element);
  }

  function communities() {
    const listed = browser.manifest.communities;
    if (listed.length === 0) return null;
    return section("Communities",
      el("ul", { class: "chips" }, listed.slice(0, MAX_SHOWN).map(([number, n, nSites, tokens]) =>
        el("li", {}, el("a", { class: "chip", href: `#community/${number}` },
          browser.tokens.labelElement(tokens), el("span", { class: "aside" }, ` ${count(n)} in ${nSites} sites`))))),
      el("p", {}, el("a", { href: "#communities" }, `all ${count(browser.manifest.n_communities)} communities`)));
  }

  function combinations() {
    const { n_booleans: n, n_strict: strict } = browser.manifest;
    if (n === 0) return null;
    return section("Combinations",
      el("p", {}, `${count(n)} latents look like an AND or an OR of two latents before them; ${count(strict)} pass the stricter test as well. `,
        el("a", { href: "#combinations" }, "See them")));
  }

  function prompts() {
    const listed = browser.manifest.prompts;
    if (listed.length === 0) return null;
    return section("Prompts, token by token",
      el("ul", { class: "plain" }, listed.map((tokens, number) =>
        el("li", {}, el("a", { class: "prompt-link", href: `#prompt/${number}/${tokens.length - 1}` },
          tokens.map((id) => browser.tokens.visible(browser.tokens.raw(id))).join(""))))));
  }

  function origin() {
    const rows = browser.manifest.results.map((one) => el("li", {},
      `${one.name}: ${count(one.n_tokens)} tokens of held-out text (${[one.text, one.context_size ? `contexts of ${one.context_size}` : "", one.seed === null ? "" : `seed ${one.seed}`].filter(Boolean).join(", ")})`));
    return section("Made from", el("ul", { class: "plain" }, rows));
  }

  async function page() {
    if (browser.manifest.n_contexts > 0) await browser.tokens.load();
    const total = browser.manifest.sites.reduce((sum, site) => sum + site.d_sae, 0);
    return {
      title: browser.manifest.model,
      content: [
        el("h1", {}, browser.manifest.model, el("span", { class: "aside" }, ` ${count(total)} latents at ${browser.manifest.sites.length} ${browser.manifest.sites.length === 1 ? "site" : "sites"}`)),
        browser.flow.panel(),
        el("div", { class: "columns" },
          el("div", {}, sites(), origin()),
          el("div", {}, communities(), combinations(), prompts())),
      ],
    };
  }

  return { page };
})();
