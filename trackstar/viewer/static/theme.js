// Light and dark: as the system has it, or as the person says.

const THEMES = ["auto", "light", "dark"];

/** What this browser keeps under a name; null where it keeps nothing, as for some pages from disk. */
export function remembered(name) {
  try {
    return localStorage.getItem(`trackstar-${name}`);
  } catch {
    return null;
  }
}

/** Keeps a value, where the browser lets the page. */
export function remember(name, value) {
  try {
    localStorage.setItem(`trackstar-${name}`, value);
  } catch {
    // The setting holds until the page is closed.
  }
}

export class Theme {
  constructor(button) {
    this.button = button;
    this.set(remembered("theme") ?? "auto");
    button.addEventListener("click", () => {
      this.set(THEMES[(THEMES.indexOf(this.theme) + 1) % THEMES.length]);
      remember("theme", this.theme);
    });
  }

  set(theme) {
    this.theme = THEMES.includes(theme) ? theme : "auto";
    if (this.theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = this.theme;
    this.button.textContent = `Theme: ${this.theme}`;
  }
}
