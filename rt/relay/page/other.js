// Whom to speak as: recorded here, or from a sound file; and how far to go there.
import { ENROLL_S, Voice } from "./voice.js";

const RATE = 16000, BLOCK = RATE / 10; // the model hears nothing above 8 kHz of a voice
const LEAST_S = 1, MOST_S = 30, MOST_BYTES = 50e6;
const NO_PITCH = "No voice with a pitch was heard, as speaking like it needs: a whisper has none. Record again, spoken aloud.";
const OTHER = {
  ids: {
    card: "other", turn: "convert", text: "other-text", hearing: "other-hearing", level: "other-level", left: "other-left", enroll: "other-enroll",
    forget: "other-forget", file: "other-file", choose: "other-choose", far: "far", farText: "far-text",
  },
  key: "voicewire-other",
  task: "convert",
  words: {
    record: `Record that voice, ${ENROLL_S} s`,
    again: "Record another voice",
    nobody: `Speak with somebody else’s voice: record ${ENROLL_S} seconds of it, or choose a sound file with 5 to 10 seconds of that talker alone. `
      + "Words, timing and melody stay yours. Only with the consent of whose voice it is.",
    kept: (on, when) => (on ? `You speak with the voice kept on ${when}.` : `A voice was kept on ${when}.`),
    unfit: "The voice that was kept here does not fit this server’s model any more and has been removed. Record it again, or choose a file.",
  },
};

export class Other extends Voice {
  // choose(file): a file was chosen. level: called when only how far to go has changed.
  constructor($, changed, record, choose, level) {
    super($, OTHER, changed, record);
    const { file, far } = this.at;
    this.at.choose.onclick = () => file.click();
    file.onchange = () => {
      if (file.files[0]) choose(file.files[0]);
      file.value = ""; // so that the same one can be chosen again
    };
    far.oninput = () => { this.show(); level(); };
  }

  get strength() { return +this.at.far.value / 100; }
  get fields() { return { ...super.fields, voice_strength: this.strength }; }

  busy(on, own) {
    super.busy(on, own);
    this.at.choose.disabled = on;
  }

  keep({ voice, pitch_hz }) {
    if (!pitch_hz) return NO_PITCH;
    return super.keep({ voice });
  }

  show(why) {
    super.show(why);
    const { far, farText } = this.at, text = far.value === far.max ? "all the way" : far.value === far.min ? "your own voice" : `${far.value} %`;
    far.setAttribute("aria-valuetext", text);
    farText.textContent = text;
  }
}

// → one channel, Float32Array at RATE, of MOST_S at most. Throws an Error that says what to do.
export async function samplesOf(file) {
  if (file.size > MOST_BYTES) throw new Error(`This file is too large: choose a sound file with 5 to 10 seconds of one talker, at most ${MOST_S}.`);
  let sound;
  try {
    sound = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(await file.arrayBuffer());
  } catch {
    throw new Error("This file holds no sound that this browser can read. Choose a WAV, FLAC, MP3 or Ogg file.");
  }
  if (sound.duration < LEAST_S) throw new Error(`This file holds only ${sound.duration.toFixed(1)} s of sound. Choose one with 5 to 10 seconds of one talker.`);
  const mixed = new Float32Array(Math.min(sound.length, MOST_S * RATE));
  for (let c = 0; c < sound.numberOfChannels; c++) sound.getChannelData(c).subarray(0, mixed.length).forEach((x, i) => { mixed[i] += x / sound.numberOfChannels; });
  return mixed;
}

// As if a microphone said it, at once. samples: of `samplesOf`.
export function read(samples, port) {
  for (let at = 0; at < samples.length; at += BLOCK) port.postMessage({ samples: samples.slice(at, at + BLOCK), time: at / RATE });
}

export const seconds = (samples) => samples.length / RATE;
export const FILE_RATE = RATE;
