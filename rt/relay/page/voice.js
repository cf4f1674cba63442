// Voices that the server made voiceprints of, kept in this browser as long as they fit the server's model: the talker to keep, and whom to speak as (other.js).
export const ENROLL_S = 5;

// Some browsers keep nothing for pages, and say so by throwing.
function stored(key) {
  try { return JSON.parse(localStorage.getItem(key)); } catch { return null; }
}

function store(key, value) {
  try {
    if (value) localStorage.setItem(key, JSON.stringify(value)); else localStorage.removeItem(key);
    return true;
  } catch { return false; }
}

export class Voice {
  // $: element by id. ids: of the card and what is in it. key: in the browser's storage, of { weights, voice, when }. task: what the voice is for. words: what is said.
  // changed: called when it is to be used, or not any more. record: called to begin or end a recording.
  constructor($, { ids, key, task, words }, changed, record) {
    Object.assign(this, { $, key, task, words, changed });
    this.at = Object.fromEntries(Object.entries(ids).map(([name, id]) => [name, $(id)]));
    this.mine = stored(key);
    this.weights = null; // that voiceprints are to fit, null where the server cannot do it
    this.at.enroll.onclick = () => record(this);
    this.at.turn.onclick = () => this.turn(!this.on);
    this.at.forget.onclick = () => { this.drop("The voice has been forgotten."); this.at.enroll.focus(); };
  }

  get on() { return this.at.turn.getAttribute("aria-checked") === "true"; }
  get fields() { return { task: this.task, voice: this.mine.voice }; }

  knows(weights) {
    this.weights = weights;
    this.at.card.hidden = !weights;
    if (weights && this.mine && this.mine.weights !== weights) this.drop();
    else if (weights) this.show();
    else if (this.on) this.turn(false);
  }

  // While a session runs nothing else can be recorded; this one's own recording can be ended.
  busy(on, own) { this.at.enroll.disabled = on && !own; }

  // tell: false where somebody else says so.
  turn(on, tell = true) {
    this.at.turn.setAttribute("aria-checked", on);
    this.show();
    if (tell) this.changed();
  }

  // What the server has enrolled. → why it cannot be used, if so
  keep({ voice }) {
    this.mine = { weights: this.weights, voice, when: Date.now() };
    this.lasting = store(this.key, this.mine);
    this.turn(true);
    this.at.turn.focus();
  }

  drop(why = this.words.unfit) {
    this.mine = null;
    store(this.key, null);
    if (this.on) this.turn(false);
    this.show(why);
  }

  show(why) {
    const { at, mine, words } = this;
    at.turn.disabled = !mine;
    at.forget.hidden = !mine;
    at.enroll.textContent = mine ? words.again : words.record;
    at.text.textContent = why ?? (!mine ? words.nobody : `${words.kept(this.on, new Date(mine.when).toLocaleDateString())} `
      + (this.lasting === false ? "This browser keeps nothing for pages: the voice is gone when you close this one." : "The voice stays in this browser."));
  }

  // While it is recorded: how loud, and how long to go.
  hear(source) {
    this.hush();
    const { at } = this, meter = new AnalyserNode(source.context, { fftSize: 2048 }), block = new Float32Array(meter.fftSize), began = performance.now();
    source.connect(meter);
    at.hearing.hidden = false;
    at.enroll.textContent = "Stop recording";
    at.text.textContent = "Speak now, close to the microphone.";
    const tick = () => {
      meter.getFloatTimeDomainData(block);
      const left = ENROLL_S - (performance.now() - began) / 1000;
      at.level.value = 60 + 10 * Math.log10(block.reduce((sum, x) => sum + x * x, 0) / block.length + 1e-6);
      at.left.textContent = left > 0 ? `${left.toFixed(1)} s left` : "one moment";
    };
    const timer = setInterval(tick, 100);
    tick();
    this.hush = () => {
      clearInterval(timer);
      source.disconnect(meter);
      at.hearing.hidden = true;
      this.hush = () => {};
      this.show();
    };
  }

  hush() { }
}

// The one talker to keep.
export const TALKER = {
  ids: { card: "voice", turn: "extract", text: "voice-text", hearing: "hearing", level: "level", left: "left", enroll: "enroll", forget: "forget" },
  key: "voicewire-voice",
  task: "extract",
  words: {
    record: `Record the talker, ${ENROLL_S} s`,
    again: "Record another talker",
    nobody: `Record ${ENROLL_S} seconds of one talker alone, in a quiet room. From then on that talker is kept, and everybody else is taken away.`,
    kept: (on, when) => (on ? `Only the talker recorded on ${when} is kept.` : `A talker was recorded on ${when}.`),
    unfit: "The voice that was kept here does not fit this server’s model any more and has been removed. Record the talker again.",
  },
};
