// Charts of curves over the steps of training, as SVG: drawn anew as a whole, with values under the pointer.

/**
 * @typedef {object} Curve
 * @property {string} name in the legend; a faint curve has that of the strong one it belongs to, and no entry
 * @property {number[]} steps ascending
 * @property {?number[]} values null where there is none
 * @property {boolean=} faint the values themselves behind their running mean
 * @property {number=} colour its number, by default by the order of names
 * @property {number=} dash 0 for a whole line, else how it is broken
 * @property {boolean=} off not drawn until it is chosen in the legend
 *
 * @typedef {object} Chart
 * @property {string} title
 * @property {string=} unit
 * @property {string=} note below the chart
 * @property {Curve[]} curves
 */

/** Units of the drawing; the chart is as wide as its place, and its text grows with it only a little. */
const CHART = { width: 400, height: 236, left: 46, right: 12, top: 8, bottom: 26 };
const DASHES = ["", "6 3", "2 3", "8 3 2 3"];
/** Curves that have been switched on or off by hand, by chart and name: drawing anew keeps them. */
const switched = new Map();

/** Return the element of a chart. tip: the element of `showTip`. */
function curveChart(chart, tip) {
  const figure = document.createElement("figure");
  figure.className = "chart";
  const draw = () => {
    const names = [...new Set(chart.curves.map((curve) => curve.name))];
    const look = (curve) => ({ colour: curve.colour ?? names.indexOf(curve.name), dash: DASHES[(curve.dash ?? 0) % 4] });
    const isOff = (curve) => switched.get(`${chart.title}\n${curve.name}`) ?? curve.off ?? false;
    const drawn = chart.curves.filter((curve) => !isOff(curve));
    const caption = document.createElement("figcaption");
    caption.textContent = chart.unit ? `${chart.title}, ${chart.unit}` : chart.title;
    const legend = curveLegend(chart, look, isOff, draw, figure.querySelector("details")?.open);
    figure.replaceChildren(caption, curvePicture(chart, drawn, look, tip), legend);
    if (!chart.note) return;
    const note = document.createElement("p");
    note.className = "soft";
    note.textContent = chart.note;
    figure.append(note);
  };
  draw();
  return figure;
}

/**
 * A button a curve that switches it on and off; a single curve that the title names needs none. Those that aren't drawn
 * at first lie behind "more". open: whether that is open.
 */
function curveLegend(chart, look, isOff, draw, open) {
  const legend = document.createElement("div");
  legend.className = "curve-legend";
  const named = chart.curves.filter((curve) => !curve.faint);
  if (named.length < 2 && named[0]?.name === chart.title) return legend;
  const more = document.createElement("details"), summary = document.createElement("summary");
  summary.textContent = "more curves";
  more.open = open ?? false;
  more.append(summary);
  for (const curve of named) {
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-pressed", String(!isOff(curve)));
    const line = svg("svg", { viewBox: "0 0 22 10", class: "line-key", "aria-hidden": "true" });
    line.append(svg("path", { d: "M0 5H22", ...strokeOf(look(curve), 2.5) }));
    const name = document.createElement("bdi");
    name.textContent = curve.name;
    button.append(line, name);
    button.addEventListener("click", () => {
      switched.set(`${chart.title}\n${curve.name}`, !isOff(curve));
      const place = [...legend.querySelectorAll("button")].indexOf(button), box = legend.parentElement;
      draw();
      // The button that was pressed is another one now.
      box.querySelectorAll(".curve-legend button")[place]?.focus();
    });
    (curve.off ? more : legend).append(button);
  }
  if (more.children.length > 1) legend.append(more);
  return legend;
}

function curvePicture(chart, curves, look, tip) {
  const { width, height, left, right, top, bottom } = CHART;
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": inWords(chart, curves) });
  const steps = extent(curves.flatMap((curve) => curve.steps)) ?? [0, 1];
  const [low, high] = extent(curves.flatMap((curve) => curve.values)) ?? [0, 1];
  // From 0, since a cut axis exaggerates.
  const axis = niceTicks(Math.min(low, 0), high);
  const last = steps[1] > steps[0] ? steps[1] : steps[0] + 1;
  const x = (step) => left + ((step - steps[0]) / (last - steps[0])) * (width - left - right);
  const y = (value) => height - bottom - ((value - axis.low) / (axis.high - axis.low)) * (height - top - bottom);
  for (const value of axis.values) {
    picture.append(svg("path", { class: "grid", d: `M${left} ${y(value)}H${width - right}` }));
    picture.append(svgText(left - 6, y(value) + 3.5, shortNumber(value), "end"));
  }
  const along = niceTicks(steps[0], last, 4).values.filter((step) => step >= steps[0] && step <= last && step % 1 === 0);
  for (const step of along) picture.append(svgText(x(step), height - 8, shortNumber(step), "middle"));
  for (const curve of curves) picture.append(...linesOf(curve, look(curve), x, y));
  if (!curves.some((curve) => curve.steps.length)) {
    picture.append(svgText((left + width - right) / 2, height / 2, "no curve is switched on", "middle"));
  }
  listenForValues(picture, { chart, curves, look, x, y, tip });
  return picture;
}

/** Paths of a curve, one for each stretch without a gap, and a dot for values that stand alone or are few. */
function linesOf(curve, look, x, y) {
  const parts = [];
  const few = curve.steps.length <= 24;
  let path = "", length = 0;
  const end = () => {
    if (length > 1) parts.push(svg("path", { d: path, class: "curve", ...strokeOf(look, curve.faint ? 1 : 2), opacity: curve.faint ? 0.3 : 1 }));
    [path, length] = ["", 0];
  };
  curve.steps.forEach((step, place) => {
    const value = curve.values[place];
    if (value === null) return end();
    const at = `${x(step).toFixed(1)} ${y(value).toFixed(1)}`;
    path += length++ ? `L${at}` : `M${at}`;
    const alone = (curve.values[place - 1] ?? null) === null && (curve.values[place + 1] ?? null) === null;
    if (!curve.faint && (few || alone)) {
      const [cx, cy] = at.split(" ");
      parts.push(svg("circle", { cx, cy, r: 2.6, fill: `var(--class-${look.colour % COLOURS})` }));
    }
  });
  end();
  return parts;
}

/** Say values at the step nearest to the pointer, with a line there. */
function listenForValues(picture, { chart, curves, x, tip }) {
  const mark = svg("path", { class: "mark", d: "" });
  picture.append(mark);
  const strong = curves.filter((curve) => !curve.faint && curve.steps.length);
  picture.addEventListener("pointermove", (event) => {
    const frame = picture.getBoundingClientRect();
    const at = ((event.clientX - frame.left) / frame.width) * CHART.width;
    const near = strong.map((curve) => ({ curve, place: nearestStep(curve.steps, at, x) }));
    if (!near.length) return;
    const distance = ({ curve, place }) => Math.abs(x(curve.steps[place]) - at);
    const best = near.reduce((a, b) => (distance(b) < distance(a) ? b : a));
    const step = best.curve.steps[best.place];
    mark.setAttribute("d", `M${x(step)} ${CHART.top}V${CHART.height - CHART.bottom}`);
    // Curves without a value hereabouts, such as of a run that was shorter, aren't said.
    const close = near.filter(({ curve, place }) => Math.abs(x(curve.steps[place]) - x(step)) < 6);
    const lines = close.map(({ curve, place }) => {
      const value = curve.values[place];
      const other = curve.steps[place] === step ? "" : ` (step ${curve.steps[place].toLocaleString("en")})`;
      return `${curve.name}: ${value === null ? "not a number" : exactNumber(value)}${other}`;
    });
    showTip(tip, event, `step ${step.toLocaleString("en")}`, lines);
  });
  picture.addEventListener("pointerleave", () => {
    tip.hidden = true;
    mark.setAttribute("d", "");
  });
}

function nearestStep(steps, at, x) {
  let low = 0, high = steps.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (x(steps[middle]) < at) low = middle;
    else high = middle;
  }
  return Math.abs(x(steps[low]) - at) <= Math.abs(x(steps[high]) - at) ? low : high;
}

/** What a chart shows, for those who don't see it. */
function inWords(chart, curves) {
  const said = curves.filter((curve) => !curve.faint).map((curve) => {
    const known = curve.steps.map((step, place) => [step, curve.values[place]]).filter(([, value]) => value !== null);
    if (!known.length) return `${curve.name}: no values`;
    const [[first, from], [last, to]] = [known[0], known[known.length - 1]];
    return `${curve.name}: ${exactNumber(from)} at step ${first}, ${exactNumber(to)} at step ${last}`;
  });
  return `${chart.title}${chart.unit ? `, ${chart.unit}` : ""}, over optimizer steps. ${said.join("; ")}`;
}

function strokeOf(look, width) {
  const stroke = { fill: "none", stroke: `var(--class-${look.colour % COLOURS})`, "stroke-width": width };
  return look.dash ? { ...stroke, "stroke-dasharray": look.dash } : stroke;
}

/** Smallest and largest of the values that are numbers; null if none is. */
function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) {
    if (value === null) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return low <= high ? [low, high] : null;
}

/** Round values that span a range: {low, high, values}; low and high are the outermost. */
function niceTicks(low, high, count = 4) {
  // Without a range one is made, of the size of the value.
  const span = high - low || Math.abs(high) || 1;
  const power = 10 ** Math.floor(Math.log10(span / count));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((one) => span / one <= count) ?? 10 * power;
  const first = Math.floor(low / step), last = Math.max(Math.ceil((high - step * 1e-9) / step), first + 1);
  const values = Array.from({ length: Math.min(last - first + 1, 50) }, (_, index) => (first + index) * step);
  return { low: first * step, high: last * step, values };
}

/** "12k", "0.25", "1e-4": a number on an axis. */
function shortNumber(value) {
  const size = Math.abs(value);
  if (size >= 1e12 || (size && size < 1e-3)) return value.toExponential(1).replace(".0e", "e").replace("e+", "e");
  for (const [unit, letter] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (size >= unit) return `${Number((value / unit).toPrecision(3))}${letter}`;
  }
  return String(Number(value.toPrecision(3)));
}

function exactNumber(value) {
  const size = Math.abs(value);
  if (size && (size < 1e-3 || size >= 1e9)) return value.toExponential(3);
  return Number(value.toPrecision(5)).toLocaleString("en", { maximumFractionDigits: 6 });
}

function svg(name, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

function svgText(x, y, text, anchor) {
  const element = svg("text", { x, y, "text-anchor": anchor });
  element.textContent = text;
  return element;
}
