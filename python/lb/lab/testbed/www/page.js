// The page around the player: controls, shares per server, the two charts, the table.

import { PlaybackError, Player } from "./player.js";

const PLAYLIST = "vod/video.m3u8";
const SAMPLE_MS = 500;
const HISTORY_S = 120;
const KEPT_CHUNKS = 40;
const SLOT_PX = 26; // room of one chunk in the chart, at least
const TABLE_ROWS = 12;
const COLOURS = 6; // --server-1 .. --server-6 in style.css

const find = (id) => document.getElementById(id);
const video = find("video");
const player = new Player(video);

const servers = new Map(); // name -> {colour, chunks, bytes, milliseconds}
const chunks = []; // the latest, oldest first
const levels = []; // {time (s), ahead (s), stalled}
const stalls = { count: 0, seconds: 0, since: null };
let hasStarted = false;

function serverOf(name) {
  if (!servers.has(name)) {
    // server2 has the second colour whichever is seen first; other names in order of appearance.
    const number = Number(name.match(/(\d+)$/)?.[1] ?? servers.size + 1);
    servers.set(name, { colour: `var(--server-${((number - 1) % COLOURS) + 1})`, chunks: 0, bytes: 0, milliseconds: 0 });
  }
  return servers.get(name);
}

const speedOf = ({ bytes, milliseconds }) => (bytes * 8) / 1000 / milliseconds; // Mbit/s
// Three digits say enough.
const short = (value) => (value >= 100 ? value.toFixed(0) : value.toFixed(1));

function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  Object.assign(made, properties);
  made.append(...children);
  return made;
}

function drawing(name, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

function showMessage(text) {
  find("message").textContent = text;
  find("message").hidden = text === "";
}

function showShares() {
  const total = [...servers.values()].reduce((sum, server) => sum + server.chunks, 0);
  const rows = [...servers].sort(([one], [other]) => one.localeCompare(other)).map(([name, server]) => {
    const share = (100 * server.chunks) / total;
    const bar = element("div", { className: "bar" });
    bar.style.cssText = `width: ${share}%; background: ${server.colour}`;
    const count = `${server.chunks} ${server.chunks === 1 ? "chunk" : "chunks"}, ${share.toFixed(0)} %, ${short(speedOf(server))} Mbit/s`;
    const label = element("div", { className: "label" }, element("strong", { textContent: name }), element("span", { textContent: count }));
    return element("li", {}, label, element("div", { className: "track" }, bar));
  });
  find("shares").replaceChildren(...rows);
}

function row(chunk) {
  if (chunk.error) {
    const cell = element("td", { className: "failed", colSpan: 5, textContent: `failed after ${chunk.milliseconds.toFixed(0)} ms: ${chunk.error}` });
    return element("tr", {}, element("td", { textContent: chunk.number }), cell);
  }
  const dot = element("span", { className: "dot" });
  dot.style.background = serverOf(chunk.server).colour;
  const cells = [chunk.bitrate, (chunk.bytes / 1000).toFixed(0), chunk.milliseconds.toFixed(1), short(speedOf(chunk))];
  const made = element("tr", {}, element("td", { textContent: chunk.number }), element("td", {}, dot, chunk.server));
  made.append(...cells.map((text) => element("td", { textContent: text })));
  made.dataset.server = chunk.server;
  return made;
}

// A chart's frame: the SVG at its real size, a line and a label for each step of the vertical axis.
function frame(chart, height, top, steps, unit) {
  const width = chart.clientWidth;
  chart.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const area = { left: 56, right: width - 8, top: 22, bottom: height - 24 };
  area.y = (value) => area.bottom - (Math.min(value, top) / top) * (area.bottom - area.top);
  chart.replaceChildren(drawing("text", { x: 0, y: 12 }, unit));
  for (const step of steps) {
    chart.append(drawing("line", { class: "grid", x1: area.left, x2: area.right, y1: area.y(step), y2: area.y(step) }));
    chart.append(drawing("text", { class: "end", x: area.left - 8, y: area.y(step) + 4 }, step));
  }
  return area;
}

function drawChunks() {
  const chart = find("chunk-chart");
  const bitrates = player.variants.map((variant) => variant.bitrate);
  const area = frame(chart, 190, Math.max(1, ...bitrates), bitrates, "kbit/s");
  const slots = Math.min(KEPT_CHUNKS, Math.floor((area.right - area.left) / SLOT_PX));
  const slot = (area.right - area.left) / slots;
  const shown = chunks.slice(-slots);
  shown.forEach((chunk, index) => {
    const x = area.right - (shown.length - index) * slot;
    const label = drawing("text", { class: "middle", x: x + slot / 2, y: area.bottom + 16 }, chunk.error ? "×" : chunk.number);
    if (chunk.error) label.classList.add("failed");
    chart.append(label);
    if (chunk.error) return;
    const y = area.y(chunk.bitrate);
    const bar = drawing("rect", { x: x + 1, y, width: slot - 2, height: area.bottom - y, rx: 3 });
    bar.style.fill = serverOf(chunk.server).colour;
    bar.append(drawing("title", {}, `chunk ${chunk.number}: ${chunk.server}, ${chunk.bitrate} kbit/s`));
    chart.append(bar);
    // The colour is not the only sign: the server's number stands in its bar where there is room.
    const number = chunk.server.match(/\d+$/)?.[0];
    if (number && area.bottom - y > 12) chart.append(drawing("text", { class: "on-bar", x: x + slot / 2, y: area.bottom - 4 }, number));
  });
}

// The stretches of time without motion: [{start, end}].
function stallsAmong(samples, now) {
  const found = [];
  samples.forEach(({ time, stalled }, index) => {
    if (!stalled) return;
    const end = samples[index + 1]?.time ?? now;
    if (found.at(-1)?.end === time) found.at(-1).end = end;
    else found.push({ start: time, end });
  });
  return found;
}

function drawBuffer() {
  const chart = find("buffer-chart");
  const area = frame(chart, 170, 16, [0, 4, 8, 12, 16], "seconds");
  const now = performance.now() / 1000;
  const x = (time) => area.right - ((now - time) / HISTORY_S) * (area.right - area.left);
  for (let ago = HISTORY_S; ago >= 0; ago -= 30) {
    const place = ago === 0 ? "end" : "middle";
    chart.append(drawing("text", { class: place, x: x(now - ago), y: area.bottom + 16 }, ago === 0 ? "now" : `${ago} s ago`));
  }
  for (const { start, end } of stallsAmong(levels, now)) {
    chart.append(drawing("rect", { class: "stall", x: x(start), y: area.top, width: x(end) - x(start), height: area.bottom - area.top }));
  }
  if (levels.length < 2) return;
  const line = levels.map((level) => `${x(level.time).toFixed(1)},${area.y(level.ahead).toFixed(1)}`).join(" ");
  chart.append(drawing("polygon", { class: "area", points: `${x(levels[0].time)},${area.bottom} ${line} ${x(levels.at(-1).time)},${area.bottom}` }));
  chart.append(drawing("polyline", { class: "level", points: line }));
}

function sample() {
  const now = performance.now() / 1000;
  const running = stalls.since === null ? 0 : now - stalls.since;
  levels.push({ time: now, ahead: player.ahead, stalled: stalls.since !== null });
  while (levels[0].time < now - HISTORY_S) levels.shift();
  find("now-buffer").textContent = player.ahead.toFixed(1);
  find("now-stalls").textContent = stalls.count;
  find("now-stalled").textContent = `${(stalls.seconds + running).toFixed(1)} s`;
  drawBuffer();
}

function onChunk({ detail: chunk }) {
  if (!chunk.error) {
    chunk.server ??= "unnamed";
    const server = serverOf(chunk.server);
    server.chunks += 1;
    server.bytes += chunk.bytes;
    server.milliseconds += chunk.milliseconds;
    find("now-bitrate").textContent = chunk.bitrate;
    find("now-speed").textContent = short(speedOf(chunk));
    showShares();
  }
  showMessage(chunk.error ? `Chunk ${chunk.number} did not come: ${chunk.error}. Trying again.` : "");
  chunks.push(chunk);
  if (chunks.length > KEPT_CHUNKS) chunks.shift();
  find("chunks").replaceChildren(...chunks.slice(-TABLE_ROWS).reverse().map(row));
  drawChunks();
}

function watchStalls() {
  video.addEventListener("playing", () => {
    hasStarted = true;
    if (stalls.since === null) return;
    stalls.seconds += performance.now() / 1000 - stalls.since;
    stalls.since = null;
  });
  // Waiting for the very first chunk is no stall.
  video.addEventListener("waiting", () => {
    if (!hasStarted || stalls.since !== null) return;
    stalls.count += 1;
    stalls.since = performance.now() / 1000;
  });
}

function wireControls() {
  find("play").addEventListener("click", () => (video.paused ? video.play() : video.pause()));
  for (const name of ["play", "pause"]) {
    video.addEventListener(name, () => { find("play").textContent = video.paused ? "Play" : "Pause"; });
  }
  find("sound").addEventListener("click", () => {
    video.muted = !video.muted;
    find("sound").textContent = video.muted ? "Sound on" : "Sound off";
  });
  find("bitrate").addEventListener("change", (change) => { player.fixedBitrate = Number(change.target.value); });
  find("fresh").addEventListener("change", (change) => { player.freshConnections = change.target.checked; });
  player.addEventListener("variants", () => {
    const options = player.variants.map(({ bitrate }) => element("option", { value: bitrate, textContent: `${bitrate} kbit/s` }));
    find("bitrate").append(...options);
    drawChunks();
  });
}

async function main() {
  wireControls();
  watchStalls();
  player.addEventListener("chunk", onChunk);
  addEventListener("resize", () => { drawChunks(); drawBuffer(); });
  drawChunks();
  setInterval(sample, SAMPLE_MS);
  try {
    await player.run(PLAYLIST);
  } catch (error) {
    const hint = error instanceof PlaybackError ? " Was the website made without ffmpeg? Its video then has stand-ins that cannot be played." : "";
    showMessage(`The video cannot be played: ${error.message}${hint}`);
  }
}

main();
