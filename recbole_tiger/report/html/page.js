"use strict";
// What all pages share. Text from the data reaches the page as text nodes alone.

const DATA = JSON.parse(document.getElementById("data").textContent);
const MAIN = document.getElementById("main");
const COLOURS = ["#3b76c4", "#e08a1e", "#3f9e5a", "#c94a4a", "#8a63c0", "#8c6d4f", "#d668a8", "#2aa5b5", "#a8981f", "#7a8794"];

// An element with properties and children; a string is a text node.
function element(name, properties = {}, ...children) {
  const found = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in found) found[key] = value;
    else found.setAttribute(key, value);
  }
  found.append(...children.flat().filter((child) => child !== null));
  return found;
}

function whole(value) {
  return value.toLocaleString("en");
}

function shortened(text, most) {
  return text.length > most ? text.slice(0, most - 1) + "…" : text;
}

// Text for plotly, which reads some tags and entities.
function plotted(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

// A table whose columns sort on a click.
// columns: {name, text (left aligned), value(row) to sort by, cell(row) -> text or element, class, hint}.
// options: clickable(row), chosen(row) and click(row) for rows that are chosen; first: rows shown before the button "more".
function sortable(columns, rows, options = {}) {
  let order = rows, by = null, direction = 1, shown = options.first || Infinity;
  const head = element("tr"), body = element("tbody"), more = element("div", { className: "more" });

  function value(row) {
    return by.value(row);
  }

  function sort(column) {
    direction = by === column ? -direction : column.text ? 1 : -1;
    by = column;
    order = [...rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === null || y === null) return (x === null) - (y === null); // what is absent stands last
      return direction * (typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y);
    });
    for (const [i, cell] of [...head.children].entries()) {
      if (columns[i] === by) cell.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
      else cell.removeAttribute("aria-sort");
    }
    fill();
  }

  function fill() {
    body.replaceChildren(...order.slice(0, shown).map((row) => {
      const line = element("tr", {}, columns.map((column) => element("td", {
        className: [column.text ? "text" : "", typeof column.class === "function" ? column.class(row) : column.class || ""].join(" "),
      }, column.cell(row))));
      if (options.click && options.clickable(row)) {
        line.classList.add("clickable");
        line.classList.toggle("chosen", options.chosen(row));
        line.addEventListener("click", () => options.click(row));
      }
      return line;
    }));
    more.replaceChildren();
    if (order.length > shown) {
      const button = element("button", { className: "plain" }, `${whole(order.length - shown)} more`);
      button.addEventListener("click", () => { shown *= 5; fill(); });
      more.append(button);
    }
  }

  for (const column of columns) {
    const cell = element("th", { className: `${column.text ? "text" : ""} ${column.sticky ? "first" : ""}`, scope: "col", title: column.hint || "" });
    if (column.value) {
      const button = element("button", {}, column.name);
      button.addEventListener("click", () => sort(column));
      cell.append(button);
    } else cell.append(column.name);
    head.append(cell);
  }
  fill();
  const table = element("div", { className: `scroll ${options.class || ""}` },
    element("table", {}, element("thead", {}, head), body));
  return { node: element("div", {}, table, more), refresh: fill };
}

// Charts, drawn anew when the scheme changes from light to dark.
const CHARTS = new Map();

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

// make: function to {traces, layout}; it is called again where colours change.
function chart(node, make) {
  CHARTS.set(node, make);
  const { traces, layout } = make();
  const axis = { gridcolor: colour("line"), zerolinecolor: colour("line"), automargin: true };
  const full = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", height: 360, margin: { l: 50, r: 16, t: 10, b: 45 },
    font: { color: colour("text"), family: "system-ui, 'DejaVu Sans', sans-serif", size: 12 },
    hoverlabel: { bgcolor: colour("panel"), bordercolor: colour("line"), font: { color: colour("text") }, align: "left" },
    ...layout,
    xaxis: { ...axis, ...layout.xaxis },
    yaxis: { ...axis, ...layout.yaxis, title: { standoff: 12, ...layout.yaxis?.title } },
  };
  return Plotly.react(node, traces, full, { responsive: true, displaylogo: false, displayModeBar: false });
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const [node, make] of CHARTS) if (node.isConnected) chart(node, make);
});

document.querySelector("noscript").remove();
MAIN.append(element("h1", {}, DATA.title));
