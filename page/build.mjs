// Builds the page into ../finetuner/page: index.html and assets whose names carry a hash of their content.
import { build, context } from "esbuild";
import { mkdir, readFile, readdir, rm, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = fileURLToPath(new URL(".", import.meta.url));
const target = process.env.PAGE_OUT ?? join(here, "../finetuner/page");

const writeIndex = {
  name: "write-index",
  setup(build) {
    build.onEnd(async (result) => {
      if (result.errors.length) return;
      const names = Object.keys(result.metafile.outputs).map((path) => basename(path));
      const find = (pattern) => names.find((name) => pattern.test(name));
      const html = await readFile(join(here, "src/index.html"), "utf8");
      const page = html
        .replace("%SCRIPT%", `/assets/${find(/^main-.*\.js$/)}`)
        .replace("%STYLE%", `/assets/${find(/^main-.*\.css$/)}`);
      await writeFile(join(target, "index.html"), page);
      // What an earlier build left.
      for (const name of await readdir(join(target, "assets"))) {
        if (!names.includes(name)) await rm(join(target, "assets", name));
      }
    });
  },
};

const options = {
  absWorkingDir: here,
  entryPoints: { main: "src/main.tsx" },
  entryNames: "[name]-[hash]",
  chunkNames: "[name]-[hash]",
  bundle: true,
  splitting: true,
  format: "esm",
  target: "es2022",
  minify: true,
  metafile: true,
  legalComments: "inline",
  outdir: join(target, "assets"),
  logLevel: "info",
  plugins: [writeIndex],
};

await mkdir(join(target, "assets"), { recursive: true });
if (process.argv.includes("--watch")) await (await context(options)).watch();
else await build(options);
