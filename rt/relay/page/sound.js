// One sound to pick out, asked for in words: kept alone, or made quieter or louder among all the others.
const WHAT = "Say in a few English words which sound is meant. It is kept and everything else taken away, or it alone gets quieter or louder.";
const SPOKEN = /[\p{L}\p{N}]/u;
const OUT_DB = -100; // what the server understands as taken out: the slider's first step

export class Sound {
  // changed: called when another sound, or none, is to be picked out. level: called when only how loud it is to be has changed.
  constructor($, changed, level) {
    this.$ = $;
    this.changed = changed;
    this.words = "";
    $("sound-form").onsubmit = (e) => { e.preventDefault(); this.ask(); };
    $("pick").onclick = () => (this.on ? this.turn(false) : this.ask());
    document.querySelectorAll("input[name=part]").forEach((i) => { i.onchange = () => { this.show(); level(); }; });
    $("gain").oninput = () => { this.show(); level(); };
    this.show();
  }

  get on() { return this.$("pick").getAttribute("aria-checked") === "true"; }
  get gain() {
    const { $ } = this;
    if ($("keep").checked) return null;
    return $("gain").value === $("gain").min ? OUT_DB : +$("gain").value;
  }

  get fields() { return { task: "query", query: this.words, query_gain_db: this.gain }; }

  knows(queries) {
    this.$("sound").hidden = !queries;
    if (!queries && this.on) this.turn(false);
  }

  ask() {
    const words = this.$("words").value.trim();
    if (!SPOKEN.test(words)) {
      this.show("A few words are needed, like “a dog barking”.");
      this.$("words").focus();
      return;
    }
    this.words = words;
    this.turn(true);
  }

  // tell: false where somebody else says so.
  turn(on, tell = true) {
    this.$("pick").setAttribute("aria-checked", on);
    this.show();
    if (tell) this.changed();
  }

  show(why) {
    const { $, gain } = this, text = gain === null ? "" : gain === OUT_DB ? "taken out" : `${gain > 0 ? "+" : ""}${gain} dB`;
    $("gain-row").hidden = gain === null;
    $("gain").setAttribute("aria-valuetext", text);
    $("gain-text").textContent = text;
    $("sound-text").textContent = why ?? (!this.on ? WHAT : gain === null ? `Only “${this.words}”.`
      : gain === OUT_DB ? `Everything but “${this.words}”.` : `Everything, with “${this.words}” at another level.`);
  }
}
