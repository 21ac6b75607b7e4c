import { fileURLToPath } from "node:url";
import { defineConfig } from "vitest/config";
import { BaseSequencer, type TestSpecification } from "vitest/node";

const src = (path: string) => fileURLToPath(new URL(`src/${path}`, import.meta.url));

/**
 * Long files first, the longest of them before the others: a fresh checkout does not know yet which these are. Those that
 * keep the processor busy (crash-points, crowd, exactly-once, bench) are not all at the same time.
 */
const longest = [
  "chaos/crash-points",
  "contract/newest",
  "contract/",
  "e2e/tour",
  "chaos/crowd",
  "e2e/exactly-once",
  "consume/p",
  "consume/a",
  "consume/",
  "bench",
  "schedule/",
];

const include = ["test/**/*.test.ts"];
const typecheck = { enabled: true, include: ["test/**/*.test-d.ts"] };

/** What is set before anything is loaded. */
const alone = ["test/e2e/connecting.test.ts"];

class LongestFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const rank = ({ moduleId }: TestSpecification) => {
      const at = longest.findIndex((name) => moduleId.includes(`/test/${name}`));
      return at < 0 ? longest.length : at;
    };
    return (await super.sort(files)).toSorted((a, b) => rank(a) - rank(b));
  }
}

export default defineConfig({
  resolve: {
    alias: [
      { find: /^sortie$/, replacement: src("index.ts") },
      { find: /^sortie\/(cloudflare|aws-lambda|fetch|node)$/, replacement: src("adapters/$1.ts") },
      { find: /^sortie\/cloudflare\/hub$/, replacement: src("adapters/hub.ts") },
      { find: "cloudflare:workers", replacement: src("../test/support/cloudflare-workers.ts") },
      { find: /^sortie\/testing$/, replacement: src("testing/index.ts") },
    ],
  },
  test: {
    projects: [
      // one process after the other's files, which saves a fifth of the processor's time
      { extends: true, test: { name: "together", include, exclude: alone, isolate: false } },
      { extends: true, test: { name: "alone", include: alone, typecheck } },
    ],
    setupFiles: ["test/support/put-back.ts"],
    maxWorkers: 4, // most of a test is waiting
    maxConcurrency: 3, // each has a server of its own
    sequence: { sequencer: LongestFirst },
    expect: { poll: { timeout: 20_000 } },
    retry: 1, // a busy machine may part what leaves together, or be late; the report tells of each. Never for test/chaos
    testTimeout: 60_000,
    hookTimeout: 60_000,
    reporters: ["default", "json"],
    outputFile: { json: ".cache/test-results.json" },
  },
});
