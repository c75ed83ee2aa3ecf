// What is heard: the recording, whose clock everything follows, and the notes, played by oscillators
// in step with that clock.

const audio = new Audio();
const AHEAD = 0.2;  // seconds that notes are scheduled before they sound
const WAVES = ["triangle", "sine", "sine", "triangle", "triangle", "sawtooth", "sawtooth", "sawtooth",
  "square", "sine", "square", "sawtooth", "sawtooth", "triangle", "sine", "sawtooth"];  // by family
const LOUDNESS = { triangle: 0.22, sine: 0.25, square: 0.06, sawtooth: 0.06 };
const FADES = [0, 1, 3, 4, 13, 14];  // families whose notes die away: piano, guitar, ...
const sound = { heard: "recording", context: null, out: null, noise: null, next: 0, playing: new Set() };

function loadRecording() {
  const parts = [];
  for (const held of document.querySelectorAll("script.audio")) {
    const text = atob(held.textContent), bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    parts.push(bytes);
    held.remove();
  }
  audio.preservesPitch = true;
  audio.src = URL.createObjectURL(new Blob(parts, { type: "audio/mpeg" }));
}

function wakeSound() {  // browsers allow it only after a click or a key
  if (!sound.context) {
    const c = sound.context = new AudioContext();
    sound.out = new DynamicsCompressorNode(c);
    sound.out.connect(c.destination);
    sound.noise = new AudioBuffer({ length: c.sampleRate / 2, sampleRate: c.sampleRate });
    const samples = sound.noise.getChannelData(0);
    for (let i = 0; i < samples.length; i++) samples[i] = 2 * Math.random() - 1;
  }
  sound.context.resume();
}

// Plays one note; `when` and `seconds` are in the time of the AudioContext.
function playNote(i, when, seconds) {
  const c = sound.context, pitch = data.pitch[i], family = (data.voices[data.voice[i]].program ?? 0) >> 3;
  const kick = pitch < 37, wave = isDrum[i] ? "sine" : WAVES[family];
  const source = isDrum[i] && !kick ? new AudioBufferSourceNode(c, { buffer: sound.noise })
    : new OscillatorNode(c, { type: wave, frequency: isDrum[i] ? 130 : 440 * 2 ** ((pitch - 69) / 12) });
  if (isDrum[i] && kick) source.frequency.exponentialRampToValueAtTime(45, when + 0.1);
  const tone = new BiquadFilterNode(c, isDrum[i] && !kick
    ? { type: "bandpass", frequency: { 38: 1800, 40: 1800 }[pitch] || (pitch < 42 ? 900 : 7000), Q: 0.6 }
    : { type: "lowpass", frequency: 5000 });
  const level = (isDrum[i] ? 0.5 : LOUDNESS[wave]) * (data.velocity ? data.velocity[i] / 100 : 0.8);
  const gain = new GainNode(c, { gain: 0 }), end = when + (isDrum[i] ? 0.12 : Math.max(0.05, seconds));
  gain.gain.setValueAtTime(0, when);
  gain.gain.linearRampToValueAtTime(level, when + (isDrum[i] ? 0.002 : 0.012));
  if (isDrum[i] || FADES.includes(family)) gain.gain.setTargetAtTime(0, when + 0.012, isDrum[i] ? 0.04 : 0.7);
  gain.gain.setTargetAtTime(0, end, 0.03);
  source.connect(tone).connect(gain).connect(sound.out);
  source.start(when);
  source.stop(end + 0.2);
  sound.playing.add(source);
  source.onended = () => sound.playing.delete(source);
}

function hush() {
  for (const source of sound.playing) source.stop();
  sound.playing.clear();
}

// After a jump, a pause or a change of what is shown: begin anew from where the recording is.
function restartNotes() {
  hush();
  const now = audio.currentTime;
  sound.next = firstFrom(now - 0.03);
  if (isSilent()) return;
  between(now, now + 0.001, (i) => {  // what sounds already
    if (i < sound.next && !isDrum[i]) playNote(i, sound.context.currentTime, (offset[i] - now) / audio.playbackRate);
  });
}

const isSilent = () => audio.paused || sound.heard === "recording" || !sound.context;

// Called often while it plays: hands the next notes to the AudioContext.
function scheduleNotes() {
  if (isSilent()) return;
  const now = audio.currentTime, rate = audio.playbackRate;
  for (; sound.next < COUNT && onset[sound.next] < now + AHEAD * rate; sound.next++) {
    const i = sound.next, late = sound.context.outputLatency || 0;
    if (!shown[data.voice[i]]) continue;
    playNote(i, sound.context.currentTime + Math.max(0, (onset[i] - now) / rate - late), data.length[i] / 1000 / rate);
  }
}

function hear(what) {
  sound.heard = what;
  audio.muted = what === "notes";
  restartNotes();
}
