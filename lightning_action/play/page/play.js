// The page of a live session: draws blocks as they come, and says what is held. No frame waits for another one.
import { Held } from "./held.js";

const at = (id) => document.getElementById(id);
const show = (id, text) => { at(id).hidden = !text; if (text) at(id).innerHTML = text; };
const milliseconds = (value) => `${value < 9.95 ? value.toFixed(1) : Math.round(value)} ms`;
const NAMES = { generate: "generate", decode: "decode", encode: "encode", send: "send and draw", pixels: "step to pixels", key: "key to pixels" };
const [FULL, FAILED] = [1013, 1011];
const HURRY_MS = 60;

let socket, held, playing, paused = false, seed = 0, prompt = "", ownPrompt = true, drawn = [], turn, failed, noteTimer;

function send(message) {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
}

function connect() {
  failed = undefined;
  curtain("connecting");
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/live`);
  socket.binaryType = "arraybuffer";
  socket.onmessage = ({ data }) => (typeof data === "string" ? onNotice(JSON.parse(data)) : onBlock(data));
  socket.onclose = ({ code, reason }) => {
    held?.forget();
    at("deck").inert = true;
    playing = undefined;
    curtain(code === FULL || code === FAILED ? reason : failed ?? "the connection is lost", undefined, true);
  };
}

function curtain(text, share, again = false) {
  at("curtain").hidden = !text;
  at("doing").textContent = text ?? "";
  at("progress").hidden = again;
  if (share === undefined) at("progress").removeAttribute("value");
  else at("progress").value = share;
  at("again").hidden = !again;
}

function onNotice(notice) {
  if (notice.type === "loading") {
    failed = notice.failed;
    curtain(failed ?? notice.doing, notice.share);
  } else if (notice.type === "hello") onHello(notice);
  else if (notice.type === "figures") onFigures(notice);
  else if (notice.type === "refused") {
    note(notice.why);
    prompt = undefined; // what was not taken does not stay in the field
  }
}

function onHello(hello) {
  at("title").textContent = document.title = hello.title;
  at("prompt").maxLength = hello.max_prompt;
  held?.release();
  held = new Held(hello.controls, at("pad"), at("world"), (change, pairs) => {
    send({ type: "hold", held: pairs, change });
    hurry();
  });
  at("deck").inert = false;
  setPaused(false);
  ownPrompt = true;
  prompt = undefined;
}

async function onBlock(data) {
  const length = new DataView(data).getUint32(0);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
  const owner = socket;
  const picture = await createImageBitmap(new Blob([new Uint8Array(data, 4 + length)], { type: `image/${header.format}` }));
  const isLate = owner.readyState !== WebSocket.OPEN || (playing && playing.header.serial > header.serial);
  if (isLate) return picture.close();
  playing?.picture.close();
  playing = { header, picture, since: performance.now(), shown: -1 };
  resize(header);
  draw(0);
  const key = held.answered(header.change);
  send({ type: "shown", serial: header.serial, key_ms: paused || key === undefined ? null : Math.min(key, 60000) });
  at("curtain").hidden = true;
  tell(header);
  goOn();
}

function resize({ size: [height, width], truth }) {
  const both = truth && at("compare").getAttribute("aria-pressed") === "true";
  at("beside").hidden = !both;
  at("compare").hidden = !truth;
  document.documentElement.style.setProperty("--columns", both ? 2 : 1);
  document.documentElement.style.setProperty("--ratio", width / height);
  for (const canvas of [at("world"), at("truth")]) {
    if (canvas.width === width && canvas.height === height) continue;
    [canvas.width, canvas.height] = [width, height];
    canvas.classList.toggle("small", width * height <= 192 * 192);
  }
}

function draw(frame) {
  const { header: { size: [height, width], truth }, picture } = playing;
  playing.shown = frame;
  for (const [id, column] of truth ? [["world", 0], ["truth", 1]] : [["world", 0]]) {
    at(id).getContext("2d").drawImage(picture, column * width, frame * height, width, height, 0, 0, width, height);
  }
  drawn.push(performance.now());
}

// Frames of a block are spread over the time until the next one is due; a new block ends the one before.
function goOn() {
  cancelAnimationFrame(turn); // a page that nobody sees gets blocks, but no turns
  if (!playing || playing.shown >= playing.header.frames - 1) return;
  const { header, since, shown } = playing;
  const wanted = Math.floor(((performance.now() - since) * header.frames) / Math.max(header.span_ms, 1));
  if (wanted > shown) draw(Math.min(wanted, header.frames - 1));
  turn = requestAnimationFrame(goOn);
}

// The answer to a change comes soon: what is left of the block until then is shown, not skipped.
function hurry() {
  if (!playing) return;
  const { header, shown } = playing;
  const each = Math.min(header.span_ms / header.frames, HURRY_MS / (header.frames - shown));
  playing.since = performance.now() - shown * each;
  header.span_ms = each * header.frames;
}

function tell(header) {
  const now = performance.now();
  drawn = drawn.filter((time) => now - time < 3000);
  const seconds = (now - drawn[0]) / 1000;
  show("fps", !paused && seconds > 1 ? `<b>${((drawn.length - 1) / seconds).toFixed(1)}</b> fps` : "");
  show("distance", header.distance === null ? "" : `<b>${header.distance.toFixed(1)}</b> px from the simulator`);
  if (document.activeElement !== at("seed") && header.seed !== seed) at("seed").value = header.seed;
  // What somebody types, or is about to send with the button, is theirs until the world itself has another one.
  if (!at("ask").contains(document.activeElement)) {
    if (header.prompt !== prompt) at("prompt").value = header.prompt;
    prompt = header.prompt;
  }
  at("recording").hidden = !header.recorded;
  seed = header.seed;
  document.body.dataset.block = header.number;
}

function onFigures({ ms, dropped }) {
  const chosen = ms.key ?? ms.pixels;
  show("latency", `${ms.key ? "key" : "step"} to pixels <b>${milliseconds(chosen[0])}</b>, 95 % ${milliseconds(chosen[1])}`);
  at("parts").hidden = false;
  at("parts").querySelector("tbody").innerHTML = Object.entries(ms)
    .map(([part, [median, tail]]) => `<tr><th scope="row">${NAMES[part]}<td>${milliseconds(median)}<td>${milliseconds(tail)}</tr>`)
    .join("");
  at("dropped").textContent = dropped ? `${dropped} blocks were dropped on the way` : "";
}

function note(text) {
  at("note").textContent = text;
  at("note").hidden = false;
  clearTimeout(noteTimer);
  noteTimer = setTimeout(() => { at("note").hidden = true; }, 4000);
}

function setPaused(on) {
  paused = on;
  at("pause").textContent = on ? "Go on" : "Pause";
  at("pause").setAttribute("aria-pressed", on);
  at("step").disabled = !on;
  drawn = [];
  held.pending = []; // what was held while the world stood still is not answered late
}

function pause() {
  setPaused(!paused);
  send({ type: "pause", on: paused });
}

function reset(newSeed, keepsPrompt) {
  if (!Number.isInteger(newSeed) || newSeed < 0 || newSeed > 2147483647) return note("a seed is a whole number from 0 on");
  if (!keepsPrompt) [ownPrompt, prompt] = [true, undefined];
  send({ type: "reset", seed: newSeed, prompt: ownPrompt ? null : at("prompt").value });
}

at("pause").onclick = pause;
at("step").onclick = () => send({ type: "step" });
at("reset").onclick = () => reset(at("seed").valueAsNumber, true);
at("another").onclick = () => reset(Math.floor(Math.random() * 10000), false);
at("seed").onkeydown = ({ key, target }) => {
  if (key !== "Enter") return;
  reset(target.valueAsNumber, true);
  target.blur(); // the arrows are the world's again
};
at("again").onclick = connect;
at("compare").onclick = () => {
  at("compare").setAttribute("aria-pressed", at("compare").getAttribute("aria-pressed") !== "true");
  if (playing) resize(playing.header);
};
at("ask").onsubmit = (event) => {
  event.preventDefault();
  ownPrompt = false;
  send({ type: "prompt", text: at("prompt").value });
  at("prompt").blur();
};
// Where there is little room, the world has it alone until somebody asks for more.
at("compare").setAttribute("aria-pressed", matchMedia("(min-width: 641px)").matches);
// A button that the mouse has pressed does not catch the space bar afterwards.
document.addEventListener("click", ({ target, detail }) => { if (detail) target.closest("button")?.blur(); });
document.addEventListener("keydown", (event) => {
  const { code, target, repeat } = event;
  if (code === "Escape") return target.blur();
  if (target.closest("input, button, summary") || event.ctrlKey || event.metaKey || event.altKey || at("deck").inert) return;
  if (code === "Space" && !repeat) pause();
  else if (code === "Period" && paused) send({ type: "step" });
  else if (code === "Enter" && !repeat) at("prompt").focus();
  else return;
  event.preventDefault();
});
connect();
