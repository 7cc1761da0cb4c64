"use strict";

// A table that is sorted by its column heads and shown a page at a time.

browser.table = (() => {
  const { el } = browser.dom;
  const { count } = browser.format;

  // columns: [{key, name, title, value(row), cell(row), numeric}]; a column without `value` is not
  // sorted by. rows: whatever the columns read. sort: {key, descending}.
  function table({ columns, rows, sort, perPage = 25, caption, onsort = () => {}, onrow }) {
    let order = rows.slice();
    let page = 0;
    let current = { ...sort };
    const body = el("tbody");
    const heads = el("tr");
    const pager = el("div", { class: "pager" });

    function arrange() {
      const column = columns.find((one) => one.key === current.key && one.value);
      if (column) {
        const sign = current.descending ? -1 : 1;
        const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
        order = rows.slice().sort((a, b) => sign * compare(column.value(a), column.value(b)));
      }
      page = 0;
      draw();
    }

    function head(column) {
      const sorted = column.key === current.key;
      const direction = current.descending ? "descending" : "ascending";
      const arrow = sorted ? (current.descending ? " ▾" : " ▴") : "";
      const title = column.title ?? "";
      if (!column.value) return el("th", { scope: "col", title }, column.name);
      const sortBy = () => {
        // Numbers are mostly wanted largest first.
        current = { key: column.key, descending: sorted ? !current.descending : Boolean(column.numeric) };
        onsort(current);
        arrange();
      };
      return el("th", {
        scope: "col", title, "aria-sort": sorted ? direction : "none",
        class: column.numeric ? "numeric" : "",
      }, el("button", { class: "sort", onclick: sortBy }, column.name + arrow));
    }

    function turnTo(next) {
      page = next;
      draw();
    }

    function draw() {
      heads.replaceChildren(...columns.map(head));
      const shown = order.slice(page * perPage, (page + 1) * perPage);
      body.replaceChildren(...shown.map((row) => {
        const line = el("tr", {}, columns.map((column) =>
          el("td", { class: column.numeric ? "numeric" : "" }, column.cell(row))));
        if (onrow) onrow(line, row);
        return line;
      }));
      const nPages = Math.max(1, Math.ceil(order.length / perPage));
      pager.replaceChildren(
        ...(nPages === 1 ? [] : [
          el("button", { disabled: page === 0, onclick: () => turnTo(page - 1), "aria-label": "previous page" }, "‹"),
          el("span", {}, `${count(page * perPage + 1)}–${count(Math.min(order.length, (page + 1) * perPage))} of ${count(order.length)}`),
          el("button", { disabled: page === nPages - 1, onclick: () => turnTo(page + 1), "aria-label": "next page" }, "›"),
        ]));
    }

    arrange();
    const element = el("div", { class: "table" },
      el("div", { class: "table-scroll" },
        el("table", {}, caption ? el("caption", {}, caption) : null, el("thead", {}, heads), body)),
      pager);
    return { element, ordered: () => order };
  }

  return table;
})();
