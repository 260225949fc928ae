// The stage: bars of the waveform, the spectrogram below on the same axis, seconds below that. What is not spoken yet
// is a dotted line, as long as the text lets expect.

import { BLOCK } from "./clip.js";
import { ramp } from "./colours.js";
import { BANDS, COLUMN_SECONDS, Spectrogram, heightOf, inBytes } from "./spectrogram.js";

const AXIS = 22; // pixels below, for the seconds
const MARGIN = 44; // on the right, for the frequencies; page.css leaves it out of #position
const BAR = 2.5;
const GAP = 1.5;
const RANGE_DB = 65; // from the loudest to the ground's colour
const BUDGET = 6; // milliseconds a frame for new columns

export class Picture {
  #canvas;
  #image = document.createElement("canvas"); // the spectrogram, a pixel a column and band
  #clip = null;
  #spectrogram = null;
  #span = 4; // seconds that are drawn
  #played = 0;
  #drawn = "";
  #frame = 0;
  #colours = {};
  #still = matchMedia("(prefers-reduced-motion: reduce)");
  #dark = matchMedia("(prefers-color-scheme: dark)");

  constructor(canvas) {
    this.#canvas = canvas;
    new ResizeObserver(() => this.refresh()).observe(canvas);
    this.#dark.addEventListener("change", () => this.#restyle());
    this.#restyle();
  }

  get span() {
    return this.#span;
  }

  show(clip) {
    this.#clip = clip;
    clip.spectrogram ??= new Spectrogram(clip);
    this.#spectrogram = clip.spectrogram;
    this.#span = this.#goal();
    this.#played = 0;
    this.refresh();
  }

  set played(seconds) {
    this.#played = seconds;
    this.refresh();
  }

  refresh() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.#draw();
    });
  }

  #restyle() {
    const style = getComputedStyle(document.documentElement);
    for (const name of ["ink", "soft", "line", "bar", "wave"]) this.#colours[name] = style.getPropertyValue(`--${name}`);
    this.#colours.ramp = ramp(this.#dark.matches ? "dark" : "light");
    this.#drawn = "";
    this.refresh();
  }

  /** Seconds that the picture should be wide: the clip, or what is expected of it, widened by steps. */
  #goal() {
    const clip = this.#clip;
    if (clip.done) return Math.max(clip.seconds, 0.1);
    let span = Math.max(clip.expectedSeconds, 1);
    while (clip.seconds > 0.97 * span) span *= 1.4;
    return span;
  }

  #draw() {
    const { clientWidth: whole, clientHeight: height } = this.#canvas;
    if (!whole || !height) return;
    const width = this.#clip ? whole - MARGIN : whole;
    const scale = devicePixelRatio || 1;
    if (this.#canvas.width !== Math.round(whole * scale) || this.#canvas.height !== Math.round(height * scale)) {
      this.#canvas.width = Math.round(whole * scale);
      this.#canvas.height = Math.round(height * scale);
      this.#drawn = "";
    }
    const context = this.#canvas.getContext("2d");
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, whole, height);
    const waveHeight = this.#clip ? Math.round((height - AXIS) * 0.42) : height;
    if (this.#clip) {
      const goal = this.#goal();
      const off = goal - this.#span;
      this.#span = this.#still.matches || Math.abs(off) < 0.005 * goal ? goal : this.#span + 0.2 * off;
      if (this.#span !== goal || this.#spectrogram.update(BUDGET)) this.refresh();
      this.#drawSpectrogram(context, width, waveHeight + 8, height - AXIS - waveHeight - 8, scale);
      this.#drawAxis(context, width, height - AXIS);
    }
    this.#drawWave(context, width, waveHeight);
  }

  #drawWave(context, width, height) {
    const { wave, bar } = this.#colours;
    const clip = this.#clip;
    const bars = Math.floor((width + GAP) / (BAR + GAP));
    const middle = height / 2;
    const loudest = Math.max(clip?.highest ?? 0, 1500);
    const blocksPerBar = clip ? (((BAR + GAP) / width) * this.#span * clip.sampleRate) / BLOCK : 0;
    const filled = clip ? Math.ceil(clip.length / BLOCK) : 0;
    for (let i = 0; i < bars; i++) {
      const x = i * (BAR + GAP);
      const first = Math.floor(i * blocksPerBar);
      let size = 0;
      if (clip && first < filled) {
        let peak = 0;
        const stop = Math.min(filled, Math.max(first + 1, Math.floor((i + 1) * blocksPerBar)));
        for (let block = first; block < stop; block++) peak = Math.max(peak, clip.peaks[block]);
        size = Math.max(BAR, (peak / loudest) * height);
        context.fillStyle = (x / width) * this.#span < this.#played ? wave : bar;
      } else {
        size = 1.5; // still to come
        context.fillStyle = bar;
      }
      context.beginPath();
      context.roundRect(x, middle - size / 2, BAR, size, Math.min(BAR, size) / 2);
      context.fill();
    }
  }

  #drawSpectrogram(context, width, top, height, scale) {
    const { count, columns, loudest } = this.#spectrogram;
    const shown = Math.min(width, Math.round((width * Math.min(this.#clip.seconds, this.#span)) / this.#span));
    const key = [count, loudest, this.#span, width].join();
    if (key !== this.#drawn && width > 0) {
      this.#drawn = key;
      this.#image.width = width;
      this.#image.height = BANDS;
      const target = this.#image.getContext("2d");
      const image = target.createImageData(width, BANDS);
      const pixels = new Uint32Array(image.data.buffer);
      const perPixel = this.#span / COLUMN_SECONDS / width;
      const range = inBytes(RANGE_DB);
      for (let x = 0; x < width; x++) {
        const place = x * perPixel;
        if (place > count - 1 || x > shown) break;
        const first = Math.floor(place);
        const last = Math.min(count - 1, Math.max(first + 1, Math.floor((x + 1) * perPixel)));
        for (let band = 0; band < BANDS; band++) {
          let value = 0;
          if (perPixel <= 1) {
            const share = place - first; // between two columns
            value = columns[first * BANDS + band] * (1 - share) + columns[last * BANDS + band] * share;
          } else {
            for (let column = first; column <= last; column++) value = Math.max(value, columns[column * BANDS + band]);
          }
          const shade = Math.max(0, Math.min(1, 1 - (loudest - value) / range));
          pixels[(BANDS - 1 - band) * width + x] = this.#colours.ramp[Math.round(255 * shade)];
        }
      }
      target.putImageData(image, 0, 0);
    }
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = scale > 1 ? "high" : "medium";
    context.drawImage(this.#image, 0, 0, width, BANDS, 0, top, width, height);
    this.#drawFrequencies(context, width, top, height);
  }

  #drawFrequencies(context, width, top, height) {
    const rate = this.#clip.sampleRate;
    context.font = "11px system-ui, sans-serif";
    context.textAlign = "left";
    context.textBaseline = "middle";
    context.lineWidth = 1;
    for (const frequency of [500, 1000, 2000, 4000, 8000, 16000]) {
      const y = top + height * (1 - heightOf(frequency, rate));
      if (y < top + 6) break;
      const label = frequency < 1000 ? `${frequency} Hz` : `${frequency / 1000} kHz`;
      context.strokeStyle = this.#colours.soft;
      context.globalAlpha = 0.18;
      context.beginPath();
      context.moveTo(0, Math.round(y) + 0.5);
      context.lineTo(width, Math.round(y) + 0.5);
      context.stroke();
      context.globalAlpha = 1;
      context.fillStyle = this.#colours.soft;
      context.fillText(label, width + 6, y);
    }
  }

  #drawAxis(context, width, top) {
    const step = [0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120].find((s) => (s / this.#span) * width >= 44) ?? 300;
    context.fillStyle = this.#colours.soft;
    context.font = "11px system-ui, sans-serif";
    context.textBaseline = "bottom";
    for (let i = 0; i * step <= this.#span; i++) {
      const x = ((i * step) / this.#span) * width;
      context.textAlign = i === 0 ? "left" : "center";
      const label = step < 1 ? (i * step).toFixed(1) : String(i * step);
      context.fillText(i === 0 ? "0 s" : label, x, top + AXIS - 2);
      context.globalAlpha = 0.5;
      context.fillRect(Math.min(x, width - 1), top + 2, 1, 4);
      context.globalAlpha = 1;
    }
  }
}
