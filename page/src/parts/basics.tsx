// Small parts that every view is made of.
import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { ApiError } from "../api";
import { duration, percent } from "../format";
import { phaseOf } from "../phase";
import type { Outcome, Progress, Status } from "../records";

const STATUS: Record<Status, { word: string; tone: string }> = {
  CREATED: { word: "waiting", tone: "quiet" },
  STARTED: { word: "running", tone: "busy" },
  INTERRUPTED: { word: "interrupted", tone: "warn" },
  FINISHED: { word: "finished", tone: "good" },
  FAILED: { word: "failed", tone: "bad" },
  CANCELLED: { word: "cancelled", tone: "quiet" },
};

export const OUTCOME: Record<Outcome, { word: string; tone: string }> = {
  improved: { word: "improved", tone: "good" },
  unchanged: { word: "unchanged", tone: "quiet" },
  REGRESSED: { word: "got worse", tone: "bad" },
};

export function Badge({ tone, children }: { tone: string; children: ComponentChildren }) {
  return <span class={`badge ${tone}`}>{children}</span>;
}

export function StatusBadge({ status }: { status: Status }) {
  const { word, tone } = STATUS[status] ?? { word: status, tone: "quiet" };
  return <Badge tone={tone}>{word}</Badge>;
}

export function OutcomeBadge({ outcome }: { outcome: Outcome | null | undefined }) {
  if (!outcome) return <span class="quiet">–</span>;
  return <Badge tone={OUTCOME[outcome].tone}>{OUTCOME[outcome].word}</Badge>;
}

/** How far a run is, and how long it will take; after its last step, what it does then, which may take as long again. */
export function ProgressBar({ progress, details }: { progress: Progress; details: string }) {
  const phase = phaseOf(progress, details);
  if (phase) {
    return (
      <span class="progress">
        <progress aria-label={phase} />
        <small>{phase}</small>
      </span>
    );
  }
  const share = progress.n_steps_total ? progress.n_steps_done / progress.n_steps_total : 0;
  const left = progress.eta_s === null ? "" : `${duration(progress.eta_s)} left`;
  return (
    <span class="progress">
      <progress max={1} value={share} aria-label={`${percent(share)} done`} />
      <small>
        {percent(share)}{left && ` · ${left}`}
      </small>
    </span>
  );
}

/** An error, with what the server said of it; that it starts is none. */
export function ErrorNote({ error, onRetry }: { error: ApiError | Error; onRetry?: () => void }) {
  if (error instanceof ApiError && error.isStarting) return <Loading what="Waiting for the service" />;
  return (
    <div class="note bad" role="alert">
      <p>{error.message}</p>
      {onRetry && <button type="button" onClick={onRetry}>Try again</button>}
    </div>
  );
}

export function Note({ tone = "quiet", children }: { tone?: string; children: ComponentChildren }) {
  return <div class={`note ${tone}`} role={tone === "bad" ? "alert" : "note"}>{children}</div>;
}

/** What stands where nothing is yet, and how to change that. */
export function Empty({ title, children }: { title: string; children?: ComponentChildren }) {
  return (
    <div class="empty">
      <p class="empty-title">{title}</p>
      {children}
    </div>
  );
}

export function Loading({ what = "Loading" }: { what?: string }) {
  return <p class="loading" role="status">{what} …</p>;
}

export function Card(
  { title, actions, children, id }:
    { title?: ComponentChildren; actions?: ComponentChildren; children: ComponentChildren; id?: string },
) {
  return (
    <section class="card" id={id}>
      {(title || actions) && (
        <header class="card-head">
          {title && <h2>{title}</h2>}
          {actions && <div class="actions">{actions}</div>}
        </header>
      )}
      {children}
    </section>
  );
}

/** One of a list's figures, below its name. */
export function Figure({ name, children }: { name: ComponentChildren; children: ComponentChildren }) {
  return <div><dt>{name}</dt><dd>{children}</dd></div>;
}

/** A table that scrolls sideways within its card on a narrow screen. */
export function Table({ caption, class: className, children }: { caption: string; class?: string; children: ComponentChildren }) {
  return (
    <div class="table-frame" tabIndex={0} role="region" aria-label={caption}>
      <table role={className ? "table" : undefined} class={className}>
        <caption class="unseen">{caption}</caption>
        {children}
      </table>
    </div>
  );
}

/** A question that must be answered before something is done; open while it is there. */
export function Dialog(
  { title, onClose, children }: { title: string; onClose: () => void; children: ComponentChildren },
) {
  const dialog = useRef<HTMLDialogElement>(null);
  useEffect(() => dialog.current?.showModal(), []);
  return (
    <dialog ref={dialog} onClose={onClose} aria-label={title}>
      <h2>{title}</h2>
      {children}
    </dialog>
  );
}

/** A dialog that asks before what cannot be undone. */
export function Confirm(
  { title, verb, onYes, onClose, children }:
    { title: string; verb: string; onYes: () => void; onClose: () => void; children: ComponentChildren },
) {
  return (
    <Dialog title={title} onClose={onClose}>
      <div>{children}</div>
      <div class="actions">
        <button type="button" onClick={onClose}>Change nothing</button>
        <button type="button" class="danger" onClick={() => (onYes(), onClose())}>{verb}</button>
      </div>
    </Dialog>
  );
}

/** A text to copy. */
export function Code({ text, label }: { text: string; label: string }) {
  const [isCopied, setIsCopied] = useState(false);
  const pre = useRef<HTMLPreElement>(null);
  useEffect(() => setIsCopied(false), [text]);
  const copy = async () => {
    // A page that came without TLS may not write to the clipboard; then the text is marked, for Ctrl-C.
    const written = await navigator.clipboard?.writeText(text).then(() => true, () => false);
    if (written) setIsCopied(true);
    else getSelection()?.selectAllChildren(pre.current!);
  };
  return (
    <div class="code">
      <button type="button" class="small" onClick={() => void copy()}>
        {isCopied ? "Copied" : "Copy"}<span class="unseen"> {label}</span>
      </button>
      <pre ref={pre} tabIndex={0} aria-label={label} role="region">{text}</pre>
    </div>
  );
}
