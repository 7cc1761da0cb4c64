"use strict";

// Keys, and the list of them.

browser.keyboard = (() => {
  const { el } = browser.dom;

  const KEYS = [
    ["/", "search: a word, a phrase, or an address such as 3/120"],
    ["j  k", "next and previous latent, in the order last listed"],
    ["[  ]", "walk to the strongest upstream or downstream neighbour"],
    ["g", "the latent's graph on the whole width"],
    ["u", "up: from a latent to its site, from there to the overview"],
    ["← ↑ ↓ →", "in a graph: to the next node; Enter opens it, e expands it"],
    ["t", "light, dark, or as the system has it"],
    ["?", "this list"],
  ];

  let dialog = null;

  function help() {
    if (!dialog) {
      dialog = el("dialog", { "aria-label": "keys and measures" },
        el("h2", {}, "Keys"),
        el("dl", { class: "keys" }, KEYS.map(([key, does]) => [el("dt", {}, el("kbd", {}, key)), el("dd", {}, does)])),
        el("h2", {}, "Measures"),
        el("dl", { class: "keys" }, browser.manifest.measures.map((name) => [el("dt", {}, browser.format.measureName(name)), el("dd", {}, browser.format.measureMeaning(name))])),
        el("button", { onclick: () => dialog.close() }, "Close"));
      document.body.append(dialog);
    }
    dialog.showModal();
  }

  // The address that a key leads to on the page shown; null where it leads nowhere.
  function target(key, shown) {
    const isLatent = shown.latent !== undefined;
    if ((key === "j" || key === "k") && isLatent) {
      const next = browser.list.step(shown.site, shown.latent, key === "j" ? 1 : -1);
      return next === null ? null : browser.route.latent(shown.site, next);
    }
    if ((key === "[" || key === "]") && isLatent) {
      const row = browser.latent.strongest(key === "[" ? shown.data.up : shown.data.down);
      return row ? browser.route.latent(row[0], row[1]) : null;
    }
    if (key === "g" && isLatent) return browser.route.graph(shown.site, shown.latent);
    if (key === "u") return isLatent ? browser.route.list(shown.site) : "#";
    return null;
  }

  function onkeydown(event) {
    const isTyping = event.target.matches?.("input:not([type=range]):not([type=checkbox]), select, textarea");
    if (event.key === "Escape" && isTyping) event.target.blur();
    if (isTyping || event.ctrlKey || event.metaKey || event.altKey || dialog?.open) return;
    if (event.key === "/") document.getElementById("search").select();
    else if (event.key === "?") help();
    else if (event.key === "t") browser.theme.next();
    else {
      const hash = target(event.key, browser.shown);
      if (hash === null) return;
      browser.route.go(hash);
    }
    event.preventDefault();
  }

  document.addEventListener("keydown", onkeydown);
  return { help };
})();
