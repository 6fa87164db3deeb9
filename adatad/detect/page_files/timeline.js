// The timeline: rows of classes over the time of the video, drawn on a canvas as large as what is seen of it.

const MIN_SPAN_SECONDS = 0.5;
/** Pixels beside a bar at which a pointer still means it: short segments are hard to hit. */
const REACH = 4;
const NARROW = 620;
const RIGHT = 14;

/**
 * Draws segments and turns pointers into times. Events: "seek" with detail {time}, "pick" with detail {segment}.
 * `view` is the part of the video that is seen: {start, end} in seconds.
 */
class Timeline extends EventTarget {
  constructor(store, looks, byId) {
    super();
    Object.assign(this, { store, looks, box: byId("timeline"), canvas: byId("bars"), spacer: byId("spacer") });
    Object.assign(this, { head: byId("playhead"), headTime: byId("playhead-time"), tip: byId("tip") });
    this.overview = byId("overview");
    this.none = byId("timeline-none");
    this.duration = 1;
    this.view = { start: 0, end: 1 };
    this.time = 0;
    this.selected = this.hovered = null;
    this._listen();
    new ResizeObserver(() => this.layOut()).observe(this.box);
  }

  /** Show another video, or the same one with a duration that is now known. */
  setDuration(seconds) {
    this.duration = Math.max(seconds, MIN_SPAN_SECONDS);
    this.view = { start: 0, end: this.duration };
    this.box.setAttribute("aria-valuemax", this.duration.toFixed(1));
    this.draw();
  }

  get isZoomed() {
    return this.view.end - this.view.start < this.duration * 0.999;
  }

  /** Zoom around a time, which stays where it is; factor over 1 shows less. */
  zoom(factor, time = this.time) {
    const span = this.view.end - this.view.start;
    const wanted = Math.min(Math.max(span / factor, MIN_SPAN_SECONDS), this.duration);
    const at = Math.min(Math.max(time, this.view.start), this.view.end);
    this.moveTo(at - ((at - this.view.start) / span) * wanted, wanted);
  }

  fit() {
    this.moveTo(0, this.duration);
  }

  /** Show what begins at a time, with the same span or another one. */
  moveTo(start, span = this.view.end - this.view.start) {
    const first = Math.min(Math.max(start, 0), this.duration - span);
    this.view = { start: first, end: first + span };
    this.draw();
  }

  /** Move the playhead. follow: show the part of the video that it is in. */
  setTime(seconds, follow) {
    this.time = seconds;
    const { start, end } = this.view;
    if (follow && this.isZoomed && (seconds < start || seconds > end)) this.moveTo(seconds - (end - start) * 0.1);
    this._placeHead();
  }

  /** Find rows and lanes anew, after another video, filter or width. */
  layOut() {
    this.narrow = this.box.clientWidth < NARROW;
    this.left = this.narrow ? 10 : Math.min(190, this.box.clientWidth * 0.2);
    const truth = this.store.truth.filter((one) => !this.store.hidden.has(one.label));
    Object.assign(this, buildRows(this.store.shown, truth, this.narrow));
    // The style sheet has the most that it gets; from there on it scrolls.
    for (const { style } of [this.box, this.spacer, this.head]) style.height = `${this.height}px`;
    this.none.hidden = this.rows.length > 0;
    this.draw();
  }

  /** Draw soon, once for all changes of a frame. */
  draw() {
    this._frame ??= requestAnimationFrame(() => {
      this._frame = null;
      this._draw();
    });
  }

  x(time) {
    return this.left + ((time - this.view.start) / (this.view.end - this.view.start)) * this._inner();
  }

  timeAt(x) {
    const time = this.view.start + ((x - this.left) / this._inner()) * (this.view.end - this.view.start);
    return Math.min(Math.max(time, 0), this.duration);
  }

  /** Where a segment is drawn, in pixels of the timeline's box; null where it isn't seen. */
  boxOf(segment) {
    const bar = this.rows.flatMap((row) => row.bars).find((one) => one.segment === segment);
    return bar ? this._box(bar) : null;
  }

  _inner() {
    return Math.max(this.box.clientWidth - this.left - RIGHT, 1);
  }

  /** The box of a bar, cut to what is seen, at least two pixels wide; null outside of it. */
  _box({ segment, top, height }) {
    const right = this.left + this._inner();
    const from = this.x(segment.start), to = this.x(segment.end);
    if (to < this.left - 1 || from > right + 1) return null;
    const left = Math.min(Math.max(from, this.left), right - 2);
    return { left, top: top - this.box.scrollTop, width: Math.max(Math.min(to, right) - left, 2), height };
  }

  _draw() {
    // What scrolls lies over the canvas, which stays where it is and draws the rows that are seen.
    this.canvas.style.height = `${this.box.clientHeight}px`;
    this.spacer.style.marginTop = `${-this.box.clientHeight}px`;
    const { context, width, height, ratio } = prepare(this.canvas);
    const axis = ticks(this.view.start, this.view.end, this._inner());
    const scroll = this.box.scrollTop;
    const seen = this.rows.filter((row) => row.top + row.height > scroll + AXIS_HEIGHT && row.top < scroll + height);
    for (const row of seen) this._drawGround(context, row, width, scroll);
    context.fillStyle = this.looks.line;
    for (const time of axis.times) context.fillRect(Math.round(this.x(time)), AXIS_HEIGHT, 1, height);
    for (const row of seen) {
      this._drawName(context, row, scroll);
      for (const bar of row.bars) {
        const box = this._box(bar);
        const marks = { selected: bar.segment === this.selected, hovered: bar.segment === this.hovered, ratio };
        if (box) paintBar(context, this.looks, bar.segment, box, marks);
      }
    }
    this._drawAxis(context, axis, width);
    this._drawOverview();
    this._placeHead();
  }

  _drawGround(context, row, width, scroll) {
    context.fillStyle = this.looks.row;
    if (this.rows.indexOf(row) % 2 === 0) context.fillRect(0, row.top - scroll, width, row.height);
  }

  _drawName(context, row, scroll) {
    const top = row.top - scroll;
    context.font = `500 12.5px ${this.looks.font}`;
    context.fillStyle = this.looks.ink;
    const name = this.store.classes[row.label];
    const y = this.narrow ? top + ROW_PADDING + NAME_HEIGHT / 2 - 2 : top + row.height / 2;
    const room = this.narrow ? this._inner() - 6 : this.left - 22;
    context.fillText(fitted(context, name, room), this.narrow ? 16 : 10, y);
  }

  _drawAxis(context, axis, width) {
    // Over the rows, which scroll below it.
    context.fillStyle = this.looks.card;
    context.fillRect(0, 0, width, AXIS_HEIGHT);
    context.fillStyle = this.looks.line;
    context.fillRect(0, AXIS_HEIGHT - 1, width, 1);
    context.font = `11.5px ${this.looks.font}`;
    for (const time of axis.times) {
      const x = this.x(time), text = clock(time, axis.digits), half = context.measureText(text).width / 2;
      context.fillStyle = this.looks.line;
      context.fillRect(Math.round(x), AXIS_HEIGHT - 6, 1, 6);
      context.fillStyle = this.looks.soft;
      context.fillText(text, Math.min(Math.max(x - half, 2), width - 2 * half - 2), AXIS_HEIGHT / 2 - 2);
    }
  }

  /** The whole video in a strip, with the part that the timeline shows; there while it is zoomed. */
  _drawOverview() {
    this.overview.hidden = !this.isZoomed;
    if (this.overview.hidden) return;
    const { context, width, height } = prepare(this.overview);
    const x = (time) => (time / this.duration) * width;
    paintStrip(context, this.looks, this.store.shown, x, 4, height - 8);
    context.fillStyle = this.looks.accent;
    const left = x(this.view.start), wide = Math.max(x(this.view.end) - left, 3);
    context.globalAlpha = 0.16;
    context.fillRect(left, 0, wide, height);
    context.globalAlpha = 1;
    context.strokeStyle = this.looks.accent;
    context.lineWidth = 2;
    context.strokeRect(left + 1, 1, wide - 2, height - 2);
  }

  _placeHead() {
    const x = this.x(this.time);
    this.head.hidden = x < this.left - 1 || x > this.left + this._inner() + 1;
    this.head.style.transform = `translateX(${x.toFixed(2)}px)`;
    this._placeHeadTime(x);
    this.box.setAttribute("aria-valuenow", this.time.toFixed(1));
    this.box.setAttribute("aria-valuetext", `${clock(this.time)} of ${clock(this.duration)}`);
  }

  /** Write the time over the playhead; beside its middle where it would leave the timeline. */
  _placeHeadTime(x) {
    const text = clock(this.time);
    this.headTime.textContent = text;
    // Measured anew only for a longer text: to ask for a width costs a layout, and this runs for every frame.
    if (this._headText?.length !== text.length) this._headWidth = this.headTime.offsetWidth;
    this._headText = text;
    const half = this._headWidth / 2;
    const middle = Math.min(Math.max(x, half + 2), this.box.clientWidth - half - 2);
    this.headTime.style.transform = `translateX(${(middle - x - half + 1).toFixed(1)}px)`;
  }

  /** The bar at a place, if there is one: the nearest, annotations too. */
  _barAt(x, y) {
    const place = y + this.box.scrollTop;
    if (y < AXIS_HEIGHT) return null;
    const row = this.rows.find((one) => place >= one.top && place < one.top + one.height);
    let best = null, nearest = REACH;
    for (const bar of row?.bars ?? []) {
      if (place < bar.top - 1 || place > bar.top + bar.height + 1) continue;
      const box = this._box(bar);
      const distance = box ? Math.max(box.left - x, x - box.left - box.width, 0) : Infinity;
      // <=: of bars that lie over each other the last one is on top.
      if (distance <= nearest) [best, nearest] = [bar, distance];
    }
    return best;
  }

  /** Whether a place is neither on the names nor on the scroll bar. */
  _isOnTime(x) {
    return x >= this.left - REACH && x < this.box.clientWidth;
  }

  _listen() {
    const place = (event, element = this.box) => {
      const frame = element.getBoundingClientRect();
      return { x: event.clientX - frame.left, y: event.clientY - frame.top };
    };
    const seek = (x) => this.dispatchEvent(new CustomEvent("seek", { detail: { time: this.timeAt(x) } }));
    let dragging = false, dragged = false, touch = false;
    this.box.addEventListener("pointerdown", (event) => {
      const { x, y } = place(event);
      touch = event.pointerType === "touch";
      // A finger may be about to scroll the page: it means a place only once it was a click.
      dragging = dragged = event.button === 0 && !touch && this._isOnTime(x) && !this._barAt(x, y);
      if (!dragging) return;
      this.box.setPointerCapture(event.pointerId);
      seek(x);
    });
    this.box.addEventListener("click", (event) => {
      const { x, y } = place(event), bar = this._barAt(x, y);
      if (dragged) return;
      if (bar) this.dispatchEvent(new CustomEvent("pick", { detail: { segment: bar.segment } }));
      else if (touch && this._isOnTime(x)) seek(x);
    });
    this.box.addEventListener("pointermove", (event) => {
      const { x, y } = place(event);
      if (dragging) return seek(x);
      this._hover(event.pointerType === "touch" ? null : this._barAt(x, y), event);
    });
    for (const name of ["pointerup", "pointercancel"]) this.box.addEventListener(name, () => (dragging = false));
    this.box.addEventListener("pointerleave", () => this._hover(null));
    this.box.addEventListener("scroll", () => this.draw());
    this.box.addEventListener("wheel", (event) => this._wheel(event, place(event).x), { passive: false });
    this.overview.addEventListener("pointerdown", (event) => this.overview.setPointerCapture(event.pointerId));
    for (const name of ["pointerdown", "pointermove"]) {
      this.overview.addEventListener(name, (event) => {
        if (!event.buttons) return;
        const middle = (place(event, this.overview).x / this.overview.clientWidth) * this.duration;
        this.moveTo(middle - (this.view.end - this.view.start) / 2);
      });
    }
  }

  /** With ctrl (a pinch on a touchpad has it too) zoom; sideways move along; else the page scrolls. */
  _wheel(event, x) {
    const sideways = event.shiftKey && !event.deltaX ? event.deltaY : event.deltaX;
    if (event.ctrlKey || event.metaKey) {
      event.preventDefault();
      this.zoom(Math.exp(-Math.max(-60, Math.min(60, event.deltaY)) / 120), this.timeAt(x));
    } else if (this.isZoomed && Math.abs(sideways) > (event.shiftKey ? 0 : Math.abs(event.deltaY))) {
      event.preventDefault();
      this.moveTo(this.view.start + (sideways / this._inner()) * (this.view.end - this.view.start));
    }
  }

  _hover(bar, event) {
    this.box.style.cursor = bar ? "pointer" : "";
    this.tip.hidden = !bar;
    if (bar) this._showTip(bar.segment, event);
    if ((bar?.segment ?? null) === this.hovered) return;
    this.hovered = bar?.segment ?? null;
    this.draw();
  }

  _showTip(segment, event) {
    const times = `${clock(segment.start)} – ${clock(segment.end)}, ${(segment.end - segment.start).toFixed(1)} s`;
    const what = segment.annotated ? "annotated" : `score ${scoreText(segment.score)}`;
    const tiou = segment.overlap === null || segment.annotated ? "" : `, tIoU ${segment.overlap.toFixed(2)}`;
    showTip(this.tip, event, this.store.classes[segment.label], [times, what + tiou]);
  }
}

/** Paint segments of any class into one strip, the surest on top. x: from seconds to pixels. */
function paintStrip(context, looks, segments, x, top, height) {
  for (const segment of [...segments].sort((a, b) => (a.score ?? 1) - (b.score ?? 1))) {
    context.globalAlpha = opacityOf(segment);
    context.fillStyle = looks.colour(segment.label);
    context.fillRect(x(segment.start), top, Math.max(x(segment.end) - x(segment.start), 1.5), height);
  }
  context.globalAlpha = 1;
}
