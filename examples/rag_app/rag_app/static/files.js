// The list of files: which are there, how far each is, which are asked, and their deletion.

import { announce, element, find, plural, reason, size } from "./dom.js";

const WORDS = { storing: "Being stored", waiting: "Waits for its turn", embedding: "Being embedded" };

export class Files {
  #list = find("files");
  #dialog = find("confirm");
  #asked = 0; // how often it was opened
  #all = find("choose-all");
  #rows = new Map();
  #files = [];
  #left = new Set(); // the file_ids that are not to be asked
  #chosen;

  /** `chosen` is called with the files that are ready and to be asked, and with how many are ready. */
  constructor(chosen) {
    this.#chosen = chosen;
    this.#all.firstElementChild.addEventListener("change", (event) => {
      this.#left = new Set(event.target.checked ? [] : this.#files.map((file) => file.file_id));
      this.#render();
    });
  }

  show(files) {
    this.#tell(files);
    this.#files = files;
    this.#render();
  }

  #tell(files) {
    const before = new Map(this.#files.map((file) => [file.file_id, file.status]));
    for (const { file_id, name, status, message } of files) {
      if (!before.has(file_id) || before.get(file_id) === status) continue;
      if (status === "ready") announce(`${name} can be asked now`);
      if (status === "failed") announce(`${name} has failed. ${message}`);
    }
  }

  #render() {
    const there = new Set(this.#files.map((file) => file.file_id));
    for (const [id, row] of this.#rows) {
      if (there.has(id)) continue;
      if (row.item.contains(document.activeElement)) find("chooser").focus();
      row.item.remove();
      this.#rows.delete(id);
    }
    this.#files.forEach((file, index) => {
      if (!this.#rows.has(file.file_id)) this.#rows.set(file.file_id, this.#row(file));
      const row = this.#rows.get(file.file_id);
      this.#update(row, file);
      if (this.#list.children[index] !== row.item) this.#list.insertBefore(row.item, this.#list.children[index] ?? null);
    });
    find("no-files").hidden = this.#files.length > 0;
    this.#all.hidden = this.#files.length < 2;
    const ready = this.#files.filter((file) => file.status === "ready");
    const chosen = ready.filter((file) => !this.#left.has(file.file_id));
    const box = this.#all.firstElementChild;
    box.checked = chosen.length === ready.length;
    box.indeterminate = chosen.length > 0 && chosen.length < ready.length;
    this.#chosen(chosen, ready.length);
  }

  #row(file) {
    const id = `file-${file.file_id}`;
    const box = element("input", { type: "checkbox", id });
    box.addEventListener("change", () => {
      if (box.checked) this.#left.delete(file.file_id);
      else this.#left.add(file.file_id);
      this.#render();
    });
    const about = element("p", { className: "item-about" });
    const again = element("button", { className: "plain", type: "button" }, "Try again");
    again.addEventListener("click", () => this.#request("POST", `${file.file_id}/retry`, about));
    const remove = element("button", { className: "plain", type: "button", "aria-label": `Delete ${file.name}` }, "Delete");
    remove.addEventListener("click", () => this.#delete(file, about));
    const name = element("span", { className: "item-name", title: file.name }, file.name);
    const item = element(
      "li",
      { className: "item" },
      box,
      element("label", { htmlFor: id }, name),
      about,
      element("div", { className: "item-buttons" }, again, remove),
    );
    return { item, box, about, again, shown: "" };
  }

  #update(row, file) {
    const { file_id, status, done, total, message } = file;
    row.box.disabled = status !== "ready";
    row.box.checked = status === "ready" && !this.#left.has(file_id);
    const shown = JSON.stringify([status, done, total, message]);
    if (row.shown === shown) return;
    row.shown = shown;
    row.item.classList.toggle("failed", status === "failed");
    row.again.hidden = status !== "failed";
    if (status === "ready") row.about.replaceChildren(`${size(file.bytes)}, ${plural(total, "passage")}`);
    else if (status === "failed") row.about.replaceChildren(message);
    else if (status === "embedding") this.#progress(row.about, file);
    else row.about.replaceChildren(WORDS[status] ?? status);
  }

  #progress(about, { name, done, total }) {
    const bar = about.querySelector("progress") ?? element("progress", { "aria-label": `${name} is being embedded` });
    bar.max = Math.max(total, 1);
    bar.value = done;
    about.replaceChildren(bar, element("span", {}, `${done} of ${plural(total, "passage")}`));
  }

  async #delete(file, about) {
    find("confirm-title").textContent = `Delete ${file.name}?`;
    this.#dialog.returnValue = "no";
    this.#dialog.showModal();
    const asked = ++this.#asked;
    do {
      await new Promise((closed) => this.#dialog.addEventListener("close", closed, { once: true }));
      // The event comes a moment later, when it may be open for the next question.
    } while (asked === this.#asked && this.#dialog.open);
    if (asked !== this.#asked || this.#dialog.returnValue !== "yes") return;
    if (await this.#request("DELETE", file.file_id, about)) announce(`${file.name} is deleted`);
  }

  async #request(method, path, about) {
    let problem = "The app did not answer. Try again.";
    try {
      const answer = await fetch(`api/files/${path}`, { method });
      // What is gone already is what was asked for.
      if (answer.ok || answer.status === 404) return true;
      problem = await reason(answer);
    } catch {
      // As the problem says.
    }
    about.textContent = problem;
    announce(problem);
    return false;
  }
}
