// Lanes of segments that overlap, and ticks of a time axis.

/** More lanes than this make a row unreadably high; what overlaps more is drawn over the last. */
const MAX_LANES = 8;

/**
 * Return a lane for each segment such that none overlap in a lane, the best score in the highest that is free.
 * The surest detections so stand in one line, doubtful ones below them.
 */
function packLanes(segments) {
  const taken = [];
  const lanes = new Map();
  const byScore = [...segments].sort((a, b) => (b.score ?? 1) - (a.score ?? 1) || a.start - b.start);
  for (const segment of byScore) {
    let lane = 0;
    while (lane < MAX_LANES - 1 && taken[lane] && !isFree(taken[lane], segment)) lane++;
    taken[lane] ??= [];
    taken[lane].splice(positionOf(taken[lane], segment.start), 0, segment);
    lanes.set(segment, lane);
  }
  return { lanes, count: taken.length };
}

/** Number of segments of a lane, which are by start, that start before a time. */
function positionOf(lane, time) {
  let low = 0, high = lane.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (lane[middle].start < time) low = middle + 1;
    else high = middle;
  }
  return low;
}

function isFree(lane, segment) {
  const position = positionOf(lane, segment.start);
  const before = lane[position - 1], after = lane[position];
  return !(before && before.end > segment.start) && !(after && after.start < segment.end);
}

const TICK_STEPS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600];

/** Return the times to write at an axis, and the decimals to write them with: {step, times, digits}. */
function ticks(start, end, width) {
  const wanted = ((end - start) * 76) / Math.max(width, 1);
  let step = TICK_STEPS.find((one) => one >= wanted);
  // Days and more, of damaged files: hours in powers of two, so that the count stays bounded.
  step ??= 3600 * 2 ** Math.ceil(Math.log2(wanted / 3600));
  const first = Math.ceil(start / step), count = Math.floor(end / step) - first + 1;
  const times = Array.from({ length: Math.min(Math.max(count, 0), 400) }, (_, index) => (first + index) * step);
  return { step, times, digits: step < 1 ? 1 : 0 };
}
