// Which of a run's evaluations is shown.

interface CaptionChoiceProps {
  captions: string[];
  value: string;
  onChange: (caption: string) => void;
  /** Among fields whose names stand above them. */
  isAbove?: boolean;
}

/** Nothing where there is one evaluation alone. */
export function CaptionChoice({ captions, value, onChange, isAbove }: CaptionChoiceProps) {
  if (captions.length < 2) return null;
  return (
    <label class={isAbove ? undefined : "inline"}>
      Evaluation
      <select value={value} onChange={(e) => onChange(e.currentTarget.value)}>
        {captions.map((each) => <option value={each}>{each || "without a caption"}</option>)}
      </select>
    </label>
  );
}
