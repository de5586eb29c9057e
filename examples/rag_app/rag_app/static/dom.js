// Elements, made of text and never of HTML: what users send is shown as it is.

export const find = (id) => document.getElementById(id);

/** An element with properties, or attributes where the name has a hyphen, and children, which may be strings. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

/** Has a screen reader say something, when it has said the rest. */
export function announce(text) {
  find("announcer").textContent = text;
}

export function size(bytes) {
  if (bytes < 1000) return `${bytes} bytes`;
  return bytes < 1e6 ? `${Math.round(bytes / 1000)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

export const plural = (count, one, many = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;

/** Why a request was refused, in the words of the app. */
export async function reason(response) {
  try {
    const { detail } = await response.json();
    if (typeof detail === "string") return detail;
  } catch {
    // Not the app's own answer.
  }
  return `The app has answered ${response.status}. Try again.`;
}
