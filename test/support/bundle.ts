import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { type BuildOptions, build } from "esbuild";

/** Bundles a Worker of test/e2e/workers, as wrangler would. */
export function bundleWorker(file: string): Promise<string> {
  const conditions = ["workerd", "worker", "browser"];
  return bundle(`e2e/workers/${file}`, { platform: "browser", conditions, external: ["cloudflare:workers"] });
}

/** Bundles a Lambda function of test/e2e/functions into `folder`, as the sample is. */
export async function bundleFunction(file: string, folder: string): Promise<void> {
  const outfile = join(folder, file.replace(/\.ts$/, ".cjs"));
  await bundle(`e2e/functions/${file}`, { platform: "node", format: "cjs", outfile, write: true });
}

const programs = new Map<string, Promise<unknown>>();

/**
 * Bundles a program of test/chaos, which is started again and again: it takes a quarter of the processor time that its many
 * files do. Answers the file, in `folder`.
 */
export async function bundleProgram(file: string, folder: string): Promise<string> {
  const outfile = join(folder, `${file}.mjs`);
  const requires = 'import { createRequire } from "node:module"; const require = createRequire(import.meta.url);';
  const made =
    programs.get(outfile) ??
    bundle(`chaos/${file}`, { platform: "node", banner: { js: requires }, outfile, write: true });
  programs.set(outfile, made);
  await made;
  return outfile;
}

async function bundle(file: string, options: BuildOptions): Promise<string> {
  const { outputFiles } = await build({
    entryPoints: [fileURLToPath(new URL(`../${file}`, import.meta.url))],
    bundle: true,
    format: "esm",
    write: false,
    logLevel: "warning",
    ...options,
  });
  return outputFiles?.[0]?.text ?? "";
}
