import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";
import type { Bench } from "./report.ts";

const goal = 12 * 1024;

/** What a Worker weighs: whose its bytes are, which parts of Sortie's, and what starting it takes. */
export async function bundle({ report }: Bench): Promise<void> {
  report.section("Bundle", "the sample Worker, minified by esbuild and compressed by gzip");
  const sample = await bundled("../functions/worker.ts");
  const whole = gzipSync(sample.text).length;
  const share = whole / sample.text.length;
  const ours = gzipSync((await bundled("../functions/worker.ts", { alone: true })).text).length;
  const withHub = gzipSync((await bundled("hub/worker.ts", { alone: true })).text).length;
  const withoutHub = gzipSync((await bundled("workerd/sortie.ts", { alone: true })).text).length;
  const rows = (of: (path: string) => string | undefined) => {
    const sums = new Map<string, number>();
    for (const [path, bytes] of sample.inputs) {
      const name = of(path);
      if (name) sums.set(name, (sums.get(name) ?? 0) + bytes);
    }
    return [...sums]
      .toSorted(([, a], [, b]) => b - a)
      .map(([name, bytes]) => [name, kilobytes(bytes), kilobytes(bytes * share)]);
  };
  report.table(
    ["", "minified", "its share of the gzip"],
    [...rows(ownerOf), ["all", kilobytes(sample.text.length), kilobytes(whole)]],
  );
  report.table(["of Sortie's", "minified", "its share of the gzip"], rows(partOf));
  report.note(
    `A hub adds ${kilobytes(withHub - withoutHub)} of gzip to a Worker that has one, and nothing to the others.`,
  );
  const activeMs = await startupMs();
  report.note(
    activeMs === undefined
      ? "What starting takes was not measured: `wrangler check startup` failed."
      : `Starting it takes ${activeMs.toFixed(1)} ms of processor time (wrangler check startup); Cloudflare allows a second.`,
  );
  report.target("Sortie adds at most 12 KB to the NATS client, hono and zod", kilobytes(ours), ours <= goal);
}

/** `alone`: without what it is bundled with. */
async function bundled(file: string, { alone = false } = {}) {
  const { outputFiles, metafile } = await build({
    entryPoints: [fileURLToPath(new URL(file, import.meta.url))],
    bundle: true,
    minify: true,
    format: "esm",
    platform: "browser",
    conditions: ["workerd", "worker", "browser"],
    external: ["cloudflare:workers", ...(alone ? ["@nats-io/*", "hono", "croner", "zod"] : [])],
    write: false,
    metafile: true,
    logLevel: "warning",
  });
  const [output] = Object.values(metafile?.outputs ?? {});
  const inputs = Object.entries(output?.inputs ?? {}).map(
    ([path, { bytesInOutput }]) => [path, bytesInOutput] as const,
  );
  return { text: outputFiles?.[0]?.text ?? "", inputs };
}

function ownerOf(path: string): string {
  const [, name] = /node_modules\/((?:@[^/]+\/)?[^/]+)/.exec(path) ?? [];
  if (name) return name;
  return /(^|\/)functions\//.test(path) ? "the sample itself" : "Sortie";
}

/** A folder of Sortie's. */
function partOf(path: string): string | undefined {
  return /^(?:\.\.\/)?(?:dist|src)\/([^/]+)/.exec(path)?.[1]?.replace(/\.[jt]s$/, "");
}

async function startupMs(): Promise<number | undefined> {
  const folder = await mkdtemp(join(tmpdir(), "sortie-startup-"));
  const outfile = join(folder, "startup.cpuprofile");
  try {
    const env = { ...process.env, CI: "1", WRANGLER_SEND_METRICS: "false" };
    const cwd = fileURLToPath(new URL("..", import.meta.url));
    await promisify(execFile)("wrangler", ["check", "startup", "--outfile", outfile], { env, cwd });
    const { nodes, samples, timeDeltas } = JSON.parse(await readFile(outfile, "utf8")) as {
      nodes: { id: number; callFrame: { functionName: string } }[];
      samples: number[];
      timeDeltas: number[];
    };
    const isRest = ({ callFrame }: (typeof nodes)[number]) => /^\((idle|program|root)\)$/.test(callFrame.functionName);
    const rest = new Set(nodes.filter(isRest).map(({ id }) => id));
    return samples.reduce((us, node, at) => us + (rest.has(node) ? 0 : (timeDeltas[at] ?? 0)), 0) / 1_000;
  } catch {
    return undefined;
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

function kilobytes(bytes: number): string {
  return `${(bytes / 1024).toFixed(1)} KB`;
}
