// What matters first: sentences on the score, the result with last and best epoch, and what the page lacks.

function firstSection({ explained, result }) {
  if (!explained) {
    return result ? null : section("What to do first", h("p", {}, "No evaluation yet: after the first one this says where the mAP goes."));
  }
  const { draws, videos, notes } = explained;
  // A run that broke before its first evaluation has sentences alone.
  const limits = draws
    ? [`Intervals hold 95 % of ${draws.toLocaleString("en")} draws of a bootstrap over ${plural(videos, "video")}`, ...notes]
    : ["No evaluation yet"];
  return section(
    "What to do first",
    h("ol", { class: "sentences" }, explained.sentences.map((sentence) => h("li", { dir: "auto" }, sentence))),
    h("p", { class: "soft" }, `${limits.join("; ")}.`),
  );
}

function resultSection({ result, published }) {
  if (!result) {
    if (!published) return null;
    const known = Object.entries(published).map(([name, value]) => `${name} ${value}`);
    return section("Result", h("p", {}, `No evaluation yet. Published: ${known.join(", ")}.`));
  }
  const epochs = result.epochs ?? null;
  const figure = (value, text, main = false) => h("div", { class: main ? "figure main" : "figure" },
    h("b", {}, percent(value)), h("span", {}, text));
  const best = result.best_average_mAP ?? null;
  const figures = [
    figure(result.average_mAP, epochs === null ? "average mAP" : `average mAP, last: after ${plural(epochs, "epoch")}`, true),
    best !== null && figure(best, `best${result.best_epoch > 0 ? `: after ${plural(result.best_epoch, "epoch")}` : ""}; chosen on these very videos, it flatters`),
    (result.untrained_average_mAP ?? null) !== null && figure(result.untrained_average_mAP, "untrained"),
    Object.entries(result.groups ?? {}).map(([name, group]) => (
      figure(group.average_mAP, [named(name), `, ${plural(group.instances, "instance")}`])
    )),
  ];
  return section(
    "Result",
    h("div", { class: "figures" }, figures),
    resultTable(result, published),
    h("p", { class: "soft" }, "In percent. Mean average precision (mAP) asks how well the detections, best first, find every "
      + "annotated action with the right class; tIoU is the overlap in time, as a share of the union, from which one counts as found.",
      (result.seconds ?? null) !== null && ` Training and evaluation took ${duration(result.seconds)}.`,
      result.stopped_early && " The run stopped early (train.stop_after)."),
  );
}

/** mAP by tIoU: of the last epoch, of the best one where it is known, and what was published. */
function resultTable(result, published) {
  const best = Object.keys(result.best_mAP ?? {}).length ? result.best_mAP : null;
  const theirs = (name) => {
    const value = published?.[name];
    return value === null || value === undefined ? "" : Number(value).toFixed(2);
  };
  const row = (name, shown, last, atBest) => [shown, percent(last), ...(best ? [percent(atBest)] : []), ...(published ? [theirs(name)] : [])];
  const rows = [
    row("average_mAP", "average", result.average_mAP, result.best_average_mAP),
    ...Object.entries(result.mAP ?? {}).map(([tiou, value]) => row(tiou, tiou, value, best?.[tiou])),
  ];
  const heads = ["mAP at tIoU", "last", ...(best ? ["best"] : []), ...(published ? ["published"] : [])];
  return h("div", { class: "narrow" }, table("mAP by tIoU", heads, rows));
}

function notesSection({ notes, more_notes: more }) {
  if (!notes.length) return null;
  return section("Left out", notes.map((line) => h("p", { class: "soft note" }, line)), more > 0 && h("p", { class: "soft" }, `and ${more} more`));
}

function ranksSection({ rank_errors: errors }) {
  if (!errors.length) return null;
  return section("Errors of ranks", table("Errors of ranks", ["rank", "last error"], errors.map(([rank, text]) => [rank, h("code", {}, text)])));
}
