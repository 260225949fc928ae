// The server's API: errors as it says them, the key it may want, patience where it is busy, speech as it comes.

const BASE = new URL("..", import.meta.url); // also behind a proxy that serves this page under a prefix
const KEY = "llasa-api-key";
const ATTEMPTS = 6;
const LONGEST_WAIT = 120; // seconds

class ServerError extends Error {
  constructor(status, message, retryAfter) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter; // seconds, or none
  }
}

let askForKey = async () => null;

/** `ask(refused)` resolves to a key, or to null where the person has none. */
export function onKeyWanted(ask) {
  askForKey = ask;
}

const storedKey = () => sessionStorage.getItem(KEY);

export function storeKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

/** A response that is ok. Asks for a key on 401, and again if that one is refused. */
export async function request(path, options = {}) {
  for (;;) {
    const key = storedKey();
    const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
    let response;
    try {
      response = await fetch(new URL(path, BASE), { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ServerError(0, "The server cannot be reached. Is it still running?");
    }
    if (response.ok) return response;
    const error = await toError(response);
    if (response.status !== 401) throw error;
    const given = await askForKey(key !== null);
    if (!given) throw error;
    storeKey(given);
    options.signal?.throwIfAborted();
  }
}

async function toError(response) {
  let message = "";
  try {
    const body = await response.json();
    message = body.error?.message ?? (typeof body.detail === "string" ? body.detail : "");
  } catch {
    // not the server's own words: a proxy in between, perhaps
  }
  const seconds = Number.parseFloat(response.headers.get("Retry-After"));
  return new ServerError(
    response.status,
    message || `The server answered ${response.status} ${response.statusText}`.trim() + ".",
    Number.isFinite(seconds) && seconds >= 0 ? seconds : undefined,
  );
}

export async function getJson(path) {
  return (await request(path)).json();
}

/** POST /v1/audio/speech; where the server is busy, waits as long as it says. `onWait(seconds, message)` each second. */
export async function postSpeech(order, signal, onWait) {
  const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(order), signal };
  for (let attempt = 1; ; attempt++) {
    try {
      return await request("v1/audio/speech", options);
    } catch (error) {
      const busy = (error.status === 429 || error.status === 503) && error.retryAfter !== undefined;
      if (!busy || error.retryAfter > LONGEST_WAIT || attempt === ATTEMPTS) throw error;
      for (let left = Math.max(1, Math.ceil(error.retryAfter)); left > 0; left--) {
        onWait(left, error.message);
        await pause(1000, signal);
      }
    }
  }
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(done, milliseconds);
    function done() {
      signal.removeEventListener("abort", stop);
      resolve();
    }
    function stop() {
      clearTimeout(timer);
      reject(signal.reason);
    }
    if (signal.aborted) stop();
    else signal.addEventListener("abort", stop, { once: true });
  });
}

/** Pieces of 16 bit samples (Int16Array) of a PCM response, as they arrive; a sample may be split between two reads. */
export async function* pcmPieces(response) {
  const reader = response.body.getReader();
  let odd = new Uint8Array(0);
  let ended = false;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      ended = done;
      if (done) return;
      const bytes = new Uint8Array(odd.length + value.length);
      bytes.set(odd);
      bytes.set(value, odd.length);
      const whole = bytes.length & ~1;
      odd = bytes.slice(whole);
      const view = new DataView(bytes.buffer);
      const samples = new Int16Array(whole / 2);
      for (let i = 0; i < samples.length; i++) samples[i] = view.getInt16(2 * i, true);
      if (samples.length) yield samples;
    }
  } finally {
    if (!ended) reader.cancel().catch(() => {});
  }
}
