// What is measured while a stream runs: delay, losses, gaps.
export class Numbers {
  constructor($) {
    this.$ = $;
    this.reset();
  }

  reset() {
    this.stats = null;
    this.unsent = 0;
  }

  // device: seconds that the loudspeaker takes; latency: milliseconds of the model; p: what play.js counted.
  playing(device, latency, p) {
    const { $ } = this;
    if (p.delay !== null) {
      const all = 1000 * (p.delay + device), held = 1000 * p.depth + (this.stats?.hold_ms ?? 0);
      const rest = Math.max(0, all - 1000 * device - latency - held);
      $("delay").textContent = `${Math.round(all)} ms`;
      $("delay-parts").textContent = `${Math.round(latency)} the model, ${Math.round(held)} waiting for late packets, ${Math.round(rest)} network and blocks, `
        + `${Math.round(1000 * device)} your loudspeaker`;
    }
    $("gaps").textContent = p.gaps;
    const cut = p.removed + p.skipped;
    $("gaps-parts").textContent = `${p.gaps ? "sound came later than expected" : "none so far"}${cut >= 0.05 ? `; ${cut.toFixed(1)} s left out to catch up` : ""}`;
  }

  // What the server and the worker count.
  network({ stats = this.stats, unsent = this.unsent }) {
    Object.assign(this, { stats, unsent });
    this.$("lost").textContent = stats?.lost ?? 0;
    this.$("lost-parts").textContent = `packets, filled in by the server; ${stats?.late ?? 0} came too late${unsent ? `, ${unsent} could not be sent` : ""}`;
  }
}
