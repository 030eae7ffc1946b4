// Plays an HLS playlist of fragmented MP4 through Media Source Extensions, without end, and chooses the bitrate of each
// chunk.
// Playlists: RFC 8216, as far as make-video.sh writes them: one init section, no discontinuities, whole-file chunks.

const BUFFER_TARGET_S = 12; // fetch the next chunk while less than this lies ahead
const BUFFER_SAFE_S = 4; // below it never go up, and fall at once
const KEEP_BEHIND_S = 20;
const SAFETY = 1.3; // a bitrate is affordable when chunks come this much faster than it plays
const SPEED_SAMPLES = 3;
const FETCH_TIMEOUT_MS = 10_000;
const RETRY_MS = 1_000;

// Why the page cannot play at all; its message is for people.
export class PlaybackError extends Error {}

async function readText(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new PlaybackError(`${url}: HTTP status ${answer.status}.`);
  return answer.text();
}

// The variants of a master playlist, lowest bitrate first: {url, bitrate (kbit/s), codecs}.
export function parseMaster(text, base) {
  const lines = text.split(/\r?\n/);
  const variants = [];
  lines.forEach((line, index) => {
    if (!line.startsWith("#EXT-X-STREAM-INF:")) return;
    const bits = line.match(/AVERAGE-BANDWIDTH=(\d+)/) ?? line.match(/BANDWIDTH=(\d+)/);
    const codecs = line.match(/CODECS="([^"]*)"/);
    variants.push({ url: new URL(lines[index + 1], base), bitrate: bits[1] / 1000, codecs: codecs[1] });
  });
  return variants.sort((one, other) => one.bitrate - other.bitrate);
}

// Of one bitrate: {init (URL), chunks: [{url, duration (s)}]}.
export function parseMedia(text, base) {
  const lines = text.split(/\r?\n/);
  const init = text.match(/#EXT-X-MAP:URI="([^"]*)"/);
  const chunks = [];
  lines.forEach((line, index) => {
    const found = line.match(/^#EXTINF:([\d.]+)/);
    if (found) chunks.push({ url: new URL(lines[index + 1], base), duration: Number(found[1]) });
  });
  return { init: new URL(init[1], base), chunks };
}

// The bitrate to fetch next. `speed`: kbit/s that chunks come with, or null; `ahead`: seconds in the buffer.
export function chooseVariant(variants, current, speed, ahead) {
  if (speed === null) return variants[0];
  const affordable = variants.filter((variant) => variant.bitrate * SAFETY <= speed).at(-1) ?? variants[0];
  const goesUp = current !== null && affordable.bitrate > current.bitrate;
  return goesUp && ahead < BUFFER_SAFE_S ? current : affordable;
}

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const event = (target, name) => new Promise((resolve) => target.addEventListener(name, resolve, { once: true }));

// Sends "chunk" events (detail: {number, bitrate, server, bytes, milliseconds, error}). Two settings: `fixedBitrate`
// (kbit/s; 0 chooses), `freshConnections` (ask the server to close after each chunk, so that the next one is balanced
// anew).
export class Player extends EventTarget {
  fixedBitrate = 0;
  freshConnections = true;
  variants = [];
  #video;
  #buffer;
  #current = null;
  #speeds = []; // kbit/s of the latest chunks

  constructor(video) {
    super();
    this.#video = video;
  }

  // Kbit/s that chunks come with, for choosing: falls at once with a slow chunk, rises when several were fast; null
  // before the first. The mean is harmonic: that is what their bytes and times add up to.
  get speed() {
    if (this.#speeds.length === 0) return null;
    const mean = this.#speeds.length / this.#speeds.reduce((sum, speed) => sum + 1 / speed, 0);
    return Math.min(mean, this.#speeds.at(-1));
  }

  // Seconds of video ahead of the playing position.
  get ahead() {
    const { buffered, currentTime } = this.#video;
    for (let index = 0; index < buffered.length; index++) {
      // A range may begin a little late: encoders pad the first sound.
      if (buffered.start(index) - 0.1 <= currentTime && currentTime < buffered.end(index)) return buffered.end(index) - currentTime;
    }
    return 0;
  }

  // Reads the playlists and feeds the video for ever; throws PlaybackError when it cannot be played.
  async run(url) {
    if (!("MediaSource" in window)) throw new PlaybackError("This browser has no Media Source Extensions.");
    await this.#readPlaylists(url);
    const type = `video/mp4; codecs="${this.variants[0].codecs}"`;
    if (!MediaSource.isTypeSupported(type)) throw new PlaybackError(`This browser does not play ${type}.`);
    const source = new MediaSource();
    this.#video.src = URL.createObjectURL(source);
    await event(source, "sourceopen");
    source.duration = Infinity;
    this.#buffer = source.addSourceBuffer(type);
    await this.#feed();
  }

  async #readPlaylists(url) {
    this.variants = parseMaster(await readText(url), new URL(url, document.baseURI));
    for (const variant of this.variants) {
      Object.assign(variant, parseMedia(await readText(variant.url), variant.url));
      variant.header = await (await fetch(variant.init)).arrayBuffer();
    }
    this.dispatchEvent(new Event("variants"));
  }

  async #feed() {
    const duration = this.variants[0].chunks.reduce((sum, chunk) => sum + chunk.duration, 0);
    for (let round = 0; ; round++) {
      for (let index = 0; index < this.variants[0].chunks.length; index++) {
        while (this.ahead >= BUFFER_TARGET_S) await pause(100);
        const { variant, data } = await this.#fetchChunk(index);
        if (variant !== this.#current) await this.#append(variant.header);
        this.#current = variant;
        // The video begins anew where it ended.
        this.#buffer.timestampOffset = round * duration;
        await this.#append(data);
        await this.#forget();
      }
    }
  }

  #choose() {
    const fixed = this.variants.find((variant) => variant.bitrate === this.fixedBitrate);
    return fixed ?? chooseVariant(this.variants, this.#current, this.speed, this.ahead);
  }

  async #fetchChunk(index) {
    for (;;) {
      const variant = this.#choose();
      const chunk = { number: index + 1, bitrate: variant.bitrate, server: null, bytes: 0, milliseconds: 0, error: null };
      const started = performance.now();
      try {
        const data = await this.#download(variant.chunks[index].url, chunk);
        chunk.milliseconds = performance.now() - started;
        this.#speeds = [...this.#speeds, (chunk.bytes * 8) / chunk.milliseconds].slice(-SPEED_SAMPLES);
        return { variant, data };
      } catch (error) {
        chunk.milliseconds = performance.now() - started;
        chunk.error = error.name === "TimeoutError" ? "no answer" : error.message;
        this.#speeds = []; // after a failure carefully, from the lowest bitrate
        await pause(RETRY_MS);
      } finally {
        this.dispatchEvent(new CustomEvent("chunk", { detail: chunk }));
      }
    }
  }

  async #download(url, chunk) {
    const asked = this.freshConnections ? `${url}?close` : url;
    const answer = await fetch(asked, { cache: "no-store", signal: AbortSignal.timeout(FETCH_TIMEOUT_MS) });
    chunk.server = answer.headers.get("X-Served-By");
    if (!answer.ok) throw new Error(`HTTP status ${answer.status}`);
    const data = await answer.arrayBuffer();
    chunk.bytes = data.byteLength;
    return data;
  }

  async #append(data) {
    this.#buffer.appendBuffer(data);
    await event(this.#buffer, "updateend");
  }

  async #forget() {
    const end = this.#video.currentTime - KEEP_BEHIND_S;
    if (this.#video.buffered.length === 0 || this.#video.buffered.start(0) >= end - 10) return;
    this.#buffer.remove(0, end);
    await event(this.#buffer, "updateend");
  }
}
