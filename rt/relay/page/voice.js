// One talker to keep: the voiceprint that the server made, kept in this browser as long as it fits the server's model.
const KEY = "voicewire-voice"; // { weights, voice, when }
export const ENROLL_S = 5;
const OTHER_MODEL = "The voice that was kept here does not fit this server’s model any more and has been removed. Record the talker again.";
const NOBODY = `Record ${ENROLL_S} seconds of one talker alone, in a quiet room. From then on that talker is kept, and everybody else is taken away.`;

// Some browsers keep nothing for pages, and say so by throwing.
function stored() {
  try { return JSON.parse(localStorage.getItem(KEY)); } catch { return null; }
}

function store(value) {
  try {
    if (value) localStorage.setItem(KEY, JSON.stringify(value)); else localStorage.removeItem(KEY);
    return true;
  } catch { return false; }
}

export class Voice {
  // changed: called when another talker, or all of them, are to be kept. record: called to begin or end a recording.
  constructor($, changed, record) {
    this.$ = $;
    this.changed = changed;
    this.mine = stored();
    this.weights = null; // of the server, null where they know no voices
    $("enroll").onclick = record;
    $("extract").onclick = () => this.turn(!this.on);
    $("forget").onclick = () => { this.drop("The voice has been forgotten."); $("enroll").focus(); };
  }

  get on() { return this.$("extract").getAttribute("aria-checked") === "true"; }
  get fields() { return this.on ? { task: "extract", voice: this.mine.voice } : { task: "restore", voice: null }; }

  knows(weights) {
    this.weights = weights;
    this.$("voice").hidden = !weights;
    if (weights && this.mine && this.mine.weights !== weights) this.drop(OTHER_MODEL);
    else if (weights) this.show();
    else if (this.on) this.turn(false);
  }

  // tell: false where somebody else says so.
  turn(on, tell = true) {
    this.$("extract").setAttribute("aria-checked", on);
    this.show();
    if (tell) this.changed();
  }

  keep(voice) {
    this.mine = { weights: this.weights, voice, when: Date.now() };
    this.lasting = store(this.mine);
    this.turn(true);
    this.$("extract").focus();
  }

  drop(why = OTHER_MODEL) {
    this.mine = null;
    store(null);
    if (this.on) this.turn(false);
    this.show(why);
  }

  show(why) {
    const { $, mine } = this;
    $("extract").disabled = !mine;
    $("forget").hidden = !mine;
    $("enroll").textContent = mine ? "Record another talker" : `Record the talker, ${ENROLL_S} s`;
    $("voice-text").textContent = why ?? (!mine ? NOBODY
      : `${this.on ? "Only the talker recorded" : "A talker was recorded"} on ${new Date(mine.when).toLocaleDateString()}${this.on ? " is kept" : ""}. `
        + (this.lasting === false ? "This browser keeps nothing for pages: the voice is gone when you close this one." : "The voice stays in this browser."));
  }

  // While the talker is recorded: how loud, and how long to go.
  hear(source) {
    this.hush();
    const { $ } = this, meter = new AnalyserNode(source.context, { fftSize: 2048 }), block = new Float32Array(meter.fftSize), began = performance.now();
    source.connect(meter);
    $("hearing").hidden = false;
    $("enroll").textContent = "Stop recording";
    $("voice-text").textContent = "Speak now, close to the microphone.";
    const tick = () => {
      meter.getFloatTimeDomainData(block);
      const left = ENROLL_S - (performance.now() - began) / 1000;
      $("level").value = 60 + 10 * Math.log10(block.reduce((sum, x) => sum + x * x, 0) / block.length + 1e-6);
      $("left").textContent = left > 0 ? `${left.toFixed(1)} s left` : "one moment";
    };
    const timer = setInterval(tick, 100);
    tick();
    this.hush = () => {
      clearInterval(timer);
      source.disconnect(meter);
      $("hearing").hidden = true;
      this.hush = () => {};
      this.show();
    };
  }

  hush() { }
}
