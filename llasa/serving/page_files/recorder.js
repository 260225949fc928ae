// The microphone as plain samples (no lossy format in between), which become a WAV file in the page.

import { toInt16, wavFile } from "./clip.js";

export const canRecord = () => Boolean(navigator.mediaDevices?.getUserMedia && globalThis.AudioWorkletNode);

export class Recorder {
  #context;
  #stream;
  #capture;
  #pieces = [];
  #length = 0;
  #peak = 0;

  /** Asks for the microphone; `onPiece(peak, seconds)` for each piece. Rejects where there is none or it is refused. */
  async start(onPiece) {
    // Echo and noise cancelling are made for telephones, and would be imitated with the voice.
    const audio = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: true };
    this.#stream = await navigator.mediaDevices.getUserMedia({ audio });
    this.#context = new AudioContext();
    try {
      await this.#context.audioWorklet.addModule(new URL("capture.js", import.meta.url));
      await this.#context.resume();
    } catch (error) {
      this.close();
      throw error;
    }
    this.#capture = new AudioWorkletNode(this.#context, "capture", { numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit" });
    this.#capture.port.onmessage = ({ data }) => {
      this.#pieces.push(data);
      this.#length += data.length;
      const peak = data.reduce((most, sample) => Math.max(most, Math.abs(sample)), 0);
      this.#peak = Math.max(this.#peak, peak);
      onPiece(peak, this.#length / this.#context.sampleRate);
    };
    this.#context.createMediaStreamSource(this.#stream).connect(this.#capture);
  }

  /** {file, seconds, peak}; the microphone is free again. */
  stop() {
    const { sampleRate } = this.#context;
    this.close();
    const samples = new Float32Array(this.#length);
    let at = 0;
    for (const piece of this.#pieces) {
      samples.set(piece, at);
      at += piece.length;
    }
    return { file: wavFile(toInt16(samples), sampleRate), seconds: samples.length / sampleRate, peak: this.#peak };
  }

  close() {
    if (this.#capture) this.#capture.port.onmessage = null; // pieces may still be under way
    this.#stream?.getTracks().forEach((track) => track.stop());
    if (this.#context?.state !== "closed") this.#context?.close();
  }
}
