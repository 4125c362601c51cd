// Light or dark: as the system says, unless the reader has chosen.
import { effect, signal } from "@preact/signals";

export type Theme = "auto" | "light" | "dark";
const KEY = "finetuner-theme";
const media = matchMedia("(prefers-color-scheme: dark)");

export const theme = signal<Theme>((localStorage.getItem(KEY) as Theme | null) ?? "auto");
/** Whether dark colours are shown; charts, which draw on a canvas, must know. */
export const isDark = signal(false);

function settle(): void {
  isDark.value = theme.value === "dark" || (theme.value === "auto" && media.matches);
  document.documentElement.dataset.theme = isDark.value ? "dark" : "light";
}

effect(() => {
  localStorage.setItem(KEY, theme.value);
  settle();
});
media.addEventListener("change", settle);

/** Return a colour of the style sheet, as the canvas needs it. */
export function colour(name: string): string {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/** Colours of curves and labels, told apart with all kinds of sight; the order is that of use. */
export function seriesColours(): string[] {
  return Array.from({ length: 8 }, (_, place) => colour(`series-${place + 1}`));
}
