// Mel spectrogram of a clip that grows: a column each 10 ms, a byte a band, from -100 dB (0) to full scale (255).

export const BANDS = 96;
export const COLUMN_SECONDS = 0.01;
const FLOOR_DB = -100;

export class Spectrogram {
  columns = new Uint8Array(BANDS * 1024);
  count = 0;
  loudest = 0;
  #clip;
  #window;
  #fft;
  #filters;

  constructor(clip) {
    this.#clip = clip;
    const length = 2 ** Math.round(Math.log2(0.032 * clip.sampleRate));
    this.#window = Float64Array.from({ length }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * (i + 0.5)) / length));
    this.#fft = new Fft(4 * length); // zeros behind the window: low bands are narrower than its own frequencies
    this.#filters = melFilters(clip.sampleRate, 4 * length);
  }

  /** Computes columns that are missing, for `milliseconds` at most. True if there are new ones. */
  update(milliseconds) {
    const { length, sampleRate, done } = this.#clip;
    const half = this.#window.length / 2;
    const until = performance.now() + milliseconds;
    const before = this.count;
    for (;;) {
      const centre = Math.round(this.count * COLUMN_SECONDS * sampleRate);
      if (done ? centre > length : centre + half > length) break;
      this.#column(centre - half);
      if (performance.now() > until) break;
    }
    return this.count > before;
  }

  #column(start) {
    const { samples, length } = this.#clip;
    const { real, imaginary } = this.#fft;
    real.fill(0);
    imaginary.fill(0);
    for (let i = 0; i < this.#window.length; i++) {
      const at = start + i;
      if (at >= 0 && at < length) real[i] = (samples[at] / 32768) * this.#window[i];
    }
    this.#fft.transform();
    if ((this.count + 1) * BANDS > this.columns.length) {
      const larger = new Uint8Array(2 * this.columns.length);
      larger.set(this.columns);
      this.columns = larger;
    }
    const scale = (4 / this.#window.length) ** 2; // a sine of full scale has 0 dB
    for (let band = 0; band < BANDS; band++) {
      const { first, weights } = this.#filters[band];
      let power = 0;
      for (let i = 0; i < weights.length; i++) {
        power += weights[i] * (real[first + i] ** 2 + imaginary[first + i] ** 2);
      }
      const decibels = 10 * Math.log10(power * scale + 1e-12);
      const byte = Math.max(0, Math.min(255, Math.round(255 * (1 - decibels / FLOOR_DB))));
      this.columns[this.count * BANDS + band] = byte;
      if (byte > this.loudest) this.loudest = byte;
    }
    this.count++;
  }
}

/** A difference in dB as one in bytes of a column. */
export const inBytes = (decibels) => (-255 * decibels) / FLOOR_DB;

const mel = (hertz) => 2595 * Math.log10(1 + hertz / 700);
const hertz = (mels) => 700 * (10 ** (mels / 2595) - 1);

/** How far up a frequency stands, from 0 to 1 (half the rate). */
export const heightOf = (frequency, sampleRate) => mel(frequency) / mel(sampleRate / 2);

/** Triangles, evenly spaced in mel, each with a sum of 1. */
function melFilters(sampleRate, fftLength) {
  const top = mel(sampleRate / 2);
  const edges = Array.from({ length: BANDS + 2 }, (_, i) => (hertz((i * top) / (BANDS + 1)) * fftLength) / sampleRate);
  return Array.from({ length: BANDS }, (_, band) => {
    const [low, centre, high] = edges.slice(band, band + 3);
    const first = Math.ceil(low);
    const weights = [];
    for (let bin = first; bin <= Math.min(high, fftLength / 2); bin++) {
      weights.push(Math.max(0, Math.min((bin - low) / (centre - low), (high - bin) / (high - centre))));
    }
    const sum = weights.reduce((a, b) => a + b, 0);
    if (sum > 0) return { first, weights: Float64Array.from(weights, (w) => w / sum) };
    return { first: Math.round(centre), weights: Float64Array.of(1) };
  });
}

/** Radix 2, in place, of a length that is a power of 2. */
class Fft {
  constructor(length) {
    this.real = new Float64Array(length);
    this.imaginary = new Float64Array(length);
    this.cosines = Float64Array.from({ length: length / 2 }, (_, i) => Math.cos((2 * Math.PI * i) / length));
    this.sines = Float64Array.from({ length: length / 2 }, (_, i) => -Math.sin((2 * Math.PI * i) / length));
    const bits = Math.log2(length);
    this.reversed = Uint32Array.from({ length }, (_, i) => {
      let turned = 0;
      for (let bit = 0; bit < bits; bit++) if (i & (1 << bit)) turned |= 1 << (bits - 1 - bit);
      return turned;
    });
  }

  transform() {
    const { real, imaginary, cosines, sines, reversed } = this;
    const length = real.length;
    for (let i = 0; i < length; i++) {
      const j = reversed[i];
      if (j > i) {
        [real[i], real[j]] = [real[j], real[i]];
        [imaginary[i], imaginary[j]] = [imaginary[j], imaginary[i]];
      }
    }
    for (let size = 2; size <= length; size *= 2) {
      const half = size / 2;
      const step = length / size;
      for (let start = 0; start < length; start += size) {
        for (let i = 0; i < half; i++) {
          const [a, b] = [start + i, start + i + half];
          const [c, s] = [cosines[i * step], sines[i * step]];
          const re = real[b] * c - imaginary[b] * s;
          const im = real[b] * s + imaginary[b] * c;
          real[b] = real[a] - re;
          imaginary[b] = imaginary[a] - im;
          real[a] += re;
          imaginary[a] += im;
        }
      }
    }
  }
}
