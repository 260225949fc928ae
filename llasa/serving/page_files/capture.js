// Runs in the audio thread: what the microphone gives, handed on in pieces of 2048 samples.

class Capture extends AudioWorkletProcessor {
  #piece = new Float32Array(2048);
  #filled = 0;

  process([[channel]]) {
    if (!channel) return true;
    for (const sample of channel) {
      this.#piece[this.#filled++] = sample;
      if (this.#filled === this.#piece.length) {
        this.port.postMessage(this.#piece);
        this.#piece = new Float32Array(2048);
        this.#filled = 0;
      }
    }
    return true;
  }
}

registerProcessor("capture", Capture);
