import { createRequire } from "node:module";

const requireAsOsls = createRequire(createRequire(import.meta.url).resolve("osls/package.json"));

/** A package that osls brings: AWS's own SDK among them, which is not ours to install. */
export function packageOfOsls(name: string): unknown {
  return requireAsOsls(name);
}
