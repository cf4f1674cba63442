// Scrolling spectrograms: 0 ... 8 kHz from bottom to top (mel scale), one column for every 20 ms.
const TOP_HZ = 8000, COLUMN_MS = 20, PIXELS = 2, AT_ONCE = 2; // columns drawn at once: 25 pictures a second
const LOUD_DB = -28, QUIET_DB = -98;

const mel = (hz) => 2595 * Math.log10(1 + hz / 700);
const hertz = (m) => 700 * (10 ** (m / 2595) - 1);

// dark blue → teal → sand → white; brightness rises evenly, so it reads without colour too
const STOPS = [[0, 9, 14, 28], [0.25, 18, 44, 84], [0.5, 20, 110, 124], [0.72, 88, 178, 130], [0.88, 236, 207, 118], [1, 255, 250, 235]];
const COLOURS = Array.from({ length: 256 }, (_, i) => {
  const v = i / 255, k = Math.max(1, STOPS.findIndex(([p]) => p >= v)), [a, ...from] = STOPS[k - 1], [b, ...to] = STOPS[k];
  return from.map((c, j) => Math.round(c + ((to[j] - c) * (v - a)) / (b - a)));
});

export class Spectrogram {
  constructor(canvas) {
    this.canvas = canvas;
    this.pen = canvas.getContext("2d", { alpha: false });
    this.analyser = null;
    this.resize();
    new ResizeObserver(() => this.resize()).observe(canvas);
  }

  resize() {
    const fine = Math.min(2, devicePixelRatio); // more costs a phone too much
    const width = Math.max(1, Math.round(this.canvas.clientWidth * fine)), height = Math.max(1, Math.round(this.canvas.clientHeight * fine));
    if (width === this.canvas.width && height === this.canvas.height) return;
    const old = Object.assign(document.createElement("canvas"), { width: this.canvas.width, height: this.canvas.height });
    old.getContext("2d").drawImage(this.canvas, 0, 0);
    this.canvas.width = width;
    this.canvas.height = height;
    this.clear();
    this.pen.drawImage(old, width - old.width, 0);
    this.column = this.pen.createImageData(PIXELS, height);
    this.bins = null;
  }

  clear() {
    this.pen.fillStyle = `rgb(${COLOURS[0]})`;
    this.pen.fillRect(0, 0, this.canvas.width, this.canvas.height);
  }

  // source: an AudioNode to look at
  watch(source) {
    const analyser = new AnalyserNode(source.context, { fftSize: 2048, smoothingTimeConstant: 0 });
    source.connect(analyser);
    this.analyser = analyser;
    this.bins = null;
    this.data = new Float32Array(analyser.frequencyBinCount);
    this.clear();
  }

  unwatch() { this.analyser = null; }

  #map() {
    const { height } = this.canvas, { fftSize, context } = this.analyser;
    this.bins = Array.from({ length: height }, (_, y) => (hertz(((height - 1 - y) / height) * mel(TOP_HZ)) * fftSize) / context.sampleRate);
  }

  // columns: how many to move on by
  draw(columns) {
    if (!this.analyser) return;
    if (!this.bins) this.#map();
    this.analyser.getFloatFrequencyData(this.data);
    const { width, height } = this.canvas, pixels = this.column.data, shift = columns * PIXELS;
    for (let y = 0; y < height; y++) {
      const bin = this.bins[y], low = Math.floor(bin);
      const db = this.data[low] + (this.data[Math.min(low + 1, this.data.length - 1)] - this.data[low]) * (bin - low);
      const level = Math.max(0, Math.min(255, Math.round((255 * (db - QUIET_DB)) / (LOUD_DB - QUIET_DB)))) || 0;
      const [r, g, b] = COLOURS[level];
      for (let x = 0; x < PIXELS; x++) pixels.set([r, g, b, 255], 4 * (y * PIXELS + x));
    }
    this.pen.drawImage(this.canvas, -shift, 0);
    for (let x = 0; x < shift; x += PIXELS) this.pen.putImageData(this.column, width - shift + x, 0);
  }
}

// Draws all of them in step with the clock, whatever the screen's rate.
export function animate(spectrograms) {
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  let drawn = performance.now();
  const step = (now) => {
    const columns = Math.min(25, Math.floor((now - drawn) / COLUMN_MS));
    if (columns >= (calm.matches ? 25 : AT_ONCE)) {
      for (const s of spectrograms) s.draw(columns);
      drawn = now - ((now - drawn) % COLUMN_MS);
    }
    requestAnimationFrame(step);
  };
  requestAnimationFrame(step);
}
