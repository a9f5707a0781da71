"use strict";

const MOST_BOXES = 400;
const { items, titles, codes, category, categories, statistics } = DATA;
const DEPTH = statistics.used_codes.length;
const ALL = items.map((_, row) => row);
const n = statistics.items;
let prefix = [], rows = ALL, started = false;

const treemap = element("div", { className: "chart", id: "treemap" });
const crumbs = element("nav", { className: "bar", id: "crumbs", ariaLabel: "prefix" });
const list = element("div", { id: "items" });
const found = element("div", { id: "found" });
const search = element("input", { type: "search", id: "search", placeholder: "title, item or codes as 12,240" });
const usage = element("div", { className: "chart" }), groups = element("div", { className: "chart" });

function share(value) {
  return `${(100 * value).toFixed(1)} %`;
}

function under(start) {
  return ALL.filter((row) => start.every((code, level) => codes[row][level] === code));
}

// Rows by their code at a level, the largest group first.
function grouped(within, level) {
  const by = new Map();
  for (const row of within) {
    const code = codes[row][level];
    if (!by.has(code)) by.set(code, []);
    by.get(code).push(row);
  }
  return [...by].sort((a, b) => b[1].length - a[1].length);
}

// The commonest category of items, or null where none is known.
function main(within) {
  if (!category) return null;
  const counts = new Array(categories.length).fill(0);
  for (const row of within) counts[category[row]] += 1;
  return counts.indexOf(Math.max(...counts));
}

function shade(within, start) {
  const most = main(within);
  if (most === null) return COLOURS[(start[0] ?? 0) % COLOURS.length];
  return most === categories.length - 1 ? "#7a8794" : COLOURS[most];
}

// Boxes of the treemap below the prefix: level by level, as long as there are not too many of them.
function boxes() {
  const boxes = [{ id: "root", parent: "", prefix, rows }];
  let last = [boxes[0]];
  for (let level = prefix.length; level <= DEPTH && last.length; level++) {
    const next = [];
    for (const box of last) {
      if (level === DEPTH) { // the items
        if (box.rows.length > 1 || box.id === "root") {
          for (const row of box.rows) next.push({ id: `item ${row}`, parent: box.id, prefix: box.prefix, rows: [row], item: row });
        }
      } else {
        for (const [code, within] of grouped(box.rows, level)) {
          const own = [...box.prefix, code];
          next.push({ id: own.join(","), parent: box.id, prefix: own, rows: within });
        }
      }
    }
    if (boxes.length + next.length > MOST_BOXES) {
      if (level === prefix.length) { // too many children: the largest, and a box for the others
        boxes.push(...next.slice(0, MOST_BOXES));
        const rest = next.slice(MOST_BOXES).flatMap((box) => box.rows);
        boxes.push({ id: "rest", parent: "root", prefix, rows: rest, rest: next.length - MOST_BOXES });
      }
      break;
    }
    boxes.push(...next);
    last = next;
  }
  return boxes;
}

function label(box) {
  if (box.id === "root") return prefix.length ? prefix.join(", ") : "all items";
  if (box.rest) return `${whole(box.rest)} smaller ones`;
  if (box.item !== undefined || box.rows.length === 1) return plotted(shortened(titles[box.rows[0]] || items[box.rows[0]], 60));
  const most = main(box.rows);
  return `${box.prefix.at(-1)}${most === null ? "" : ` ${plotted(categories[most])}`}`;
}

function hover(box) {
  const most = main(box.rows);
  const lines = box.rows.slice(0, 4).map((row) => plotted(shortened(titles[row] || items[row], 70)));
  if (box.rows.length > 4) lines.push("…");
  return `<b>${box.prefix.join(", ") || "all"}</b>: ${whole(box.rows.length)} item${box.rows.length === 1 ? "" : "s"}`
    + `${most === null ? "" : `, ${plotted(categories[most])}`}<br>${lines.join("<br>")}`;
}

let drawn = [];

function drawTreemap() {
  drawn = boxes();
  return {
    traces: [{
      type: "treemap", branchvalues: "total", sort: false, tiling: { pad: 1 }, pathbar: { visible: false },
      ids: drawn.map((box) => box.id), parents: drawn.map((box) => box.parent), labels: drawn.map(label),
      values: drawn.map((box) => box.rows.length), textinfo: "label+value",
      hovertext: drawn.map(hover), hoverinfo: "text", textfont: { color: "#ffffff" },
      marker: {
        colors: drawn.map((box) => box.id === "root" ? colour("panel") : shade(box.rows, box.prefix)), line: { width: 1, color: colour("page") },
        pad: { t: 20, l: 2, r: 2, b: 2 },
      },
      outsidetextfont: { color: colour("text") },
    }],
    layout: { height: innerWidth < 600 ? 420 : 560, margin: { l: 0, r: 0, t: 0, b: 0 } },
  };
}

function go(start, chosen = null) {
  prefix = start.slice(0, DEPTH);
  rows = under(prefix);
  crumbs.replaceChildren(...[[], ...prefix.map((_, level) => prefix.slice(0, level + 1))].map((part) => {
    const button = element("button", { className: "plain" }, part.length ? `${part.at(-1)}` : "all items");
    button.setAttribute("aria-pressed", part.length === prefix.length);
    button.addEventListener("click", () => go(part));
    return button;
  }), element("span", { className: "muted" }, `${whole(rows.length)} item${rows.length === 1 ? "" : "s"}`));
  chart(treemap, drawTreemap);
  list.replaceChildren(table(rows, 25, chosen));
  if (started) crumbs.scrollIntoView({ block: "nearest" });
}

// Codes of an item; a click opens its prefix.
function id(row) {
  return element("span", {}, codes[row].map((code, level) => {
    if (level === DEPTH) return element("span", { className: "code muted" }, `${code}`);
    const button = element("button", { className: "link code" }, `${code}`);
    button.addEventListener("click", () => go(codes[row].slice(0, level + 1), row));
    return button;
  }));
}

function table(within, first, chosen, name = "") {
  const columns = [
    { name: "item", text: true, value: (row) => items[row], cell: (row) => items[row] },
    { name: "semantic ID", text: true, cell: id, value: (row) => codes[row].map((code) => `${code}`.padStart(7, "0")).join() },
    { name: "title", text: true, class: "wide", value: (row) => titles[row], cell: (row) => titles[row] },
  ];
  if (category) {
    columns.push({
      name: DATA.column, text: true, value: (row) => categories[category[row]], cell: (row) => categories[category[row]],
    });
  }
  const ordered = chosen === null ? within : [chosen, ...within.filter((row) => row !== chosen)];
  const { node } = sortable(columns, ordered, { first, class: name });
  if (chosen !== null) node.querySelector("tbody tr").classList.add("chosen");
  return node;
}

// Items whose title or token has the words, or whose ID begins with the codes.
function look() {
  const words = search.value.trim().toLowerCase();
  if (!words) {
    found.replaceChildren();
    return;
  }
  const start = /^\d+([\s,]+\d+)*$/.test(words) ? words.split(/[\s,]+/).map(Number) : null;
  const hits = ALL.filter((row) => titles[row].toLowerCase().includes(words) || items[row].toLowerCase().includes(words)
    || (start && start.every((code, level) => codes[row][level] === code)));
  found.replaceChildren(
    element("p", { className: "muted" }, `${whole(hits.length)} found`),
    hits.length ? table(hits, 25, null, "tall") : "");
}

search.addEventListener("input", look);

const levels = sortable([
  { name: "level", cell: (level) => `${level + 1}` },
  { name: "used codes", cell: (level) => whole(statistics.used_codes[level]) },
  { name: "perplexity", hint: "2 to the entropy of the codes", cell: (level) => statistics.perplexity[level].toFixed(1) },
  { name: "distinct prefixes", cell: (level) => whole(statistics.distinct_prefixes[level]) },
  { name: "items that share their prefix", cell: (level) => share(DATA.sharing[level]) },
], statistics.used_codes.map((_, level) => level)).node;

MAIN.append(
  element("p", { className: "muted" }, `${whole(n)} items, ${whole(statistics.distinct_ids)} distinct IDs before the collision level; `
    + `${share(statistics.collision_rate)} of the items share all codes with another, at most ${whole(statistics.largest_group)} together.`
    + (items.length < n ? ` Treemap, search and lists have ${whole(items.length)} items, drawn at random.` : "")),
  element("div", { className: "bar" }, element("label", { htmlFor: "search" }, "search"), search), found,
  element("h2", {}, "Codes"),
  element("p", { className: "muted" }, "A box is a code, as large as it has items"
    + `${category ? ", in the colour of their commonest category" : ""}; a click opens it.`),
  category ? element("p", { className: "small" }, categories.map((name, i) => element("span", { style: "margin-right: 14px; white-space: nowrap" },
    element("span", { className: "key", style: `background: ${i === categories.length - 1 ? "#7a8794" : COLOURS[i]}` }), name))) : "",
  crumbs, treemap, list,
  element("h2", {}, "Levels"), levels,
  element("div", { className: "grid" },
    element("div", {}, element("h2", {}, "Items of each code, the largest first"), usage),
    element("div", {}, element("h2", {}, "Groups of items that share all codes"), groups)));

go([]);
started = true;
treemap.on("plotly_treemapclick", ({ points: [{ pointNumber }] }) => {
  const box = drawn[pointNumber];
  if (box.id === "root") go(prefix.slice(0, -1));
  else if (!box.rest) go(box.prefix, box.item ?? null);
  return false;
});
chart(usage, () => ({
  traces: DATA.usage.map((counts, level) => ({
    type: "scatter", mode: "lines", name: `level ${level + 1}`, x: counts.map((_, i) => i + 1), y: counts,
    line: { color: COLOURS[level % COLOURS.length], shape: "hv" }, showlegend: true,
  })),
  layout: {
    xaxis: { title: { text: "code, by its items" } }, yaxis: { title: { text: "items" }, type: "log", dtick: 1 },
    legend: { x: 1, xanchor: "right", y: 1, bgcolor: "rgba(0,0,0,0)" },
  },
}));
chart(groups, () => ({
  traces: [{ type: "bar", x: DATA.groups.map(([size]) => size), y: DATA.groups.map(([, count]) => count), marker: { color: COLOURS[0] } }],
  layout: { xaxis: { title: { text: "items of a group" } }, yaxis: { title: { text: "groups" }, type: "log", dtick: 1 } },
}));
