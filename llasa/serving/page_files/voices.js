// The dialog that adds a voice: a recording made here or a file, its words, a name, and consent.

import { toInt16, wavFile } from "./clip.js";
import { reading } from "./examples.js";
import { Recorder, canRecord } from "./recorder.js";
import { request } from "./server.js";

const SENT_AS_THEY_ARE = /\.(wav|flac|mp3|ogg)$/i; // what the server decodes; others are decoded here
const QUIET = 0.05;
const BARS = 120;
const $ = (id) => document.getElementById(id);

/** `language()` is the one chosen; `added(name)` is called when the server has the voice. */
export function setUpVoices(settings, language, added) {
  const { voice_seconds: longest, upload_bytes: largest } = settings;
  const dialog = $("voice-dialog");
  let recorder = null;
  let recording = null; // Blob
  let levels = [];
  let suggestion = -1;

  const most = `${Math.round(longest * 10) / 10} seconds`;
  $("voice-about").textContent =
    `The model imitates a recording of one speaker: ${longest > 3 ? `3 to ${most}` : `up to ${most}`}, clear, without music or noise.`;
  $("voice-text-help").textContent = settings.transcribes ? "Empty: the server listens and writes it down." : "Word for word.";
  if (!canRecord()) {
    $("record").disabled = true;
    $("recorded").textContent = "Recording needs https, or this page opened as 127.0.0.1 or localhost.";
  }

  $("voice-add").addEventListener("click", () => {
    $("suggest").hidden = reading(language()).length === 0;
    $("voice-text").lang = language();
    dialog.showModal();
    drawLevels($("level"), levels);
  });
  $("voice-cancel").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => {
    recorder?.close();
    recorder = null;
    showRecording(false);
    $("heard").pause();
  });
  $("suggest").addEventListener("click", () => {
    const texts = reading(language());
    suggestion = (suggestion + 1) % Math.max(1, texts.length);
    $("voice-text").value = texts[suggestion] ?? "";
    $("voice-text").focus();
  });

  $("record").addEventListener("click", async () => {
    fail("");
    if (recorder) {
      const made = recorder.stop();
      recorder = null;
      showRecording(false);
      keep(made.file, made.seconds, made.peak);
      return;
    }
    levels = [];
    recorder = new Recorder();
    showRecording(true);
    $("recorded").textContent = "Waiting for the microphone";
    try {
      await recorder.start((peak, seconds) => {
        levels.push(peak);
        drawLevels($("level"), levels);
        $("recorded").textContent = `${seconds.toFixed(1)} of ${longest.toFixed(1)} s`;
        if (seconds >= longest && recorder) $("record").click();
      });
    } catch (error) {
      recorder?.close();
      recorder = null;
      showRecording(false);
      $("recorded").textContent = "";
      fail(error.name === "NotAllowedError" ? "The microphone was refused." : `There is no microphone to record with (${error.name}).`);
    }
  });

  $("file").addEventListener("change", async () => {
    const [file] = $("file").files;
    if (!file) return;
    fail("");
    const { audio, seconds, peak } = await decoded(file);
    levels = audio ? envelope(audio) : [];
    drawLevels($("level"), levels);
    const content = SENT_AS_THEY_ARE.test(file.name) || !audio ? file : wavFile(toInt16(audio.getChannelData(0)), audio.sampleRate);
    keep(content, seconds, peak, file.name);
    if (!$("voice-name").value) $("voice-name").value = file.name.replace(/\.[^.]*$/, "").replace(/[^\w-]+/g, "-").slice(0, 64);
    $("file").value = "";
  });

  function keep(blob, seconds, peak, name = "Recorded") {
    if (blob.size > largest) {
      fail(`This file has ${megabytes(blob.size)}, the server takes ${megabytes(largest)}.`);
      return;
    }
    recording = blob;
    URL.revokeObjectURL($("heard").src);
    $("heard").src = URL.createObjectURL(blob);
    $("heard").hidden = false;
    const facts = [name];
    if (seconds !== undefined) facts.push(`${seconds.toFixed(1)} s`);
    if (peak !== undefined && peak < QUIET) facts.push("very quiet: come closer");
    if (peak >= 0.999) facts.push("too loud in places: go further away");
    if (seconds > longest) facts.push(`longer than ${longest.toFixed(1)} s`);
    $("recorded").textContent = facts.join(" · ");
  }

  $("voice-dialog").querySelector("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const missing = whatIsMissing();
    fail(missing?.[1] ?? "");
    if (missing) {
      missing[0].focus();
      return;
    }
    const form = new FormData();
    form.append("name", $("voice-name").value.trim());
    form.append("recording", recording, "recording");
    if ($("voice-text").value.trim()) form.append("text", $("voice-text").value.trim());
    form.append("language", language());
    form.append("consent", "true");
    $("voice-save").disabled = true;
    try {
      const voice = await (await request("v1/voices", { method: "POST", body: form })).json();
      dialog.close();
      reset();
      await added(voice.id);
    } catch (error) {
      fail(error.message);
    } finally {
      $("voice-save").disabled = false;
    }
  });

  function whatIsMissing() {
    if (recorder) return [$("record"), "The recording is still running."];
    if (!recording) return [canRecord() ? $("record") : $("file"), "Record something, or choose a file."];
    if (!settings.transcribes && !$("voice-text").value.trim()) return [$("voice-text"), "Write what is said in the recording."];
    if (!$("voice-name").value.trim()) return [$("voice-name"), "Give the voice a name."];
    if (!$("consent").checked) return [$("consent"), "A voice may be added only with its speaker's consent."];
    return null;
  }

  function reset() {
    recording = null;
    levels = [];
    URL.revokeObjectURL($("heard").src);
    $("heard").removeAttribute("src");
    $("heard").hidden = true;
    for (const id of ["voice-name", "voice-text"]) $(id).value = "";
    $("consent").checked = false;
    $("recorded").textContent = "";
  }

  function showRecording(on) {
    $("record").setAttribute("aria-pressed", String(on));
    $("record").querySelector("span").textContent = on ? "Stop" : "Record";
  }

  function fail(message) {
    $("voice-error").textContent = message;
    $("voice-error").hidden = !message;
  }
}

const megabytes = (bytes) => `${(bytes / 1024 / 1024).toFixed(1)} MB`;

/** What this browser can make of a file, for the preview and for formats that the server does not know. */
async function decoded(file) {
  try {
    const audio = await new OfflineAudioContext(1, 1, 24000).decodeAudioData(await file.arrayBuffer());
    const peak = audio.getChannelData(0).reduce((most, sample) => Math.max(most, Math.abs(sample)), 0);
    return { audio, seconds: audio.duration, peak };
  } catch {
    return {}; // the server may know better, and says so if not
  }
}

function envelope(audio) {
  const samples = audio.getChannelData(0);
  const size = Math.max(1, Math.ceil(samples.length / BARS));
  return Array.from({ length: Math.ceil(samples.length / size) }, (_, i) =>
    samples.subarray(i * size, (i + 1) * size).reduce((most, sample) => Math.max(most, Math.abs(sample)), 0),
  );
}

/** The last of the peaks as bars, the newest at the right. */
function drawLevels(canvas, levels) {
  const scale = devicePixelRatio || 1;
  const { clientWidth: width, clientHeight: height } = canvas;
  canvas.width = width * scale;
  canvas.height = height * scale;
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  const style = getComputedStyle(canvas);
  const step = width / BARS;
  levels.slice(-BARS).forEach((peak, i) => {
    const size = Math.max(2, Math.min(1, peak) * (height - 12));
    context.fillStyle = style.getPropertyValue(peak >= 0.999 ? "--danger" : "--wave");
    context.beginPath();
    context.roundRect(i * step + step * 0.2, (height - size) / 2, step * 0.6, size, step * 0.3);
    context.fill();
  });
}
