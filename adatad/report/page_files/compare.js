// The page of a comparison: its charts, and what the intervals under the pointer say.

const given = JSON.parse(document.getElementById("data").textContent);
const tip = document.getElementById("tip");
for (const chart of given.charts) document.getElementById("charts").append(curveChart(chart, tip));
for (const bar of document.querySelectorAll(".interval")) {
  bar.addEventListener("pointermove", (event) => showTip(tip, event, bar.dataset.what, [bar.getAttribute("aria-label")]));
  bar.addEventListener("pointerleave", () => { tip.hidden = true; });
}
