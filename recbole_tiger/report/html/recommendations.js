"use strict";

const { catalogue, depth, histories } = DATA;
const place = element("div");
let at = 0;

// How many codes of the ID two items share from the first on.
function common(first, second) {
  const [a, b] = [catalogue[first][1], catalogue[second][1]];
  const differ = a.findIndex((code, level) => code !== b[level]);
  return differ < 0 ? a.length : differ;
}

// The item of the history that shares the longest prefix with an item, the latest of several; and how long it is.
function nearest(item, history) {
  let best = { length: 0, place: -1 };
  history.forEach((other, place) => {
    const length = common(item, other);
    if (length && length >= best.length) best = { length, place };
  });
  return best;
}

function id(item, shared) {
  return element("span", {}, catalogue[item][1].map((code, level) => element("span", {
    className: `code ${level < shared ? "shared" : ""} ${level === depth ? "muted" : ""}`,
  }, `${code}`)));
}

function probability(part) {
  return element("span", { title: `probability ${Math.exp(part).toFixed(4)}` }, part.toFixed(2).replace("-0.00", "0.00"), " ",
    element("span", { className: "level" }, element("span", { style: `width: ${(100 * Math.exp(part)).toFixed(1)}%` })));
}

function show() {
  const { history, unread, items, scores, parts } = histories[at];
  const rows = items.map((item, i) => (
    { item, place: i + 1, score: scores[i], parts: parts && parts[i], with: nearest(item, history) }));
  let chosen = null;
  const past = history.map((item, i) => ({ item, place: i + 1 }));

  function marked(row) {
    return chosen && chosen.with.place === row.place - 1;
  }

  const left = sortable([
    { name: "#", cell: (row) => `${row.place}` },
    { name: "title", text: true, class: "wide", cell: (row) => titled(row.item) },
    { name: "semantic ID", text: true, cell: (row) => id(row.item, marked(row) ? chosen.with.length : 0) },
  ], past, { clickable: () => false, chosen: () => false });
  const levels = rows.length && rows[0].parts ? rows[0].parts.map((_, level) => ({
    name: level < depth ? `level ${level + 1}` : "collision", value: (row) => row.parts[level], cell: (row) => probability(row.parts[level]),
    hint: "log-probability of the code after those before it; the bar is the probability",
  })) : [];
  const right = sortable([
    { name: "#", value: (row) => row.place, cell: (row) => `${row.place}` },
    { name: "title", text: true, class: "wide", value: (row) => catalogue[row.item][0], cell: (row) => titled(row.item) },
    { name: "semantic ID", text: true, cell: (row) => id(row.item, row.with.length) },
    { name: "log-probability", value: (row) => row.score, cell: (row) => row.score.toFixed(3) },
    ...levels,
  ], rows, {
    clickable: (row) => row.with.place >= 0,
    chosen: (row) => row === chosen,
    click: (row) => {
      chosen = chosen === row ? null : row;
      left.refresh();
      right.refresh();
    },
  });
  place.replaceChildren(
    element("h2", {}, "History, oldest first"),
    unread ? element("p", { className: "muted" }, `${whole(unread)} older items are not read by the model.`) : "",
    element("div", { id: "history" }, left.node),
    element("h2", {}, "Recommended"),
    element("p", { className: "muted" }, "Codes in colour are the longest prefix that the item shares with one of the history; "
      + "a click shows with which."),
    element("div", { id: "list" }, right.node));
}

function titled(item) {
  return element("span", {}, catalogue[item][0] || item, element("div", { className: "muted small" }, item));
}

if (histories.length > 1) {
  const input = element("input", { type: "number", id: "number", min: 1, max: histories.length, value: 1 });
  const move = (to) => {
    at = Math.min(histories.length - 1, Math.max(0, Math.round(to) || 0));
    input.value = at + 1;
    show();
  };
  const step = (name, by) => {
    const button = element("button", { className: "plain" }, name);
    button.addEventListener("click", () => move(at + by));
    return button;
  };
  input.addEventListener("change", () => move(Number(input.value) - 1));
  MAIN.append(element("div", { className: "bar" }, step("previous", -1), element("label", { htmlFor: "number" }, "history"), input,
    element("span", { className: "muted" }, `of ${whole(histories.length)}`), step("next", 1)));
}
MAIN.append(place);
show();
