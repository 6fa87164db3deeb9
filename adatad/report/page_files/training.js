// How training went: charts, the time of a step's parts, the first batch, and what was trained with which settings.

function trainingSection(runs, tip) {
  const charts = mergedCharts(runs);
  if (!charts.length) return section("Training", h("p", {}, "No step yet."));
  return section("Training", h("div", { class: "charts" }, charts.map((chart) => curveChart(chart, tip))));
}

/** The charts of all runs, those of one title in one: a colour a run, a dash a curve, the first curve of each switched on. */
function mergedCharts(runs) {
  if (runs.length === 1) return runs[0].charts;
  const charts = new Map();
  runs.forEach((run, colour) => {
    for (const chart of run.charts) {
      if (!charts.has(chart.title)) charts.set(chart.title, { ...chart, curves: [], note: noteOf(runs, chart.title) });
      const names = [...new Set(chart.curves.map((curve) => curve.name))];
      for (const curve of chart.curves) {
        const dash = names.indexOf(curve.name);
        const name = names.length > 1 ? `${run.label}: ${curve.name}` : run.label;
        charts.get(chart.title).curves.push({ ...curve, name, colour, dash, off: dash > 0 });
      }
    }
  });
  return [...charts.values()];
}

/** The note of charts of one title, with its runs where not all have it. */
function noteOf(runs, title) {
  const notes = runs.map((run) => [run.label, run.charts.find((chart) => chart.title === title)?.note]);
  if (new Set(notes.map(([, note]) => note)).size === 1) return notes[0][1];
  return notes.filter(([, note]) => note).map(([label, note]) => `${label}: ${note}`).join("; ");
}

function profileSection({ profile }) {
  if (!profile.length) return null;
  const rows = profile.map(({ part, milliseconds, share }) => {
    const bar = h("div", { class: "share accent" });
    bar.style.width = `${100 * Math.min(Math.max(share ?? 0, 0), 1)}%`;
    return h("tr", {}, h("th", { scope: "row" }, part), h("td", {}, milliseconds.toFixed(2)), h("td", {}, percent(share ?? null)),
      h("td", { class: "bar-cell", "aria-hidden": "true" }, bar));
  });
  return section("Time of a step", h("div", { class: "wide" }, table("Time of a step by part", ["part", "milliseconds", "% of the step", ""], rows)));
}

function batchSection({ first_batch: picture }) {
  if (!picture) return null;
  const image = h("img", { src: picture, class: "first-batch", alt: "Windows of the first batch: frames along time, labels as bars above them" });
  return section("First batch", h("p", { class: "soft" }, "What the first step was computed from: do labels and frames belong together?"), scrolling(image, "First batch"));
}

function settingsSection({ trained, settings, links }, data) {
  return section(
    "Settings and files",
    details("trained", plural(trained.length, "trained tensor"), h("pre", { tabindex: "0" }, trained.join("\n"))),
    details("settings", "The whole spec", h("pre", { tabindex: "0" }, settings)),
    // A server shows the page alone; a copy of the page elsewhere has no files beside it.
    data.beside && links.length > 0 && h("p", {}, "Beside this page: ", links.map(({ name, href }, place) => (
      [place > 0 && ", ", h("a", { href }, name)]
    ))),
  );
}
