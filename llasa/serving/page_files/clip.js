// One utterance: 16 bit samples that grow while it is spoken, and what is drawn of them.

export const BLOCK = 32; // samples to one peak

export class Clip {
  constructor(sampleRate, expectedSeconds = 4) {
    this.sampleRate = sampleRate;
    this.expectedSeconds = expectedSeconds; // only how wide it is drawn until it has ended
    this.length = 0;
    this.born = performance.now();
    this.done = false;
    this.highest = 0; // |sample|
    this.samples = new Int16Array(8 * sampleRate);
    this.peaks = new Uint16Array(Math.ceil(this.samples.length / BLOCK));
  }

  get seconds() {
    return this.length / this.sampleRate;
  }

  /** Seconds of speech that have come in a second. */
  get pace() {
    return this.done ? Infinity : this.seconds / Math.max(0.001, (performance.now() - this.born) / 1000);
  }

  append(piece) {
    const end = this.length + piece.length;
    if (end > this.samples.length) this.#reserve(Math.max(end, 2 * this.samples.length));
    this.samples.set(piece, this.length);
    for (let i = 0; i < piece.length; i++) {
      const size = Math.abs(piece[i]);
      const block = Math.floor((this.length + i) / BLOCK);
      if (size > this.peaks[block]) this.peaks[block] = size;
      if (size > this.highest) this.highest = size;
    }
    this.length = end;
  }

  /** No more samples will come; memory that was kept for them is given back. */
  finish() {
    this.done = true;
    this.#reserve(this.length);
  }

  #reserve(size) {
    const samples = new Int16Array(size);
    samples.set(this.samples.subarray(0, Math.min(size, this.length)));
    const peaks = new Uint16Array(Math.ceil(size / BLOCK));
    peaks.set(this.peaks.subarray(0, peaks.length));
    this.samples = samples;
    this.peaks = peaks;
  }

  /** float32 samples [start, stop). */
  floats(start, stop) {
    const floats = new Float32Array(stop - start);
    for (let i = 0; i < floats.length; i++) floats[i] = this.samples[start + i] / 32768;
    return floats;
  }

  toWav() {
    return wavFile(this.samples.subarray(0, this.length), this.sampleRate);
  }
}

/** A RIFF file of one channel of 16 bit samples. */
export function wavFile(samples, sampleRate) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const word = (at, text) => [...text].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  word(0, "RIFF");
  view.setUint32(4, 36 + 2 * samples.length, true);
  word(8, "WAVEfmt ");
  view.setUint32(16, 16, true); // bytes of this chunk
  view.setUint16(20, 1, true); // PCM
  view.setUint16(22, 1, true); // channels
  view.setUint32(24, sampleRate, true);
  view.setUint32(28, 2 * sampleRate, true);
  view.setUint16(32, 2, true); // bytes a frame
  view.setUint16(34, 16, true); // bits
  word(36, "data");
  view.setUint32(40, 2 * samples.length, true);
  for (let i = 0; i < samples.length; i++) view.setInt16(44 + 2 * i, samples[i], true);
  return new Blob([view.buffer], { type: "audio/wav" });
}

/** float32 samples → 16 bit. */
export function toInt16(floats) {
  return Int16Array.from(floats, (value) => Math.round(32767 * Math.max(-1, Math.min(1, value))));
}
