// The page: what can be operated, what is shown, and what is said when something goes wrong. Sound never passes through here in live mode:
// microphone (capture.js) → worker (socket.js) → server → worker → player (play.js).
import { Apart } from "./apart.js";
import { Recording, Comparison, LONGEST_S } from "./compare.js";
import { microphone, listDevices, MicrophoneError } from "./devices.js";
import { Numbers } from "./numbers.js";
import { FILE_RATE, Other, read, samplesOf, seconds } from "./other.js";
import { Sound } from "./sound.js";
import { Spectrogram, animate } from "./spectrum.js";
import { ENROLL_S, TALKER, Voice } from "./voice.js";

const $ = (id) => document.getElementById(id);
const MOST = 62; // the strength slider's last step: no limit
const USUAL_DB = { restore: 20, extract: 60, separate: 40, query: 40, convert: 20 }; // the strength, until somebody moves the slider
const views = [new Spectrogram($("before")), new Spectrogram($("after"))];
const comparison = new Comparison($), numbers = new Numbers($);
const NOTHING = { task: "restore", voice: null, query: null, talker: null, query_gain_db: null, voice_strength: null }; // asked for beside restoration
const record = (who) => (session ? finish(session) : begin("enroll", who));
const voice = new Voice($, TALKER, () => another(voice), record);
const other = new Other($, () => another(other), record, (file) => begin("enroll", other, file), far);
const sound = new Sound($, () => another(sound), level);
const apart = new Apart($, () => another(apart));
const voices = [voice, other], wishes = [voice, other, sound, apart];
let session = null, moved = false;

// -- what is said ---------------------------------------------------------------------------------------------------
function state(kind, text) {
  $("state").dataset.state = kind;
  $("state").textContent = text;
}

function trouble(text) {
  $("trouble").hidden = !text;
  $("trouble").textContent = text ?? "";
}

const mode = () => document.querySelector("input[name=mode]:checked").value;

function hint() {
  $("hint").textContent = mode() === "live"
    ? "You will hear yourself a moment later, cleaned. Through loudspeakers the microphone would hear that again: use headphones."
    : `Speak for up to ${LONGEST_S} seconds, press Stop, then switch between before and after. Nothing is played while you speak.`;
}

// -- token ----------------------------------------------------------------------------------------------------------
// From the address once, then out of it, so that it is not copied along with the link. A reload knows it still, where the browser lets pages keep anything.
let token = null;
try { token = sessionStorage.getItem("token"); } catch { /* it does not */ }
function remember(given) {
  token = given;
  try { sessionStorage.setItem("token", given); } catch { /* for this page, then */ }
}
const address = new URL(location.href);
if (address.searchParams.has("token")) {
  remember(address.searchParams.get("token"));
  address.searchParams.delete("token");
  history.replaceState(null, "", address);
}
const withToken = (path) => {
  const url = new URL(path, location.href);
  if (token) url.searchParams.set("token", token);
  return url;
};

// Why the server refused, and what to do about it.
function explain(status, why) {
  if (status !== 401) return status ? `The server takes nobody at the moment: ${why}` : why;
  $("token-form").hidden = false;
  $("token").focus();
  return token ? "The server does not know this token. Ask whoever runs it for the right one."
    : "This server asks for a token. Ask whoever runs it, and enter it below.";
}

// -- one session ----------------------------------------------------------------------------------------------------
// who: whose voice is enrolled, and file: from where, if not from the microphone.
async function begin(how = mode(), who = null, file = null) {
  trouble();
  comparison.hide();
  numbers.reset();
  const mine = session = { mode: how, who, file, stops: [], over: false };
  busy(true);
  if (file) {
    enrollFile(mine);
    return;
  }
  state("wait", "Asking for the microphone");
  try {
    const stream = await microphone($);
    mine.stops.push(() => stream.getTracks().forEach((t) => t.stop()));
    if (mine.over) { mine.stops.forEach((s) => s()); return; }
    await wire(mine, stream);
  } catch (e) {
    end(mine);
    state("bad", "Not started");
    trouble(e instanceof MicrophoneError ? e.message : `This browser cannot do it: ${e.message}`);
  }
}

// As a recording, but for the microphone.
async function enrollFile(mine) {
  state("wait", "Reading the file");
  try {
    mine.samples = await samplesOf(mine.file);
    if (mine.over) return;
  } catch (e) {
    end(mine);
    trouble(e.message);
    return;
  }
  const up = new MessageChannel();
  mine.up = up.port1;
  connect(mine, FILE_RATE, seconds(mine.samples), { microphone: up.port2 });
}

// A worker that speaks with the server. enroll: seconds of a voice to enroll, or 0. ports: from the microphone, and to the player.
function connect(mine, rate, enroll, ports) {
  const worker = mine.worker = new Worker("socket.js");
  worker.onmessage = (e) => hear(mine, e.data);
  worker.onerror = (e) => { end(mine); state("bad", "Stopped"); trouble(`A fault in this page: ${e.message}`); };
  const start = {
    event: "start", rate, format: "s16le", channels: 1, header: true, live: mine.mode === "live", strength_db: strength(),
    bypass: $("bypass").getAttribute("aria-checked") === "true", ...(mine.mode === "enroll" ? NOTHING : wanted()),
  };
  worker.postMessage({ do: "start", where: withToken("/v1/where").href, start, enroll, keep: mine.mode === "compare", ...ports }, Object.values(ports));
  state("wait", "Connecting");
}

async function wire(mine, stream) {
  // the device's own rate, where 10 ms of it are whole samples
  let context = new AudioContext({ latencyHint: "interactive" });
  if (context.sampleRate > 48000 || context.sampleRate % 100) {
    await context.close();
    if (mine.over) return;
    context = new AudioContext({ latencyHint: "interactive", sampleRate: 48000 });
  }
  mine.context = context;
  mine.stops.push(() => context.close());
  if ($("speaker").value) await context.setSinkId($("speaker").value);
  await Promise.all([context.audioWorklet.addModule("capture.js"), context.audioWorklet.addModule("play.js"), context.resume()]);
  if (mine.over) return; // stopped meanwhile

  const source = context.createMediaStreamSource(stream);
  const capture = new AudioWorkletNode(context, "capture", { numberOfOutputs: 0 });
  const player = new AudioWorkletNode(context, "play", { numberOfInputs: 0, outputChannelCount: [1] });
  mine.gain = new GainNode(context, { gain: mine.mode === "live" ? $("volume").value / 100 : 0 });
  mine.source = source;
  source.connect(capture);
  player.connect(mine.gain).connect(context.destination);
  views[0].watch(source);
  views[1].watch(player);

  const up = new MessageChannel(), down = new MessageChannel();
  capture.port.postMessage({ port: up.port1 }, [up.port1]);
  player.port.postMessage({ port: down.port1 }, [down.port1]);
  player.port.onmessage = (e) => showPlaying(mine, e.data);
  if (mine.mode === "compare") mine.recording = new Recording(context.sampleRate);
  connect(mine, context.sampleRate, mine.mode === "enroll" ? ENROLL_S : 0, { microphone: up.port2, player: down.port2 });

  const [track] = stream.getAudioTracks();
  track.onended = () => { finish(mine); trouble("The microphone is gone. Plug it in again or choose another one, then press Start."); };
  context.onstatechange = () => {
    if (mine.over || mine.finishing) return;
    if (context.state === "interrupted" || context.state === "suspended") state("wait", "Paused by the device");
    else if (context.state === "running" && mine.began) running(mine);
  };
  listDevices($);
}

const running = (mine) => state("on", mine.mode === "live" ? "Live" : mine.file ? "Listening to the file" : "Recording");

function hear(mine, data) {
  if (mine.over) return;
  const { event, message, samples, time } = data;
  if (event === "before") mine.recording.before(samples, time);
  else if (event === "after") mine.recording.after(samples, time);
  else if (event === "ready") {
    mine.latency = message.latency_ms;
    mine.began ??= performance.now();
    trouble();
    $("token-form").hidden = true;
    knows(message);
    running(mine);
    if (mine.file) read(mine.samples, mine.up);
    else if (mine.mode === "enroll") mine.who.hear(mine.source);
    if (message.recorded) $("kept").textContent = "The server keeps a recording of what you say here.";
  } else if (event === "stats") {
    numbers.network({ stats: message });
    if (mine.slow && !mine.finishing && performance.now() - mine.slow > 3000) {
      mine.slow = 0;
      running(mine);
    }
  } else if (event === "unsent") {
    numbers.network({ unsent: data.unsent });
  } else if (event === "enrolled") {
    finish(mine);
    mine.who.hush();
    trouble(mine.who.keep(message));
  } else if (event === "error") refused(mine, message);
  else if (event === "lag") {
    mine.slow = performance.now();
    state("wait", "Your connection is slow");
  }
  else if (event === "lost") away(mine, data);
  else if (event === "closed") end(mine);
  if (mine.recording?.seconds >= LONGEST_S) finish(mine);
}

// What the server says of a voice or a sound, and what to do about it. Whatever else it does not like ends the connection.
function refused(mine, { code, text }) {
  if (!["bad_voice", "no_voices", "bad_query", "no_queries", "no_converter", "no_room"].includes(code)) return;
  finish(mine);
  if (code === "bad_query") { sound.turn(false); trouble(`This sound cannot be picked out: ${text}`); }
  else if (code === "no_queries") { sound.knows(false); trouble("This server’s model knows no sounds by name, so it cannot pick one out."); }
  else if (code === "no_voices") { voice.knows(null); apart.knows(0); trouble("This server’s model knows no voices, so it cannot keep one talker."); }
  else if (code === "no_converter") { other.knows(null); trouble("This server cannot change voices."); }
  else if (code === "no_room") trouble("The server has no room for this just now. Press Start to try it again, or choose something else first.");
  else if (mine.file) trouble(`This file cannot be used: ${text.split(";")[0]}. Choose one with 5 to 10 seconds of one talker.`);
  else if (mine.mode === "enroll") trouble(`The talker could not be recorded: ${text.split(";")[0]}. Speak for the whole ${ENROLL_S} seconds, close to the microphone.`);
  else { const one = other.on ? other : voice; one.drop(); trouble(one.words.unfit); }
}

function away(mine, { wait, ready, status, why }) {
  if (mine.finishing) return;
  mine.who?.hush();
  state("wait", `Connecting again in ${wait} s`);
  trouble(explain(status, why) ?? (ready ? "The connection was lost. Connecting again by itself; your microphone stays open."
    : "The server took no more. It may be full; trying again by itself."));
  if (!$("token-form").hidden) finish(mine);
}

// Asks the server for what is still inside, then ends.
function finish(mine) {
  if (mine.over || mine.finishing) return;
  mine.finishing = true;
  if (mine.worker) { state("wait", "Finishing"); mine.worker.postMessage({ do: "stop" }); } else end(mine);
}

function end(mine) {
  if (mine.over) return;
  mine.over = true;
  mine.who?.hush();
  views.forEach((v) => v.unwatch());
  mine.worker?.terminate();
  mine.stops.forEach((s) => s());
  if (session === mine) session = null;
  busy(false);
  state("idle", "Ready");
  if (mine.recording?.seconds) comparison.show(mine.recording);
}

function busy(on) {
  $("go").textContent = on ? "Stop" : "Start";
  $("go").dataset.on = on;
  document.querySelectorAll("input[name=mode]").forEach((i) => { i.disabled = on; });
  for (const one of voices) one.busy(on, session?.who === one && !session.file);
}

function showPlaying(mine, p) {
  if (mine.over) return;
  if (mine.recording) state("on", `Recording, ${mine.recording.seconds.toFixed(0)} s`);
  numbers.playing(mine.context.outputLatency || mine.context.baseLatency || 0, mine.latency, p);
}

// -- controls -------------------------------------------------------------------------------------------------------
const strength = () => (+$("strength").value === MOST ? 1000 : +$("strength").value);
const set = (fields) => session?.mode !== "enroll" && session?.worker?.postMessage({ do: "set", fields });

function label(slider, text) {
  $(slider).setAttribute("aria-valuetext", text);
  $(`${slider}-text`).textContent = text;
}

function showStrength() {
  const db = strength();
  $("strength").disabled = other.on || (sound.on && sound.gain !== null); // nothing is taken away then
  label("strength", db > MOST ? "no limit" : db ? `${db} dB` : "0 dB: nothing");
}

const wanted = () => ({ ...NOTHING, ...wishes.find((wish) => wish.on)?.fields });

// Another talker or another sound, and only one wish at a time.
function another(one) {
  if (one.on) for (const other of wishes) if (other !== one && other.on) other.turn(false, false);
  if (!moved) $("strength").value = USUAL_DB[wanted().task];
  showStrength();
  set({ ...wanted(), strength_db: strength() });
}

function level() {
  showStrength();
  if (sound.on) set({ query_gain_db: sound.gain });
}

function far() {
  if (other.on) set({ voice_strength: other.strength });
}

// Before a stream begins, so that nothing is shown that the server cannot do; and again once one has begun.
function knows({ voices, queries, talkers, converts }) {
  voice.knows(voices);
  other.knows(converts);
  sound.knows(queries);
  apart.knows(talkers);
}

async function ask() {
  try {
    knows(await (await fetch("server.json")).json());
  } catch { /* a server that does not say knows none */ }
}

$("go").onclick = () => (session ? finish(session) : begin());
$("strength").oninput = () => {
  moved = true;
  showStrength();
  set({ strength_db: strength() });
};
$("volume").oninput = () => {
  label("volume", `${$("volume").value} %`);
  if (session?.mode === "live") session.gain?.gain.setTargetAtTime($("volume").value / 100, session.context.currentTime, 0.02);
};
$("bypass").onclick = () => {
  const on = $("bypass").getAttribute("aria-checked") !== "true";
  $("bypass").setAttribute("aria-checked", on);
  set({ bypass: on });
};
$("speaker").onchange = () => {
  for (const context of [session?.context, comparison.nodes?.context]) {
    context?.setSinkId($("speaker").value).catch(() => trouble("This loudspeaker cannot be used. Choose another one."));
  }
};
for (const id of ["microphone", "echoCancellation", "noiseSuppression", "autoGainControl"]) {
  $(id).onchange = () => { if (session) { const mine = session; end(mine); begin(mine.mode, mine.who, mine.file); } };
}
document.querySelectorAll("input[name=mode]").forEach((i) => { i.onchange = hint; });
$("token-form").onsubmit = (e) => {
  e.preventDefault();
  remember($("token").value);
  $("token").value = "";
  $("token-form").hidden = true;
  if (!session) begin();
};
navigator.mediaDevices?.addEventListener("devicechange", () => listDevices($));
addEventListener("pagehide", () => session && end(session));
hint();
ask();
listDevices($);
animate(views);
