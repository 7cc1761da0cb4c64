"use strict";

// Where the nodes of a graph over layers stand: a column for each site, and in a column the order
// that keeps edges short (each node near the weighted mean of its neighbours, some sweeps).

browser.layout = (() => {
  const SWEEPS = 8;

  // nodes: [{site}], edges: [{a, b, weight}]. Returns for each node {column, row}, and the sites.
  function layout(nodes, edges) {
    const sites = [...new Set(nodes.map((node) => node.site))].sort((a, b) => a - b);
    const columns = sites.map((site) =>
      nodes.map((node, i) => i).filter((i) => nodes[i].site === site));
    const joined = nodes.map(() => []);
    for (const { a, b, weight } of edges) {
      joined[a].push([b, weight]);
      joined[b].push([a, weight]);
    }
    const row = new Array(nodes.length);
    const place = (column) => {
      const middle = (column.length - 1) / 2;
      column.forEach((i, at) => { row[i] = at - middle; }); // columns are centred on one another
    };
    columns.forEach(place);
    for (let sweep = 0; sweep < SWEEPS; sweep++) {
      const order = sweep % 2 ? columns.slice().reverse() : columns;
      for (const column of order) {
        const wanted = new Map(column.map((i) => [i, mean(joined[i], row) ?? row[i]]));
        column.sort((a, b) => wanted.get(a) - wanted.get(b));
        place(column);
      }
    }
    return { sites, places: nodes.map((node, i) => ({ column: sites.indexOf(node.site), row: row[i] })) };
  }

  function mean(neighbours, row) {
    let sum = 0;
    let total = 0;
    for (const [other, weight] of neighbours) {
      sum += weight * row[other];
      total += weight;
    }
    return total > 0 ? sum / total : null;
  }

  return layout;
})();
