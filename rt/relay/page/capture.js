// Runs on the audio thread: the microphone, mixed to one channel, in blocks of 10 ms with the time of their first sample.
class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.block = new Float32Array(Math.round(sampleRate / 100));
    this.filled = 0;
    this.out = null; // a port to the socket's worker
    this.port.onmessage = (e) => { this.out = e.data.port; };
  }

  process([input]) {
    if (!input.length) return true;
    const n = input[0].length;
    for (let i = 0; i < n; i++) {
      let x = 0;
      for (const channel of input) x += channel[i];
      this.block[this.filled++] = x / input.length;
      if (this.filled === this.block.length) {
        const first = currentFrame + i + 1 - this.filled;
        const samples = this.block.slice();
        this.out?.postMessage({ samples, time: first / sampleRate }, [samples.buffer]);
        this.filled = 0;
      }
    }
    return true;
  }
}
registerProcessor("capture", Capture);
