// Where the mAP goes: types of errors, kinds of instances, confusion, thresholds, durations and calibration.

function errorsSection({ explained, classes }) {
  if (!explained?.profile) return null;
  const first = explained.profile[0] ?? {};
  const costs = Object.entries(explained.costs).map(([name, cost]) => [name, interval(cost), name in first ? interval(first[name]) : ""]);
  return section(
    "Where the mAP goes",
    table("Errors by type", ["error", "costs, points of average mAP", "% of the best detections"], costs),
    h("div", { class: "pair" }, durationsFigure(explained.durations), calibrationFigure(explained)),
    details("kinds", "Short and long instances", kindsTable(explained.sensitivity)),
    details("thresholds", `Thresholds, bouts and seconds by class, at tIoU ${explained.right_tiou}`, thresholdsTable(explained, classes)),
    explained.confusion.length > 0 && details("confusion", "Confusion between classes", confusionTable(explained.confusion, classes)),
  );
}

function kindsTable(sensitivity) {
  const rows = ["length", "coverage", "instances"].flatMap((kind) => (sensitivity[kind] ?? []).filter((row) => row.instances).map((row) => (
    [kind, row.holds, row.instances, interval(row.normalized_mAP), interval(row.missed)]
  )));
  return table("Score by kind of instance", ["kind", "", "instances", "normalized mAP, %", "missed, %"], rows);
}

/** A class by its name, with its look where it is in the class list. */
function classCalled(name, classes) {
  const label = classes.indexOf(name);
  return label < 0 ? named(name) : classNamed(label, classes);
}

function thresholdsTable({ classes: rows }, classes) {
  const known = Object.entries(rows).filter(([, row]) => "threshold" in row);
  if (!known.length) return h("p", {}, "No detection is right: no threshold is better than another.");
  const sum = ({ detected, true: annotated }) => `${Math.round(detected)} of ${Math.round(annotated)}`;
  const ordered = known.sort(([a], [b]) => classes.indexOf(a) - classes.indexOf(b));
  const heads = ["class", "from score", "precision", "recall", "F1", "bouts", "seconds"];
  return table("Thresholds by class", heads, ordered.map(([name, row]) => [
    classCalled(name, classes), Number(row.threshold.toPrecision(3)), percent(row.precision), percent(row.recall), percent(row.f1),
    sum(row.bouts), sum(row.seconds),
  ]));
}

function confusionTable(pairs, classes) {
  const heads = ["annotated", "detected as", "times", "% of detections as that"];
  return table("Confusion between classes", heads, pairs.map((pair) => [
    classCalled(pair.instance, classes), classCalled(pair.detected_as, classes), pair.count, percent(pair.share),
  ]));
}

const PLOT = { width: 400, height: 170, left: 38, bottom: 24, top: 8 };

/** A figure of bars; draw(add, x, y): add elements in units of the plot. */
function plotFigure(title, words, highest, legend, draw) {
  const { width, height, left, bottom, top } = PLOT;
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": words });
  const axis = niceTicks(0, highest, 3);
  const y = (value) => height - bottom - (value / axis.high) * (height - bottom - top);
  for (const value of axis.values) {
    picture.append(svg("path", { class: "grid", d: `M${left} ${y(value)}H${width}` }), svgText(left - 6, y(value) + 3.5, shortNumber(value), "end"));
  }
  draw((...elements) => picture.append(...elements), (share) => left + share * (width - left), y);
  return h("figure", { class: "chart" }, h("figcaption", {}, title), picture, h("p", { class: "soft" }, legend));
}

function durationsFigure({ edges_seconds: edges, true: annotated, detected }) {
  const highest = Math.max(...annotated, ...detected, 1), bins = annotated.length;
  const range = (bin) => `${shortNumber(edges[bin])} to ${shortNumber(edges[bin + 1])} s`;
  const words = `Durations. ${annotated.map((count, bin) => `${range(bin)}: ${count} annotated, ${detected[bin]} detected`).join("; ")}`;
  const legend = [h("i", { class: "key truth" }), " annotated ", h("i", { class: "key accent" }), " detected, as many as annotated of each class, the best first"];
  return plotFigure("Durations", words, highest, legend, (add, x, y) => {
    for (let bin = 0; bin < bins; bin++) {
      [[annotated, "truth", 0.08], [detected, "accent", 0.5]].forEach(([counts, look, at]) => {
        const [from, to] = [x((bin + at) / bins), x((bin + at + 0.42) / bins)];
        const bar = svg("rect", { x: from, width: to - from, y: y(counts[bin]), height: Math.max(y(0) - y(counts[bin]), 0), class: look });
        add(withTip(bar, range(bin), `${annotated[bin]} annotated`, `${detected[bin]} detected`));
      });
      if (bin % 3 === 0) add(svgText(x(bin / bins), PLOT.height - 7, shortNumber(edges[bin]), "middle"));
    }
    add(svgText(PLOT.width, PLOT.height - 7, `${shortNumber(edges[bins])} s`, "end"));
  });
}

/** How many detections of a score are right: bars on the diagonal if scores are probabilities. */
function calibrationFigure({ calibration, right_tiou: tiou }) {
  const { bins, error } = calibration;
  if (!bins.length) return null;
  const words = `Calibration. ${bins.map((bin) => `score about ${bin.mean_score.toFixed(2)}: ${percent(bin.right.value)} % right`).join("; ")}`;
  const low = Math.min(bins[0].from, 0), high = Math.max(bins[bins.length - 1].to, 1);
  const legend = `Share of detections that are right at tIoU ${tiou}, by their score; dashed: as many as the score says. Off by ${percent(error?.value)} % on average.`;
  return plotFigure("Calibration of scores", words, 1, legend, (add, share, y) => {
    const x = (score) => share((score - low) / (high - low));
    for (const bin of bins) {
      const value = bin.right.value ?? 0;
      const bar = svg("rect", { x: x(bin.from) + 1, width: x(bin.to) - x(bin.from) - 2, y: y(value), height: Math.max(y(0) - y(value), 0), class: "accent" });
      const range = svg("path", { d: `M${x((bin.from + bin.to) / 2)} ${y(bin.right.low ?? value)}V${y(bin.right.high ?? value)}`, class: "range" });
      const texts = [`score ${shortNumber(bin.from)} to ${shortNumber(bin.to)}`, `${percent(bin.right.value)} % right (${percent(bin.right.low)} to ${percent(bin.right.high)})`, plural(bin.detections, "detection")];
      add(withTip(bar, ...texts), withTip(range, ...texts));
    }
    add(svg("path", { d: `M${x(Math.max(low, 0))} ${y(0)}L${x(1)} ${y(1)}`, class: "diagonal" }));
    for (const at of [low, (low + high) / 2, high]) add(svgText(x(at), PLOT.height - 7, shortNumber(at), at === high ? "end" : at === low ? "start" : "middle"));
  });
}
