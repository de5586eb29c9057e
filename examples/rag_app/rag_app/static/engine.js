// The switch of engines, and what is said of the one that runs.

import { announce, find, reason } from "./dom.js";

const NOTES = {
  isolated: "Each file's database runs in a process of its own.",
  embedded: "Chroma runs in the app's process: while it writes, the app stands still.",
  server: "The databases are on a Chroma server.",
};

export class EngineSwitch {
  #form = find("engine");
  #note = find("engine-note");
  #radios = [...this.#form.elements.engine];
  #state = { engine: null, workers: 1 };
  #changing = false;
  #connected = false;
  #problem = "";

  constructor() {
    this.#form.addEventListener("change", (event) => this.#change(event.target.value));
  }

  show(state) {
    this.#state = state;
    this.#render();
  }

  connected(is) {
    this.#connected = is;
    this.#render();
  }

  async #change(engine) {
    this.#changing = true;
    this.#problem = "";
    this.#render();
    announce(`Changing the engine to ${engine}`);
    try {
      const headers = { "Content-Type": "application/json" };
      const answer = await fetch("api/engine", { method: "PUT", headers, body: JSON.stringify({ engine }) });
      if (!answer.ok) this.#problem = await reason(answer);
      else this.#state = { ...this.#state, ...(await answer.json()) };
    } catch {
      this.#problem = "The app did not answer. The engine may be unchanged.";
    }
    this.#changing = false;
    this.#render();
    announce(this.#problem || `The engine is ${engine} now`);
    this.#radios.find((radio) => radio.checked)?.focus();
  }

  #render() {
    const { engine, workers } = this.#state;
    const several = workers > 1;
    const closed = this.#changing || engine === null;
    for (const radio of this.#radios) {
      if (!closed) radio.checked = radio.value === engine;
      radio.disabled = closed || several || !this.#connected || engine === "server";
    }
    let note = this.#problem || NOTES[engine] || "";
    if (several) note = `${workers} workers share the databases, so the engine cannot be changed here.`;
    if (closed) note = "Changing the engine: the databases are closed for a moment…";
    if (!this.#connected) note = "The app does not answer. Trying again…";
    this.#note.textContent = note;
    this.#note.classList.toggle("bad", !this.#connected || Boolean(this.#problem));
  }
}
