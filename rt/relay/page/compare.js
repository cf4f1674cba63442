// Record and compare: both recordings on one time line, played together, one of them heard.
export const LONGEST_S = 60;

// Blocks with the time of their first sample → one piece. Blocks the server never answered stay silent.
class Track {
  constructor(rate) {
    this.rate = rate;
    this.samples = new Float32Array(LONGEST_S * rate);
    this.length = 0;
  }

  // at: seconds since the beginning of the recording
  put(block, at) {
    const first = Math.round(at * this.rate), from = Math.max(0, -first), to = Math.min(block.length, this.samples.length - first);
    if (to <= from) return;
    this.samples.set(block.subarray(from, to), first + from);
    this.length = Math.max(this.length, first + to);
  }
}

export class Recording {
  constructor(rate) {
    this.rate = rate;
    this.tracks = { before: new Track(rate), after: new Track(rate) };
    this.began = null;
  }

  get seconds() { return this.tracks.before.length / this.rate; }

  before(samples, time) {
    this.began ??= time;
    this.tracks.before.put(samples, time - this.began);
  }

  after(samples, time) {
    if (this.began !== null) this.tracks.after.put(samples, time - this.began);
  }

  // → Float32Array, as long as the microphone's
  get(name) { return this.tracks[name].samples.subarray(0, this.tracks.before.length); }
}

function wav(samples, rate) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (at, s) => [...s].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
  text(0, "RIFF"); view.setUint32(4, 36 + 2 * samples.length, true); text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, rate, true); view.setUint32(28, 2 * rate, true); view.setUint16(32, 2, true); view.setUint16(34, 16, true);
  text(36, "data"); view.setUint32(40, 2 * samples.length, true);
  samples.forEach((x, i) => view.setInt16(44 + 2 * i, Math.max(-32768, Math.min(32767, Math.round(32768 * x))), true));
  return new Blob([view], { type: "audio/wav" });
}

export class Comparison {
  constructor($) {
    this.$ = $;
    this.urls = [];
    this.heard = "after";
    this.nodes = null;
    $("hear-before").onclick = () => this.hear("before");
    $("hear-after").onclick = () => this.hear("after");
    $("play").onclick = () => (this.nodes ? this.pause() : this.play());
    $("seek").oninput = () => { const on = this.nodes; this.pause(+$("seek").value); if (on) this.play(); };
  }

  show(recording) {
    this.recording = recording;
    this.at = 0;
    this.$("comparing").hidden = false;
    this.$("seek").max = recording.seconds;
    for (const name of ["before", "after"]) {
      const url = URL.createObjectURL(wav(recording.get(name), recording.rate));
      this.urls.push(url);
      this.$(`save-${name}`).href = url;
    }
    this.tick();
    this.$("play").focus();
  }

  hide() {
    if (this.nodes) this.pause();
    this.urls.splice(0).forEach((u) => URL.revokeObjectURL(u));
    this.$("comparing").hidden = true;
  }

  play() {
    const { recording } = this, context = new AudioContext({ sampleRate: recording.rate });
    if (this.$("speaker").value) context.setSinkId(this.$("speaker").value).catch(() => {}); // unplugged meanwhile: it plays where it plays
    if (this.at >= recording.seconds - 0.05) this.at = 0;
    const began = context.currentTime + 0.02 - this.at, gains = {};
    for (const name of ["before", "after"]) {
      const samples = recording.get(name), buffer = new AudioBuffer({ length: samples.length, sampleRate: recording.rate });
      buffer.copyToChannel(samples, 0);
      const source = new AudioBufferSourceNode(context, { buffer });
      gains[name] = new GainNode(context, { gain: name === this.heard ? 1 : 0 });
      source.connect(gains[name]).connect(context.destination);
      source.start(context.currentTime + 0.02, this.at);
      source.onended = () => { if (this.nodes?.context === context) this.pause(); };
    }
    this.nodes = { context, gains, began };
    this.$("play").textContent = "Pause";
    this.tick();
  }

  pause(at = this.now) {
    this.at = Math.min(at, this.recording.seconds);
    this.nodes?.context.close();
    this.nodes = null;
    this.$("play").textContent = "Play";
    this.tick();
  }

  get now() { return this.nodes ? this.nodes.context.currentTime - this.nodes.began : this.at; }

  hear(name) {
    this.heard = name;
    for (const each of ["before", "after"]) {
      this.$(`hear-${each}`).setAttribute("aria-pressed", each === name);
      this.nodes?.gains[each].gain.setTargetAtTime(each === name ? 1 : 0, this.nodes.context.currentTime, 0.005);
    }
  }

  tick() {
    const now = Math.max(0, Math.min(this.now, this.recording.seconds));
    this.$("seek").value = now;
    this.$("clock").textContent = `${now.toFixed(1)} of ${this.recording.seconds.toFixed(1)} s`;
    if (this.nodes) requestAnimationFrame(() => this.tick());
  }
}
