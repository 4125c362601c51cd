// Fields of a form: a label, what to type, and what is wrong with it beside it.
import type { ComponentChildren } from "preact";
import { useId } from "preact/hooks";

export interface Marks {
  id: string;
  "aria-invalid"?: "true";
  "aria-describedby"?: string;
}

export interface FieldOptions {
  label: ComponentChildren;
  hint?: ComponentChildren;
  problems?: string[];
  children: (marks: Marks) => ComponentChildren;
}

export function Field({ label, hint, problems = [], children }: FieldOptions) {
  const id = useId();
  const described = [hint ? `${id}-hint` : "", problems.length ? `${id}-problem` : ""].filter(Boolean).join(" ");
  return (
    <div class="field">
      <label for={id}>{label}</label>
      {children({
        id,
        "aria-invalid": problems.length ? "true" : undefined,
        "aria-describedby": described || undefined,
      })}
      {hint && <small id={`${id}-hint`}>{hint}</small>}
      <Problems id={`${id}-problem`} problems={problems} />
    </div>
  );
}

export function Problems({ id, problems }: { id?: string; problems: string[] }) {
  if (!problems.length) return null;
  return (
    <div id={id} class="problem">
      {problems.map((problem) => <p>{problem}</p>)}
    </div>
  );
}

type TextOptions = Omit<FieldOptions, "children"> & {
  value: string;
  onChange: (value: string) => void;
  type?: "text" | "number";
  suggestions?: { name: string; says: string }[];
  min?: number;
  max?: number;
  placeholder?: string;
  inputMode?: "decimal";
};

export function TextField({ value, onChange, suggestions, type = "text", label, hint, problems, ...input }: TextOptions) {
  const list = useId();
  return (
    <Field label={label} hint={hint} problems={problems}>
      {(marks) => (
        <>
          <input
            {...marks}
            {...input}
            type={type}
            value={value}
            list={suggestions ? list : undefined}
            autocomplete="off"
            spellcheck={false}
            onInput={(event) => onChange(event.currentTarget.value)}
          />
          {suggestions && (
            <datalist id={list}>
              {suggestions.map(({ name, says }) => <option value={name}>{says}</option>)}
            </datalist>
          )}
        </>
      )}
    </Field>
  );
}

export interface Choice<T extends string> {
  value: T;
  label: string;
}

/** A few things of which one is chosen, all in sight. */
export function Choices<T extends string>(
  { label, value, choices, onChange }:
    { label: string; value: T; choices: Choice<T>[]; onChange: (value: T) => void },
) {
  return (
    <div class="choices" role="group" aria-label={label}>
      {choices.map((choice) => (
        <button type="button" class="small" aria-pressed={choice.value === value} onClick={() => onChange(choice.value)}>
          {choice.label}
        </button>
      ))}
    </div>
  );
}
