// What the server found in the training data.
import { number, plural } from "../format";
import { bars } from "../points";
import type { DataReport } from "../records";
import { Figure, Table } from "./basics";

const FORMS = {
  labels: "texts with labels",
  pairs: "pairs of texts that mean the same",
  "scored pairs": "pairs of texts with a score",
};

export function DataReportView({ report }: { report: DataReport }) {
  const isLabelled = report.form === "labels";
  return (
    <div class="stack report">
      <p>These are <strong>{FORMS[report.form] ?? report.form}</strong>.</p>
      <dl class="figures">
        <Figure name="rows">{number(report.n_rows)}</Figure>
        <Figure name="different texts">{number(report.n_texts)}</Figure>
        {isLabelled && <Figure name="labels">{number(report.n_labels)}</Figure>}
        {isLabelled && <Figure name="labels with one text">{number(report.n_alone)}</Figure>}
        <Figure name="repeated rows">{number(report.n_repeated)}</Figure>
        <Figure name={isLabelled ? "under two labels" : "contradictory"}>{number(report.n_ambiguous)}</Figure>
        {report.lengths && <Figure name="characters, median">{number(report.lengths.p50)}</Figure>}
        {report.lengths && <Figure name="characters, longest">{number(report.lengths.max)}</Figure>}
      </dl>
      {(report.class_sizes ?? []).length > 0 && <ClassSizes report={report} />}
      {report.preview.length > 0 && (
        <details open>
          <summary>The first {plural(report.preview.length, "row")}</summary>
          <Preview rows={report.preview} />
        </details>
      )}
      {report.repeated.length > 0 && (
        <details>
          <summary>{plural(report.n_repeated, "repeated row")}; each text counts once</summary>
          <Table caption="Repeated texts">
            <thead><tr><th scope="col">text</th><th scope="col">label</th><th scope="col" class="number">times</th></tr></thead>
            <tbody>
              {report.repeated.map(({ text, label, n }) => (
                <tr><td class="text"><bdi>{text}</bdi></td><td><bdi>{label}</bdi></td><td class="number">{n}</td></tr>
              ))}
            </tbody>
          </Table>
        </details>
      )}
      {report.ambiguous.length > 0 && (
        <details>
          <summary>{plural(report.n_ambiguous, isLabelled ? "text" : "row")} {isLabelled ? "under two labels or more" : "that contradict others"}; left out of the training</summary>
          <Table caption={isLabelled ? "Texts under several labels" : "Contradictory rows"}>
            <thead><tr><th scope="col">text</th><th scope="col">{isLabelled ? "labels" : "what they say"}</th></tr></thead>
            <tbody>
              {report.ambiguous.map(({ text, labels }) => (
                <tr><td class="text"><bdi>{text}</bdi></td><td class="text"><bdi>{labels.join(", ")}</bdi></td></tr>
              ))}
            </tbody>
          </Table>
        </details>
      )}
    </div>
  );
}

/** How many labels, or groups of linked pairs, have how many texts, as bars in a table. */
function ClassSizes({ report }: { report: DataReport }) {
  const isLabelled = report.form === "labels";
  const groups = isLabelled ? "labels" : "groups";
  return (
    <section class="class-sizes">
      <h3>{isLabelled ? "How many texts a label has" : "How many texts mean the same"}</h3>
      <table>
        <caption class="unseen">How many {groups} have how many texts</caption>
        <thead><tr><th scope="col" class="number">texts</th><th scope="col" class="number">{groups}</th><td aria-hidden="true" /></tr></thead>
        <tbody>
          {bars(report.class_sizes).map(({ words, n_labels, share }) => (
            <tr>
              <th scope="row" class="number">{words}</th>
              <td class="number">{number(n_labels)}</td>
              <td aria-hidden="true"><div class="bar" style={{ width: `${100 * share}%` }} /></td>
            </tr>
          ))}
        </tbody>
      </table>
      {report.largest.length > 0 && (
        <div class="quiet largest">
          <span>Largest:</span>
          {report.largest.map(({ label, n_texts }) => (
            <span class="tagged" title={label}><bdi class="cut">{label}</bdi> <small>{number(n_texts)}</small></span>
          ))}
        </div>
      )}
    </section>
  );
}

function Preview({ rows }: { rows: DataReport["preview"] }) {
  const columns = [...new Set(rows.flatMap(Object.keys))];
  return (
    <Table caption="The first rows">
      <thead><tr>{columns.map((column) => <th scope="col">{column}</th>)}</tr></thead>
      <tbody>
        {rows.map((row) => (
          <tr>{columns.map((column) => <td class="text"><bdi>{row[column] ?? "–"}</bdi></td>)}</tr>
        ))}
      </tbody>
    </Table>
  );
}
