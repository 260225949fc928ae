// What was spoken in this tab, newest first; in this browser's storage only texts and settings, and only if wanted.

const KEPT = "llasa-history";
const MOST_ENTRIES = 50;
const MOST_SAMPLES = 32 * 1024 * 1024; // 64 MB of them; older speech is spoken again when it is wanted
const ICON = "http://www.w3.org/2000/svg";

export class History {
  #entries = [];
  #current = null; // the one on the stage
  #list;
  #section;
  #remember;
  #actions;

  /** `actions`: {play(entry), download(entry), use(entry)}. */
  constructor(section, list, remember, actions) {
    [this.#section, this.#list, this.#remember, this.#actions] = [section, list, remember, actions];
    const kept = read();
    remember.checked = kept !== null;
    for (const order of kept ?? []) this.#entries.push({ order, clip: null });
    remember.addEventListener("change", () => this.#write());
    this.#draw();
  }

  add(order, clip) {
    const entry = { order, clip };
    this.#entries.unshift(entry);
    this.changed();
    return entry;
  }

  /** An entry's clip has grown or was replaced. */
  changed() {
    this.#entries.length = Math.min(this.#entries.length, MOST_ENTRIES);
    let samples = 0;
    for (const entry of this.#entries) {
      samples += entry.clip?.length ?? 0;
      if (samples > MOST_SAMPLES && entry.clip?.done && entry !== this.#current) entry.clip = null;
    }
    this.#write();
    this.#draw();
  }

  set current(entry) {
    this.#current = entry;
    for (const item of this.#list.children) item.removeAttribute("aria-current");
    this.#list.children[this.#entries.indexOf(entry)]?.setAttribute("aria-current", "true");
  }

  clear() {
    this.#entries = this.#entries.filter((entry) => entry.clip && !entry.clip.done);
    this.changed();
  }

  #write() {
    try {
      if (this.#remember.checked) localStorage.setItem(KEPT, JSON.stringify(this.#entries.map((entry) => entry.order)));
      else localStorage.removeItem(KEPT);
    } catch {
      // storage is full or forbidden: the history is that of this tab
    }
  }

  #draw() {
    const focused = this.#list.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    this.#section.hidden = this.#entries.length === 0;
    this.#list.replaceChildren(...this.#entries.map((entry) => this.#item(entry)));
    if (focused) this.#list.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
    this.current = this.#current;
  }

  #item(entry) {
    entry.key ??= String(Math.random());
    const { order, clip } = entry;
    const item = element("li", { className: "card entry" });
    const said = element("p", { className: "said", textContent: order.input, lang: order.language ?? "", title: order.input });
    const meta = element("p", { className: "meta", textContent: facts(entry) });
    const words = element("div", { className: "words" });
    words.append(said, meta);
    const actions = element("div", { className: "actions" });
    const name = order.input.slice(0, 40);
    actions.append(
      this.#button(entry, "download", "download", `Download: ${name}`, () => this.#actions.download(entry), !clip?.done),
      this.#button(entry, "use", "again", `Use these settings again: ${name}`, () => this.#actions.use(entry)),
      this.#button(entry, "remove", "remove", `Remove: ${name}`, () => this.#drop(entry), clip && !clip.done),
    );
    const label = clip ? `Play: ${name}` : `Speak again: ${name}`;
    item.append(this.#button(entry, "play", "play", label, () => this.#actions.play(entry)), words, actions);
    item.firstChild.classList.add("round");
    return item;
  }

  #button(entry, kind, icon, label, act, disabled = false) {
    const button = element("button", { type: "button", className: "icon", title: label.split(":")[0], disabled: Boolean(disabled) });
    button.setAttribute("aria-label", label);
    button.dataset.key = `${kind} ${entry.key}`;
    button.append(icons(icon));
    button.addEventListener("click", act);
    return button;
  }

  #drop(entry) {
    const place = this.#entries.indexOf(entry);
    this.#entries.splice(place, 1);
    this.changed();
    const next = this.#list.children[Math.min(place, this.#entries.length - 1)];
    (next?.querySelector("button") ?? document.getElementById("text")).focus();
  }
}

function facts({ order, clip }) {
  const facts = [order.voice === "default" ? null : order.voice, order.language, order.speaker];
  if (order.speed !== undefined && order.speed !== 1) facts.push(`${order.speed} ×`);
  if (clip) facts.push(clip.done ? `${clip.seconds.toFixed(1)} s` : "being spoken", clip.broken ? "not to its end" : null);
  facts.push(`seed ${order.seed}`);
  return facts.filter(Boolean).join(" · ");
}

function element(tag, properties) {
  return Object.assign(document.createElement(tag), properties);
}

function icons(name) {
  const svg = document.createElementNS(ICON, "svg");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(ICON, "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

function read() {
  try {
    const orders = JSON.parse(localStorage.getItem(KEPT));
    return Array.isArray(orders) ? orders.filter((order) => typeof order?.input === "string").slice(0, MOST_ENTRIES) : null;
  } catch {
    return null;
  }
}
