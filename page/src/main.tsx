// The frame of the page: where to go, what is wrong with the connection, and the view that is open.
import { render } from "preact";
import { useEffect, useState } from "preact/hooks";
import { isAway, needsToken, setToken, starting, token } from "./api";
import { capital } from "./format";
import { Dialog, ErrorNote } from "./parts/basics";
import { Lazy, type Load } from "./parts/lazy";
import { type Route, route, to } from "./route";
import "./style.css";
import "./tools.css";
import "uplot/dist/uPlot.min.css"; // here, since the styles of a part that is loaded later would not come with it
import { theme, type Theme } from "./theme";

/** The first part of the address chooses the view. */
const VIEWS: Record<string, { title: string; load: Load<{ route: Route }> }> = {
  runs: { title: "Runs", load: async () => (await import("./views/runs")).default },
  run: { title: "Run", load: async () => (await import("./views/run")).default },
  compare: { title: "Compare runs", load: async () => (await import("./views/compare")).default },
  new: { title: "New run", load: async () => (await import("./views/new_run")).default },
  try: { title: "Try it", load: async () => (await import("./views/try_it")).default },
  serving: { title: "Serving", load: async () => (await import("./views/serving")).default },
};

const LINKS = ["runs", "new", "try", "serving"];
const THEMES: Theme[] = ["auto", "light", "dark"];

/** Below a run's experiment and name, the list is left. */
function viewOf(parts: string[]): string {
  return parts[0] === "runs" && parts.length > 2 ? "run" : parts[0] ?? "runs";
}

function Page() {
  const name = viewOf(route.value.parts);
  const view = VIEWS[name];
  const title = name === "run" ? route.value.parts[2] : view?.title;
  useEffect(() => {
    document.title = title ? `${title} · Finetuner` : "Finetuner";
  }, [title]);
  return (
    <>
      <a class="skip" href="#main" onClick={skip}>Skip to the content</a>
      <Head open={name} />
      {isAway.value && (starting.value
        ? <div class="away starting" role="status">{capital(starting.value)}. This page goes on by itself then.</div>
        : <div class="away" role="status">The service does not answer. Trying again; what is shown may be old.</div>)}
      <main id="main" tabIndex={-1}>
        {view
          ? <Lazy key={name} load={view.load} props={{ route: route.value }} />
          : <ErrorNote error={new Error("There is no such page here.")} />}
      </main>
      {needsToken.value && <TokenDialog />}
    </>
  );
}

function skip(event: Event) {
  event.preventDefault(); // the address belongs to the views
  document.getElementById("main")?.focus();
}

function Head({ open }: { open: string }) {
  const next = THEMES[(THEMES.indexOf(theme.value) + 1) % THEMES.length]!;
  return (
    <header class="head">
      <a class="brand" href={to(["runs"])}>Finetuner</a>
      <nav aria-label="Parts of the page">
        {LINKS.map((name) => (
          <a href={to([name])} aria-current={open === name || (open === "run" && name === "runs") ? "page" : undefined}>{VIEWS[name]!.title}</a>
        ))}
      </nav>
      <div class="head-end">
        {token.value && (
          <button type="button" class="plain" onClick={() => (setToken(""), (needsToken.value = true))}>
            Sign out
          </button>
        )}
        <button type="button" class="plain" onClick={() => (theme.value = next)} aria-label={`Colours: ${theme.value}. Change to ${next}`}>
          {{ auto: "◐", light: "☀", dark: "☾" }[theme.value]}
        </button>
      </div>
    </header>
  );
}

function TokenDialog() {
  const [value, setValue] = useState("");
  const submit = (event: Event) => {
    event.preventDefault();
    setToken(value.trim());
  };
  return (
    <Dialog title="This service asks for a token" onClose={() => (needsToken.value = false)}>
      <form onSubmit={submit}>
        <p>
          Whoever runs it makes one with <code>finetuner token create NAME --scope admin</code>. It is kept until
          this tab is closed.
        </p>
        <label>
          Token
          <input type="password" autocomplete="off" autofocus value={value} onInput={(e) => setValue(e.currentTarget.value)} />
        </label>
        <div class="actions">
          <button type="submit" class="primary" disabled={!value.trim()}>Go on</button>
        </div>
      </form>
    </Dialog>
  );
}

render(<Page />, document.getElementById("page")!);
