// Which segments are shown: a slider over their scores, and a check box for each class.

const BINS = 40;

class Filters {
  constructor(store, looks, byId) {
    Object.assign(this, { store, looks, score: byId("score"), value: byId("score-value"), remain: byId("remain") });
    Object.assign(this, { model: byId("score-model"), list: byId("classes"), histogram: byId("histogram") });
    this.score.addEventListener("input", () => store.setThreshold(Number(this.score.value)));
    this.model.addEventListener("click", () => store.setThreshold(null));
    byId("classes-all").addEventListener("click", () => store.hide([]));
    byId("classes-none").addEventListener("click", () => store.hide(store.classes.keys()));
    this._buildClasses();
    new ResizeObserver(() => this._drawHistogram()).observe(this.histogram);
  }

  /** Show thresholds and counts as they are now. */
  draw() {
    const { store } = this;
    const own = store.common === null;
    const known = (store.thresholds ?? []).filter((value) => value !== null);
    const least = store.common ? `at least ${store.common.toFixed(2)}` : "all";
    this.score.value = own ? middle(known) : store.common;
    this.value.textContent = own ? `as detected, ${range(known)}` : least;
    this.score.setAttribute("aria-valuetext", own ? "the thresholds of the detections" : least);
    this.model.hidden = own || !store.thresholds;
    this._drawCounts();
    this._drawHistogram();
  }

  _drawCounts() {
    const { store } = this;
    if (store.video) {
      const { shown, all } = store.count(store.video);
      this.remain.textContent = `${shown.toLocaleString("en")} of ${plural(all, "segment")} shown`;
    }
    for (const { label, box, count } of this.boxes) {
      box.checked = !store.hidden.has(label);
      const { shown, all } = store.video ? store.countOf(store.video, label) : { shown: 0, all: 0 };
      count.textContent = all ? `${shown}/${all}` : "–";
      const threshold = store.threshold(label);
      count.title = `${shown} of ${all} in this video score at least ${threshold.toFixed(2)}`;
      box.closest("li").classList.toggle("absent", !all);
    }
  }

  _buildClasses() {
    this.boxes = this.store.classes.map((name, label) => {
      const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: true });
      const text = element("bdi", "name", name);
      text.title = name;
      const count = element("span", "count numbers");
      const line = element("label", "");
      line.append(box, swatch(label), text, count);
      const item = document.createElement("li");
      item.append(line);
      box.addEventListener("change", () => {
        const hidden = new Set(this.store.hidden);
        if (box.checked) hidden.delete(label);
        else hidden.add(label);
        this.store.hide(hidden);
      });
      return { label, box, count, item };
    });
    this.list.replaceChildren(...this.boxes.map((one) => one.item));
  }

  /** Scores of the current video's segments: all of them in grey, those that are shown in colour. */
  _drawHistogram() {
    const { context, width, height } = prepare(this.histogram);
    const bins = Array.from({ length: BINS }, () => ({ all: 0, shown: 0 }));
    for (const segment of this.store.all) {
      if (this.store.hidden.has(segment.label)) continue;
      const bin = bins[Math.min(Math.max(Math.floor((segment.score ?? 1) * BINS), 0), BINS - 1)];
      bin.all++;
      if (this.store.passes(segment)) bin.shown++;
    }
    const most = Math.max(...bins.map((bin) => bin.all), 1);
    // By square roots: a detector gives many low scores, beside which the good ones would not be seen.
    const tall = (count) => Math.sqrt(count / most) * (height - 2);
    const wide = width / BINS;
    bins.forEach((bin, index) => {
      context.fillStyle = this.looks.line;
      context.fillRect(index * wide + 0.5, height - tall(bin.all), wide - 1, tall(bin.all));
      context.fillStyle = this.looks.accent;
      context.fillRect(index * wide + 0.5, height - tall(bin.shown), wide - 1, tall(bin.shown));
    });
    context.fillStyle = this.looks.line;
    context.fillRect(0, height - 1, width, 1);
  }
}

function middle(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] ?? 0;
}

function range(values) {
  const low = Math.min(...values).toFixed(2), high = Math.max(...values).toFixed(2);
  return !values.length || low === high ? low : `${low} to ${high}`;
}
