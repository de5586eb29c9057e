// Files on their way to the app: dropped or chosen, a few at a time, each with its progress, or with what is wrong with it.

import { announce, element, find, size } from "./dom.js";

const AT_ONCE = 3;

export class Uploads {
  #list = find("uploads");
  #waiting = [];
  #running = 0;
  #most = Infinity;

  constructor() {
    const chooser = find("chooser");
    chooser.addEventListener("change", () => {
      this.#add(chooser.files);
      chooser.value = "";
    });
    this.#takeDrops(find("drop"));
  }

  limit(bytes) {
    this.#most = bytes;
    find("most").textContent = `, up to ${Math.floor(bytes / 2 ** 20)} MB`;
  }

  #takeDrops(drop) {
    let inside = 0;
    const mark = (change) => {
      inside = Math.max(0, inside + change);
      drop.classList.toggle("over", inside > 0);
    };
    // The whole page takes files: one that misses the box by a hair is not to replace the page.
    document.addEventListener("dragenter", () => mark(1));
    document.addEventListener("dragleave", () => mark(-1));
    document.addEventListener("dragover", (event) => event.preventDefault());
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      mark(-inside);
      this.#add(event.dataTransfer.files);
    });
  }

  #add(files) {
    for (const file of files) {
      const row = this.#row(file.name);
      if (file.size > this.#most) {
        this.#fail(row, `${size(file.size)} is more than is taken.`);
      } else {
        this.#waiting.push({ file, row });
      }
    }
    this.#next();
  }

  #next() {
    while (this.#running < AT_ONCE && this.#waiting.length) {
      const { file, row } = this.#waiting.shift();
      this.#running++;
      this.#send(file, row).finally(() => {
        this.#running--;
        this.#next();
      });
    }
  }

  #row(name) {
    const about = element("p", { className: "item-about" }, "Waits for its turn");
    const label = element("span", { className: "item-name", title: name }, name);
    const buttons = element("div", { className: "item-buttons" });
    const item = element("li", { className: "item" }, element("span", { className: "mark", "aria-hidden": "true" }, "↑"),
      label, about, buttons);
    this.#list.append(item);
    return { item, about, buttons, name };
  }

  /** `fetch` does not tell how much of a body is sent. */
  #send(file, row) {
    return new Promise((ended) => {
      const request = new XMLHttpRequest();
      const bar = element("progress", { max: 1, value: 0, "aria-label": `${file.name} is being sent` });
      const word = element("span", {}, "Being sent");
      row.about.replaceChildren(bar, word);
      const stop = element("button", { className: "plain", type: "button", "aria-label": `Stop sending ${file.name}` }, "Stop");
      stop.addEventListener("click", () => request.abort());
      row.buttons.replaceChildren(stop);
      request.upload.addEventListener("progress", (event) => {
        bar.value = event.lengthComputable ? event.loaded / event.total : 0;
      });
      request.upload.addEventListener("load", () => {
        bar.removeAttribute("value");
        word.textContent = "Being read";
      });
      request.addEventListener("load", () => this.#answered(request, row));
      request.addEventListener("error", () => this.#fail(row, "The app did not take it. Is it running, and the file unchanged?"));
      request.addEventListener("abort", () => this.#remove(row));
      request.addEventListener("loadend", ended);
      request.open("POST", `api/files?name=${encodeURIComponent(file.name)}`);
      request.setRequestHeader("Content-Type", "application/octet-stream");
      request.send(file);
    });
  }

  #answered(request, row) {
    if (request.status === 201) {
      announce(`${row.name} is added`);
      this.#remove(row);
      return;
    }
    let detail = `The app has answered ${request.status}. Try again.`;
    try {
      const said = JSON.parse(request.responseText).detail;
      if (typeof said === "string") detail = said;
    } catch {
      // Not the app's own answer.
    }
    this.#fail(row, detail);
  }

  #fail(row, detail) {
    row.item.classList.add("failed");
    row.item.firstElementChild.textContent = "!";
    row.about.replaceChildren(detail);
    const close = element("button", { className: "plain", type: "button", "aria-label": `Dismiss ${row.name}` }, "Dismiss");
    close.addEventListener("click", () => this.#remove(row));
    row.buttons.replaceChildren(close);
    announce(`${row.name} was not added. ${detail}`);
  }

  #remove(row) {
    if (row.item.contains(document.activeElement)) find("chooser").focus();
    row.item.remove();
  }
}
