// One of two talkers whom nobody recorded beforehand.
const WHAT = "Where two people talk at once, keep one of them and take the other away. Nobody needs to be recorded beforehand.";

export class Apart {
  // changed: called when another talker, or both, are to be kept.
  constructor($, changed) {
    this.$ = $;
    this.changed = changed;
    $("separate").onclick = () => this.turn(!this.on);
    document.querySelectorAll("input[name=talker]").forEach((i) => { i.onchange = () => { this.show(); if (this.on) changed(); }; });
    this.show();
  }

  get on() { return this.$("separate").getAttribute("aria-checked") === "true"; }
  get talker() { return +document.querySelector("input[name=talker]:checked").value; }
  get fields() { return { task: "separate", talker: this.talker }; }

  knows(talkers) {
    this.$("apart").hidden = !talkers;
    if (!talkers && this.on) this.turn(false);
  }

  // tell: false where somebody else says so.
  turn(on, tell = true) {
    this.$("separate").setAttribute("aria-checked", on);
    this.show();
    if (tell) this.changed();
  }

  show() {
    this.$("apart-text").textContent = this.on ? `Talker ${this.talker} is kept. If that is the wrong one, choose the other.` : WHAT;
  }
}
