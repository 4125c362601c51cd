// What an alias shall point to: a run, perhaps a second one for a share of the requests, perhaps a shadow.
import { useState } from "preact/hooks";
import { put } from "../api";
import { percent } from "../format";
import { asApiError } from "../live";
import { runOf } from "../moves";
import type { Alias, Model } from "../records";
import { Dialog, ErrorNote } from "./basics";
import { Field, type Marks, TextField } from "./field";
import { withScope } from "./stored_data";

interface Aim {
  name: string;
  run: string;
  splitRun: string;
  weight: number;
  shadow: string;
  force: boolean;
}

const NEW: Aim = { name: "", run: "", splitRun: "", weight: 0.1, shadow: "", force: false };

function aimOf(alias: Alias): Aim {
  const { name, target, split, shadow } = alias;
  return { ...NEW, name, run: target.run, splitRun: split?.target.run ?? "", weight: split?.weight ?? 0.1, shadow: shadow?.run ?? "" };
}

function bodyOf({ run, splitRun, weight, shadow, force }: Aim) {
  return { run, ...(splitRun && { split: { run: splitRun, weight } }), ...(shadow && { shadow }), ...(force && { force }) };
}

/** @param alias The one to change; null for a new one. */
export function AliasDialog({ alias, models, onDone, onClose }: { alias: Alias | null; models: Model[]; onDone: () => void; onClose: () => void }) {
  const [aim, setAim] = useState<Aim>(alias ? aimOf(alias) : NEW);
  const [error, setError] = useState<Error | null>(null);
  const [isSending, setIsSending] = useState(false);
  const change = (changes: Partial<Aim>) => (setAim((now) => ({ ...now, ...changes })), setError(null));
  const runs = models.filter(({ kind }) => kind === "run").sort((a, b) => b.created - a.created).map(({ id }) => runOf(id, models)!);
  const submit = async (event: Event) => {
    event.preventDefault();
    setIsSending(true);
    try {
      await put(`/aliases/${encodeURIComponent(aim.name.trim())}`, bodyOf(aim));
      onDone();
      onClose();
    } catch (thrown) {
      setError(withScope(asApiError(thrown), "admin"));
    }
    setIsSending(false);
  };
  return (
    <Dialog title={alias ? `What ${alias.name} points to` : "New alias"} onClose={onClose}>
      <form class="stack" onSubmit={(event) => void submit(event)}>
        {!alias && <TextField label="Name" value={aim.name} onChange={(name) => change({ name })} placeholder="prod" hint="what clients ask for; letters, digits, . _ -" />}
        <Field label="Run" hint="one that improved its model, or any when you say so below; it is loaded before anything is asked of it">
          {(marks) => <RunSelect {...marks} runs={runs} value={aim.run} none="Choose a run" onChange={(run) => change({ run })} />}
        </Field>
        <Field label="Split with" hint="a second run that answers a share of the clients; one client always gets the same run">
          {(marks) => <RunSelect {...marks} runs={runs} value={aim.splitRun} none="no second run" onChange={(splitRun) => change({ splitRun })} />}
        </Field>
        {aim.splitRun && (
          <Field label="The second run's share">
            {(marks) => (
              <div class="slider">
                <input {...marks} type="range" min="0" max="1" step="0.01" value={aim.weight} onInput={(event) => change({ weight: Number(event.currentTarget.value) })} />
                <output for={marks.id}>{percent(aim.weight)}</output>
              </div>
            )}
          </Field>
        )}
        <Field label="Shadow" hint="a run that is asked too, and whose answers nobody gets: its speed and errors show below">
          {(marks) => <RunSelect {...marks} runs={runs} value={aim.shadow} none="no shadow" onChange={(shadow) => change({ shadow })} />}
        </Field>
        <label class="inline">
          <input type="checkbox" checked={aim.force} onChange={(event) => change({ force: event.currentTarget.checked })} />
          <span>Even if the run did not improve its model</span>
        </label>
        {error && <ErrorNote error={error} />}
        <div class="actions">
          <button type="button" onClick={onClose}>Change nothing</button>
          <button type="submit" class="primary" disabled={!aim.run || !aim.name.trim() || isSending}>
            {isSending ? "Loading the model …" : alias ? "Change it" : "Make it"}
          </button>
        </div>
      </form>
    </Dialog>
  );
}

function RunSelect({ runs, value, none, onChange, ...marks }: Marks & { runs: string[]; value: string; none: string; onChange: (run: string) => void }) {
  return (
    <select {...marks} value={value} onChange={(event) => onChange(event.currentTarget.value)}>
      <option value="">{none}</option>
      {value && !runs.includes(value) && <option value={value}>{value} (no longer there)</option>}
      {runs.map((run) => <option value={run}>{run}</option>)}
    </select>
  );
}
