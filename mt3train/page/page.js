// The controls: buttons, keys, mouse and touch; and the loop that moves the playhead.

let follows = true, hovered = -1, dirty = true, time = 0;
const drawn = { time: -1, hovered: -1 };
const pointers = new Map();
let drag = null;

const buttons = (selector) => [...document.querySelectorAll(selector)];
const press = (button, on) => button.setAttribute("aria-pressed", on);

function seek(to) {
  audio.currentTime = clamp(to, 0, Math.max(0, (audio.duration || SECONDS) - 0.01));
  time = audio.currentTime;
  restartNotes();
  showPlayhead();
}

function showPlayhead() {
  if (time < view.start || time > view.start + span()) { view.start = time - 0.1 * span(); redraw(); }
}

function setFollow(on) {
  follows = on;
  press(element("follow"), on);
}

function redraw() {
  keepInside();
  dirty = true;
}

function toggle() {
  wakeSound();
  if (!audio.paused) return audio.pause();
  if (audio.ended) seek(0);
  showPlayhead();
  audio.play().catch((error) => tell(`The recording cannot be played here (${error.message}).`));
}

function tell(text) {
  element("problem").textContent = text;
  element("problem").hidden = false;
}

// Zooms by a factor around a point, which stays where it is.
function zoom(axis, factor, px, py) {
  if (axis === "time") {
    const at = timeAt(px);
    view.scale *= factor;
    keepInside();
    view.start = at - (px - view.left) / view.scale;
  } else {
    const at = view.top - (py - RULER) / view.row;
    view.row *= factor;
    keepInside();
    view.top = at + (py - RULER) / view.row;
  }
  redraw();
}

function pan(dx, dy) {
  view.start -= dx / view.scale;
  view.top += dy / view.row;
  redraw();
  if (dx && !audio.paused && (time < view.start || time > view.start + span())) setFollow(false);
}

function zoomAtCentre(axis, factor) {
  const at = time >= view.start && time <= view.start + span() ? x(time) : (view.left + view.width) / 2;
  zoom(axis, factor, at, (RULER + view.bottom) / 2);
}

// --- what is shown and heard ---------------------------------------------------------------------

function updateVoices() {
  for (const button of buttons("#legend .show")) press(button, shown[button.dataset.voice]);
  const alone = shown.filter(Boolean).length === 1 && shown.length > 1;
  for (const button of buttons("#legend .solo")) press(button, alone && shown[button.dataset.voice]);
  drawDots();
  restartNotes();
  redraw();
}

for (const button of buttons("#legend .show"))
  button.onclick = () => { shown[button.dataset.voice] = !shown[button.dataset.voice]; updateVoices(); };
for (const button of buttons("#legend .solo"))
  button.onclick = () => {
    const whole = button.getAttribute("aria-pressed") === "true";
    shown.forEach((_, k) => { shown[k] = whole || k === Number(button.dataset.voice); });
    updateVoices();
  };
for (const button of buttons("[data-heard]"))
  button.onclick = () => {
    wakeSound();
    hear(button.dataset.heard);
    for (const other of buttons("[data-heard]")) press(other, other === button);
  };
for (const button of buttons("[data-zoom]"))
  button.onclick = () => zoomAtCentre(button.dataset.zoom, Number(button.dataset.by));
element("play").onclick = toggle;
element("follow").onclick = () => { setFollow(!follows); if (follows) showPlayhead(); };
element("speed").onchange = (event) => { audio.playbackRate = Number(event.target.value); restartNotes(); };

// --- keys ----------------------------------------------------------------------------------------

const KEYS_DO = {
  " ": toggle,
  ArrowLeft: (event) => seek(time - (event.shiftKey ? 1 : 5)),
  ArrowRight: (event) => seek(time + (event.shiftKey ? 1 : 5)),
  ArrowUp: () => pan(0, 2 * view.row),
  ArrowDown: () => pan(0, -2 * view.row),
  Home: () => seek(0),
  End: () => seek(SECONDS),
  "+": () => zoomAtCentre("time", 1.5),
  "=": () => zoomAtCentre("time", 1.5),
  "-": () => zoomAtCentre("time", 0.67),
  PageUp: () => zoomAtCentre("pitch", 1.25),
  PageDown: () => zoomAtCentre("pitch", 0.8),
};
document.addEventListener("keydown", (event) => {
  const on = event.target.closest("button, a, select, summary, #roll, #map");
  const own = on && !["roll", "map"].includes(on.id);  // a button has a use for the space bar itself
  if (event.ctrlKey || event.metaKey || event.altKey || !KEYS_DO[event.key]) return;
  if (event.key === " " ? own : !on || own) return;
  event.preventDefault();
  KEYS_DO[event.key](event);
});
// A button that was clicked gives the space bar back; one reached by Tab keeps it.
document.addEventListener("click", (event) => {
  if (event.detail) event.target.closest("button")?.blur();
});

// --- mouse and touch -----------------------------------------------------------------------------

const place = (event) => {
  const { left, top } = roll.getBoundingClientRect();
  return [event.clientX - left, event.clientY - top];
};

function showTip(i, px, py) {
  hovered = i;
  const tip = element("tip");
  tip.hidden = i < 0;
  if (i < 0) return;
  const voice = data.voices[data.voice[i]];
  const what = voice.program === null ? data.drums[data.pitch[i]] : `${pitchName(data.pitch[i])} (${data.pitch[i]})`;
  const ends = voice.program === null ? "" : ` – ${offset[i].toFixed(3)}`;
  tip.textContent = `${what} · ${voice.name}${voice.program === null ? "" : ` (program ${voice.program})`}
    ${onset[i].toFixed(3)}${ends} s${data.velocity ? ` · velocity ${data.velocity[i]}` : ""}`.replace(/\n +/, "\n");
  tip.style.left = `${clamp(px + 14, 0, view.width - tip.offsetWidth - 4)}px`;
  tip.style.top = `${py + 18 + tip.offsetHeight > view.height ? py - tip.offsetHeight - 10 : py + 18}px`;
}

roll.addEventListener("pointerdown", (event) => {
  if (event.button) return;
  const [px, py] = place(event);
  pointers.set(event.pointerId, [px, py]);
  roll.setPointerCapture(event.pointerId);
  drag = { moved: pointers.size > 1 || (drag?.moved ?? false), px, py };
});
roll.addEventListener("pointermove", (event) => {
  const [px, py] = place(event), before = pointers.get(event.pointerId);
  if (!before) return showTip(px > view.left ? noteAt(px, py) : -1, px, py);
  if (!drag.moved && Math.hypot(px - drag.px, py - drag.py) < 5) return;
  if (!drag.moved) roll.classList.add("dragging");
  drag.moved = true;
  showTip(-1);
  const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
  pointers.set(event.pointerId, [px, py]);
  if (!other) return pan(px - before[0], py - before[1]);
  const grown = (axis) => clamp((Math.abs([px, py][axis] - other[axis]) + 60) / (Math.abs(before[axis] - other[axis]) + 60), 0.8, 1.25);
  zoom("time", grown(0), (px + other[0]) / 2, 0);
  zoom("pitch", grown(1), 0, (py + other[1]) / 2);
  pan((px - before[0]) / 2, (py - before[1]) / 2);
});
for (const name of ["pointerup", "pointercancel"])
  roll.addEventListener(name, (event) => {
    if (!pointers.delete(event.pointerId) || pointers.size) return;
    roll.classList.remove("dragging");
    const [px, py] = place(event);
    if (name === "pointerup" && !drag.moved && px > view.left) {
      seek(timeAt(px));
      showTip(noteAt(px, py), px, py);
    }
    drag = null;
  });
roll.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") showTip(-1); });
roll.addEventListener("wheel", (event) => {
  const [px, py] = place(event), factor = Math.exp(-clamp(event.deltaY, -60, 60) / 150);
  const before = `${view.start} ${view.top} ${view.scale} ${view.row}`;
  if (event.ctrlKey || event.metaKey) zoom("time", factor, px, py);
  else if (event.altKey) zoom("pitch", factor, px, py);
  else if (event.shiftKey) pan(-event.deltaY - event.deltaX, 0);
  else pan(-event.deltaX, -event.deltaY);
  showTip(-1);
  // Where the roll cannot move any further, the page scrolls.
  if (event.ctrlKey || before !== `${view.start} ${view.top} ${view.scale} ${view.row}`) event.preventDefault();
}, { passive: false });

const mapSeek = (event) => seek(((event.clientX - map.getBoundingClientRect().left) / map.clientWidth) * SECONDS);
map.addEventListener("pointerdown", (event) => { map.setPointerCapture(event.pointerId); mapSeek(event); });
map.addEventListener("pointermove", (event) => { if (event.buttons) mapSeek(event); });

// --- the loop ------------------------------------------------------------------------------------

function say() {
  const text = `${clock(time)} / ${clock(data.seconds)}`;
  if (element("time").textContent === text) return;
  element("time").textContent = text;
  map.setAttribute("aria-valuenow", time.toFixed(1));
  map.setAttribute("aria-valuetext", text.replace("/", "of"));
}

function frame() {
  if (!audio.paused) {
    time = audio.currentTime;
    if (follows && !pointers.size && (time > view.start + 0.92 * span() || time < view.start)) {
      const before = view.start;
      view.start = time - 0.08 * span();
      keepInside();
      dirty ||= before !== view.start;
    }
  }
  if (dirty || drawn.time !== time || drawn.hovered !== hovered) {
    if (dirty) drawStill();
    drawMoving(time, hovered);
    drawMap(time);
    say();
    Object.assign(drawn, { time, hovered });
    dirty = false;
  }
  requestAnimationFrame(frame);
}

function resize() {
  measure();
  drawDots();
  redraw();
}

audio.onplay = audio.onpause = () => {
  restartNotes();
  time = audio.currentTime;
  element("play").textContent = audio.paused ? "Play" : "Pause";
};
audio.onerror = () => tell("This browser cannot play the recording inside the page; the notes are here all the same.");
audio.onloadedmetadata = () => { element("play").disabled = false; };
map.setAttribute("aria-valuemax", SECONDS.toFixed(1));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { readColours(); drawDots(); redraw(); });
readColours();
measure();
view.row = clamp((view.bottom - RULER) / (HIGH - LOW), 5, 16);
new ResizeObserver(resize).observe(roll);
setInterval(scheduleNotes, 50);
requestAnimationFrame(frame);
loadRecording();
