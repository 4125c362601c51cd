// Data on the server: choose, upload, delete.
import { useEffect, useRef, useState } from "preact/hooks";
import { ApiError, put, remove } from "../api";
import { firstPair, HEADER_BYTES, hasKnownHeader, isNames, isReading, type Reading, READINGS } from "../columns";
import { dataName } from "../fit_request";
import { ago, plural, size } from "../format";
import { asApiError, type Polled } from "../live";
import { type DataReport, dataPath, type StoredData } from "../records";
import { Confirm, Dialog, Empty, ErrorNote, Loading } from "./basics";
import { Field } from "./field";

const MANY = 8;

export interface DataChoiceOptions {
  stored: Polled<{ items: StoredData[] }>;
  value: string;
  onChange: (name: string) => void;
}

/** A file that was stored by this page and is still at hand. */
export interface Uploaded {
  name: string;
  file: File;
  /** Whether its first row has names of columns that the server knows. */
  hasHeader: boolean;
  /** What stands in its first row, where that is two columns. */
  firstRow: [string, string] | null;
}

async function upload(name: string, file: File, is_labeled?: boolean): Promise<void> {
  await put(dataPath(name), new Blob([file], { type: "text/csv" }), { is_labeled });
}

/** All stored data, of which one is chosen, and a place to drop a file. */
export function DataChoice({ stored, value, onChange, onUpload }: DataChoiceOptions & { onUpload: (uploaded: Uploaded) => void }) {
  const [wanted, setWanted] = useState("");
  const [doomed, setDoomed] = useState<StoredData | null>(null);
  const [error, setError] = useState<ApiError | null>(null);
  const items = stored.value?.items;
  const shown = [...(items ?? [])]
    .filter(({ name }) => name.toLowerCase().includes(wanted.toLowerCase()))
    .sort((a, b) => b.created_at.localeCompare(a.created_at));
  const drop = async (name: string) => {
    setError(null);
    await remove(dataPath(name)).catch((thrown) => setError(asApiError(thrown)));
    if (name === value) onChange("");
    stored.refresh();
  };
  return (
    <div class="stack">
      <Upload stored={stored} onDone={(uploaded) => (onUpload(uploaded), onChange(uploaded.name))} />
      {stored.error && !items && <ErrorNote error={withScope(stored.error, "read")} onRetry={stored.refresh} />}
      {!items && !stored.error && <Loading what="Looking for stored data" />}
      {items && items.length > MANY && (
        <input type="search" aria-label="Search stored data" placeholder="Search stored data" value={wanted} onInput={(e) => setWanted(e.currentTarget.value)} />
      )}
      {items && !items.length && (
        <Empty title="Nothing is stored yet">
          <p>Upload a CSV. Its first row may name the columns: text,label or anchor,positive or sentence1,sentence2,score.</p>
        </Empty>
      )}
      {shown.length > 0 && (
        <fieldset class="picks">
          <legend class="unseen">Stored data</legend>
          {shown.map((entry) => (
            <div class="pick">
              <label class="inline">
                <input type="radio" name="stored-data" checked={entry.name === value} onChange={() => onChange(entry.name)} />
                <span>
                  <bdi class="name">{entry.name}</bdi>
                  <small>{plural(entry.n_documents, "row")} · {size(entry.size_bytes)} as stored · {ago(entry.created_at)}</small>
                </span>
              </label>
              <button type="button" class="plain small" onClick={() => setDoomed(entry)}>
                Delete<span class="unseen"> {entry.name}</span>
              </button>
            </div>
          ))}
        </fieldset>
      )}
      {items && items.length > 0 && !shown.length && <p class="quiet">Nothing stored has that in its name.</p>}
      {error && <ErrorNote error={withScope(error, "fit")} />}
      {doomed && (
        <Confirm title="Delete stored data?" verb="Delete" onYes={() => void drop(doomed.name)} onClose={() => setDoomed(null)}>
          <p><bdi class="name">{doomed.name}</bdi> has {plural(doomed.n_documents, "row")}. Runs that were trained on it keep their texts.</p>
        </Confirm>
      )}
    </div>
  );
}

/** What the rows of an uploaded file were read as, and a way to read it otherwise. */
export function ReadAs({ uploaded, form, preview, onRead }: { uploaded: Uploaded; form?: string; preview?: DataReport["preview"]; onRead: () => void }) {
  // Stays while the server is asked again, so that the focus does.
  const [reading, setReading] = useState<Reading | null>(null);
  const [isSending, setIsSending] = useState(false);
  const [error, setError] = useState<ApiError | null>(null);
  useEffect(() => {
    if (form !== undefined) setReading(isReading(form) ? form : null);
  }, [form]);
  if (!reading) return null;
  const read = async (other: Reading) => {
    setError(null);
    setIsSending(true);
    setReading(other);
    try {
      await upload(uploaded.name, uploaded.file, other === "labels");
      onRead();
    } catch (thrown) {
      setReading(reading);
      setError(asApiError(thrown));
    }
    setIsSending(false);
  };
  const { firstRow } = uploaded;
  const says = firstRow && isNames(firstRow, preview?.[0])
    ? `its first row, ${firstRow.join(", ")}, was taken for the names of the two columns, in this order`
    : "its first row names no columns that are known";
  return (
    <div class="stack near">
      <Field label="Rows are" hint={isSending ? "reading the file again …" : `${says}; choose the other when this is wrong`}>
        {(marks) => (
          <select {...marks} value={reading} aria-busy={isSending} onChange={(event) => !isSending && void read(event.currentTarget.value as Reading)}>
            {Object.entries(READINGS).map(([name, words]) => <option value={name}>{words}</option>)}
          </select>
        )}
      </Field>
      {error && <ErrorNote error={withScope(error, "fit")} />}
    </div>
  );
}

type Upload = { file: File; state: "asks" | "sending" };

/** A place to drop a CSV, or to choose one. */
function Upload({ stored, onDone }: { stored: Polled<{ items: StoredData[] }>; onDone: (uploaded: Uploaded) => void }) {
  const [waiting, setWaiting] = useState<Upload | null>(null);
  const [isOver, setIsOver] = useState(false);
  const [error, setError] = useState<ApiError | Error | null>(null);
  const input = useRef<HTMLInputElement>(null);
  const taken = (stored.value?.items ?? []).map(({ name }) => name);
  const send = async (file: File, name: string) => {
    setWaiting({ file, state: "sending" });
    try {
      const start = await file.slice(0, HEADER_BYTES).text();
      await upload(name, file);
      stored.refresh();
      onDone({ name, file, hasHeader: hasKnownHeader(start), firstRow: firstPair(start) });
    } catch (thrown) {
      setError(asApiError(thrown));
    }
    setWaiting(null);
  };
  const take = (file: File | undefined) => {
    if (input.current) input.current.value = "";
    if (!file) return;
    setError(null);
    if (taken.includes(dataName(file.name))) setWaiting({ file, state: "asks" });
    else void send(file, dataName(file.name));
  };
  const over = (is: boolean) => (event: DragEvent) => (event.preventDefault(), setIsOver(is));
  return (
    <>
      <div
        class={`drop ${isOver ? "over" : ""}`}
        onDragOver={over(true)}
        onDragLeave={over(false)}
        onDrop={(event) => (over(false)(event), take(event.dataTransfer?.files[0]))}
      >
        {waiting?.state === "sending" ? (
          <p role="status">Uploading <bdi class="name">{waiting.file.name}</bdi>, {size(waiting.file.size)} … <progress aria-label="Uploading" /></p>
        ) : (
          <>
            <button type="button" onClick={() => input.current!.click()}>Choose a CSV …</button>
            <span class="quiet">or drop it here</span>
          </>
        )}
        <input ref={input} class="unseen" type="file" tabIndex={-1} aria-label="A CSV to upload" accept=".csv,.tsv,.txt,text/csv" onChange={(event) => take(event.currentTarget.files?.[0])} />
      </div>
      {error && <ErrorNote error={withScope(error, "fit")} />}
      {waiting?.state === "asks" && (
        <Dialog title="There is data of that name" onClose={() => setWaiting((now) => (now?.state === "asks" ? null : now))}>
          <p><bdi class="name">{dataName(waiting.file.name)}</bdi> is stored already.</p>
          <div class="actions">
            <button type="button" class="danger" onClick={() => void send(waiting.file, dataName(waiting.file.name))}>Replace it</button>
            <button type="button" class="primary" onClick={() => void send(waiting.file, dataName(waiting.file.name, taken))}>
              Keep both: {dataName(waiting.file.name, taken)}
            </button>
          </div>
        </Dialog>
      )}
    </>
  );
}

/** Return what was refused, with the scope that a token needs for it. */
export function withScope(error: ApiError | Error, scope: string): Error {
  if (!(error instanceof ApiError) || error.status !== 403) return error;
  return new Error(`This token may not do that: it needs the scope ${scope}. Sign out and give another. (${error.message})`);
}

/** Stored data in one line, for where there is less room. */
export function DataSelect(
  { stored, value, onChange, none, ...marks }:
    DataChoiceOptions & { none: string; id?: string; "aria-invalid"?: "true"; "aria-describedby"?: string; "aria-label"?: string },
) {
  const names = (stored.value?.items ?? []).map(({ name }) => name);
  return (
    <select {...marks} value={value} onChange={(event) => onChange(event.currentTarget.value)}>
      <option value="">{none}</option>
      {value && !names.includes(value) && <option value={value}>{value} (no longer there)</option>}
      {names.map((name) => <option value={name}>{name}</option>)}
    </select>
  );
}
