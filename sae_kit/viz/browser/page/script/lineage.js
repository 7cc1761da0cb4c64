"use strict";

// The neighbourhood of a latent over layers: its strongest neighbours on both sides, and the
// strongest of each of these, further and further; it grows where one asks for more.

browser.lineage = (() => {
  const { latentData } = browser;
  const FIRST = 5; // neighbours of the latent itself, on each side
  const MAX_NODES = 60;

  // A row of a latent's "up" or "down": [site, latent, label, nBoth, ...measures].
  const nodeOf = ([site, latent, label]) => ({ site, latent, label });
  const key = ({ site, latent }) => `${site}/${latent}`;

  class Lineage {
    constructor(site, latent, label) {
      this.nodes = [{ site, latent, label, isCentre: true }];
      this.edges = [];
      this.numbers = new Map([[key({ site, latent }), 0]]);
      this.joined = new Set();
    }

    number(node) {
      const known = this.numbers.get(key(node));
      if (known !== undefined) return known;
      this.numbers.set(key(node), this.nodes.length);
      return this.nodes.push(node) - 1;
    }

    join(a, b, row) {
      const name = `${a}>${b}`;
      if (this.joined.has(name)) return;
      this.joined.add(name);
      this.edges.push({ a, b, nBoth: row[3], values: row.slice(4) });
    }

    // The `n` strongest neighbours of a node on one side, if they reach `least`, join the graph;
    // returns those that are new.
    take(node, rows, side, n, least) {
      const column = 4 + browser.manifest.measures.indexOf(browser.graph.chosen());
      const own = this.number(node);
      const best = rows.slice().sort((x, y) => y[column] - x[column]);
      const added = [];
      for (const row of best) {
        const other = nodeOf(row);
        const isKnown = this.numbers.has(key(other));
        if (!isKnown) {
          const isWanted = added.length < n && row[column] >= least;
          if (!isWanted || this.nodes.length >= MAX_NODES) continue;
          added.push(other);
        }
        const at = this.number(other);
        if (side === "up") this.join(at, own, row);
        else this.join(own, at, row);
      }
      return added;
    }

    // All the way to the first and the last site: from the second step on, the strongest of each.
    // One shard at a time, in idle moments, so that a reader who walks on does not wait for them.
    async follow(data, ondraw, isWanted) {
      const centre = this.nodes[0];
      const fronts = { up: [], down: [] };
      for (const side of ["up", "down"]) fronts[side] = this.take(centre, data[side], side, FIRST, 0);
      ondraw();
      while (fronts.up.length + fronts.down.length > 0) {
        for (const side of ["up", "down"]) {
          const next = [];
          for (const node of fronts[side]) {
            await browser.data.idle();
            if (!isWanted()) return;
            const found = await latentData(node.site, node.latent);
            next.push(...this.take(node, found[side], side, 1, browser.graph.settings.threshold));
          }
          fronts[side] = next;
        }
        if (!isWanted()) return;
        ondraw();
      }
    }

    async expand(node) {
      const data = await latentData(node.site, node.latent);
      this.take(node, data.up, "up", FIRST, 0);
      this.take(node, data.down, "down", FIRST, 0);
    }
  }

  // The graph of a latent whose data is known.
  function panel(site, latent, data, extra = []) {
    const lineage = new Lineage(site, latent, data.label);
    let isAlive = true;
    const drawn = browser.graph.graph(lineage, {
      extra,
      onexpand: async (node) => {
        await lineage.expand(node);
        drawn.draw();
      },
    });
    // Shards of a page that has been left are not asked for any more.
    browser.onleave(() => { isAlive = false; });
    lineage.follow(data, () => drawn.draw(), () => isAlive).catch(browser.report);
    return drawn;
  }

  return { panel };
})();
