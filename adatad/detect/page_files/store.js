// What the page knows: videos with their segments, which of them pass the filters, and texts made of them.

/**
 * @typedef {object} Segment
 * @property {number} label index of the class
 * @property {number} start seconds
 * @property {number} end seconds
 * @property {?number} score null where it was labelled by hand
 * @property {?number} overlap with annotated segments of its class, from 0 to 1; null without annotations
 */

/** Data and filters. Events: "filter" when other segments pass, "video" when another video is chosen. */
class Store extends EventTarget {
  constructor(data) {
    super();
    this.classes = data.classes;
    /** The threshold that detections of each class were chosen by; null where there is none. */
    this.thresholds = data.thresholds;
    this.videos = data.videos;
    /** One threshold for all classes; null: each class has its own. */
    this.common = data.thresholds ? null : 0;
    this.hidden = new Set();
    this.current = 0;
    this._scores = new Map();
    this._read();
  }

  get video() {
    return this.videos[this.current];
  }

  threshold(label) {
    return this.common ?? this.thresholds[label] ?? 0;
  }

  passes(segment) {
    return !this.hidden.has(segment.label) && (segment.score ?? 1) >= this.threshold(segment.label);
  }

  /** Detections of the current video that pass, by start. */
  get shown() {
    this._shown ??= this.all.filter((segment) => this.passes(segment));
    return this._shown;
  }

  selectVideo(index) {
    if (index === this.current || !this.videos[index]) return;
    this.current = index;
    this._read();
    this.dispatchEvent(new Event("video"));
  }

  setThreshold(common) {
    this.common = common;
    this._filtered();
  }

  /** Hide the classes of the set, show all others. */
  hide(labels) {
    this.hidden = new Set(labels);
    this._filtered();
  }

  /** Numbers of segments of a video that pass, and in all: {shown, all}. */
  count(video) {
    let shown = 0, all = 0;
    for (const label of this._scoresOf(video).keys()) {
      const one = this.countOf(video, label);
      all += one.all;
      if (!this.hidden.has(label)) shown += one.shown;
    }
    return { shown, all };
  }

  /** The same for one class, whether it is hidden or not. */
  countOf(video, label) {
    const scores = this._scoresOf(video).get(label);
    if (!scores) return { shown: 0, all: 0 };
    return { shown: scores.length - firstAtLeast(scores, this.threshold(label)), all: scores.length };
  }

  /** Detections of a video that pass. Rows of other videos become objects only for this: there may be hundreds. */
  shownOf(video) {
    const passing = video.segments.filter(([label, , , score]) => this.passes({ label, score }));
    return passing.map(([label, start, end, score]) => ({ label, start, end, score, overlap: null }));
  }

  _read() {
    this._shown = null;
    const { segments, truth } = this.video ?? { segments: [], truth: null };
    this.truth = (truth ?? []).map(([label, start, end]) => ({ label, start, end, score: null, annotated: true }));
    const annotated = group(this.truth);
    this.all = segments.map(([label, start, end, score]) => {
      const segment = { label, start, end, score, overlap: null };
      const best = (most, one) => Math.max(most, overlap(one, segment));
      if (truth) segment.overlap = (annotated.get(label) ?? []).reduce(best, 0);
      return segment;
    });
  }

  _filtered() {
    this._shown = null;
    this.dispatchEvent(new Event("filter"));
  }

  /** Scores of a video by class, ascending: with them a moved slider counts all videos in a moment. */
  _scoresOf(video) {
    let scores = this._scores.get(video);
    if (!scores) {
      scores = new Map();
      for (const [label, , , score] of video.segments) {
        if (!scores.has(label)) scores.set(label, []);
        scores.get(label).push(score ?? 1);
      }
      for (const [label, values] of scores) scores.set(label, Float64Array.from(values).sort());
      this._scores.set(video, scores);
    }
    return scores;
  }
}

/** Segments by class: a map of lists. */
function group(segments) {
  const groups = new Map();
  for (const one of segments) {
    if (!groups.has(one.label)) groups.set(one.label, []);
    groups.get(one.label).push(one);
  }
  return groups;
}

/** Position of the first of ascending values that is at least `limit`. */
function firstAtLeast(values, limit) {
  let low = 0, high = values.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] < limit) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Intersection over union of two segments. */
function overlap(a, b) {
  const both = Math.min(a.end, b.end) - Math.max(a.start, b.start);
  return both > 0 ? both / (Math.max(a.end, b.end) - Math.min(a.start, b.start)) : 0;
}

function scoreText(score) {
  return score === null ? "–" : score.toFixed(2);
}

/** The segments that pass the filters, of the given videos, as a CSV text. */
function csv(store, videos) {
  const quoted = (value) => (/[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
  const lines = ["video,label,start_seconds,end_seconds,score"];
  for (const video of videos) {
    for (const [label, start, end, score] of video.segments) {
      if (!store.passes({ label, score })) continue;
      lines.push([quoted(video.name), quoted(store.classes[label]), start, end, score ?? ""].join(","));
    }
  }
  return `${lines.join("\r\n")}\r\n`;
}
