// A list of any length of which only the rows that are seen are elements of the page.

const SPARE_ROWS = 6;

/**
 * Shows `count` rows of one height in a box that scrolls. The box itself has the keyboard's focus, and says by
 * aria-activedescendant which row is the active one: rows come and go as it scrolls.
 */
class Rows {
  /** build: called with the number of a row, returns its content; role: of a row. */
  constructor(box, rowHeight, role, build) {
    Object.assign(this, { box, rowHeight, role, build, count: 0, active: -1 });
    this.inner = document.createElement("div");
    this.inner.setAttribute("role", "presentation");
    this.inner.className = "rows-inner";
    box.append(this.inner);
    box.addEventListener("scroll", () => this._fill());
    new ResizeObserver(() => this._fill()).observe(box);
  }

  /** Build all rows anew. */
  show(count) {
    this.count = count;
    this.inner.style.height = `${count * this.rowHeight}px`;
    this.inner.replaceChildren();
    this._fill();
  }

  /** Make a row the active one; -1: none. scroll: into view. */
  setActive(number, scroll = true) {
    this.active = number;
    for (const row of this.inner.children) this._mark(row);
    if (number < 0) {
      this.box.removeAttribute("aria-activedescendant");
      return;
    }
    const top = number * this.rowHeight, { scrollTop, clientHeight } = this.box;
    if (scroll && top < scrollTop) this.box.scrollTop = top;
    if (scroll && top + this.rowHeight > scrollTop + clientHeight) {
      this.box.scrollTop = top + this.rowHeight - clientHeight;
    }
    this._fill();
    this.box.setAttribute("aria-activedescendant", this._id(number));
  }

  /** The number of the row that an event came from; null for none. */
  numberOf(event) {
    const row = event.target.closest?.("[data-number]");
    return row ? Number(row.dataset.number) : null;
  }

  _id(number) {
    return `${this.box.id}-${number}`;
  }

  _mark(row) {
    const active = Number(row.dataset.number) === this.active;
    row.classList.toggle("active", active);
    row.setAttribute("aria-selected", String(active));
  }

  /** Take out rows that are no longer seen, and add those that are. */
  _fill() {
    const first = Math.max(Math.floor(this.box.scrollTop / this.rowHeight) - SPARE_ROWS, 0);
    const last = Math.ceil((this.box.scrollTop + this.box.clientHeight) / this.rowHeight) + SPARE_ROWS;
    const present = new Set();
    for (const row of [...this.inner.children]) {
      const number = Number(row.dataset.number);
      if (number < first || number >= last) row.remove();
      else present.add(number);
    }
    for (let number = first; number < Math.min(last, this.count); number++) {
      if (!present.has(number)) this.inner.append(this._row(number));
    }
  }

  _row(number) {
    const row = document.createElement("div");
    row.id = this._id(number);
    row.dataset.number = number;
    row.setAttribute("role", this.role);
    row.style.top = `${number * this.rowHeight}px`;
    row.style.height = `${this.rowHeight}px`;
    if (this.role === "option") {
      row.setAttribute("aria-posinset", number + 1);
      row.setAttribute("aria-setsize", this.count);
    } else {
      // The first row is that of the headers.
      row.setAttribute("aria-rowindex", number + 2);
    }
    row.append(...this.build(number));
    this._mark(row);
    return row;
  }
}

/** An element with a class and a text. */
function element(name, className, text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}
