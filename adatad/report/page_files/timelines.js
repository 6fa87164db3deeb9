// Timelines of the validation videos: annotated segments above, detections below, in colours that say class and score.

const LANE_HEIGHT = 17;
const AXIS_HEIGHT = 20;
const STRIP_HEIGHT = 50;
/** Pixels below which a timeline isn't squeezed: it scrolls. */
const LEAST_WIDTH = 620;
const WIDTH_FOR_TEXT = 46;
/** Share of its class's colour that a detection with score 0 has; one with score 1 has all of it, in every video. */
const LEAST_STRENGTH = 0.12;
/** Detections up to which all timelines are drawn at once, also for a print; more only near what is seen. */
const FEW_DETECTIONS = 4000;

/** What is filtered, by run: {score, hidden}; kept when the section is drawn anew. */
const filters = new Map();

/** The score from which detections are shown at first: as many are then as there are annotated segments. */
function firstScore(timelines) {
  const scores = timelines.flatMap(({ found }) => found.map(([, , , score]) => score)).sort((a, b) => b - a);
  const wanted = timelines.reduce((sum, { truth }) => sum + truth.length, 0);
  const least = scores.length ? scores[Math.min(Math.max(wanted, 1), scores.length) - 1] : 0;
  return Math.min(Math.max(Math.floor(100 * least) / 100, 0), 1);
}

function timelinesSection(run) {
  const { timelines, videos, classes } = run;
  if (!timelines.length) return null;
  const key = `${run.name} ${run.run} ${run.place}`;
  if (!filters.has(key)) filters.set(key, { score: firstScore(timelines), hidden: new Set() });
  const filter = filters.get(key);
  const all = timelines.reduce((sum, { found }) => sum + found.length, 0);
  const margin = all <= FEW_DETECTIONS ? "1000000px" : "600px";
  const boxes = timelines.map((timeline) => new TimelineBox(timeline, classes, filter, margin));
  const output = h("output", { class: "numbers", for: "score" }), remain = h("p", { class: "soft numbers", id: "remain", "aria-live": "polite" });
  const slider = h("input", { type: "range", id: "score", min: 0, max: 1, step: 0.01, value: filter.score, "aria-describedby": "remain" });
  const update = () => {
    output.textContent = filter.score.toFixed(2);
    const shown = boxes.reduce((sum, box) => sum + box.shown().length, 0);
    remain.textContent = `${shown.toLocaleString("en")} of ${plural(all, "detection")} shown`;
    for (const box of boxes) box.update();
  };
  slider.addEventListener("input", () => {
    filter.score = Number(slider.value);
    update();
  });
  update();
  const more = videos > timelines.length && ` The first ${timelines.length} of ${plural(videos, "video")}; all are pictures in the folder timelines.`;
  return section(
    "Validation videos",
    h("p", { class: "soft" }, "Annotated actions above, detections of the last evaluation below.", more),
    h("div", { class: "filter" },
      h("label", { for: "score" }, "Detections with a score of at least ", output), slider, remain,
      h("div", { class: "legends" }, scoreScale(), classLegend(timelines, classes, filter, update))),
    boxes.map((box) => box.element),
  );
}

/** The colours of scores, from 0 to 1. */
function scoreScale() {
  const marks = [0, 0.25, 0.5, 0.75, 1].map((score) => h("span", {}, String(score)));
  return h("div", { class: "scale", role: "img", "aria-label": "Colours of scores: from faint, 0, to strong, 1" },
    h("span", {}, "score"), h("div", {}, h("div", { class: "scale-colours" }), h("div", { class: "scale-marks numbers" }, marks)));
}

/** A button for each class that occurs, which hides its segments. */
function classLegend(timelines, classes, filter, update) {
  const used = new Set(timelines.flatMap(({ truth, found }) => [...truth, ...found].map(([label]) => label)));
  return h("div", { class: "class-legend", role: "group", "aria-label": "Classes" }, [...used].sort((a, b) => a - b).map((label) => {
    const button = h("button", { type: "button", "aria-pressed": String(!filter.hidden.has(label)) }, classNamed(label, classes));
    button.addEventListener("click", () => {
      if (!filter.hidden.delete(label)) filter.hidden.add(label);
      button.setAttribute("aria-pressed", String(!filter.hidden.has(label)));
      update();
    });
    return button;
  }));
}

/** One video. Its bars are made while it is within `margin` of what is seen: there may be thousands on the page. */
class TimelineBox {
  constructor(timeline, classes, filter, margin) {
    Object.assign(this, { timeline, classes, filter });
    this.counts = h("span", { class: "soft numbers" });
    this.area = h("div", { class: "timeline-area", role: "img" });
    const heading = h("h3", {}, named(timeline.name), " ", this.counts);
    this.element = h("article", { class: "timeline" }, heading, scrolling(this.area, `Timeline of ${timeline.name}`));
    this.near = false;
    this.stale = true;
    const watch = new IntersectionObserver((entries) => {
      this.near = entries[entries.length - 1].isIntersecting;
      this._drawIfNear();
    }, { rootMargin: margin });
    watch.observe(this.element);
  }

  _drawIfNear() {
    if (!this.near || !this.stale) return;
    this.stale = false;
    this._draw();
  }

  /** Detections that pass the filter. */
  shown() {
    return this.timeline.found.filter(([label, , , score]) => score >= this.filter.score && !this.filter.hidden.has(label));
  }

  update() {
    const { timeline } = this, { truth, duration, left_out: more } = timeline;
    const outside = [...truth, ...timeline.found].filter(([, start, end]) => end < 0 || start > duration).length;
    const shown = this.shown().length;
    const parts = [`${duration.toFixed(1)} s`, `${truth.length} annotated`, `${shown} detected`];
    if (more) parts.push(`${more.toLocaleString("en")} more with scores up to ${timeline.left_out_below} aren't on the page`);
    if (outside) parts.push(`${plural(outside, "segment")} outside of the video`);
    this.counts.textContent = parts.join(", ");
    this.area.setAttribute("aria-label", `${timeline.name}: ${parts.join(", ")}`);
    this.stale = true;
    this._drawIfNear();
  }

  _draw() {
    const { timeline, area } = this;
    const seen = ([label, start, end]) => end >= 0 && start <= timeline.duration && !this.filter.hidden.has(label);
    const segments = (rows) => rows.filter(seen).map(([label, start, end, score]) => ({ label, start, end, score: score ?? null }));
    const parts = [];
    let top = AXIS_HEIGHT;
    for (const [kind, rows, none] of [["annotated", timeline.truth, "nothing annotated"], ["detected", this.shown(), "nothing detected"]]) {
      const own = segments(rows), { lanes, count } = packLanes(own);
      parts.push(this._at(h("div", { class: "lane-name soft" }, own.length ? kind : none), top));
      top += LANE_HEIGHT;
      for (const segment of own) parts.push(this._bar(segment, kind, top + lanes.get(segment) * LANE_HEIGHT));
      top += count * LANE_HEIGHT + 2;
    }
    if (timeline.strip) parts.push(this._at(h("img", { class: "strip", src: timeline.strip, alt: `frames of ${timeline.name}`, loading: "lazy" }), top + 2));
    else parts.push(this._at(h("div", { class: "lane-name soft" }, timeline.strip === "" ? "frames follow" : "no frames: unreadable video"), top));
    area.style.height = `${top + (timeline.strip ? STRIP_HEIGHT + 4 : LANE_HEIGHT)}px`;
    area.replaceChildren(...this._axis(), ...parts);
  }

  _at(element, top) {
    element.style.top = `${top}px`;
    return element;
  }

  _share(seconds) {
    return Math.min(Math.max(seconds / Math.max(this.timeline.duration, 1e-9), 0), 1);
  }

  _bar({ label, start, end, score }, kind, top) {
    const [from, to] = [this._share(start), this._share(end)];
    const bar = dress(this._at(h("i", { class: `bar ${kind}` }), top), label);
    const strength = score === null ? 1 : LEAST_STRENGTH + (1 - LEAST_STRENGTH) * Math.min(Math.max(score, 0), 1);
    bar.style.setProperty("--strength", `${(100 * strength).toFixed(1)}%`);
    bar.style.left = `${(100 * from).toFixed(3)}%`;
    bar.style.width = `${(100 * Math.max(to - from, 0)).toFixed(3)}%`;
    if ((to - from) * Math.max(this.area.clientWidth, LEAST_WIDTH) >= WIDTH_FOR_TEXT) {
      const text = score === null ? this.classes[label] : `${score.toFixed(2)} ${this.classes[label]}`;
      bar.append(h("bdi", { class: strength > 0.6 ? "on-strong" : "" }, text));
    }
    const times = `${clock(start)} – ${clock(end)}, ${(end - start).toFixed(1)} s`;
    return withTip(bar, this.classes[label], times, score === null ? "annotated" : `score ${score.toFixed(3)}`);
  }

  _axis() {
    const { times, digits } = ticks(0, this.timeline.duration, Math.max(this.area.clientWidth, LEAST_WIDTH));
    return times.map((time) => {
      const mark = h("div", { class: "tick soft numbers" }, h("span", {}, clock(time, digits)));
      mark.style.left = `${100 * this._share(time)}%`;
      return mark;
    });
  }
}
