// Plays a clip, also one that still grows.
//
//   clip ─what is new─► AudioBuffer, to begin on the very sample where the one before ends ─► gain ─► loudspeaker
//
// The AudioContext runs at the clip's own rate, so buffers meet without resampling and without a click. Where codes
// come slower than they are heard, the sound begins up to half a second of speech later; where that was too early, it
// fades out, waits for what the pace so far tells it will need (at least twice as much each time), and fades in.

const FIRST_LEAD = 0.25; // seconds of speech before the sound begins, if it comes fast enough
const LONGEST_FIRST_LEAD = 0.5; // who listens wants to hear something, and then waits once rather than often
const LONGEST_LEAD = 8;
const DELAY = 0.04; // seconds from "now" to a start, so that it is not missed
const LEAST = 0.1; // seconds that a buffer has at least, unless it is needed at once
const FADE = 0.008;
const TICK = 40; // milliseconds

export class Player extends EventTarget {
  // state: "idle" · "waiting" (for speech to come) · "playing" · "paused" · "ended"; a "state" event tells of a change.
  state = "idle";
  clip = null;
  #context = null;
  #rate = 0; // that it was made for
  #gain = null;
  #nodes = new Set();
  #from = 0; // sample that is heard at #time
  #time = 0; // of the context
  #scheduled = 0; // samples up to here are on their way
  #lead = FIRST_LEAD;
  #fadesAt = null;
  #timer = null;

  /** Has to be called in a person's click or key press, or browsers keep silent. */
  prepare(sampleRate) {
    if (this.#rate !== sampleRate) {
      this.#rate = sampleRate;
      this.#context?.close();
      this.#context = contextAt(sampleRate);
      this.#gain = this.#context.createGain();
      this.#gain.connect(this.#context.destination);
    }
    this.#context.resume();
  }

  /** Seconds into the clip that is heard now. */
  get position() {
    if (!this.clip) return 0;
    let sample = this.#from;
    if (this.state === "playing") {
      sample += Math.max(0, this.#context.currentTime - this.#time) * this.clip.sampleRate;
      sample = Math.min(sample, this.#scheduled);
    }
    return Math.min(sample, this.clip.length) / this.clip.sampleRate;
  }

  load(clip) {
    this.#silence();
    this.clip = clip;
    this.#from = 0;
    this.#lead = FIRST_LEAD;
    this.#setState("idle");
  }

  play() {
    if (!this.clip || this.state === "playing") return;
    this.prepare(this.clip.sampleRate);
    if (this.state === "ended" || (this.clip.done && this.#from >= this.clip.length)) this.#from = 0;
    this.#setState("waiting");
    this.#timer ??= setInterval(() => this.#pump(), TICK);
    this.#pump();
  }

  pause() {
    if (this.state !== "playing" && this.state !== "waiting") return;
    this.#from = Math.round(this.position * this.clip.sampleRate);
    this.#silence();
    this.#setState("paused");
  }

  seek(seconds) {
    if (!this.clip) return;
    const sounding = this.state === "playing" || this.state === "waiting";
    this.#silence();
    this.#from = Math.max(0, Math.min(Math.round(seconds * this.clip.sampleRate), this.clip.length));
    this.#setState("paused");
    if (sounding) this.play();
  }

  /** The clip has grown, or has ended. */
  grown() {
    if (this.#timer !== null) this.#pump();
  }

  #setState(state) {
    if (state === this.state) return;
    this.state = state;
    this.dispatchEvent(new Event("state"));
  }

  #silence() {
    clearInterval(this.#timer);
    this.#timer = null;
    if (!this.#nodes.size) return;
    const now = this.#context.currentTime; // a short fade, or it clicks; the next gain is a new one
    const gain = this.#gain;
    gain.gain.cancelScheduledValues(now);
    gain.gain.setTargetAtTime(0, now, FADE / 3);
    for (const node of this.#nodes) node.stop(now + 2 * FADE);
    this.#nodes.clear();
    this.#gain = this.#context.createGain();
    this.#gain.connect(this.#context.destination);
    setTimeout(() => gain.disconnect(), 200);
  }

  #pump() {
    const { clip } = this;
    if (this.state === "waiting") {
      const there = (clip.length - this.#from) / clip.sampleRate;
      if (!clip.done && there < this.#leadNow()) return;
      if (this.#context.state !== "running") return; // not yet allowed to sound
      this.#time = this.#context.currentTime + DELAY;
      this.#scheduled = this.#from;
      this.#fadesAt = null;
      this.#gain.gain.cancelScheduledValues(0);
      this.#gain.gain.setValueAtTime(0, this.#time);
      this.#gain.gain.linearRampToValueAtTime(1, this.#time + FADE);
      this.#setState("playing");
    }
    const heardUpTo = () => this.#time + (this.#scheduled - this.#from) / clip.sampleRate;
    const left = heardUpTo() - this.#context.currentTime;
    if (left <= 0 && this.#scheduled > this.#from) {
      if (clip.done && this.#scheduled === clip.length) return this.#end();
      if (!clip.done || this.#scheduled < clip.length) return this.#starved();
    }
    if (clip.done && clip.length === this.#from) return this.#end();
    const fresh = (clip.length - this.#scheduled) / clip.sampleRate;
    if (fresh > 0 && (fresh >= LEAST || clip.done || left < 2 * LEAST)) {
      this.#schedule(heardUpTo());
    } else if (!clip.done && left < 2.5 * (TICK / 1000) && this.#fadesAt === null) {
      this.#fadesAt = heardUpTo() - FADE; // nothing has come in time: the end of what is there is no click
      this.#gain.gain.setValueAtTime(1, this.#fadesAt);
      this.#gain.gain.linearRampToValueAtTime(0, heardUpTo());
    }
  }

  /** Seconds that have to be there so that the rest, at the pace of what has come, comes in time. */
  #leadNow() {
    const { clip } = this;
    const rest = Math.max(0, clip.expectedSeconds - this.#from / clip.sampleRate);
    const longest = this.#lead > FIRST_LEAD ? LONGEST_LEAD : LONGEST_FIRST_LEAD;
    return Math.max(this.#lead, Math.min(longest, rest * (1 - clip.pace)));
  }

  #schedule(when) {
    const { clip } = this;
    if (this.#fadesAt !== null) {
      if (this.#context.currentTime < this.#fadesAt) {
        this.#gain.gain.cancelScheduledValues(this.#fadesAt); // just in time after all
        this.#fadesAt = null;
      } else return; // it is fading already: let it run dry
    }
    const samples = clip.floats(this.#scheduled, clip.length);
    const buffer = this.#context.createBuffer(1, samples.length, clip.sampleRate);
    buffer.copyToChannel(samples, 0);
    const node = new AudioBufferSourceNode(this.#context, { buffer });
    node.connect(this.#gain);
    node.onended = () => this.#nodes.delete(node);
    node.start(when);
    this.#nodes.add(node);
    this.#scheduled = clip.length;
  }

  #starved() {
    this.#from = this.#scheduled;
    this.#lead = Math.min(2 * this.#lead, LONGEST_LEAD);
    this.#setState("waiting");
  }

  #end() {
    this.#from = this.clip.length;
    this.#silence();
    this.#setState("ended");
  }
}

function contextAt(sampleRate) {
  try {
    return new AudioContext({ sampleRate, latencyHint: "playback" });
  } catch {
    return new AudioContext(); // a browser without this rate: it resamples each piece, which may just be heard
  }
}
