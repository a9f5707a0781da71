"use strict";

const place = element("div");
if (DATA.tables.length > 1) {
  const bar = element("div", { className: "bar" });
  for (const table of DATA.tables) {
    const button = element("button", { className: "plain" }, table.title);
    button.addEventListener("click", () => open(table));
    table.button = button;
    bar.append(button);
  }
  MAIN.append(bar);
}
MAIN.append(place);

function value(row, metric, statistic = 0) {
  return row.metrics[metric] ? row.metrics[metric][statistic] : null;
}

function fixed(number, sign = false) {
  return number === null ? "" : (sign && number >= 0 ? "+" : "") + number.toFixed(4);
}

function own(row) {
  return row.seeds !== undefined;
}

function colours(table) {
  return new Map(table.rows.filter(own).map((row, i) => [row, COLOURS[i % COLOURS.length]]));
}

function open(table) {
  CHARTS.clear();
  for (const { button } of DATA.tables) if (button) button.setAttribute("aria-pressed", button === table.button);
  const chosen = [], sources = [...new Set(table.rows.map((row) => row.source).filter(Boolean))];
  const best = Object.fromEntries(table.metrics.map((metric) => [metric,
    Math.max(...table.rows.filter(own).map((row) => value(row, metric) ?? -Infinity))]));
  const numbers = {
    seeds: (row) => whole(row.seeds), epochs: (row) => `${+row.epochs.toFixed(1)}${row.marks}`,
    "train s": (row) => `${whole(Math.round(row.seconds))}${row.half}`,
    "users/s": (row) => whole(Math.round(row.speed)), parameters: (row) => whole(row.parameters),
  };
  const fields = { seeds: "seeds", epochs: "epochs", "train s": "seconds", "users/s": "speed", parameters: "parameters" };
  const columns = [
    {
      name: "model", text: true, sticky: true, value: (row) => row.label, class: "wide first",
      cell: (row) => own(row) ? element("button", { className: "link" }, row.label)
        : `${row.label} [${sources.indexOf(row.source) + 1}]`,
    },
    ...table.metrics.map((metric) => ({
      name: metric, value: (row) => value(row, metric), hint: `mean over seeds ± standard deviation; below, ${DATA.level} over users`,
      class: (row) => own(row) && value(row, metric) === best[metric] ? "best" : "",
      cell: (row) => {
        const [mean, deviation, low, high] = row.metrics[metric] ?? [null, null, null, null];
        return element("span", {}, fixed(mean) + (deviation === null ? "" : ` ± ${fixed(deviation)}`),
          low === null ? null : element("div", { className: "muted small" }, `${fixed(low)} to ${fixed(high)}`));
      },
    })),
    ...Object.entries(numbers).map(([name, text]) => ({
      name, value: (row) => row[fields[name]] ?? null,
      cell: (row) => own(row) ? text(row) : "",
    })),
  ];
  const details = element("div", { id: "details" });
  const { node, refresh } = sortable(columns, table.rows, {
    clickable: own,
    chosen: (row) => chosen.includes(row),
    click: (row) => {
      if (chosen.includes(row)) chosen.splice(chosen.indexOf(row), 1);
      else chosen.push(row);
      if (chosen.length > 2) chosen.shift();
      refresh();
      show(details, table, chosen);
    },
  });
  show(details, table, chosen);
  const drawn = element("div");
  place.replaceChildren(
    element("h2", {}, table.title),
    element("p", { className: "muted" }, `Test set. A column sorts on a click. Values are means over seeds ± standard deviations; `
      + `below them is the ${DATA.level} interval over users. The best of the models that were run is bold.`),
    node, ...sources.map((source, i) => element("p", { className: "muted small" }, `[${i + 1}] published, not run here: ${source}`)),
    ...table.notes.map((note) => element("p", { className: "muted small" }, note)), details, drawn);
  draw(drawn, table);
}

// Settings of one chosen row, or the differences of two.
function show(node, table, chosen) {
  if (!chosen.length) {
    node.replaceChildren(element("p", { className: "muted" }, "Click on a model for its settings, on a second one for the difference."));
    return;
  }
  if (chosen.length === 1) {
    const rows = Object.entries(chosen[0].settings);
    node.replaceChildren(element("h2", {}, `Settings of ${chosen[0].label}`), settings(rows, ["value"]));
    return;
  }
  const [first, second] = chosen.map((row) => table.rows.indexOf(row)).sort((a, b) => a - b);
  const [a, b] = [table.rows[first], table.rows[second]];
  const pairs = table.pairs[`${first},${second}`];
  const metrics = table.metrics.filter((metric) => value(a, metric) !== null && value(b, metric) !== null);
  const keys = [...new Set([...Object.keys(a.settings), ...Object.keys(b.settings)])].sort();
  const rows = keys.filter((key) => a.settings[key] !== b.settings[key])
    .map((key) => [key, a.settings[key] ?? "", b.settings[key] ?? ""]);
  node.replaceChildren(
    element("h2", {}, `${a.label} minus ${b.label}`),
    sortable([
      { name: "metric", text: true, cell: (metric) => metric },
      { name: "difference", cell: (metric) => fixed(pairs[metric] ? pairs[metric][0] : value(a, metric) - value(b, metric), true) },
      { name: "p", cell: (metric) => pairs[metric] ? fixed(pairs[metric][1]) : "" },
    ], metrics).node,
    element("p", { className: "muted small" }, Object.keys(pairs).length
      ? `p: paired bootstrap over users, of ${Object.keys(pairs).join(" and ")}` : "There are no ranks of the same users for both: no p-value."),
    element("h2", {}, "Settings that differ"), settings(rows, [a.label, b.label]));
}

function settings(rows, names) {
  return sortable([
    { name: "setting", text: true, value: (row) => row[0], cell: (row) => row[0] },
    ...names.map((name, i) => ({ name, text: true, class: "wide", cell: (row) => row[i + 1] })),
  ], rows, { class: "tall" }).node;
}

function draw(node, table) {
  const metrics = element("select", { id: "metric" }, table.metrics.map((metric) => element("option", { value: metric }, metric)));
  metrics.value = table.metrics.includes(DATA.main) ? DATA.main : table.metrics[0];
  const bars = element("div", { className: "chart" }), training = element("div", { className: "chart" });
  const sizes = element("div", { className: "chart" }), curves = element("div", { className: "chart" });
  const of = colours(table);
  const names = element("p", { className: "small", id: "legend" }, [...of].map(([row, shade]) => element("span",
    { style: "margin-right: 14px; white-space: nowrap" }, element("span", { className: "key", style: `background: ${shade}` }), shortened(row.label, 40))));
  node.replaceChildren(
    element("div", { className: "bar" }, element("label", { htmlFor: "metric" }, "metric"), metrics),
    element("h2", {}, "Test, with intervals over users"), bars, names,
    element("div", { className: "grid" },
      element("div", {}, element("h2", {}, `Validation ${DATA.main} against seconds of training`), training),
      element("div", {}, element("h2", {}, "Test against parameters"), sizes),
      element("div", {}, element("h2", {}, "Test by how often training has the target"),
        table.occurrences ? curves : element("p", { className: "muted" },
          "The page was made without the dataset's files, or the runs have no ranks or no recall@10: recbole-tiger leaderboard --data_path=FOLDER."))));

  function errors(rows, metric) {
    const ends = rows.map((row) => [value(row, metric, 2), value(row, metric, 3)]);
    return {
      type: "data", symmetric: false, thickness: 1.2, width: 3, color: colour("text"),
      array: rows.map((row, i) => ends[i][1] === null ? 0 : Math.max(0, ends[i][1] - value(row, metric))),
      arrayminus: rows.map((row, i) => ends[i][0] === null ? 0 : Math.max(0, value(row, metric) - ends[i][0])),
    };
  }

  function hover(row, metric) {
    const [mean, , low, high] = row.metrics[metric];
    return `${plotted(row.label)}<br>${metric} ${fixed(mean)}${low === null ? "" : `, ${fixed(low)} to ${fixed(high)}`}`
      + (own(row) ? "" : "<br>published");
  }

  function of_metric() {
    const metric = metrics.value;
    chart(bars, () => {
      const rows = table.rows.filter((row) => value(row, metric) !== null).sort((a, b) => value(a, metric) - value(b, metric));
      return {
        traces: [rows.filter(own), rows.filter((row) => !own(row))].filter((part) => part.length).map((part) => ({
          type: "bar", orientation: "h", x: part.map((row) => value(row, metric)), y: part.map((row) => rows.indexOf(row)),
          error_x: own(part[0]) ? errors(part, metric) : {}, showlegend: false, width: 0.75,
          marker: { color: part.map((row) => of.get(row) ?? colour("line")) },
          hovertext: part.map((row) => hover(row, metric)), hoverinfo: "text",
        })),
        layout: {
          height: 60 + 24 * rows.length, barmode: "overlay",
          xaxis: { title: { text: metric }, rangemode: "tozero" },
          yaxis: { tickvals: rows.map((row, i) => i), ticktext: rows.map((row) => plotted(shortened(row.label, 26))) },
        },
      };
    });
    chart(sizes, () => {
      // RecBole gives models that learn nothing one parameter, for there to be an optimizer.
      const rows = table.rows.filter((row) => own(row) && row.parameters > 1 && value(row, metric) !== null);
      return {
        traces: [{
          type: "scatter", mode: "markers", x: rows.map((row) => row.parameters), y: rows.map((row) => value(row, metric)),
          error_y: errors(rows, metric), marker: { size: 10, color: rows.map((row) => of.get(row)) },
          hovertext: rows.map((row) => `${hover(row, metric)}<br>${whole(row.parameters)} parameters`), hoverinfo: "text",
        }],
        layout: { xaxis: { type: "log", title: { text: "parameters" }, dtick: "D2" }, yaxis: { title: { text: metric } } },
      };
    });
  }

  metrics.addEventListener("change", of_metric);
  of_metric();
  chart(training, () => ({
    traces: table.rows.filter(own).flatMap((row) => row.training.map((points) => ({
      type: "scatter", mode: "lines", x: points.map(([second]) => second), y: points.map(([, score]) => score),
      line: { color: of.get(row), width: 1.5 }, showlegend: false, hoverinfo: "text",
      hovertext: points.map(([second, score]) => `${plotted(row.label)}<br>${whole(second)} s: ${fixed(score)}`),
    }))),
    layout: { hovermode: "closest", xaxis: { type: "log", title: { text: "seconds" }, dtick: "D2" }, yaxis: { title: { text: DATA.main } } },
  }));
  if (table.occurrences) {
    const { metric, ranges, users, rows } = table.occurrences;
    const all = users.reduce((a, b) => a + b);
    const labels = ranges.map((range, i) => `${range}<br>${(100 * users[i] / all).toFixed(0)} %`);
    chart(curves, () => ({
      traces: Object.entries(rows).map(([i, values]) => ({
        type: "scatter", mode: "lines+markers", x: labels, y: values, showlegend: false, hoverinfo: "text",
        line: { color: of.get(table.rows[i]), width: 1.5 },
        hovertext: values.map((score, k) => `${plotted(table.rows[i].label)}<br>${ranges[k]} interactions: ${fixed(score)}`),
      })),
      layout: {
        hovermode: "closest", yaxis: { title: { text: metric }, rangemode: "tozero" },
        xaxis: { type: "category", title: { text: "training interactions, share of the users" } },
      },
    }));
  }
}

open(DATA.tables[0]);
