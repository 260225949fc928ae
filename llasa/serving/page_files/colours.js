// Colours of the spectrogram: 256 steps whose lightness (OKLab) is linear in dB, so equal steps look equal. From the
// card's own ground, so that silence is not a box: towards light in dark, towards dark in light.

const HUES = {
  dark: { lightness: [0.221, 0.97], stops: [[0, 0.012, 290], [0.3, 0.16, 285], [0.58, 0.2, 345], [0.8, 0.16, 45], [1, 0.07, 95]] },
  light: { lightness: [1, 0.2], stops: [[0, 0, 290], [0.2, 0.06, 300], [0.5, 0.2, 300], [0.75, 0.19, 281], [1, 0.09, 280]] },
};

/** Uint32 [256], as ImageData wants its pixels. */
export function ramp(scheme) {
  const { lightness: [from, to], stops } = HUES[scheme];
  return Uint32Array.from({ length: 256 }, (_, i) => {
    const t = i / 255;
    const right = Math.max(1, stops.findIndex(([place]) => place >= t));
    const [[a, chromaA, hueA], [b, chromaB, hueB]] = [stops[right - 1], stops[right]];
    const share = (t - a) / (b - a);
    const turn = ((hueB - hueA + 540) % 360) - 180; // the shorter way around
    return pixel(from + t * (to - from), chromaA + share * (chromaB - chromaA), hueA + share * turn);
  });
}

function pixel(lightness, chroma, hue) {
  const a = chroma * Math.cos((hue * Math.PI) / 180);
  const b = chroma * Math.sin((hue * Math.PI) / 180);
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3; // Ottosson's matrices
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  const [red, green, blue] = [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ].map((linear) => {
    const value = linear <= 0.0031308 ? 12.92 * linear : 1.055 * linear ** (1 / 2.4) - 0.055;
    return Math.round(255 * Math.max(0, Math.min(1, value)));
  });
  return ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
}
