// The list of videos, and the table of one video's segments.

const VIDEO_ROW_HEIGHT = 54;
const SEGMENT_ROW_HEIGHT = 36;

/** Videos by name, each with its number of segments and a strip of them. */
class VideoList {
  constructor(store, looks, byId) {
    Object.assign(this, { store, looks, search: byId("video-search"), none: byId("video-none") });
    this.box = byId("video-list");
    this.toggle = byId("videos-toggle");
    this.nav = byId("videos");
    this.rows = new Rows(this.box, VIDEO_ROW_HEIGHT, "option", (number) => this._build(this.found[number]));
    this.search.addEventListener("input", () => this.find());
    this.box.addEventListener("click", (event) => {
      const number = this.rows.numberOf(event);
      if (number !== null) store.selectVideo(this.found[number]);
    });
    this.box.addEventListener("keydown", (event) => {
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      this.step(step);
    });
    // On a narrow page the list is folded away above the video.
    this.toggle.addEventListener("click", () => {
      const open = this.nav.classList.toggle("open");
      this.toggle.setAttribute("aria-expanded", String(open));
      if (open) this.showCurrent();
    });
    // Strips have no size while the list is folded away, and another one when the page's width changes.
    new ResizeObserver(() => this.draw()).observe(this.box);
    this.find();
  }

  /** Show the videos whose name has the text of the search field. */
  find() {
    const wanted = this.search.value.trim().toLowerCase();
    const all = this.store.videos.map((_, index) => index);
    this.found = wanted ? all.filter((index) => this.store.videos[index].name.toLowerCase().includes(wanted)) : all;
    this.none.hidden = this.found.length > 0;
    this.box.hidden = this.found.length === 0;
    this.draw();
  }

  draw() {
    this.rows.show(this.found.length);
    this.showCurrent(false);
  }

  showCurrent(scroll = true) {
    this.rows.setActive(this.found.indexOf(this.store.current), scroll);
    this.toggle.textContent = `Video ${this.store.current + 1} of ${this.store.videos.length}`;
  }

  /** Choose the next video of those listed, or the previous one with -1. */
  step(step) {
    const at = this.found.indexOf(this.store.current);
    const next = this.found[at < 0 ? 0 : at + step];
    if (next !== undefined) this.store.selectVideo(next);
  }

  _build(index) {
    const video = this.store.videos[index];
    const name = element("bdi", "name", video.name);
    name.title = video.name;
    const { shown } = this.store.count(video);
    const count = element("span", "count numbers", shown.toLocaleString("en"));
    count.title = plural(shown, "segment");
    const strip = element("canvas", "strip");
    // Once it has its size in the page.
    requestAnimationFrame(() => strip.isConnected && this._drawStrip(strip, video));
    return [name, count, strip];
  }

  _drawStrip(strip, video) {
    const { context, width, height } = prepare(strip);
    const segments = this.store.shownOf(video);
    const last = video.duration || segments.reduce((most, one) => Math.max(most, one.end), 1);
    context.fillStyle = this.looks.row;
    context.fillRect(0, 0, width, height);
    paintStrip(context, this.looks, segments, (time) => (Math.min(time, last) / last) * width, 0, height);
  }
}

/** The current video's segments that pass the filters, in the order of a column. Event: "pick" with {segment}. */
class SegmentTable extends EventTarget {
  constructor(store, looks, byId) {
    super();
    Object.assign(this, { store, looks, grid: byId("grid"), count: byId("table-count"), none: byId("table-none") });
    this.box = byId("segment-list");
    this.key = "start";
    this.down = false;
    this.segments = [];
    this.rows = new Rows(this.box, SEGMENT_ROW_HEIGHT, "row", (number) => this._build(this.segments[number]));
    this.headers = [...this.grid.querySelectorAll("[data-sort]")];
    for (const header of this.headers) header.addEventListener("click", () => this.sort(header.dataset.sort));
    this.box.addEventListener("click", (event) => this._pick(this.rows.numberOf(event)));
    this.box.addEventListener("keydown", (event) => this._key(event));
    byId("csv-video").addEventListener("click", () => download(`${store.video.name}.csv`, csv(store, [store.video])));
    byId("csv-all").addEventListener("click", () => download("detections.csv", csv(store, store.videos)));
  }

  /** Sort by a column; a second time in the other direction. Scores and overlaps begin with the largest. */
  sort(key) {
    this.down = key === this.key ? !this.down : key === "score" || key === "overlap" || key === "length";
    this.key = key;
    this.draw();
  }

  draw() {
    const value = this._value();
    const sign = this.down ? -1 : 1;
    this.segments = [...this.store.shown].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      return x === y ? a.start - b.start : x < y ? -sign : sign;
    });
    for (const header of this.headers) {
      const order = header.dataset.sort === this.key ? (this.down ? "descending" : "ascending") : "none";
      header.setAttribute("aria-sort", order);
    }
    this.grid.classList.toggle("no-overlap", !this.store.video?.truth);
    this.grid.setAttribute("aria-rowcount", this.segments.length + 1);
    this.count.textContent = this.segments.length.toLocaleString("en");
    this.none.hidden = this.segments.length > 0;
    this.box.hidden = this.segments.length === 0;
    this.rows.show(this.segments.length);
  }

  select(segment) {
    this.rows.setActive(segment ? this.segments.indexOf(segment) : -1);
  }

  _value() {
    switch (this.key) {
      case "label":
        return (one) => this.store.classes[one.label].toLowerCase();
      case "length":
        return (one) => one.end - one.start;
      default:
        return (one) => one[this.key] ?? 1;
    }
  }

  _pick(number) {
    const segment = this.segments[number];
    if (segment) this.dispatchEvent(new CustomEvent("pick", { detail: { segment } }));
  }

  _key(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) {
      event.preventDefault();
      const last = this.segments.length - 1;
      this.rows.setActive(Math.min(Math.max(this.rows.active + step, 0), last));
    }
    if (event.key === "Enter") this._pick(this.rows.active);
  }

  _build(segment) {
    const name = element("bdi", "name", this.store.classes[segment.label]);
    name.title = name.textContent;
    const first = element("span", "");
    first.append(swatch(segment.label), name);
    const score = element("span", "score numbers", scoreText(segment.score));
    score.style.setProperty("--share", Math.min(Math.max(segment.score ?? 1, 0), 1));
    score.style.setProperty("--colour", `var(--class-${segment.label % COLOURS})`);
    const cells = [
      first,
      element("span", "numbers", clock(segment.start)),
      element("span", "numbers wide", clock(segment.end)),
      element("span", "numbers", `${(segment.end - segment.start).toFixed(1)} s`),
      score,
      element("span", "numbers wide", segment.overlap === null ? "" : segment.overlap.toFixed(2)),
    ];
    for (const cell of cells) cell.setAttribute("role", "gridcell");
    const row = element("div", "cells");
    row.setAttribute("role", "presentation");
    row.append(...cells);
    return [row];
  }
}

/** Hand a text to the browser as a file to save. */
function download(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv;charset=utf-8" }));
  // A name of a video may hold what no file's name can.
  link.download = name.replace(/[\\/:*?"<>|\u0000-\u001f]/g, "_");
  link.click();
  // Not at once: some browsers begin to read it later.
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
