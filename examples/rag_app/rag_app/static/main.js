// Connects the parts of the page with what the app streams.

import { Ask } from "./ask.js";
import { EngineSwitch } from "./engine.js";
import { Files } from "./files.js";
import { Strip } from "./strip.js";
import { Uploads } from "./uploads.js";

const ask = new Ask();
const files = new Files((chosen, ready) => ask.choose(chosen, ready));
const uploads = new Uploads();
const engine = new EngineSwitch();
const strip = new Strip();

const stream = new EventSource("api/events");
stream.addEventListener("state", (event) => {
  const state = JSON.parse(event.data);
  files.show(state.files);
  uploads.limit(state.max_upload_bytes);
  engine.show(state);
});
stream.addEventListener("pulse", (event) => {
  strip.add(JSON.parse(event.data));
});
stream.addEventListener("open", () => {
  strip.restart();
  engine.connected(true);
});
stream.addEventListener("error", () => engine.connected(false));
