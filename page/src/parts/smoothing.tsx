// Over how many steps a curve is smoothed.
import { spansFor } from "../curves";

export function SmoothingChoice({ value, n_steps, onChange }: { value: number; n_steps: number; onChange: (n_steps: number) => void }) {
  return (
    <label class="inline">
      Smoothed over
      <select value={value} onChange={(e) => onChange(Number(e.currentTarget.value))}>
        {spansFor(n_steps).map((n) => <option value={n}>{n === 1 ? "nothing" : `${n} steps`}</option>)}
      </select>
    </label>
  );
}
