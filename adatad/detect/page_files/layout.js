// Where things stand on the timeline: rows of classes, with bars in lanes.

const AXIS_HEIGHT = 28;
const ROW_PADDING = 7;
const TRUTH_HEIGHT = 7;
const NAME_HEIGHT = 18;
const LANE_GAP = 2;
/** Height of a lane by how many there are: few are high enough for a score in the bar. */
const laneHeight = (lanes) => (lanes <= 3 ? 18 : lanes <= 5 ? 11 : 7);

/**
 * Return {rows, height}: the rows of classes that occur, from the top, as {label, top, height, bars}, and the height of
 * all; a bar is {segment, top, height}. named: whether a line above each row has room for its name.
 */
function buildRows(detections, truth, named) {
  const labels = [...new Set([...detections, ...truth].map((one) => one.label))].sort((a, b) => a - b);
  const found = group(detections), annotated = group(truth);
  const rows = [];
  let top = AXIS_HEIGHT;
  for (const label of labels) {
    const bars = [];
    let y = top + ROW_PADDING + (named ? NAME_HEIGHT : 0);
    if (truth.length) {
      // Room for annotations in every row, so that a row without any shows that there are none.
      for (const segment of annotated.get(label) ?? []) bars.push({ segment, top: y, height: TRUTH_HEIGHT });
      y += TRUTH_HEIGHT + LANE_GAP + 1;
    }
    const own = found.get(label) ?? [];
    const { lanes, count } = packLanes(own);
    const height = laneHeight(Math.max(count, 1));
    for (const segment of own) bars.push({ segment, top: y + lanes.get(segment) * (height + LANE_GAP), height });
    y += Math.max(count, 1) * (height + LANE_GAP) - LANE_GAP + ROW_PADDING;
    rows.push({ label, top, height: y - top, bars });
    top = y;
  }
  return { rows, height: Math.max(top, AXIS_HEIGHT + 40) };
}
