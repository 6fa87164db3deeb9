// Colours and patterns of classes on a canvas, and how a segment is painted.

/** The looks of all classes in the scheme that the browser shows now, light or dark. */
class Looks {
  constructor() {
    this.read();
  }

  /** Read the colours from the style sheet, which has one set for light and one for dark. */
  read() {
    const style = getComputedStyle(document.documentElement);
    const named = (name) => style.getPropertyValue(name).trim();
    this.colours = Array.from({ length: COLOURS }, (_, index) => named(`--class-${index}`));
    for (const name of ["card", "ink", "soft", "line", "truth", "row", "accent"]) this[name] = named(`--${name}`);
    this.font = named("--font");
    this._patterns = new Map();
  }

  colour(label) {
    return this.colours[label % COLOURS];
  }

  /** Return a canvas pattern of lines or dots in the card's colour, to be painted over a bar; null for plain. */
  texture(context, pattern, ratio) {
    if (!pattern) return null;
    const key = `${pattern} ${ratio}`;
    if (!this._patterns.has(key)) {
      const made = context.createPattern(tile(pattern, this.card, ratio), "repeat");
      made.setTransform(new DOMMatrix().scale(1 / ratio));
      this._patterns.set(key, made);
    }
    return this._patterns.get(key);
  }

  /** Ink or card, whichever reads better on a colour that lies on the card with some opacity. */
  textOn(colour, opacity) {
    const mixed = rgb(colour).map((value, index) => opacity * value + (1 - opacity) * rgb(this.card)[index]);
    const contrast = (other) => {
      const [a, b] = [luminance(mixed), luminance(rgb(other))].sort((x, y) => y - x);
      return (a + 0.05) / (b + 0.05);
    };
    return contrast(this.ink) >= contrast(this.card) ? this.ink : this.card;
  }
}

/** A square of 8 pixels that repeats: stripes, dots or a grid. */
function tile(pattern, colour, ratio) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = Math.round(8 * ratio);
  const context = canvas.getContext("2d");
  context.scale(canvas.width / 8, canvas.width / 8);
  context.fillStyle = context.strokeStyle = colour;
  context.globalAlpha = 0.65;
  context.lineWidth = 2;
  context.beginPath();
  if (pattern === 1) for (const x of [-8, 0, 8]) context.moveTo(x - 2, 10), context.lineTo(x + 10, -2);
  if (pattern === 2) for (const [x, y] of [[2, 2], [6, 6]]) context.moveTo(x, y), context.arc(x, y, 1.3, 0, 7);
  if (pattern === 3) context.moveTo(1, 0), context.lineTo(1, 8), context.moveTo(0, 1), context.lineTo(8, 1);
  if (pattern === 2) context.fill();
  else context.stroke();
  return canvas;
}

/** Red, green and blue of "#rrggbb". */
function rgb(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

/** Relative luminance as WCAG defines it, from 0 to 1. */
function luminance(colour) {
  const [red, green, blue] = colour.map((value) => {
    const part = value / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}

/** Opacity of a detection's bar: the fainter, the less sure, but always seen. */
function opacityOf(segment) {
  return segment.annotated ? 1 : 0.4 + 0.6 * Math.min(Math.max(segment.score ?? 1, 0), 1);
}

/** Paint one segment into a box {left, top, width, height}. */
function paintBar(context, looks, segment, box, { selected, hovered, ratio }) {
  const opacity = opacityOf(segment);
  const colour = segment.annotated ? looks.truth : looks.colour(segment.label);
  context.beginPath();
  context.roundRect(box.left, box.top, box.width, box.height, Math.min(3, box.width / 2, box.height / 2));
  context.globalAlpha = opacity;
  context.fillStyle = colour;
  context.fill();
  const texture = segment.annotated ? null : looks.texture(context, patternOf(segment.label), ratio);
  if (texture && box.width > 3) {
    context.fillStyle = texture;
    context.fill();
  }
  context.globalAlpha = 1;
  if (selected || hovered) {
    context.lineWidth = selected ? 2 : 1;
    context.strokeStyle = looks.ink;
    context.stroke();
  }
  if (!segment.annotated && box.height >= 16 && box.width >= 34) paintScore(context, looks, segment, box, texture);
}

function paintScore(context, looks, segment, box, texture) {
  context.font = `600 11px ${looks.font}`;
  const text = scoreText(segment.score);
  if (texture) {
    // On a pattern a text needs a plain ground.
    context.fillStyle = looks.colour(segment.label);
    context.fillRect(box.left + 4, box.top + 2, context.measureText(text).width + 4, box.height - 4);
  }
  context.fillStyle = looks.textOn(looks.colour(segment.label), texture ? 1 : opacityOf(segment));
  context.fillText(text, box.left + 6, box.top + box.height / 2 + 0.5);
}

/** Give a canvas one pixel for each of the screen's, and return its context in CSS pixels: {context, width, height}. */
function prepare(canvas) {
  const ratio = window.devicePixelRatio || 1;
  const width = canvas.clientWidth, height = canvas.clientHeight;
  const [wide, high] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== wide || canvas.height !== high) [canvas.width, canvas.height] = [wide, high];
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  context.textBaseline = "middle";
  return { context, width, height, ratio };
}

/** A text shortened to a width, with an ellipsis. */
function fitted(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  const characters = [...text];
  let low = 0, high = Math.min(characters.length, 120);
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (context.measureText(`${characters.slice(0, middle).join("")}…`).width <= width) low = middle;
    else high = middle - 1;
  }
  return `${characters.slice(0, low).join("")}…`;
}
