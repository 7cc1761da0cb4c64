"use strict";

// Search: a latent's address, the tokens that hold a word with the latents that belong to them, and
// the contexts that hold a phrase.

browser.search = (() => {
  const { el } = browser.dom;
  const { count, figure } = browser.format;
  const MAX_TOKENS = 24, MAX_CONTEXTS = 50, AROUND = 12;

  // "6/123" or a whole address -> where it leads; null if it is none.
  function address(word) {
    const names = browser.format.shortNames(browser.manifest.sites.map((site) => site.name));
    const found = /^#?(.+)\/(\d+)$/.exec(word.trim());
    if (!found) return null;
    const site = browser.manifest.sites.findIndex((one, i) => one.name === found[1] || names[i] === found[1]);
    return site >= 0 && Number(found[2]) < browser.manifest.sites[site].d_sae ? browser.route.latent(site, Number(found[2])) : null;
  }

  function go(word) {
    if (word.trim() !== "") browser.route.go(address(word) ?? browser.route.search(word));
  }

  // Tokens that hold the word; those that are it first, then the shortest.
  function matching(word, texts) {
    const wanted = word.toLowerCase();
    const rank = (text) => (text === word ? 0 : text.trim().toLowerCase() === wanted.trim() ? 1 : 2);
    return texts.map((text, id) => ({ text, id }))
      .filter(({ text }) => text.toLowerCase().includes(wanted))
      .sort((a, b) => rank(a.text) - rank(b.text) || a.text.length - b.text.length || a.id - b.id);
  }

  const rows = (kind, entries, meaning) => [
    el("h3", { title: meaning }, kind, el("span", { class: "aside" }, ` ${count(entries.length)}`)),
    entries.length === 0 ? el("p", { class: "none" }, "None.") : el("ul", { class: "chips" }, entries.map(([site, latent, label, value]) =>
      el("li", {}, el("a", { class: "chip", href: browser.route.latent(site, latent) },
        el("span", { class: "number" }, `${browser.format.shortNames(browser.manifest.sites.map((s) => s.name))[site]}/${latent}`), " ",
        browser.tokens.labelElement(label), el("span", { class: "aside" }, ` ${figure(value)}`))))),
  ];

  async function ofToken(id, holder) {
    const entry = await browser.data.entry("tokens", id, browser.manifest.per_shard.tokens);
    holder.replaceChildren(
      ...rows("Most active at it", entry.peaks ?? [], "Latents of whose strongest contexts this token is the peak, with the share of them."),
      ...rows("Promoting it", entry.promoted ?? [], "Latents whose decoder row promotes it most, with the logit effect."));
  }

  function tokensPanel(word, texts) {
    const found = matching(word, texts);
    const holder = el("div", { "aria-live": "polite" });
    const buttons = found.slice(0, MAX_TOKENS).map(({ id }) => {
      const button = el("button", {
        class: "chip", "aria-pressed": "false",
        onclick: () => {
          buttons.forEach((one) => one.setAttribute("aria-pressed", String(one === button)));
          ofToken(id, holder).catch(browser.report);
        },
      }, el("bdi", {}, browser.tokens.name(id)));
      return button;
    });
    buttons[0]?.click();
    const note = found.length > MAX_TOKENS ? ` the first ${MAX_TOKENS} of ${count(found.length)}` : ` ${count(found.length)}`;
    return el("section", { class: "panel" }, el("h2", {}, "Tokens", el("span", { class: "aside" }, note)),
      el("div", { class: "chips", role: "group", "aria-label": "tokens that hold it" }, buttons),
      found.length ? holder : el("p", { class: "none" }, "No token holds it; it may still be found in contexts."));
  }

  // Positions of tokens in a context at which the phrase begins.
  function hits(tokens, texts, phrase) {
    const starts = [];
    let text = "";
    for (const id of tokens) {
      starts.push(text.length);
      text += texts[id].toLowerCase();
    }
    const found = [];
    for (let at = text.indexOf(phrase); at >= 0; at = text.indexOf(phrase, at + 1)) {
      found.push(starts.findLastIndex((start) => start <= at));
    }
    return found;
  }

  function hit(context, position, tokens) {
    const text = (from, to) => tokens.slice(Math.max(0, from), to).map((id) => browser.tokens.visible(browser.tokens.raw(id))).join("");
    return el("li", { class: "context" }, el("a", { href: `#context/${context}/${position}` },
      el("span", { class: "text" },
        el("span", { class: "before" }, el("bdi", {}, text(position - AROUND, position))),
        el("mark", {}, text(position, position + 1)),
        el("span", { class: "after" }, el("bdi", {}, text(position + 1, position + AROUND))))));
  }

  async function readContexts(word, texts, holder, note) {
    let isAlive = true;
    browser.onleave(() => { isAlive = false; });
    const phrase = word.toLowerCase();
    const { n_contexts: n, per_shard: { text: perShard } } = browser.manifest;
    let total = 0;
    for (let number = 0; number * perShard < n && isAlive; number++) {
      const contexts = await browser.data.shard(`text/${number}`);
      contexts.forEach((tokens, i) => {
        for (const position of hits(tokens, texts, phrase)) {
          if (total++ < MAX_CONTEXTS) holder.append(hit(number * perShard + i, position, tokens));
        }
      });
      const isDone = (number + 1) * perShard >= n;
      note.textContent = ` ${count(total)}${total > MAX_CONTEXTS ? `, the first ${MAX_CONTEXTS} shown` : ""}${isDone ? "" : " so far…"}`;
    }
  }

  async function page({ word }) {
    if (browser.manifest.n_contexts === 0) throw new Error("This site was built without contexts, so there is nothing to search in.");
    const texts = await browser.tokens.load();
    const [holder, note] = [el("ol", { class: "contexts" }), el("span", { class: "aside", "aria-live": "polite" }, " …")];
    readContexts(word, texts, holder, note).catch(browser.report);
    return {
      title: `Search: ${word}`,
      word,
      content: [
        el("h1", {}, el("span", { class: "aside" }, "search "), el("bdi", {}, browser.tokens.visible(word))),
        tokensPanel(word, texts),
        el("section", { class: "panel" }, el("h2", {}, "Contexts", note), holder),
      ],
    };
  }

  return { page, go, address };
})();
