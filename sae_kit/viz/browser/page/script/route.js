"use strict";

// Permalinks: what stands behind the # of the address, read and written.
//
//   #blocks.6.hook_resid_pre/1234        a latent          #community/12      #prompt/0/7
//   #blocks.6.hook_resid_pre?sort=-max   a list            #communities       #context/25/101
//   #graph/blocks.6.hook_resid_pre/1234  a latent's graph  #combinations      #search/word

browser.route = (() => {
  const number = (text) => (/^\d+$/.test(text ?? "") ? Number(text) : null);

  function decoded(text) {
    try {
      return decodeURIComponent(text);
    } catch {
      return text;
    }
  }

  // What an address asks for: {page, ...}; "unknown" with what is wrong with it.
  function parse(hash, sites) {
    const [path, query = ""] = hash.replace(/^#\/?/, "").split("?", 2);
    const options = Object.fromEntries(new URLSearchParams(query));
    const [first, ...rest] = path.split("/").map(decoded);
    const latentOf = (page, siteName, latent) => {
      const site = sites.findIndex((one) => one.name === siteName);
      if (site < 0) return { page: "unknown", why: `This site has no “${siteName}”.` };
      if (latent === undefined) return { page: "list", site, options };
      const found = number(latent);
      if (found === null || found >= sites[site].d_sae) {
        const last = sites[site].d_sae - 1;
        return { page: "unknown", why: `${siteName} has latents 0 to ${last}, not “${latent}”.` };
      }
      return { page, site, latent: found, options };
    };
    if (first === "") return { page: "overview", options };
    if (first === "graph") return latentOf("graph", rest[0], rest[1] ?? "");
    if (first === "communities" || first === "combinations") return { page: first, options };
    if (first === "search") return { page: "search", word: rest.join("/"), options };
    if (["community", "prompt", "context"].includes(first)) {
      const [which, at] = rest.map(number);
      if (which === null || which === undefined) return { page: "unknown", why: `#${first}/ needs a number.` };
      return { page: first, number: which, at: at ?? null, options };
    }
    return latentOf("latent", first, rest[0]);
  }

  const latent = (site, index) => `#${browser.manifest.sites[site].name}/${index}`;
  const graph = (site, index) => `#graph/${browser.manifest.sites[site].name}/${index}`;
  const list = (site) => `#${browser.manifest.sites[site].name}`;
  const search = (word) => `#search/${encodeURIComponent(word)}`;

  const go = (hash) => {
    location.hash = hash;
  };

  // Changes the address's options without leaving the page.
  function keep(options) {
    const path = location.hash.split("?", 1)[0];
    const query = new URLSearchParams(options).toString();
    history.replaceState(null, "", query ? `${path}?${query}` : path);
  }

  return { parse, latent, graph, list, search, go, keep };
})();
