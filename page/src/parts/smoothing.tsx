// Over how many steps a curve is smoothed.
const SPANS = [1, 10, 50, 200];

export function SmoothingChoice({ value, onChange }: { value: number; onChange: (n_steps: number) => void }) {
  return (
    <label class="inline">
      Smoothed over
      <select value={value} onChange={(e) => onChange(Number(e.currentTarget.value))}>
        {SPANS.map((n) => <option value={n}>{n === 1 ? "nothing" : `${n} steps`}</option>)}
      </select>
    </label>
  );
}
