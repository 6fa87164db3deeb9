// Numbers and times as texts.

/** "1:02.5", or "1:00:02.5" from an hour on. digits: decimals of the seconds. */
function clock(seconds, digits = 1) {
  if (!Number.isFinite(seconds)) return "–";
  const unit = 10 ** digits;
  // Rounded first: 59.99 is 1:00.0, not 0:60.0.
  const whole = Math.round(Math.abs(seconds) * unit) / unit;
  const hours = Math.floor(whole / 3600), minutes = Math.floor(whole / 60) % 60;
  const rest = (whole % 60).toFixed(digits).padStart(digits ? digits + 3 : 2, "0");
  const sign = seconds < 0 && whole ? "−" : "";
  return hours ? `${sign}${hours}:${String(minutes).padStart(2, "0")}:${rest}` : `${sign}${minutes}:${rest}`;
}

function plural(count, one, many = `${one}s`) {
  return `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
}
