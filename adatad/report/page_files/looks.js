// Colours and patterns by which classes are told apart: one look a class, everywhere on a page.

/** Colours in the style sheet, --class-0 and so on; classes after those get them again with the next pattern. */
const COLOURS = 8;
const PATTERNS = 4;

/** 0: plain; the others are drawn over the colour. */
function patternOf(label) {
  return Math.floor(label / COLOURS) % PATTERNS;
}

/** Give an element the colour, as --colour, and the pattern of a class. label: its number in the class list. */
function dress(element, label) {
  element.style.setProperty("--colour", `var(--class-${label % COLOURS})`);
  element.classList.add(`pattern-${patternOf(label)}`);
  return element;
}

/** Return an element that shows a class's colour and pattern. */
function swatch(label) {
  const made = document.createElement("i");
  made.className = "key";
  return dress(made, label);
}
