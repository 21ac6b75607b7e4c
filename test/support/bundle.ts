import { fileURLToPath } from "node:url";
import { build } from "esbuild";

/** Bundles a Worker of test/e2e/workers, as wrangler would. */
export async function bundleWorker(file: string): Promise<string> {
  const { outputFiles } = await build({
    entryPoints: [fileURLToPath(new URL(`../e2e/workers/${file}`, import.meta.url))],
    bundle: true,
    format: "esm",
    platform: "browser",
    conditions: ["workerd", "worker", "browser"],
    write: false,
    logLevel: "warning",
  });
  return outputFiles[0]?.text ?? "";
}
