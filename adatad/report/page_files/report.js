// The page: draws its sections from the data, and in a live page asks the server for newer data and draws what changed.

const POLL_MILLISECONDS = 2000;

/** Sections from the top: [id, parts of a run's data that it is drawn from, function of (run, data)]. */
const SECTIONS = [
  ["figures", null, (run, data) => comparisonSection(data)],
  ["first", ["explained", "result"], firstSection],
  ["result", ["result", "published"], resultSection],
  ["ranks", ["rank_errors"], ranksSection],
  ["notes", ["notes", "more_notes"], notesSection],
  ["training", null, (run, data) => trainingSection(data.runs, document.getElementById("tip"))],
  ["classes", ["class_rows", "classes", "tious"], classesSection],
  ["errors", ["explained", "classes"], errorsSection],
  ["timelines", ["timelines", "videos", "classes"], timelinesSection],
  ["batch", ["first_batch"], batchSection],
  ["profile", ["profile"], profileSection],
  ["settings", ["trained", "settings", "links"], settingsSection],
];

class Report {
  constructor(data) {
    this.main = document.getElementById("main");
    this.head = document.getElementById("head");
    this.chosen = 0;
    this.problem = "";
    /** What each section was drawn from: it is drawn anew only from something else. */
    this.drawn = new Map();
    this.take(data);
  }

  /** Draw data, which may be newer than what is shown. */
  take(data) {
    const names = data.runs.map((run) => `${run.name} ${run.run}`);
    data.runs.forEach((run, place) => {
      run.place = place;
      run.label = names.filter((name) => name === names[place]).length > 1 ? `${names[place]} (${place + 1})` : names[place];
    });
    this.data = data;
    this.taken = Date.now();
    this.draw();
  }

  draw() {
    const anchor = [...this.main.children].find((element) => element.getBoundingClientRect().bottom > 0);
    const before = anchor?.getBoundingClientRect().top, id = anchor?.id;
    const data = { ...this.data, chosen: this.chosen }, run = data.runs[this.chosen];
    this.drawHead();
    for (const [name, parts, make] of SECTIONS) this._drawSection(name, parts, () => make(run, data));
    // What is looked at stays where it is, also if something above has grown.
    const after = id && document.getElementById(id)?.getBoundingClientRect().top;
    if (window.scrollY > 0 && Number.isFinite(after)) window.scrollBy(0, after - before);
  }

  drawHead() {
    const data = { ...this.data, chosen: this.chosen };
    // Clocks of this browser and of the machine with the files may differ: only what has passed here is added.
    const now = Math.max(...data.runs.map((run) => run.progress.read)) + (Date.now() - this.taken) / 1000;
    const focused = [...this.head.querySelectorAll("button")].indexOf(document.activeElement);
    this.head.replaceChildren();
    fill(this.head, headContent(data, now, this.problem, (place) => this.choose(place)));
    if (focused >= 0) this.head.querySelectorAll("button")[focused]?.focus();
  }

  choose(place) {
    this.chosen = place;
    this.draw();
  }

  _drawSection(name, parts, make) {
    const { runs } = this.data, run = runs[this.chosen];
    const source = parts
      ? [this.chosen, ...parts.map((part) => run[part])]
      : runs.map(({ label, charts, result, progress }) => [label, charts, result, name === "figures" ? [progress.step, progress.step_seconds] : null]);
    const state = JSON.stringify(source);
    if (this.drawn.get(name) === state) return;
    this.drawn.set(name, state);
    const made = make() ?? h("section", { hidden: true });
    made.id = name;
    // Of which of several runs a section is.
    const heading = made.querySelector("h2");
    if (parts && runs.length > 1 && heading) fill(heading, [" ", h("span", { class: "soft" }, named(run.label))]);
    const old = document.getElementById(name);
    if (old) old.replaceWith(made);
    else this.main.append(made);
  }

  /** Ask for newer data, again and again. */
  async follow() {
    for (let tag = null; ; await new Promise((resolve) => setTimeout(resolve, POLL_MILLISECONDS))) {
      // A page in the background asks for nothing.
      if (document.hidden) continue;
      try {
        const answer = await fetch("data.json", { cache: "no-store", headers: tag ? { "If-None-Match": tag } : {} });
        if (answer.status !== 304 && !answer.ok) throw new Error(`it answers ${answer.status}`);
        this.problem = "";
        if (answer.status === 304) this.drawHead();
        else {
          tag = answer.headers.get("ETag");
          this.take(await answer.json());
        }
      } catch (error) {
        const at = new Date(this.taken).toLocaleTimeString("en", { hour12: false });
        this.problem = `adatad report --serve doesn't answer (${error.message}): this is what it said at ${at}.`;
        this.drawHead();
      }
    }
  }
}

listenForTips(document.getElementById("tip"));
const report = new Report(JSON.parse(document.getElementById("data").textContent));
if (report.data.live) report.follow();
