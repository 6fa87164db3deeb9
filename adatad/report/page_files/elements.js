// Elements of which the report is built: names from files become text, never markup.

/** Return an element. attributes: false and null are left out, true is there without a value. children: as in `fill`. */
function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    element.setAttribute(name, value === true ? "" : value);
  }
  fill(element, children);
  return element;
}

/** Append texts, elements and lists of them; null and false are nothing. */
function fill(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== false && child !== undefined) element.append(child);
  }
}

/** A name of a file, a class or a run, in its own direction of writing. */
function named(text) {
  return h("bdi", { class: "name", title: text.length > 24 ? text : null }, text);
}

/** The name of a class with its look before it. label: its number in the class list. */
function classNamed(label, classes) {
  return h("span", { class: "class-name" }, swatch(label), named(classes[label]));
}

/** A card with a heading; null where there is nothing to show. */
function section(title, ...children) {
  return h("section", { class: "card" }, h("h2", {}, title), children);
}

/** Which details are open, by key: they stay so when their section is drawn anew. */
const opened = new Map();

/** What opens at a click. */
function details(key, title, ...children) {
  const element = h("details", { open: opened.get(key) ?? false }, h("summary", {}, title), children);
  element.addEventListener("toggle", () => opened.set(key, element.open));
  return element;
}

/** A table that scrolls sideways where it is wide, its first column staying; says so. heads, cells: as in `fill`. */
function table(label, heads, rows) {
  const row = (cells, tag) => h("tr", {}, cells.map((cell, place) => {
    const scope = tag === "th" ? "col" : place ? null : "row";
    return h(scope ? "th" : "td", { scope }, cell);
  }));
  const body = h("table", { "aria-label": label }, h("thead", {}, row(heads, "th")), h("tbody", {}, rows.map((cells) => (
    cells instanceof Element ? cells : row(cells, "td")
  ))));
  return scrolling(body, label);
}

/** A box that scrolls sideways, with a line that says so while it is too narrow for what is in it. */
function scrolling(content, label) {
  const hint = h("p", { class: "scroll-hint soft", hidden: true }, "scrolls sideways →");
  // With a tab stop, so that arrow keys scroll it.
  const box = h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, content);
  const look = () => (hint.hidden = box.scrollWidth <= box.clientWidth + 1);
  const watch = new ResizeObserver(look);
  watch.observe(box);
  watch.observe(content);
  return h("div", { class: "scroll-box" }, hint, box);
}

/** Texts of the tip of elements: [title, lines]. */
const tips = new WeakMap();

/** Say these texts beside the pointer while it is over the element. */
function withTip(element, title, ...lines) {
  tips.set(element, [title, lines]);
  return element;
}

/** Show tips of all elements that have one, also of those that are made later. */
function listenForTips(tip) {
  let shown = null;
  const show = (event) => {
    let element = event.target instanceof Element ? event.target : null;
    while (element && !tips.has(element)) element = element.parentElement;
    if (!element && !shown) return;
    if (element) showTip(tip, event, ...tips.get(element));
    else tip.hidden = true;
    shown = element;
  };
  document.addEventListener("pointermove", show);
  document.addEventListener("pointerdown", show);
  document.addEventListener("pointerleave", () => (tip.hidden = true));
}

/** "12.3" of 0.123; a dash for null. */
function percent(value) {
  // Plus 0 turns -0 into 0.
  return value === null || value === undefined ? "–" : (Math.round(1000 * value) / 10 + 0).toFixed(1);
}

/** A figure in percent with its interval. */
function interval(figure) {
  if (figure?.value === null || figure?.value === undefined) return "–";
  return [percent(figure.value), " ", h("span", { class: "soft" }, `(${percent(figure.low)} to ${percent(figure.high)})`)];
}

/** "3 min 20 s", "2 h 05 min". */
function duration(seconds) {
  const whole = Math.max(Math.round(seconds), 0);
  if (whole < 60) return `${whole} s`;
  const two = (number) => String(number).padStart(2, "0");
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  return `${Math.floor(whole / 3600).toLocaleString("en")} h ${two(Math.floor(whole / 60) % 60)} min`;
}
