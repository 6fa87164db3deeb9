// Puts the parts together, and listens to keys.

const STEP_SECONDS = 1;
/** Time after a segment's start within which "previous" means the one before it, as players of music do it. */
const PREVIOUS_SECONDS = 0.7;

const byId = (id) => document.getElementById(id);
const store = new Store(JSON.parse(byId("data").textContent));
const looks = new Looks();
const timeline = new Timeline(store, looks, byId);
const player = new Player(store, looks, byId);
const videoList = new VideoList(store, looks, byId);
const table = new SegmentTable(store, looks, byId);
const filters = new Filters(store, looks, byId);

/** Go to a segment, mark it everywhere, and play if asked. */
function pick(segment, play) {
  timeline.selected = segment;
  timeline.draw();
  table.select(store.shown.includes(segment) ? segment : null);
  player.seek(segment.start, play);
  timeline.setTime(segment.start, true);
}

/** Go to the next segment that is shown, or the previous one with -1. */
function stepSegment(step) {
  const { time } = player, shown = store.shown;
  // Segments may start together: from a selected one it goes on by their order.
  const at = shown.indexOf(timeline.selected);
  const isThere = at >= 0 && Math.abs(shown[at].start - time) < 0.05;
  const next =
    isThere && shown[at + step] ? shown[at + step]
    : isThere ? null
    : step > 0 ? shown.find((one) => one.start > time + 0.01)
    : shown.findLast((one) => one.start < time - PREVIOUS_SECONDS) ?? shown[0];
  if (next) pick(next, false);
}

function showVideo() {
  byId("video-name").textContent = store.video?.name ?? "No videos";
  byId("legend-truth").hidden = !store.truth.length;
  timeline.selected = timeline.hovered = null;
  player.load();
  timeline.setDuration(player.duration);
  videoList.showCurrent();
  showSegments();
}

/** Draw what depends on the current video and the filters. */
function showSegments() {
  timeline.layOut();
  timeline.none.textContent = store.all.length
    ? "No segment passes the filters: lower the score, or show more classes."
    : "Nothing was detected here.";
  table.draw();
  filters.draw();
  player.refresh();
}

function showTotals() {
  let shown = 0;
  for (const video of store.videos) shown += store.count(video).shown;
  byId("totals").textContent = `${plural(store.videos.length, "video")}, ${plural(shown, "segment")} shown`;
}

store.addEventListener("video", showVideo);
store.addEventListener("filter", () => {
  showSegments();
  videoList.draw();
  showTotals();
});
player.addEventListener("time", () => timeline.setTime(player.time, !player.video.paused));
player.addEventListener("duration", () => {
  if (player.duration !== timeline.duration) timeline.setDuration(player.duration);
});
timeline.addEventListener("seek", (event) => player.seek(event.detail.time));
timeline.addEventListener("pick", (event) => pick(event.detail.segment, true));
table.addEventListener("pick", (event) => pick(event.detail.segment, true));
byId("previous").addEventListener("click", () => stepSegment(-1));
byId("next").addEventListener("click", () => stepSegment(1));
byId("zoom-in").addEventListener("click", () => timeline.zoom(2));
byId("zoom-out").addEventListener("click", () => timeline.zoom(0.5));
byId("zoom-fit").addEventListener("click", () => timeline.fit());

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  looks.read();
  timeline.draw();
  videoList.draw();
  filters.draw();
});

const KEYS = {
  " ": () => player.toggle(),
  k: () => player.toggle(),
  ArrowLeft: (event) => (event.shiftKey ? player.seek(player.time - STEP_SECONDS) : stepSegment(-1)),
  ArrowRight: (event) => (event.shiftKey ? player.seek(player.time + STEP_SECONDS) : stepSegment(1)),
  n: () => videoList.step(1),
  p: () => videoList.step(-1),
  "+": () => timeline.zoom(2),
  "=": () => timeline.zoom(2),
  "-": () => timeline.zoom(0.5),
  0: () => timeline.fit(),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  // Fields and buttons keep the keys that they know themselves.
  if (event.target.matches("input:not([type=checkbox]):not([type=range]), select, textarea")) return;
  if (event.target.matches("[type=range]") && event.key.startsWith("Arrow")) return;
  if (event.target.closest("button, [type=checkbox], label.button") && event.key === " ") return;
  const act = KEYS[event.key];
  if (!act) return;
  event.preventDefault();
  act(event);
});

// A button that was clicked with the mouse doesn't take the focus: space goes on to play and pause.
document.addEventListener("mousedown", (event) => {
  if (event.target.closest("button, #classes label")) event.preventDefault();
});

byId("main").classList.toggle("one-video", store.videos.length < 2);
byId("csv-all").hidden = store.videos.length < 2;
byId("csv-video").disabled = !store.videos.length;
showVideo();
showTotals();
