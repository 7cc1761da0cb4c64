"use strict";

// Starts the page: the manifest, the head, and the page that the address asks for.

browser.theme = (() => {
  const THEMES = ["auto", "light", "dark"];
  // Where a browser keeps nothing for pages opened from a folder, the choice lasts as long as the page.
  const stored = () => {
    try {
      return localStorage.getItem("theme");
    } catch {
      return null;
    }
  };

  function set(theme) {
    document.documentElement.dataset.theme = theme;
    try {
      localStorage.setItem("theme", theme);
    } catch {
      // not kept
    }
  }

  const current = () => document.documentElement.dataset.theme;
  const next = () => set(THEMES[(THEMES.indexOf(current()) + 1) % THEMES.length]);
  set(THEMES.includes(stored()) ? stored() : "auto");
  return { next, current };
})();

(() => {
  const { el } = browser.dom;
  const main = document.getElementById("main");
  const PAGES = {
    overview: () => browser.overview.page(),
    list: (asked) => browser.list.page(asked),
    latent: (asked) => browser.latent.page(asked),
    graph: (asked) => browser.latent.graphPage(asked),
    communities: () => browser.groups.list(),
    community: (asked) => browser.groups.community(asked),
    combinations: () => browser.groups.combinations(),
    prompt: (asked) => browser.prompt.page(asked),
    context: (asked) => browser.prompt.context(asked),
    search: (asked) => browser.search.page(asked),
  };

  browser.shown = {};
  const leaving = [];
  // Has something done when the page shown is left.
  browser.onleave = (does) => leaving.push(does);

  function notice(title, text) {
    main.replaceChildren(el("div", { class: "notice", role: "alert" }, el("h1", {}, title), el("p", {}, text)));
  }

  browser.report = (error) => {
    const again = "Build it again: python -m sae_kit.viz.browser RESULT --out FOLDER";
    const isBroken = /incomplete|damaged/.test(error.message);
    notice(isBroken ? "Incomplete" : "Not found", isBroken ? `${error.message} ${again}` : error.message);
  };

  function head() {
    const names = browser.format.shortNames(browser.manifest.sites.map((site) => site.name));
    const search = el("input", {
      id: "search", type: "search", placeholder: "word, phrase, or 3/120", "aria-label": "search for a word, a phrase, or a latent",
    });
    document.getElementById("header").replaceChildren(
      el("a", { class: "brand", href: "#" }, el("strong", {}, "Feature browser"), el("span", {}, browser.manifest.model)),
      el("nav", { class: "tabs", "aria-label": "sites" }, names.map((name, site) =>
        el("a", { href: browser.route.list(site), title: browser.manifest.sites[site].name, "data-site": site }, name))),
      el("form", { class: "search", role: "search", onsubmit: (event) => { event.preventDefault(); browser.search.go(search.value); } }, search),
      el("button", { class: "icon", title: "light or dark (key t)", "aria-label": "light or dark", onclick: browser.theme.next }, "◐"),
      el("button", { class: "icon", title: "keys and measures (key ?)", "aria-label": "keys and measures", onclick: browser.keyboard.help }, "?"));
  }

  function mark(page) {
    for (const tab of document.querySelectorAll(".tabs a")) {
      if (Number(tab.dataset.site) === page.site) tab.setAttribute("aria-current", "true");
      else tab.removeAttribute("aria-current");
    }
    document.getElementById("search").value = page.word ?? "";
    document.title = `${page.title} · Feature browser`;
  }

  let turn = 0;

  async function show() {
    const own = ++turn;
    const asked = browser.route.parse(location.hash, browser.manifest.sites);
    leaving.splice(0).forEach((does) => does());
    try {
      if (asked.page === "unknown") throw new Error(asked.why);
      const page = await PAGES[asked.page](asked);
      if (own !== turn) return; // another page was asked for in the meantime
      browser.shown = page;
      main.replaceChildren(...page.content.flat().filter(Boolean));
      mark(page);
      window.scrollTo(0, 0);
      main.focus({ preventScroll: true }); // so that a screen reader starts from here
      document.documentElement.dataset.ready = location.hash; // for tests, and for timing:
      performance.mark("drawn");
    } catch (error) {
      if (own === turn) {
        browser.shown = {};
        browser.report(error);
      }
    }
  }

  async function start() {
    try {
      browser.manifest = await browser.data.shard("manifest");
    } catch (error) {
      browser.report(error);
      return;
    }
    head();
    window.addEventListener("hashchange", show);
    await show();
    // The first latent that is opened should not wait for the vocabulary.
    if (browser.manifest.n_contexts > 0) browser.data.idle().then(browser.tokens.load).catch(browser.report);
  }

  start();
})();
