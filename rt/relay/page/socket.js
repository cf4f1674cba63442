// A worker, so that nothing the page draws can hold the sound up: the WebSocket, its protocol, and connecting again.
const MOST_WAITING_S = 0.5; // sound the network has not taken; beyond it new blocks are left out (their numbers tell the server)
const MOST_INSIDE_S = 1; // sound sent and not answered: the server, or the way to it, is too slow
const AGAIN_S = [0.5, 1, 2, 4, 8];
const REPLY_S = 8;

let sent = 0, answered = null; // times of the newest sound sent and answered
let url, start, socket, latency = 0, sequence = 0, tries = 0, unsent = 0, wanted = false, keep = false, timer = 0, toPlayer = null;

const tell = (event, more = {}) => postMessage({ event, ...more });
const opened = () => socket?.readyState === WebSocket.OPEN;

function connect() {
  clearTimeout(timer);
  latency = sequence = sent = 0;
  answered = null;
  const mine = socket = new WebSocket(url);
  mine.binaryType = "arraybuffer";
  let ready = false, said = null;
  timer = setTimeout(() => mine.close(), 1000 * REPLY_S);
  mine.onopen = () => mine.send(JSON.stringify(start));
  mine.onmessage = (e) => {
    if (mine !== socket) return;
    if (e.data instanceof ArrayBuffer) { hear(e.data); return; }
    const message = JSON.parse(e.data);
    if (message.event === "ready") {
      clearTimeout(timer);
      ready = true;
      tries = 0;
      latency = message.latency_ms / 1000;
    }
    if (message.event === "error") said = message;
    if (message.event === "goaway") mine.close(1000); // the next one is elsewhere, or this server again after its restart
    tell(message.event, { message });
  };
  mine.onclose = (e) => {
    clearTimeout(timer);
    if (mine !== socket) return;
    socket = null;
    if (!wanted) { tell("closed"); return; }
    const wait = AGAIN_S[Math.min(tries++, AGAIN_S.length - 1)];
    tell("lost", { wait, ready, code: e.code, said });
    timer = setTimeout(connect, 1000 * wait);
  };
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
  if (!opened() || !latency) return;
  const number = sequence++;
  const behind = answered !== null && sent - answered > MOST_INSIDE_S && time - sent < MOST_INSIDE_S;
  if (behind || socket.bufferedAmount > 2 * start.rate * MOST_WAITING_S) { unsent++; tell("unsent", { unsent }); return; }
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
    ({ url, start, keep } = data); // keep: the page records, and gets all sound too
    toPlayer = data.player;
    data.microphone.onmessage = (e) => say(e.data);
    wanted = true;
    connect();
  } else if (data.do === "set") {
    Object.assign(start, data.fields); // so that it holds after connecting again too
    if (opened() && latency) socket.send(JSON.stringify({ event: "set", ...data.fields }));
  } else if (data.do === "stop") {
    wanted = false;
    clearTimeout(timer);
    if (!opened()) { socket?.close(); socket = null; tell("closed"); return; }
    if (latency) socket.send(JSON.stringify({ event: "stop" }));
    else socket.close();
    timer = setTimeout(() => socket?.close(), 1500);
  }
};
