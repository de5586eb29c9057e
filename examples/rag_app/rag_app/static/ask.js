// Questions and their answers, which stream: first the passages, then the words.

import { announce, element, find, plural, reason } from "./dom.js";
import { eventsOf } from "./sse.js";

export class Ask {
  #form = find("ask");
  #question = find("question");
  #send = find("send");
  #turns = find("turns");
  #files = [];
  #areAll = false;
  #count = 0;
  #running = null;

  constructor() {
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.#running) this.#running.abort();
      else this.#ask(this.#question.value.trim());
    });
    this.#question.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      if (!this.#running) this.#form.requestSubmit();
    });
  }

  /** The files to ask, of `ready` that could be. */
  choose(files, ready) {
    this.#files = files;
    this.#areAll = files.length === ready;
    const names = files.map((file) => file.name).join(", ");
    let asked = `Asks ${plural(files.length, "file")}: ${names}`;
    if (files.length > 3) asked = `Asks ${plural(files.length, "file")}.`;
    if (!files.length) asked = ready ? "Choose a file to ask." : "Add a file to ask it.";
    const shown = find("asked");
    if (shown.textContent !== asked) shown.textContent = asked;
    this.#enable();
  }

  #enable() {
    this.#send.textContent = this.#running ? "Stop" : "Ask";
    this.#send.disabled = !this.#running && !this.#files.length;
  }

  async #ask(question) {
    if (!question || !this.#files.length) return;
    const turn = this.#turn(question);
    this.#question.value = "";
    this.#running = new AbortController();
    this.#enable();
    // All are more than can be named, where there are very many.
    const chosen = this.#areAll ? {} : { file_ids: this.#files.map((file) => file.file_id) };
    try {
      const response = await fetch("api/chat", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ question, ...chosen }),
        signal: this.#running.signal,
      });
      if (!response.ok) turn.note(await reason(response), true);
      else await this.#follow(response, turn);
    } catch (error) {
      if (error.name === "AbortError") turn.note("Stopped.");
      else turn.note("The connection to the app was lost. Ask again.", true);
    }
    turn.end();
    this.#running = null;
    this.#enable();
  }

  async #follow(response, turn) {
    let ended = false;
    for await (const { event, data } of eventsOf(response.body)) {
      if (event === "passages") turn.passages(data);
      else if (event === "text") turn.text(data);
      else if (event === "error") turn.note(data, true);
      ended ||= event === "done" || event === "error";
    }
    if (!ended) turn.note("The answer has broken off. Ask again.", true);
  }

  #turn(question) {
    find("no-turns").hidden = true;
    const turn = new Turn(++this.#count, question);
    this.#turns.append(turn.shown);
    // The question stays where it is while the answer grows below it.
    turn.shown.scrollIntoView({ block: "start", behavior: "instant" });
    return turn;
  }
}

/** A question and its answer. */
class Turn {
  #number;
  #said = "";
  #answer = element("div", { className: "turn-answer waiting", "aria-busy": "true" });
  #found = element("ol", { className: "passages", "aria-label": "Passages" });

  constructor(number, question) {
    this.#number = number;
    this.shown = element("article", { className: "turn", "aria-label": question },
      element("p", { className: "turn-question" }, question), this.#answer);
  }

  text(said) {
    this.#said += said;
    this.#answer.classList.remove("waiting");
    // The numbers of passages lead to them.
    const parts = this.#said.split(/\[(\d+)\]/).map((part, index) =>
      index % 2 ? element("a", { href: `#${this.#id(part)}` }, `[${part}]`) : part);
    this.#answer.replaceChildren(...parts);
  }

  passages({ passages, gone, failed }) {
    this.#found.append(...passages.map((passage, index) => this.#passage(passage, index + 1)));
    this.shown.append(this.#found);
    if (gone.length) this.note(`Deleted meanwhile, and not asked: ${gone.join(", ")}.`);
    if (failed.length) this.note(`Could not be asked: ${failed.join(", ")}. The app's log says why.`, true);
  }

  note(text, bad = false) {
    this.shown.append(element("p", { className: bad ? "turn-note bad" : "turn-note" }, text));
  }

  end() {
    this.#answer.classList.remove("waiting");
    this.#answer.setAttribute("aria-busy", "false");
    announce(this.#said || this.shown.querySelector(".turn-note")?.textContent || "");
  }

  #id = (number) => `turn-${this.#number}-passage-${number}`;

  #passage({ name, place, score, text }, number) {
    const summary = element("summary", {},
      element("span", { className: "number" }, `[${number}]`),
      element("span", { className: "file", title: name }, name),
      element("span", { className: "place" }, place),
      element("span", { className: "score" }, "score ", element("b", {}, score.toFixed(2))),
      element("span", { className: "preview" }, text));
    const details = element("details", { className: "passage", id: this.#id(number), open: number === 1 }, summary,
      element("blockquote", {}, text));
    return element("li", {}, details);
  }
}
