// Runs on the audio thread: plays what the server sends. The ring waits as long as late blocks need, and gets shorter again after a stall:
// in speech by taking out single periods (at most 5 %), in pauses faster, and by a cross-faded jump when it is far too long.
const WINDOW = 512; // blocks whose lateness is remembered
const FLOOR_S = 0.010; // waited for beyond the latest block
const JUMP_S = 0.4; // this much too long is not worth shrinking slowly
const SPEED = 0.05;
const ALIKE = 0.6;

class Play extends AudioWorkletProcessor {
  constructor() {
    super();
    this.ring = new Float32Array(2 * sampleRate);
    this.lateness = new Float64Array(WINDOW);
    this.reset();
    this.port.onmessage = (e) => {
      if (e.data.port) e.data.port.onmessage = (m) => this.take(m.data);
    };
  }

  reset() {
    this.read = this.write = 0; // counted in samples since the start
    this.noted = 0;
    this.target = 0.04 * sampleRate;
    this.playing = false;
    this.last = 0;
    this.fade = 0; // of the fade-in, samples done
    this.allowance = 0;
    this.powers = new Float64Array(150).fill(Infinity);
    this.quanta = 0;
    this.sum = 0;
    this.marks = []; // [position in the ring, time it was spoken]
    this.gaps = this.removed = this.skipped = 0;
  }

  get depth() { return this.write - this.read; }
  at(i) { return this.ring[(this.read + i) % this.ring.length]; }
  put(i, v) { this.ring[(this.read + i) % this.ring.length] = v; }

  // samples: Float32Array; time: when its first sample was spoken, seconds of this context's clock
  take({ samples, time }) {
    if (this.depth + samples.length > this.ring.length) this.jump(this.depth - Math.round(this.target));
    for (const x of samples) this.ring[this.write++ % this.ring.length] = x;
    this.marks.push([this.write - samples.length, time]);
    this.note(currentTime - time);
  }

  note(late) {
    this.lateness[this.noted++ % WINDOW] = late;
    if (this.noted % 10 && this.noted > 20) return;
    const seen = this.lateness.slice(0, Math.min(this.noted, WINDOW)).sort();
    const p99 = seen[Math.ceil(0.99 * seen.length) - 1];
    const wait = p99 - seen[0] + FLOOR_S;
    this.target = Math.min(JUMP_S, this.noted < 200 ? Math.max(0.04, wait) : Math.max(0.015, wait)) * sampleRate;
  }

  process(_, [[out]]) {
    if (!out) return true;
    if (!this.playing && this.depth >= this.target) {
      this.playing = true;
      this.fade = 0;
    }
    if (this.playing && this.depth < out.length) {
      this.playing = false;
      this.gaps++;
    }
    if (!this.playing) {
      for (let i = 0; i < out.length; i++) out[i] = this.last *= 0.97; // no click
    } else {
      const ramp = 0.005 * sampleRate;
      for (let i = 0; i < out.length; i++) {
        const x = this.at(i);
        out[i] = this.fade < ramp ? this.last * (1 - ++this.fade / ramp) + (x * this.fade) / ramp : x;
      }
      if (this.fade >= ramp) this.last = out[out.length - 1];
      this.read += out.length;
    }
    let power = 0;
    for (const x of out) power += x * x;
    this.sum += power / out.length;
    if (++this.quanta % 8 === 0) this.steer();
    if (this.quanta % 64 === 0) this.tell();
    return true;
  }

  // Every eight quanta (21 ms at 48 kHz).
  steer() {
    const power = this.sum / 8;
    this.sum = 0;
    if (!this.playing) return;
    const excess = this.depth - 0.005 * sampleRate - this.target;
    const pause = power <= 2 * Math.min(...this.powers) + 1e-9;
    this.powers[(this.quanta / 8) % this.powers.length] = power;
    if (excess > JUMP_S * sampleRate) { this.jump(Math.round(excess)); return; }
    this.allowance = Math.min(this.allowance + SPEED * 8 * 128, 0.02 * sampleRate);
    if (excess < 0.02 * sampleRate || (!pause && excess < 0.04 * sampleRate)) return;
    const [lag, likeness] = this.period();
    if (!lag || lag > excess || 2 * lag > this.depth) return;
    if (!pause) {
      if (likeness < ALIKE || lag > this.allowance) return;
      this.allowance -= lag;
    }
    this.remove(lag, lag);
    this.removed += lag;
  }

  // Where the next samples are most like themselves: [lag in samples, likeness].
  period() {
    const step = Math.max(1, Math.round(sampleRate / 12000));
    const template = Math.round(0.006 * sampleRate), shortest = Math.round(0.0025 * sampleRate), longest = Math.round(0.015 * sampleRate);
    if (this.depth < template + longest) return [0, 0];
    const like = (lag, by) => {
      let xy = 0, xx = 1e-9, yy = 1e-9;
      for (let i = 0; i < template; i += by) {
        const x = this.at(i), y = this.at(i + lag);
        xy += x * y; xx += x * x; yy += y * y;
      }
      return xy / Math.sqrt(xx * yy);
    };
    let best = shortest, most = -2;
    for (let lag = shortest; lag <= longest; lag += step) {
      const r = like(lag, step);
      if (r > most) { most = r; best = lag; }
    }
    for (let lag = Math.max(shortest, best - step); lag <= Math.min(longest, best + step); lag++) {
      const r = like(lag, 1);
      if (r > most) { most = r; best = lag; }
    }
    return [best, most];
  }

  // Leave out n samples; the first `fade` ones become the ones after the gap.
  remove(n, fade) {
    for (let i = 0; i < fade; i++) {
      const rise = (i + 1) / (fade + 1);
      this.put(n + i, (1 - rise) * this.at(i) + rise * this.at(n + i));
    }
    this.read += n;
  }

  jump(n) {
    const fade = Math.min(Math.round(0.005 * sampleRate), n, this.depth - n);
    if (n <= 0 || fade <= 0) return;
    this.remove(n, fade);
    this.skipped += n;
  }

  tell() {
    while (this.marks.length > 1 && this.marks[1][0] <= this.read) this.marks.shift();
    const mark = this.marks[0];
    // how long ago what is heard now was spoken
    const delay = mark && this.playing ? currentTime - (mark[1] + (this.read - mark[0]) / sampleRate) : null;
    this.port.postMessage({
      delay, depth: this.depth / sampleRate, target: this.target / sampleRate, playing: this.playing, gaps: this.gaps,
      removed: this.removed / sampleRate, skipped: this.skipped / sampleRate,
    });
  }
}
registerProcessor("play", Play);
