// The piano roll: which notes there are, where they stand, and how they are drawn.
// Times are in seconds, pitches in MIDI numbers, sizes in CSS pixels.

const element = (id) => document.getElementById(id);
const data = JSON.parse(element("data").textContent);
const COUNT = data.onset.length;
const onset = Float64Array.from(data.onset, (ms) => ms / 1000);
const offset = Float64Array.from(data.onset, (ms, i) => (ms + data.length[i]) / 1000);
const SECONDS = offset.reduce((a, b) => Math.max(a, b), data.seconds);  // notes may end after the recording
const LONGEST = data.length.reduce((most, ms) => Math.max(most, ms), 0) / 1000;
const isDrum = data.voice.map((voice) => data.voices[voice].program === null);
const drums = Object.keys(data.drums).map(Number).sort((a, b) => b - a);  // highest row first
const pitched = data.pitch.filter((_, i) => !isDrum[i]);
let LOW = pitched.reduce((a, b) => Math.min(a, b), 127) - 2;
let HIGH = pitched.reduce((a, b) => Math.max(a, b), 0) + 3;  // the top edge of the highest row
if (!pitched.length) [LOW, HIGH] = [48, 73];
if (HIGH - LOW < 25) [LOW, HIGH] = [Math.floor((LOW + HIGH) / 2) - 12, Math.floor((LOW + HIGH) / 2) + 13];

const RULER = 22, KEYS = 24, DRUM_ROW = 13, DRUM_WIDTH = 4;
const NAMES = ["C", "C♯", "D", "D♯", "E", "F", "F♯", "G", "G♯", "A", "A♯", "B"];
const BLACK = [1, 3, 6, 8, 10];
const roll = element("roll"), still = element("notes"), moving = element("moving"), map = element("map");

const pitchName = (pitch) => NAMES[pitch % 12] + (Math.floor(pitch / 12) - 1);
const clamp = (value, low, high) => Math.max(low, Math.min(high, value));

// What is shown: which voices, from which second on, how many pixels a second and a semitone take.
const view = { start: 0, scale: 60, top: HIGH, row: 8, left: 46, width: 0, height: 0, bottom: 0 };
const shown = data.voices.map(() => true);
let colour = {};

const x = (time) => view.left + (time - view.start) * view.scale;
const timeAt = (px) => view.start + (px - view.left) / view.scale;
const y = (pitch) => RULER + (view.top - pitch - 1) * view.row;
const pitchAt = (py) => Math.floor(view.top - (py - RULER) / view.row);
const drumRow = () => Math.min(DRUM_ROW, (0.45 * view.height) / Math.max(1, drums.length));
const drumY = (pitch) => view.bottom + 4 + drums.indexOf(pitch) * drumRow();
const span = () => (view.width - view.left) / view.scale;

// The first note that begins at or after a time; notes are in order of onset.
function firstFrom(time) {
  let low = 0, high = COUNT;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (onset[middle] < time) low = middle + 1; else high = middle;
  }
  return low;
}

// Calls back for each shown note that sounds between two times.
function between(begin, end, visit) {
  for (let i = firstFrom(begin - LONGEST); i < COUNT && onset[i] < end; i++)
    if (offset[i] > begin && shown[data.voice[i]]) visit(i);
}

// Left, top, width and height of a note.
function box(i) {
  if (isDrum[i]) return [x(onset[i]) - 1, drumY(data.pitch[i]) + 1, DRUM_WIDTH, drumRow() - 2];
  return [x(onset[i]), y(data.pitch[i]) + 0.5, Math.max(2, data.length[i] / 1000 * view.scale - 0.5), Math.max(1.5, view.row - 1)];
}

function noteAt(px, py) {
  let found = -1;
  between(timeAt(px - 4), timeAt(px + 3), (i) => {
    const [left, top, width, height] = box(i);
    if (px >= left - 2 && px <= left + width + 2 && py >= top - 1 && py <= top + height + 1) found = i;
  });
  return found;
}

// Brings the view back to where something is.
function keepInside() {
  const room = view.width - view.left, tall = view.bottom - RULER;
  view.scale = clamp(view.scale, room / Math.max(SECONDS, 1), 600);
  view.start = clamp(view.start, 0, Math.max(0, SECONDS - room / view.scale));
  view.row = clamp(view.row, Math.min(tall / (HIGH - LOW), 26), 26);
  const lowest = LOW + tall / view.row;  // the top when the lowest pitch stands at the bottom
  view.top = lowest >= HIGH ? (HIGH + lowest) / 2 : clamp(view.top, lowest, HIGH);
}

function context(canvas) {
  const ratio = window.devicePixelRatio || 1, { width, height } = canvas.getBoundingClientRect();
  const across = Math.round(width * ratio), down = Math.round(height * ratio);
  if (canvas.width !== across || canvas.height !== down) Object.assign(canvas, { width: across, height: down });
  const c = canvas.getContext("2d");
  c.setTransform(ratio, 0, 0, ratio, 0, 0);
  c.clearRect(0, 0, width, height);
  c.font = "11px system-ui, sans-serif";
  c.textBaseline = "middle";
  return c;
}

function readColours() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["ink", "muted", "paper", "card", "line", "accent", "black-key", "white-key", "octave", "playhead", "drums", "ivory", "ebony"])
    colour[name] = style.getPropertyValue(`--${name}`);
  colour.voices = data.voices.map((voice, k) => voice.program === null ? colour.drums : style.getPropertyValue(`--voice${k % 10}`));
  colour.hollow = data.voices.map((voice, k) => voice.program !== null && k % 20 >= 10);
}

function measure() {
  view.width = roll.clientWidth;
  view.height = roll.clientHeight;
  view.bottom = view.height - (drums.length ? drums.length * drumRow() + 8 : 0);
  const c = still.getContext("2d");
  c.font = "11px system-ui, sans-serif";
  const widest = Math.max(0, ...Object.values(data.drums).map((name) => c.measureText(name).width));
  view.left = Math.round(clamp(widest + 10, 50, Math.max(50, 0.25 * view.width)));
}

const cut = (c, text, room) => {
  if (c.measureText(text).width <= room) return text;
  while (text && c.measureText(text + "…").width > room) text = text.slice(0, -1);
  return text + "…";
};

function timeStep() {
  return [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800].find((step) => step * view.scale >= 64) || 3600;
}

function clock(time, digits = 1) {
  const tenths = Math.round(Math.max(0, time) * 10 ** digits) / 10 ** digits;
  const second = (tenths % 60).toFixed(digits).padStart(digits ? 3 + digits : 2, "0");
  const minutes = Math.floor(tenths / 60), hours = Math.floor(minutes / 60);
  return hours ? `${hours}:${String(minutes % 60).padStart(2, "0")}:${second}` : `${minutes}:${second}`;
}

function drawGrid(c) {
  const { left, width, height, bottom } = view;
  c.fillStyle = colour["white-key"];
  c.fillRect(left, RULER, width, height);
  for (let pitch = Math.max(0, pitchAt(bottom)); pitch <= Math.min(127, pitchAt(RULER)); pitch++) {
    c.fillStyle = colour["black-key"];
    if (BLACK.includes(pitch % 12)) c.fillRect(left, y(pitch), width, view.row);
    c.fillStyle = colour.octave;
    if (pitch % 12 === 0) c.fillRect(left, Math.round(y(pitch) + view.row) - 1, width, 1);
  }
  c.fillStyle = colour.card;
  if (drums.length) c.fillRect(left, bottom, width, height - bottom);
  c.fillRect(0, 0, width, RULER);
  const step = timeStep();
  c.textAlign = "left";
  for (let time = Math.ceil(view.start / step) * step; x(time) < width; time += step) {
    c.fillStyle = colour.line;
    c.fillRect(Math.round(x(time)), RULER - 6, 1, height);
    c.fillStyle = colour.muted;
    c.fillText(clock(time, step < 0.1 ? 2 : step < 1 ? 1 : 0), x(time) + 4, RULER / 2);
  }
}

function drawNotes(c) {
  c.save();
  c.beginPath();
  c.rect(view.left, RULER, view.width, view.bottom - RULER);
  for (const part of [false, true]) {  // drums have a lane of their own
    c.save();
    if (!part) c.clip();
    between(view.start, view.start + span(), (i) => {
      if (isDrum[i] !== part) return;
      const [left, top, width, height] = box(i), voice = data.voice[i];
      c.fillStyle = colour.voices[voice];
      c.globalAlpha = data.velocity ? 0.4 + (0.6 * data.velocity[i]) / 127 : 0.9;
      c.fillRect(left, top, width, height);
      if (colour.hollow[voice] && width > 4 && height > 3) {
        c.globalAlpha = 1;
        c.fillStyle = colour["white-key"];
        c.fillRect(left + 1, top + 1, width - 2, height - 2);
      }
    });
    c.restore();
  }
  c.restore();
}

// The column at the left: keys with the names of octaves, and the names of drums.
function drawKeys(c, sounding) {
  const { left, bottom, height } = view;
  c.fillStyle = colour.paper;
  c.fillRect(0, RULER, left, height);
  c.save();
  c.beginPath();
  c.rect(0, RULER, left, bottom - RULER);
  c.clip();
  c.textAlign = "right";
  for (let pitch = Math.max(0, pitchAt(bottom)); pitch <= Math.min(127, pitchAt(RULER)); pitch++) {
    const black = BLACK.includes(pitch % 12), top = y(pitch);
    c.fillStyle = sounding.get(pitch) || (black ? colour.ebony : colour.ivory);
    c.fillRect(left - KEYS, top, black && !sounding.has(pitch) ? KEYS * 0.62 : KEYS, view.row);
    if (black && !sounding.has(pitch)) { c.fillStyle = colour.ivory; c.fillRect(left - KEYS * 0.38, top, KEYS * 0.38, view.row); }
    c.fillStyle = "#aab4bf";
    if ([0, 5].includes(pitch % 12)) c.fillRect(left - KEYS, top + view.row - 0.5, KEYS, 1);
    c.fillStyle = pitch % 12 ? colour.muted : colour.ink;
    if (pitch % 12 === 0 || (view.row >= 15 && !black)) c.fillText(pitchName(pitch), left - KEYS - 4, top + view.row / 2);
  }
  c.restore();
  c.fillStyle = colour.octave;
  c.fillRect(left - 1, RULER, 1, height);
  c.fillRect(left - KEYS - 1, RULER, 1, bottom - RULER);
  if (!drums.length) return;
  c.fillRect(0, bottom, view.width, 1);
  c.textAlign = "right";
  const every = Math.ceil(11 / drumRow());  // names that would touch are left out
  for (const [k, pitch] of drums.entries()) {
    if (k % every && !sounding.has(-1 - pitch)) continue;
    c.fillStyle = sounding.has(-1 - pitch) ? colour.playhead : colour.muted;
    c.fillText(cut(c, data.drums[pitch], left - 8), left - 5, drumY(pitch) + drumRow() / 2);
  }
}

function drawStill() {
  const c = context(still);
  drawGrid(c);
  drawNotes(c);
}

// What changes while it plays: playhead, keys, the note under the pointer.
function drawMoving(time, hovered) {
  const c = context(moving), sounding = new Map();
  c.lineWidth = 1.5;
  c.strokeStyle = colour.ink;
  between(time - 0.08, time + 0.001, (i) => {
    if (!isDrum[i] && offset[i] <= time) return;
    sounding.set(isDrum[i] ? -1 - data.pitch[i] : data.pitch[i], colour.voices[data.voice[i]]);
    const [left, top, width, height] = box(i);
    if (isDrum[i] || (top >= RULER && top < view.bottom)) c.strokeRect(left, top, width, height);
  });
  if (hovered >= 0) { c.lineWidth = 2; c.strokeRect(...box(hovered)); }
  c.fillStyle = colour.playhead;
  const at = Math.round(x(time));
  if (at >= view.left) {
    c.fillRect(at - 0.5, RULER - 8, 2, view.height);
    c.beginPath();
    c.moveTo(at - 5.5, RULER - 14); c.lineTo(at + 6.5, RULER - 14); c.lineTo(at + 0.5, RULER - 5);
    c.fill();
  }
  drawKeys(c, sounding);
}

// The overview: every note as a dot, drawn once and kept.
const dots = document.createElement("canvas");
function drawDots() {
  const { width, height } = map.getBoundingClientRect(), ratio = window.devicePixelRatio || 1;
  Object.assign(dots, { width: Math.round(width * ratio), height: Math.round(height * ratio) });
  const c = dots.getContext("2d");
  c.scale(ratio, ratio);
  between(-1, SECONDS + 1, (i) => {
    const share = isDrum[i] ? 0.02 : 0.1 + 0.86 * (data.pitch[i] - LOW) / (HIGH - LOW);
    c.fillStyle = colour.voices[data.voice[i]];
    c.fillRect((onset[i] / SECONDS) * width, (1 - share) * (height - 3), Math.max(1, (data.length[i] / 1000 / SECONDS) * width), 1.5);
  });
}

function drawMap(time) {
  const c = context(map), { width, height } = map.getBoundingClientRect(), scale = width / SECONDS;
  if (dots.width) c.drawImage(dots, 0, 0, width, height);
  c.fillStyle = colour.accent;
  c.globalAlpha = 0.2;
  c.fillRect(view.start * scale, 0, Math.max(3, span() * scale), height);
  c.globalAlpha = 1;
  c.fillStyle = colour.playhead;
  c.fillRect(Math.round(time * scale) - 0.5, 0, 2, height);
}
