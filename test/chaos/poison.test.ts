import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { startNatsServer } from "../../src/testing/nats-server.ts";
import {
  deadLettersOf,
  ended,
  type Observed,
  observe,
  prepare,
  resultsFor,
  resultsOf,
  startsIn,
  startVictim,
  untilQuiet,
} from "./harness.ts";
import { messages } from "./scenario.ts";

const folder = mkdtempSync(join(tmpdir(), "sortie-poison-"));
let observed: Observed;

beforeAll(async () => {
  observed = await observe(await startNatsServer());
});
afterAll(async () => {
  await observed.tcp.close();
  await observed.server.stop();
  rmSync(folder, { recursive: true });
});

describe("a message that kills its function", { retry: 0 }, () => {
  it.concurrent.each([
    ["by leaving", "exit", [], 1],
    ["by leaving, in a batch", "exit", [], 4],
    ["by a loop that never ends", "loop", [], 1],
    ["by its memory", "memory", ["--max-old-space-size=64"], 1],
  ] as const)(
    "%s, is dead-lettered alone, and its neighbours are handled",
    { timeout: 90_000 },
    async (_, by, flags, together) => {
      const n = 7;
      const prepared = await prepare(observed, `poison_${by}_${together}`, folder, { together });
      const { server, run, log } = prepared;
      await untilQuiet(prepared, async () => {
        const budgetMs = 6_000; // half of it is time enough to run alone, on a busy machine as well
        const before = startsIn(prepared).get(n)?.length;
        const victim = startVictim(prepared, { url: server.url, run, log, budgetMs, together, poison: { n, by } }, [
          ...flags,
        ]);
        const end = ended(victim);
        if (by === "loop") {
          const gone = () => victim.exitCode !== null;
          await vi.waitUntil(() => gone() || startsIn(prepared).get(n)?.length !== before, { timeout: 20_000 });
          victim.kill("SIGKILL"); // as a platform does
        }
        await end;
      });
      expect(await deadLettersOf(prepared)).toMatchObject([{ n, reason: "function-died", attempts: 3, unheard: 3 }]);
      const others = messages.filter((other) => other !== n);
      expect(await resultsOf(prepared)).toEqual(resultsFor(others));
      // the first death cannot be told from a neighbour's: it is not charged
      expect(startsIn(prepared).get(n)).toEqual([1, 1, 2, 3]);
      for (const other of others)
        expect(
          startsIn(prepared)
            .get(other)
            ?.every((attempt) => attempt === 1),
        ).toBe(true);
    },
  );
});
