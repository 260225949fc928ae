// The page: what is asked for, said and heard.
//
//   form.js ─order─► server.js ─pieces─► Clip ─┬─► player.js    (sound, before the end)
//                                              ├─► picture.js   (waveform, spectrogram)
//                                              └─► history.js   (again, download, settings)

import { Clip } from "./clip.js";
import { Form, fill } from "./form.js";
import { History } from "./history.js";
import { setUpKeyDialog } from "./key.js";
import { Picture } from "./picture.js";
import { Player } from "./player.js";
import { getJson, pcmPieces, postSpeech } from "./server.js";
import { setUpVoices } from "./voices.js";

const CHARACTERS_PER_SECOND = 14; // of speech, to guess how wide the picture will be
const SKIP = 0.25; // seconds by an arrow key
const $ = (id) => document.getElementById(id);

const player = new Player();
const picture = new Picture($("picture"));
let settings = null;
let form = null;
let history = null;
let current = null; // the entry on the stage
let running = null; // {controller} of what is being spoken

start().catch((error) => fail(error.message));

async function start() {
  setUpKeyDialog(loadVoices);
  setUpStage();
  setUpComposer();
  settings = await getJson("page/settings.json");
  showServer();
  form = new Form(settings);
  const use = ({ order }) => {
    form.use(order);
    say("These are the settings it was spoken with, its seed too.");
  };
  history = new History($("history"), $("entries"), $("remember"), { play, download: (entry) => download(entry, "wav"), use });
  $("clear").addEventListener("click", () => history.clear());
  setUpVoices(settings, () => $("language").value, async (name) => {
    await loadVoices(name);
    say(`The voice ${name} is there.`);
    $("voice").focus();
  });
  document.body.dataset.ready = "true";
  await loadVoices();
}

// --- what the server is like ----------------------------------------------------------------------------------------

function showServer() {
  const { model, languages, sample_rate, formats, uploads, needs_key } = settings;
  const names = languages.map(({ name }) => name).join(", ");
  $("about").textContent = [model, names, `${sample_rate / 1000} kHz`].filter(Boolean).join(" · ");
  document.title = `${model} · LLaSA`;
  fill($("format"), [...new Set(["wav", ...formats])].map((name) => [name, name.toUpperCase()]), "wav");
  $("voice-add").hidden = !uploads;
  $("key-open").hidden = !needs_key;
}

async function loadVoices(chosen = $("voice").value) {
  try {
    const { data } = await getJson("v1/voices");
    const names = data.map(({ id }) => id).filter((id) => id !== "default");
    fill($("voice"), ["default", ...names].map((name) => [name, name]), chosen);
  } catch (error) {
    fail(error.message);
  }
}

// --- the form -------------------------------------------------------------------------------------------------------

function setUpComposer() {
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    fail("");
    if (!form) return;
    try {
      speak(form.order());
    } catch (error) {
      fail(error.message);
      error.field?.focus();
    }
  });
  document.addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]")) return;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      $("composer").requestSubmit();
    } else if (event.key === "Escape" && running) stop();
  });
  $("stop").addEventListener("click", stop);
}

// --- speaking -------------------------------------------------------------------------------------------------------

/** Speak an order; into an entry of the history that has lost its sound, or into a new one. */
async function speak(order, entry = null) {
  running?.controller.abort();
  player.prepare(settings.sample_rate);
  player.pause();
  const controller = new AbortController();
  const mine = (running = { controller });
  fail("");
  showRunning();
  say("Waiting for the first sound …");
  let started = performance.now();
  let clip = null;
  try {
    const response = await postSpeech({ ...order, response_format: "pcm", stream_format: "audio" }, controller.signal, (left, reason) => {
      say(`${reason.replace(/\.$/, "")}. Trying again in ${left} s.`);
      started = performance.now() + 1000;
    });
    const rate = Number(response.headers.get("X-Sample-Rate")) || settings.sample_rate;
    for await (const piece of pcmPieces(response)) {
      if (controller.signal.aborted) break;
      if (!clip) {
        clip = new Clip(rate, Math.max(1.5, [...order.input].length / CHARACTERS_PER_SECOND));
        clip.firstSound = (performance.now() - started) / 1000;
        performance.mark("first-audio"); // for whoever measures: the browser's own tools show it
      }
      clip.append(piece);
      if (clip.length === piece.length) {
        if (entry) Object.assign(entry, { clip });
        entry = entry ? (history.changed(), entry) : history.add(order, clip);
        stage(entry);
        player.play();
        reveal($("stage"));
        say("Speaking …");
      }
      player.grown();
      picture.refresh();
      showTime();
    }
    if (!clip) throw new Error("The server sent no speech.");
    clip.factor = (performance.now() - started) / 1000 / clip.seconds;
    performance.mark("all-audio");
    if (running === mine) say(`Spoken: ${clip.seconds.toFixed(1)} seconds.`);
  } catch (error) {
    if (clip) clip.broken = true;
    if (controller.signal.aborted) {
      if (running === mine) say("Stopped.");
    } else if (running === mine) {
      say("");
      fail(error.status === undefined && clip ? "The connection broke off; this is what had been spoken by then." : error.message);
    }
  } finally {
    clip?.finish();
    player.grown();
    if (clip) history.changed();
    if (running === mine) running = null;
    showRunning();
    showClip();
  }
}

function stop() {
  const focused = document.activeElement === $("stop");
  running?.controller.abort();
  player.pause();
  $("stop").hidden = true;
  if (focused) $("speak").focus();
}

function showRunning() {
  const focused = document.activeElement === $("stop");
  $("stop").hidden = !running;
  if (!running && focused) $("speak").focus();
  $("stage").setAttribute("aria-busy", String(Boolean(running)));
}

// --- the stage ------------------------------------------------------------------------------------------------------

function setUpStage() {
  $("play").addEventListener("click", () => (sounding() ? player.pause() : player.play()));
  $("replay").addEventListener("click", () => {
    player.seek(0);
    player.play();
  });
  $("position").addEventListener("input", () => {
    player.seek(Number($("position").value) / 1000);
    showTime();
  });
  $("position").addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -SKIP, ArrowDown: -SKIP, ArrowRight: SKIP, ArrowUp: SKIP, PageDown: -4 * SKIP, PageUp: 4 * SKIP }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    player.seek(player.position + step);
    showTime();
  });
  $("download").addEventListener("click", () => download(current, $("format").value));
  let frame = 0;
  const follow = () => {
    showTime();
    frame = player.state === "playing" || running ? requestAnimationFrame(follow) : 0;
  };
  player.addEventListener("state", () => {
    if (player.state === "playing") performance.mark("playing");
    showPlaying();
    frame ||= requestAnimationFrame(follow);
  });
}

const sounding = () => player.state === "playing" || player.state === "waiting";

function stage(entry) {
  current = entry;
  player.load(entry.clip);
  $("stage").dataset.state = player.state;
  picture.show(entry.clip);
  history.current = entry;
  for (const id of ["play", "replay", "position", "format"]) $(id).disabled = false;
  showClip();
}

function showPlaying() {
  const label = sounding() ? "Pause" : "Play";
  if ($("play").getAttribute("aria-label") === label && $("stage").dataset.state === player.state) return;
  $("stage").dataset.state = player.state;
  $("play").setAttribute("aria-label", label);
  $("play").title = label;
  $("play").querySelector("use").setAttribute("href", `#icon-${label.toLowerCase()}`);
  if (player.state === "waiting" && running && player.position > 0) say("Waiting for more speech …");
}

function showTime() {
  const { clip } = player;
  if (!clip) return;
  const { position } = player;
  picture.played = position;
  $("position").max = Math.round(1000 * picture.span);
  $("position").value = Math.round(1000 * position);
  const told = `${position.toFixed(1)} of ${clip.seconds.toFixed(1)} seconds`;
  if ($("position").getAttribute("aria-valuetext") !== told) $("position").setAttribute("aria-valuetext", told);
  $("time").textContent = `${position.toFixed(1)} / ${clip.seconds.toFixed(1)} s`;
}

/** What is known of the clip on the stage. */
function showClip() {
  const clip = current?.clip;
  if (!clip) return;
  $("download").disabled = !clip.done;
  $("figures").hidden = false;
  $("first-sound").textContent = `${clip.firstSound.toFixed(2)} s`;
  $("seconds").textContent = clip.done ? `${clip.seconds.toFixed(1)} s` : "…";
  $("factor").textContent = clip.factor ? clip.factor.toFixed(2) : clip.done ? "–" : "…";
  $("seed-used").textContent = String(current.order.seed);
  $("picture").setAttribute(
    "aria-label",
    `Waveform and spectrogram of ${clip.done ? `${clip.seconds.toFixed(1)} seconds: ` : ""}${current.order.input.slice(0, 100)}`,
  );
  showTime();
  picture.refresh();
}

// --- history, downloads ---------------------------------------------------------------------------------------------

function play(entry) {
  if (!entry.clip) {
    speak(entry.order, entry);
    return;
  }
  if (current === entry && sounding()) player.seek(0);
  else {
    stage(entry);
    player.play();
  }
}

/** WAV is what was heard; other formats are asked of the server, spoken again with the same seed. */
async function download(entry, format) {
  const name = `${entry.order.input.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-+|-+$/g, "").slice(0, 40) || "speech"}.${format}`;
  fail("");
  if (format === "wav") {
    save(entry.clip.toWav(), name);
    return;
  }
  $("download").disabled = true;
  say(`Asking for it as ${format.toUpperCase()} …`);
  try {
    const order = { ...entry.order, response_format: format, stream_format: "audio" };
    const response = await postSpeech(order, AbortSignal.timeout(10 * 60 * 1000), (left, reason) => say(`${reason} Trying again in ${left} s.`));
    save(await response.blob(), name);
    say("");
  } catch (error) {
    say("");
    fail(error.message);
  } finally {
    $("download").disabled = !current?.clip?.done;
  }
}

function save(blob, name) {
  const url = URL.createObjectURL(blob);
  Object.assign(document.createElement("a"), { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

// --- what is told ---------------------------------------------------------------------------------------------------

function say(message) {
  if ($("status").textContent !== message) $("status").textContent = message;
}

function fail(message) {
  $("error").textContent = message;
  $("error").hidden = !message;
  if (message) reveal($("error"));
}

/** On a phone what happens is below the form. */
function reveal(element) {
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  element.scrollIntoView({ block: "nearest", behavior: still ? "instant" : "smooth" });
}
