// The box beside the pointer that says what is under it.

/** Show a title in bold and lines of text, or elements, beside a pointer; within the window. */
function showTip(tip, event, title, lines) {
  const name = document.createElement("b");
  name.textContent = title;
  name.dir = "auto";
  tip.replaceChildren(name, ...lines.flatMap((line) => [document.createElement("br"), line]));
  tip.hidden = false;
  const { offsetWidth: width, offsetHeight: height } = tip;
  const left = Math.min(event.clientX + 12, document.documentElement.clientWidth - width - 8);
  const below = event.clientY + 18 + height < window.innerHeight;
  tip.style.left = `${Math.max(left, 8)}px`;
  tip.style.top = `${below ? event.clientY + 18 : Math.max(event.clientY - height - 12, 8)}px`;
}
