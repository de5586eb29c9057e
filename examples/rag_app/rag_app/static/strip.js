// The strip: how late the event loop was in the last minute, on a logarithmic scale, a bar for each sample.

import { find } from "./dom.js";

const SECONDS = 60;
const HIGHEST = 10_000; // ms, at the top
const LOWEST = 1;
const MARKS = [10, 100, 1000];
const LABELS = 44; // px that the numbers at the right take

/** What a lateness means to a user who waits. */
const grade = (late) => (late < 50 ? "fine" : late < 250 ? "warn" : "bad");
const height = (late) =>
  Math.log10(Math.min(Math.max(late, LOWEST), HIGHEST) / LOWEST) / Math.log10(HIGHEST / LOWEST);

export function inWords(late) {
  return late < 1000 ? `${Math.round(late)} ms` : `${(late / 1000).toFixed(1)} s`;
}

export class Strip {
  #canvas = find("pulse");
  #samples = [];
  #calm = matchMedia("(prefers-reduced-motion: reduce)");
  #drawn = 0;

  constructor() {
    new ResizeObserver(() => this.#draw()).observe(this.#canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#draw());
    document.addEventListener("visibilitychange", () => this.#draw());
  }

  /** After a connection to another worker, whose samples are counted anew. */
  restart() {
    this.#samples = [];
  }

  add(samples) {
    for (const [, late, seconds] of samples) this.#samples.push({ late, seconds });
    let kept = 0;
    let first = this.#samples.length;
    while (first > 0 && kept < SECONDS) kept += this.#samples[--first].seconds;
    this.#samples.splice(0, first);
    const now = Math.max(...samples.map(([, late]) => late));
    const worst = Math.max(...this.#samples.map(({ late }) => late));
    this.#say("late", now);
    this.#say("worst", worst);
    this.#canvas.setAttribute("aria-label", `In the last minute the event loop was late by ${inWords(worst)} at worst`);
    if (!this.#calm.matches || performance.now() - this.#drawn > 1000) this.#draw();
  }

  #say(id, late) {
    const output = find(id);
    output.textContent = inWords(late);
    output.className = grade(late);
  }

  #draw() {
    if (document.hidden) return;
    this.#drawn = performance.now();
    const { clientWidth: width, clientHeight: tall } = this.#canvas;
    const scale = devicePixelRatio || 1;
    this.#canvas.width = width * scale;
    this.#canvas.height = tall * scale;
    const pen = this.#canvas.getContext("2d");
    pen.scale(scale, scale);
    const colors = this.#colors();
    pen.fillStyle = colors.line;
    for (const mark of MARKS) pen.fillRect(0, Math.round(tall * (1 - height(mark))), width - LABELS, 1);
    pen.fillRect(0, tall - 1, width - LABELS, 1);
    const second = (width - LABELS) / SECONDS;
    let right = width - LABELS;
    for (let index = this.#samples.length - 1; index >= 0 && right > 0; index--) {
      const { late, seconds } = this.#samples[index];
      const wide = seconds * second;
      const high = Math.max(2, tall * height(late));
      pen.fillStyle = colors[grade(late)];
      pen.fillRect(right - wide, tall - high, Math.max(wide - (wide > 3 ? 1 : 0.25), 0.75), high);
      right -= wide;
    }
  }

  #colors() {
    // Canvas does not know light-dark(); the computed color of an element is one of both.
    const probe = document.createElement("i");
    this.#canvas.parentElement.append(probe);
    const of = (name) => {
      probe.style.color = `var(--${name})`;
      return getComputedStyle(probe).color;
    };
    const colors = { fine: of("accent"), warn: of("warn"), bad: of("bad"), line: of("line") };
    probe.remove();
    return colors;
  }
}
