// A worker, so that nothing the page draws can hold the sound up: the WebSocket, its protocol, connecting again, and moving to another server.
// Of sound that is heard live; what is recorded waits as long as it must.
const MOST_WAITING_S = 0.5; // sound the network has not taken; beyond it new blocks are left out (their numbers tell the server)
const MOST_INSIDE_S = 1; // sound sent and not answered: the server, or the way to it, is too slow
const MOST_KEPT_S = 2; // sound kept back while the stream moves
const AGAIN_S = [0.5, 1, 2, 4, 8];
const REPLY_S = 8;
const FINISH_S = 1.5, FINISH_ALL_S = 30; // how long the server may take for what is still inside: heard live, or recorded

let sent = 0, answered = null; // times of the newest sound sent and answered
let enroll = 0; // seconds of a voice the server is to enroll
let where, start, socket, latency = 0, sequence = 0, tries = 0, unsent = 0, wanted = false, keep = false, timer = 0, toPlayer = null;
let unsaid = false; // something was set after `start` was sent and before it was answered
let moving = null; // { next: the socket to go on with, kept: blocks that wait for it }

const tell = (event, more = {}) => postMessage({ event, ...more });
const opened = () => socket?.readyState === WebSocket.OPEN;

class Refused extends Error {}

// Asks where there is room, since a browser does not say why a WebSocket was refused. → an open WebSocket
async function open(query = "") {
  const url = new URL(where);
  if (query) url.searchParams.set(query, "1");
  let answer;
  try {
    answer = await fetch(url, { signal: AbortSignal.timeout(1000 * REPLY_S) });
  } catch {
    throw new Refused("The server cannot be reached. Is it running, and are you online?");
  }
  if (!answer.ok) throw Object.assign(new Refused((await answer.text()).trim()), { status: answer.status });
  const target = new URL((await answer.json()).url, where);
  if (query) target.searchParams.set(query, "1");
  if (url.searchParams.has("token") && target.host === url.host) target.searchParams.set("token", url.searchParams.get("token"));
  target.protocol = target.protocol.replace("http", "ws");
  const made = new WebSocket(target);
  made.binaryType = "arraybuffer";
  return new Promise((resolve, reject) => {
    const late = setTimeout(() => made.close(), 1000 * REPLY_S);
    made.onopen = () => { clearTimeout(late); resolve(made); };
    made.onclose = () => { clearTimeout(late); reject(new Refused("The server took no more. It may be full.")); };
  });
}

async function connect() {
  latency = sequence = sent = 0;
  answered = moving = null;
  try {
    const made = await open();
    if (wanted) use(made, start); else { made.close(); tell("closed"); }
  } catch (e) {
    if (wanted) again({ why: e.message, status: e.status }); else tell("closed");
  }
}

function again(more) {
  const wait = AGAIN_S[Math.min(tries++, AGAIN_S.length - 1)];
  tell("lost", { wait, ...more });
  timer = setTimeout(connect, 1000 * wait);
}

// Go on with this socket: begin a stream on it, or one that another server has left behind.
function use(mine, first) {
  socket = mine;
  let ready = false, said = null;
  timer = setTimeout(() => mine.close(), 1000 * REPLY_S);
  mine.onmessage = (e) => {
    if (mine !== socket) return;
    if (e.data instanceof ArrayBuffer) { hear(e.data); return; }
    const message = JSON.parse(e.data);
    if (message.event === "ready") {
      clearTimeout(timer);
      ready = true;
      tries = 0;
      latency = message.latency_ms / 1000;
      const kept = moving?.kept ?? [];
      moving = null;
      const { strength_db, bypass, task, voice, query, talker, query_gain_db, voice_strength } = start;
      const asked = { strength_db, bypass, task, voice, query, talker, query_gain_db, voice_strength };
      if (first.resume || unsaid) mine.send(JSON.stringify({ event: "set", ...asked })); // may have changed meanwhile
      unsaid = false;
      if (enroll) mine.send(JSON.stringify({ event: "enroll", seconds: enroll }));
      kept.forEach(say);
    }
    if (message.event === "error") said = message;
    if (message.event === "goaway") leave(mine, message);
    if (message.event === "moved") use(moving.next, { ...start, resume: message.resume });
    else tell(message.event, { message });
  };
  mine.onclose = (e) => {
    if (mine !== socket) return;
    clearTimeout(timer);
    socket = null;
    if (!wanted) tell("closed");
    else if (said && first.resume) connect(); // what was left behind is lost: begin anew
    else again({ ready, code: e.code, why: said ? `The server said: ${said.text}` : null });
  };
  unsaid = false;
  if (mine.readyState === WebSocket.OPEN) mine.send(JSON.stringify(first));
  else mine.onclose({ code: 1006 }); // it ended before its turn came
}

// The server is being emptied. With a place elsewhere, take the stream along: the gap is a message there and back.
async function leave(mine, { move }) {
  let next = null;
  try {
    if (move) next = await open("move");
  } catch { /* no room elsewhere: begin anew when this one ends */ }
  if (mine !== socket || !wanted || !opened()) { next?.close(); return; }
  if (!next) { mine.close(1000); return; }
  moving = { next, kept: [] };
  mine.send(JSON.stringify({ event: "move" }));
}

function hear(buffer) {
  if (buffer.byteLength < 16) return;
  const head = new DataView(buffer), pcm = new Int16Array(buffer.slice(16));
  const samples = new Float32Array(pcm.length);
  for (let i = 0; i < pcm.length; i++) samples[i] = pcm[i] / 32768;
  // the block that answers a block holds what was said `latency` before
  const time = Number(head.getBigUint64(4, true)) / 1e6 - latency;
  answered = time + latency;
  if (keep) tell("after", { samples: samples.slice(), time, lost: head.getUint32(12, true) & 1 });
  toPlayer?.postMessage({ samples, time }, [samples.buffer]);
}

function say({ samples, time }) {
  if (!wanted) return; // after stop
  if (moving && latency) {
    if (moving.kept.length * samples.length < MOST_KEPT_S * start.rate) moving.kept.push({ samples, time });
    return;
  }
  if (!opened() || !latency) return;
  const number = sequence++;
  const behind = answered !== null && sent - answered > MOST_INSIDE_S && time - sent < MOST_INSIDE_S;
  if (start.live && (behind || socket.bufferedAmount > 2 * start.rate * MOST_WAITING_S)) { unsent++; tell("unsent", { unsent }); return; }
  const buffer = new ArrayBuffer(16 + 2 * samples.length), head = new DataView(buffer), pcm = new Int16Array(buffer, 16);
  head.setUint32(0, number >>> 0, true);
  head.setBigUint64(4, BigInt(Math.round(time * 1e6)), true);
  for (let i = 0; i < samples.length; i++) pcm[i] = Math.max(-32768, Math.min(32767, Math.round(samples[i] * 32768)));
  socket.send(buffer);
  sent = time;
  if (keep) tell("before", { samples, time });
}

onmessage = ({ data }) => {
  if (data.do === "start") {
    ({ where, start, keep, enroll } = data); // keep: the page records, and gets all sound too
    toPlayer = data.player;
    data.microphone.onmessage = (e) => say(e.data);
    wanted = true;
    connect();
  } else if (data.do === "set") {
    Object.assign(start, data.fields); // so that it holds after connecting again too
    if (opened() && latency) socket.send(JSON.stringify({ event: "set", ...data.fields }));
    else unsaid = true;
  } else if (data.do === "stop") {
    wanted = false;
    clearTimeout(timer);
    if (!opened()) { socket?.close(); socket = null; tell("closed"); return; }
    if (latency) socket.send(JSON.stringify({ event: "stop" }));
    else socket.close();
    timer = setTimeout(() => { socket = null; tell("closed"); }, 1000 * (start.live ? FINISH_S : FINISH_ALL_S));
  }
};
