"use strict";

// Shards: loaded by script tags, since a page opened from a folder may not fetch; see shards.py.

const browser = {};

browser.data = (() => {
  const MAX_KEPT = 400; // shards in memory, the last ones used
  const kept = new Map(); // name -> promise of its values
  const arriving = new Map(); // name -> the packed text, from receive() to the script's load event

  async function unpack(packed) {
    const text = atob(packed);
    const bytes = new Uint8Array(text.length); // Uint8Array.from with a function takes five times as long
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  }

  function fetched(name) {
    return new Promise((resolve, reject) => {
      const script = document.createElement("script");
      const gone = () => reject(new Error(`data/${name}.js is missing: this site is incomplete.`));
      script.onerror = () => {
        script.remove();
        gone();
      };
      script.onload = () => {
        script.remove();
        const packed = arriving.get(name);
        arriving.delete(name);
        if (packed === undefined) gone();
        else unpack(packed).then(resolve, () => reject(new Error(`data/${name}.js is damaged.`)));
      };
      script.src = `data/${name}.js`;
      document.head.append(script);
    });
  }

  // The values of a shard. The same promise for everyone who asks while it is kept.
  function shard(name) {
    const known = kept.get(name) ?? fetched(name);
    kept.delete(name);
    kept.set(name, known); // now the last one used
    known.catch(() => kept.delete(name));
    if (kept.size > MAX_KEPT) kept.delete(kept.keys().next().value);
    return known;
  }

  // Entry `number` of shards that hold `perShard` entries each, as JSON for itself.
  async function entry(kind, number, perShard) {
    const values = await shard(`${kind}/${Math.floor(number / perShard)}`);
    const own = values[number % perShard];
    return own === undefined ? undefined : JSON.parse(own);
  }

  // Until the browser has nothing better to do: the page shown is drawn, and no key waits.
  const idle = () => new Promise((does) => requestIdleCallback(does, { timeout: 1000 }));

  browser.receive = (name, packed) => arriving.set(name, packed);
  browser.latentData = (site, latent) =>
    entry(`latents/${site}`, latent, browser.manifest.per_shard.latents);
  return { shard, entry, idle };
})();
