// What a run does when its steps are done.
import type { Progress } from "./records";

// A run that stops early has steps left when it comes to these.
const LAST = /^(Drawing|Exporting|Quantizing)/;

/** Return what a run does after its last step, which no estimate covers; empty before that. */
export function phaseOf({ n_steps_done, n_steps_total }: Pick<Progress, "n_steps_done" | "n_steps_total">, details: string): string {
  if (LAST.test(details)) return details;
  if (!n_steps_total || n_steps_done < n_steps_total) return "";
  return !details || details.startsWith("Epoch ") ? "Finishing" : details; // or they tell of the last step still
}
