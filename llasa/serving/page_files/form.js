// The form: what is asked for, in the fields of the API.

import { sentences } from "./examples.js";

const SLIDERS = ["temperature", "top_p", "min_p", "repetition_penalty"];
const SEEDS = 1_000_000; // few enough to be told to somebody
const $ = (id) => document.getElementById(id);

export function fill(select, options, chosen) {
  select.replaceChildren(...options.map(([value, text]) => new Option(text, value, false, value === chosen)));
}

/** Something in the form is wrong: what, and where. */
class Mistake extends Error {
  constructor(message, field) {
    super(message);
    this.field = field;
  }
}

export class Form {
  #settings;

  constructor(settings) {
    const { languages, default_language, speakers, speed, sampling } = settings;
    this.#settings = settings;
    fill($("language"), languages.map(({ code, name }) => [code, name]), default_language);
    $("language-field").hidden = languages.length === 0;
    fill($("speaker"), [["", "any"], ...speakers.map((name) => [name, name])], "");
    $("speaker-field").hidden = speakers.length === 0;
    if (speed) {
      [$("speed").min, $("speed").max] = speed;
      $("speed-field").hidden = false;
    }
    const defaults = () => this.#useSampling({ ...sampling, speed: 1 });
    const keepSeed = () => ($("new-seed").checked = false);
    $("text").addEventListener("input", () => this.#count());
    $("language").addEventListener("change", () => this.#showLanguage());
    for (const id of [...SLIDERS, "speed"]) $(id).addEventListener("input", () => showValue(id));
    $("dice").addEventListener("click", () => {
      newSeed();
      keepSeed();
    });
    $("seed").addEventListener("input", keepSeed);
    $("defaults").addEventListener("click", defaults);
    newSeed();
    defaults();
    this.#showLanguage();
    this.#count();
  }

  /** Throws a Mistake. */
  order() {
    const { model, max_characters, speed } = this.#settings;
    const input = $("text").value.trim();
    const over = [...input].length - max_characters;
    if (!input) throw new Mistake("Type what is to be said.", $("text"));
    if (over > 0) throw new Mistake(`The text is ${over.toLocaleString("en")} characters too long.`, $("text"));
    for (const id of ["top_k", "seed"]) {
      if (!$(id).value || !$(id).checkValidity()) {
        $("sampling").open = true;
        throw new Mistake(`${id === "seed" ? "Seed" : "Top k"} has to be a whole number of ${$(id).min} or more.`, $(id));
      }
    }
    if ($("new-seed").checked) newSeed();
    const order = { model, input, voice: $("voice").value, seed: Number($("seed").value), top_k: Number($("top_k").value) };
    for (const id of SLIDERS) order[id] = Number($(id).value);
    if ($("language").value) order.language = $("language").value;
    if ($("speaker").value) order.speaker = $("speaker").value;
    if (speed) order.speed = Number($("speed").value);
    return order;
  }

  /** Fills the form with an order, as far as its voice and speaker are still there. */
  use(order) {
    $("text").value = order.input;
    if (order.language) $("language").value = order.language;
    this.#showLanguage();
    for (const [id, value] of [["voice", order.voice], ["speaker", order.speaker ?? ""]]) {
      if ([...$(id).options].some((option) => option.value === value)) $(id).value = value;
    }
    this.#useSampling(order);
    $("seed").value = order.seed;
    $("new-seed").checked = false;
    this.#count();
    $("text").focus();
  }

  #count() {
    const { max_characters } = this.#settings;
    const count = [...$("text").value].length;
    const over = count > max_characters;
    $("count").textContent = `${count.toLocaleString("en")} of ${max_characters.toLocaleString("en")} characters`;
    $("count").classList.toggle("over", over);
    $("text").setAttribute("aria-invalid", String(over));
  }

  #useSampling(values) {
    for (const id of [...SLIDERS, "speed"]) {
      if (values[id] !== undefined) $(id).value = values[id];
      showValue(id);
    }
    if (values.top_k !== undefined) $("top_k").value = values.top_k;
  }

  #showLanguage() {
    const { default_language, examples } = this.#settings;
    const language = $("language").value || default_language;
    $("text").lang = language;
    const own = language === default_language ? examples : [];
    const texts = own.length ? own : sentences(language);
    $("examples").replaceChildren(
      ...texts.slice(0, 4).map((text) => {
        const button = Object.assign(document.createElement("button"), { type: "button", textContent: text, title: text, lang: language });
        button.addEventListener("click", () => {
          $("text").value = text;
          this.#count();
          $("text").focus();
        });
        return button;
      }),
    );
  }
}

function newSeed() {
  $("seed").value = Math.floor(Math.random() * SEEDS);
}

function showValue(id) {
  const value = Number($(id).value);
  document.querySelector(`output[for="${id}"]`).textContent = id === "speed" ? `${value} ×` : String(value);
}
