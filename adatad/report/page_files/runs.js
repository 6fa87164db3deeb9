// Which runs there are: the head of the page, their figures side by side, and which one the parts below are of.

/** Seconds without a new line after which a run that isn't done is called silent, at least; else so many steps. */
const SILENT_SECONDS = 120;
const SILENT_STEPS = 20;

/** Where a run stands, in words. now: seconds since 1970 by the clock of the machine that read the files. */
function standing({ progress, result }, now, live) {
  const { step, steps, step_seconds: seconds, written } = progress;
  if (step === null) return result ? "no metrics of training" : "has just begun: no step yet";
  const done = steps !== null && step >= steps;
  const text = `step ${step.toLocaleString("en")}${steps === null ? "" : ` of ${steps.toLocaleString("en")}`}`;
  if (done || result?.stopped_early) return `training has ended, ${text}`;
  const left = steps !== null && seconds !== null ? `, about ${duration((steps - step) * seconds)} of training left` : "";
  if (!live) return text;
  const age = written === null ? 0 : now - written;
  if (age > Math.max(SILENT_SECONDS, SILENT_STEPS * (seconds ?? 0))) {
    return `${text}; nothing new for ${duration(age)}: it evaluates, has ended, or was stopped`;
  }
  return `${text}${left}; written ${duration(age)} ago`;
}

function headContent(data, now, problem, choose) {
  const { runs, live, chosen } = data;
  const title = runs.length === 1 ? [named(runs[0].name), " ", h("span", { class: "soft" }, named(runs[0].run))] : plural(runs.length, "run");
  const status = (run) => h("p", { class: "soft status" }, standing(run, now, live));
  return [
    h("h1", {}, title),
    runs.length === 1 ? status(runs[0]) : h("div", { class: "run-list", role: "group", "aria-label": "Run that is shown below" },
      runs.map((run, place) => {
        const button = h("button", { type: "button", "aria-pressed": String(place === chosen) }, runKey(place), named(run.label));
        button.addEventListener("click", () => choose(place));
        return h("div", {}, button, status(run));
      })),
    problem && h("p", { class: "problem", role: "status" }, problem),
  ];
}

/** The colour of a run in the charts. */
function runKey(place) {
  const key = h("i", { class: "key" });
  key.style.setProperty("--colour", `var(--class-${place % COLOURS})`);
  return key;
}

/** Figures of the runs, a column each. */
function comparisonSection({ runs }) {
  if (runs.length === 1) return null;
  const value = (name, as = percent) => runs.map(({ result }) => ((result?.[name] ?? null) === null ? "–" : as(result[name])));
  const tious = [...new Set(runs.flatMap(({ result }) => Object.keys(result?.mAP ?? {})))];
  const rows = [
    ["average mAP, last", ...value("average_mAP")],
    ["average mAP, best", ...value("best_average_mAP")],
    ["average mAP, untrained", ...value("untrained_average_mAP")],
    ...tious.map((tiou) => [`mAP at tIoU ${tiou}`, ...runs.map(({ result }) => percent(result?.mAP?.[tiou]))]),
    ["epochs", ...value("epochs", String)],
    ["steps", ...runs.map(({ progress }) => progress.step?.toLocaleString("en") ?? "–")],
    ["time", ...value("seconds", duration)],
    ["seconds a step", ...runs.map(({ progress }) => progress.step_seconds?.toPrecision(3) ?? "–")],
  ];
  return section("Figures", table("Figures of the runs, in percent", ["", ...runs.map((run) => named(run.label))], rows));
}
