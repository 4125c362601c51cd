// A run's settings, those that were chosen first.
import { usePolled } from "../live";
import type { RunRecord } from "../records";
import { againstDefaults, defaultsOf, type Difference, written } from "../settings";
import { Card, Table } from "./basics";

export function SettingsCard({ run }: { run: RunRecord }) {
  const description = usePolled<unknown>("/openapi.json", {}, 0);
  const defaults = description.value === undefined ? null : defaultsOf(description.value);
  const rows = againstDefaults(run.config, defaults);
  const chosen = rows.filter((row) => row.differs), rest = rows.filter((row) => !row.differs);
  return (
    <Card title="Settings">
      <div class="stack">
        {chosen.length > 0 && <Rows caption="Settings that are not as their defaults" rows={chosen} />}
        {chosen.length > 0
          ? <details><summary>{rest.length} more, at their defaults</summary><Rows caption="Settings as their defaults" rows={rest} /></details>
          : <Rows caption="Settings" rows={rest} />}
      </div>
    </Card>
  );
}

/** A dotted name, which may be broken between its words. */
export function SettingName({ name }: { name: string }) {
  return <>{name.replace(/^callbacks\./, "").split(/(?<=[._])|(?<=[a-z])(?=[A-Z])/).map((part) => <>{part}<wbr /></>)}</>;
}

function Rows({ caption, rows }: { caption: string; rows: Difference[] }) {
  return (
    <Table caption={caption}>
      <thead><tr><th scope="col">Setting</th><th scope="col">Value</th></tr></thead>
      <tbody>
        {rows.map(({ name, values }) => (
          <tr>
            <th scope="row" class="setting"><SettingName name={name} /></th>
            <td class="long"><code dir="auto">{written(values[0])}</code></td>
          </tr>
        ))}
      </tbody>
    </Table>
  );
}
