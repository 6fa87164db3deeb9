// Average precision by class, with the number of instances that it was computed from.

function classesSection({ class_rows: rows, classes, tious }) {
  if (!rows.length) return null;
  const count = (row) => (row.instances === null ? "–" : row.instances.toLocaleString("en"));
  const made = rows.map((row) => {
    const name = h("th", { scope: "row" }, classNamed(row.class, classes));
    if (row.average === null) {
      return h("tr", { class: "absent" }, name, h("td", {}, count(row)), h("td", { class: "soft", colspan: tious.length + 2 },
        row.instances ? "not scored" : "no instances in validation"));
    }
    const bar = dress(h("div", { class: "share" }), row.class);
    bar.style.width = `${100 * Math.min(Math.max(row.average, 0), 1)}%`;
    return h("tr", {}, name, h("td", {}, count(row)), h("td", {}, percent(row.average)),
      h("td", { class: "bar-cell", "aria-hidden": "true" }, bar), row.values.map((value) => h("td", {}, percent(value))));
  });
  const heads = ["class", "instances", "average", "", ...tious.map((tiou) => `tIoU ${tiou}`)];
  return section("Average precision by class", h("div", { class: "wide" }, table("Average precision by class, in percent", heads, made)));
}
